"""Shared logits in plain torch, token by token: what share-logits must be equal to."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from loss_models import Loss, Recommender, positive
from torch import Tensor

Made = tuple[Tensor, Tensor, Tensor | None]


def drawn_seed(seed: int) -> Tensor:
    """The first number that a graph's seed is drawn as after torch.manual_seed(seed)."""
    torch.manual_seed(seed)
    return torch.randint(0, 2**62, [], dtype=torch.int64)


def shared(
    z: Tensor, ids: Tensor, expansion: int, seed: int, counts: Tensor | None = None, group: Tensor | None = None
) -> Tensor:
    """[T, 1 + expansion R] of logits and their ids [T, 1 + R]; tokens of no `counts` lend none."""
    tokens = z.shape[0]
    others = torch.ops.gr.other_tokens(drawn_seed(seed), tokens, expansion - 1)
    rows = []
    for token in range(tokens):
        row = [z[token]]
        for lender in others[:, token].tolist():
            lost = ids[lender, 1:] == ids[token, 0]
            idle = lender == token or (counts is not None and not counts[lender])
            if idle or (group is not None and group[lender] == group[token]):
                lost = torch.ones_like(lost)
            row.append(z[lender, 1:].masked_fill(lost, -torch.inf))
        rows.append(torch.cat(row))
    return torch.stack(rows) if rows else torch.cat([z, *[z[:, 1:]] * (expansion - 1)], 1)


def _plain(m: Recommender, x: Tensor, mask: Tensor, t: Tensor, negatives: Tensor, _: Tensor) -> Made:
    logits = torch.cat([positive(m, x, t), torch.einsum("bnd,bnrd->bnr", x, m.items(negatives))], -1)
    return logits[mask], torch.cat([t[..., None], negatives], -1)[mask], None


def _cosine(m: Recommender, x: Tensor, mask: Tensor, t: Tensor, negatives: Tensor, _: Tensor) -> Made:
    ids = torch.cat([t[..., None], negatives], -1)[mask]
    rows = F.normalize(m.items(ids), dim=-1, eps=1e-6)
    return (F.normalize(x[mask], dim=-1, eps=1e-6).unsqueeze(1) * rows).sum(-1) / 0.05, ids, None


def _of_sequences(m: Recommender, x: Tensor, mask: Tensor, t: Tensor, _: Tensor, drawn: Tensor) -> Made:
    sequence = torch.arange(x.shape[0])[:, None].expand_as(t)
    z, ids, _ = _plain(m, x, mask, t, drawn[sequence], drawn)
    return z, ids, sequence[mask]


def _corrected(m: Recommender, x: Tensor, mask: Tensor, t: Tensor, negatives: Tensor, drawn: Tensor) -> Made:
    z, ids, _ = _plain(m, x, mask, t, negatives, drawn)
    own = z[:, 1:] - torch.log((ids[:, 1:] + 1).to(z.dtype))
    return torch.cat([z[:, :1], own.masked_fill(ids[:, 1:] == ids[:, :1], -torch.inf)], 1), ids, None


MADE: dict[str, Callable[..., Made]] = {
    "sampled softmax": _plain, "cosine": _cosine, "by sequence": _of_sequences,
    "log-Q and accidental hits": _corrected, "of valid tokens": _plain,
}  # fmt: skip


def reference(name: str, expansion: int, seed: int) -> Loss:
    """The loss of `loss_models.SAMPLED[name]`, with shared logits."""

    def loss(m: Recommender, x: Tensor, mask: Tensor, t: Tensor, negatives: Tensor, drawn: Tensor) -> Tensor:
        z, ids, group = MADE[name](m, x, mask, t, negatives, drawn)
        total = -F.log_softmax(shared(z, ids, expansion, seed, group=group), -1)[:, 0].sum()
        return total if name == "of valid tokens" else total / mask.sum().clamp(min=1)

    return loss
