"""A small padded recommender with one part for every way in which people write masks, attention, scores and losses.

Nothing here knows of gr_compile: `Recommender(Parts(...))` is plain PyTorch, and what eager gives is the specification.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ITEMS = 20
LONGEST = 16


@dataclass(frozen=True)
class Data:
    """One batch; every field but `weights` is int64 or bool."""

    ids: Tensor
    lengths: Tensor
    mask: Tensor
    times: Tensor
    targets: Tensor

    def args(self) -> tuple[Tensor, ...]:
        return self.ids, self.lengths, self.mask, self.times, self.targets


def data(
    lengths: list[int], n: int, side: str = "right", seed: int = 0, junk: bool = False, holes: bool = False
) -> Data:
    """Random ids in 1..ITEMS, 0 at padded places (`junk`: any id there); targets are 0 at padded places.

    `lengths` may be above n: the sequence is then full.
    """
    generator = torch.Generator().manual_seed(seed)
    count, place = len(lengths), torch.arange(n)
    given = torch.tensor(lengths, dtype=torch.int64)
    mask = place < given[:, None] if side == "right" else place >= n - given[:, None]
    if holes:
        mask = mask & (torch.rand(count, n, generator=generator) < 0.6)
    ids = torch.randint(1, ITEMS + 1, (count, n), generator=generator)
    targets = torch.randint(1, ITEMS + 1, (count, n), generator=generator) * mask
    times = torch.randint(0, 500, (count, n), generator=generator).cumsum(1)
    return Data(ids if junk else ids * mask, given, mask, times, targets)


@dataclass(frozen=True)
class Parts:
    """Which spelling of each part.

    Attributes:
        valid: where the mask comes from; see `Recommender.valid`.
        seen: which keys a query sees, joined by "+": causal, keys, queries, window, strict (not itself), none.
        masking: how the mask reaches the scores.
        spelling: of the contractions.
        activation: silu or softmax.
        bias: of the scores.
        readout: outputs or loss; see readouts.py.
    """

    valid: str = "ids"
    seen: str = "causal+keys"
    masking: str = "where"
    spelling: str = "einsum"
    activation: str = "softmax"
    bias: str = "none"
    readout: str = "cross_entropy"
    layers: int = 1
    heads: int = 2
    dim: int = 8
    dropout: float = 0.0
    zero_input: bool = False
    extra: tuple[str, ...] = field(default=())

    def but(self, **changed: object) -> Parts:
        return replace(self, **changed)  # type: ignore[arg-type]


class Recommender(nn.Module):
    """Embedding, position embedding, layers of attention and feed-forward, a read-out."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts
        dim = parts.dim
        self.items = nn.Embedding(ITEMS + 1, dim)
        self.positions = nn.Embedding(LONGEST, dim)
        self.layers = nn.ModuleList([Layer(parts) for _ in range(parts.layers)])
        self.norm = nn.LayerNorm(dim)

    def valid(self, ids: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
        place = torch.arange(ids.shape[1], device=ids.device)
        if self.parts.valid == "ids":
            return ids != 0
        if self.parts.valid == "ids greater":
            return ids > 0
        if self.parts.valid == "lengths":
            return place[None, :] < lengths[:, None]
        if self.parts.valid == "left lengths":
            return place[None, :] >= ids.shape[1] - lengths[:, None]
        if self.parts.valid == "count":
            return place < (ids != 0).sum(1, keepdim=True)
        if self.parts.valid == "float":
            return (ids != 0).to(self.norm.weight.dtype).bool()
        if self.parts.valid == "all":
            return torch.ones_like(ids, dtype=torch.bool)
        return mask

    def forward(self, ids: Tensor, lengths: Tensor, mask: Tensor, times: Tensor, targets: Tensor) -> object:
        valid = self.valid(ids, lengths, mask)
        n = ids.shape[1]
        x = self.items(ids) + self.positions(torch.arange(n, device=ids.device))
        if self.parts.zero_input:
            x = x * valid.unsqueeze(-1)
        for layer in self.layers:
            x = layer(x, valid, times)
        x = self.norm(x)
        from readouts import READOUTS

        return READOUTS[self.parts.readout](self, x, valid, lengths, ids, targets)


class Layer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(x)."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.parts = parts
        dim = parts.dim
        self.norm = nn.LayerNorm(dim)
        self.query, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        width = dim // parts.heads * (1 if parts.spelling == "sdpa gqa" else parts.heads)
        self.key, self.value = nn.Linear(dim, width), nn.Linear(dim, width)
        self.feed = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.position_bias = nn.Parameter(torch.randn(2 * LONGEST - 1) * 0.5)
        self.time_bias = nn.Parameter(torch.randn(9) * 0.5)

    def forward(self, x: Tensor, valid: Tensor, times: Tensor) -> Tensor:
        x = x + F.dropout(self.out(self.attend(self.norm(x), valid, times)), self.parts.dropout, self.training)
        return x + self.feed(x)

    def seen(self, valid: Tensor) -> Tensor | None:
        """bool [B, N, N] (or [1, N, N]): which keys each query sees."""
        n = valid.shape[1]
        place = torch.arange(n, device=valid.device)
        distance = place[:, None] - place[None, :]
        found: Tensor | None = None
        table = {
            "causal": lambda: (torch.ones(n, n, dtype=torch.bool, device=valid.device).tril())[None],
            "keys": lambda: valid[:, None, :],
            "queries": lambda: valid[:, :, None],
            "window": lambda: ((distance <= 2) & (distance >= -1))[None],
            "strict": lambda: (distance > 0)[None],
            "prefix": lambda: ((distance >= 0) | (place[None, :] < 2))[None],
        }
        for name in self.parts.seen.split("+"):
            if name in table:
                found = table[name]() if found is None else found & table[name]()
        return found

    def score_bias(self, times: Tensor) -> Tensor | None:
        """[1 or B, 1 or H, N, N]."""
        n = times.shape[1]
        place = torch.arange(n, device=times.device)
        if self.parts.bias == "position":
            return self.position_bias[place[None, :] - place[:, None] + LONGEST - 1][None, None]
        if self.parts.bias == "time":
            apart = (times[:, :, None] - times[:, None, :]).abs().clamp(min=1)
            bucket = (torch.log(apart) / 0.9).long().clamp(0, 8)
            return self.time_bias[bucket][:, None]
        if self.parts.bias == "alibi":
            slope = 2.0 ** -(1.0 + torch.arange(self.parts.heads, device=times.device))
            return (-slope[:, None, None] * (place[:, None] - place[None, :]).abs()).to(self.norm.weight.dtype)[None]
        if self.parts.bias == "literal":
            slope = torch.tensor([0.5, 0.25])[: self.parts.heads]
            return (slope[:, None, None] * (place[:, None] - place[None, :])).to(self.norm.weight.dtype)[None]
        return None

    def attend(self, x: Tensor, valid: Tensor, times: Tensor) -> Tensor:
        from attention_spellings import SPELLINGS

        batch, n, dim = x.shape
        heads = self.parts.heads
        q = self.query(x).view(batch, n, heads, dim // heads)
        k = self.key(x).view(batch, n, -1, dim // heads)
        v = self.value(x).view(batch, n, -1, dim // heads)
        made = SPELLINGS[self.parts.spelling](self, q, k, v, self.seen(valid), self.score_bias(times), valid)
        return made.reshape(batch, n, dim)

    def weights(self, scores: Tensor, seen: Tensor | None) -> Tensor:
        """[B, H, N, N] from scores [B, H, N, N] and seen [B or 1, 1, N, N]."""
        masking, n = self.parts.masking, scores.shape[-1]
        if self.parts.activation == "silu":
            found = F.silu(scores) / n
            return found if seen is None else self._masked_out(found, seen)
        if seen is not None:
            scores = masked(scores, seen, masking)
        found = torch.softmax(scores, -1)
        if self.parts.dropout:
            found = F.dropout(found, self.parts.dropout, self.training)
        return found

    def _masked_out(self, weights: Tensor, seen: Tensor) -> Tensor:
        if self.parts.masking == "where":
            return torch.where(seen, weights, torch.zeros((), dtype=weights.dtype))
        if self.parts.masking == "fill":
            return weights.masked_fill(~seen, 0.0)
        return weights * seen


def masked(scores: Tensor, seen: Tensor, masking: str) -> Tensor:
    """The scores where `seen`, and whatever `masking` puts elsewhere."""
    least = torch.finfo(scores.dtype).min
    if masking == "where":
        return torch.where(seen, scores, torch.full_like(scores, -math.inf))
    if masking == "fill":
        return scores.masked_fill(~seen, -math.inf)
    if masking == "fill min":
        return scores.masked_fill(~seen, least)
    if masking == "add -1e4":
        return scores + (1.0 - seen.to(scores.dtype)) * -1e4
    if masking == "add min":
        return scores + (1.0 - seen.to(scores.dtype)) * least
    return scores + torch.zeros_like(scores).masked_fill(~seen, -math.inf)
