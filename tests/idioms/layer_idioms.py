"""Layers: how a model rearranges, updates in place, recomputes, casts and shares; positions inside attention."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from idiom import DIM, HEADS, Body, Idiom, Inputs, Small
from torch import Tensor
from torch.utils.checkpoint import checkpoint

WIDTH = DIM // HEADS
GROUPS = 1


def softmax(scores: Tensor, d: Inputs) -> Tensor:
    return torch.softmax(scores.masked_fill(~d.seen, torch.finfo(scores.dtype).min), -1)


# ----------------------------------------------------------------------------------------------------- rearrangements
def rearranged(m: Small, d: Inputs) -> Tensor:
    """einops: "b n (s h w) -> s (b h) n w" and back."""
    x = m.tokens(d)
    batch, n, _ = x.shape
    q, k, v = (
        m.qkv(m.norm(x)).reshape(batch, n, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4).reshape(3, batch * HEADS, n, WIDTH)
    )
    scores = torch.einsum("zid,zjd->zij", q, k) * WIDTH**-0.5
    weights = softmax(scores.reshape(batch, HEADS, n, n), d).reshape(batch * HEADS, n, n)
    mixed = torch.einsum("zij,zjd->zid", weights, v)
    mixed = mixed.reshape(batch, HEADS, n, WIDTH).permute(0, 2, 1, 3).reshape(batch, n, DIM)
    return m.loss(x + m.out(mixed), d)


def stacked_in_the_batch(m: Small, d: Inputs) -> Tensor:
    """SASRec's authors: heads are split from the width and concatenated to the batch."""
    x = m.tokens(d)
    q, k, v = (torch.cat(t.split(WIDTH, 2), 0) for t in m.qkv(m.norm(x)).chunk(3, -1))
    seen = d.seen[:, 0].repeat(HEADS, 1, 1)
    weights = torch.softmax((q @ k.mT / math.sqrt(WIDTH)).masked_fill(~seen, -1e9), -1)
    return m.loss(x + m.out(torch.cat((weights @ v).split(x.shape[0], 0), 2)), d)


def flattened_tokens(m: Small, d: Inputs) -> Tensor:
    """The feed-forward network over [B * N, D]."""
    x = m.softmax_attention(m.tokens(d), d)
    flat = m.feed(m.norm(x).reshape(-1, DIM)).view_as(x)
    return m.loss(x + flat, d)


def sequence_first(m: Small, d: Inputs) -> Tensor:
    """[N, B, D] between the layers, as torch's modules had it for long."""
    x = m.tokens(d).transpose(0, 1)
    x = x + m.feed(m.norm(x))
    return m.loss(m.softmax_attention(x.transpose(0, 1), d), d)


# --------------------------------------------------------------------------------------------------- updates in place
def updated_in_place(m: Small, d: Inputs) -> Tensor:
    x = m.tokens(d)
    x *= d.mask.unsqueeze(-1)
    x += m.positions(d.places)
    weights = torch.zeros(d.ids.shape[0], HEADS, d.ids.shape[1], d.ids.shape[1], dtype=x.dtype)
    weights.masked_fill_(~d.seen, -math.inf)
    made = m.attend(x, lambda scores: torch.softmax(weights.add_(scores), -1))
    made[~d.mask] = 0.0
    return m.loss(made, d)


def mask_filled_in_place(m: Small, d: Inputs) -> Tensor:
    n = d.ids.shape[1]
    mask = torch.zeros(n, n, dtype=torch.bool)
    mask[torch.arange(n)[:, None] >= torch.arange(n)] = True
    mask.fill_diagonal_(True)
    return m.loss(m.attend(m.tokens(d), lambda s: torch.softmax(s.masked_fill(~(mask & d.seen), -1e9), -1)), d)


# ---------------------------------------------------------------------------------------------- checkpoints, autocast
def checkpointed(m: Small, d: Inputs) -> Tensor:
    def layer(x: Tensor) -> Tensor:
        x = m.softmax_attention(x, d)
        return x + m.feed(m.norm(x))

    x = m.tokens(d)
    for _ in range(2):
        x = checkpoint(layer, x, use_reentrant=False)
    return m.loss(x, d)


def autocast(m: Small, d: Inputs) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        x = m.attend(m.tokens(d), lambda scores: softmax(scores, d))
        logits = x @ m.items.weight.T
    return F.cross_entropy(logits.float().flatten(0, 1), d.targets.flatten(), ignore_index=0, reduction="sum")


# -------------------------------------------------------------------------------------------------------- shared heads
def grouped(spell: Callable[[Tensor], Tensor]) -> Body:
    """All query heads share one head of keys and values; `spell` repeats it."""

    def body(m: Small, d: Inputs) -> Tensor:
        x = m.tokens(d)
        q, k, v = m.heads(x)
        k, v = spell(k[:, :GROUPS]), spell(v[:, :GROUPS])
        weights = softmax(q @ k.mT / math.sqrt(WIDTH), d)
        return m.loss(x + m.out((weights @ v).transpose(1, 2).flatten(2)), d)

    return body


def by_expand(k: Tensor) -> Tensor:
    batch, groups, n, width = k.shape
    return k[:, :, None].expand(batch, groups, HEADS // groups, n, width).reshape(batch, HEADS, n, width)


def by_repeat_interleave(k: Tensor) -> Tensor:
    return k.repeat_interleave(HEADS // GROUPS, dim=1)


def grouped_by_sdpa(m: Small, d: Inputs) -> Tensor:
    x = m.tokens(d)
    q, k, v = m.heads(x)
    mixed = F.scaled_dot_product_attention(q, k[:, :GROUPS], v[:, :GROUPS], attn_mask=d.seen, enable_gqa=True)
    return m.loss(x + m.out(mixed.transpose(1, 2).flatten(2)), d)


def tied_weights(m: Small, d: Inputs) -> Tensor:
    """One table is the input, the output projection and the bias of the logits."""
    x = m.softmax_attention(m.tokens(d), d)
    logits = F.linear(m.norm(x), m.items.weight, m.items.weight[:, 0])
    return F.cross_entropy(logits.flatten(0, 1), d.targets.flatten(), ignore_index=0, reduction="sum")


# --------------------------------------------------------------------------------------------- positions in attention
def alibi(m: Small, d: Inputs) -> Tensor:
    slopes = 2.0 ** -(1.0 + torch.arange(HEADS))
    bias = (-slopes.view(-1, 1, 1) * (d.places[:, None] - d.places).abs()).unsqueeze(0)
    return m.loss(m.attend(m.tokens(d), lambda scores: softmax(scores + bias.to(scores.dtype), d)), d)


def halves(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


def pairs(x: Tensor) -> Tensor:
    return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)


def rotary(turned: Callable[[Tensor], Tensor], positions: Callable[[Inputs], Tensor]) -> Body:
    """Llama's form (halves) and GPT-J's (pairs)."""

    def body(m: Small, d: Inputs) -> Tensor:
        x = m.tokens(d)
        q, k, v = m.heads(x)
        angle = positions(d)[..., None] * 100.0 ** -(torch.arange(0, WIDTH, 2) / WIDTH)
        if turned is halves:
            angle = torch.cat([angle, angle], -1)
        else:
            angle = angle.repeat_interleave(2, dim=-1)
        cos, sin = (t.to(x.dtype).view(-1, 1, *angle.shape[-2:]) for t in (angle.cos(), angle.sin()))
        q, k = q * cos + turned(q) * sin, k * cos + turned(k) * sin
        mixed = softmax(q @ k.mT / math.sqrt(WIDTH), d) @ v
        return m.loss(x + m.out(mixed.transpose(1, 2).flatten(2)), d)

    return body


def complex_rotary(m: Small, d: Inputs) -> Tensor:
    """Llama's first form: pairs are complex numbers."""
    x = m.tokens(d)
    q, k, v = m.heads(x)
    angle = d.places[:, None] * 100.0 ** -(torch.arange(0, WIDTH, 2) / WIDTH)
    turn = torch.polar(torch.ones_like(angle), angle).to(torch.complex128)
    q, k = (torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (-1, 2))) * turn).flatten(-2) for t in (q, k))
    mixed = softmax(q @ k.mT / math.sqrt(WIDTH), d) @ v
    return m.loss(x + m.out(mixed.transpose(1, 2).flatten(2)), d)


# ------------------------------------------------------------------------------------------------- two raggednesses
def history_and_candidates(m: Small, d: Inputs) -> Tensor:
    """Candidates, a padded list of their own length, attend to the padded history."""
    history, wanted = m.states(d), d.negatives[:, :6] * (torch.arange(6) < d.lengths[:, None] // 2)
    x = m.items(wanted) + m.feed(m.norm(m.items(wanted)))
    scores = torch.einsum("bid,bjd->bij", x, m.out(history)) / math.sqrt(DIM)
    mixed = torch.einsum("bij,bjd->bid", torch.softmax(scores.masked_fill(~d.mask[:, None], -1e9), -1), history)
    return (m.score(torch.relu(x + mixed)).squeeze(-1) * (wanted != 0)).sum()


LAYERS: dict[str, Idiom] = {
    "rearranged as einops does": Idiom(rearranged, attentions=1),
    "heads concatenated to the batch": Idiom(stacked_in_the_batch, attentions=1),
    "feed-forward over flattened tokens": Idiom(flattened_tokens, attentions=1),
    "sequence first": Idiom(sequence_first, attentions=1),
    "in-place updates of fresh tensors": Idiom(updated_in_place, attentions=1),
    "a mask filled in place": Idiom(mask_filled_in_place, attentions=1),
    "checkpointed layers": Idiom(checkpointed, attentions=2),
    "autocast to bfloat16": Idiom(autocast, attentions=1, dynamo=True, dtype=torch.float32, tolerance=2e-2),
    "GQA by expand": Idiom(grouped(by_expand), attentions=1),
    "GQA by repeat_interleave": Idiom(grouped(by_repeat_interleave), attentions=1),
    "GQA by SDPA": Idiom(grouped_by_sdpa, attentions=1),
    "weight tying": Idiom(tied_weights, attentions=1),
    "ALiBi": Idiom(alibi, attentions=1),
    "rotary by halves": Idiom(rotary(halves, lambda d: d.places), attentions=1),
    "rotary by pairs": Idiom(rotary(pairs, lambda d: d.places), attentions=1),
    "rotary at positions of the mask": Idiom(
        rotary(halves, lambda d: (d.mask.long().cumsum(1) - 1).clamp(min=0)), attentions=1
    ),
    "rotary by complex numbers": Idiom(complex_rotary, attentions=1),
    "history and candidates": Idiom(history_and_candidates, attentions=1),
}
