"""What an idiom is: a small padded model in plain PyTorch that has one part written in one way, and what is expected.

`Small(body)` holds the modules that bodies share; a body `(m, d) -> output` is the model. Nothing here knows of gr_compile.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ITEMS, LONGEST, HEADS, DIM, FEATURES = 20, 16, 2, 8, 3


@dataclass(frozen=True)
class Inputs:
    """One batch: ids, mask, times, targets and negatives are [B, N], lengths [B], features [B, N, FEATURES].

    Ids, targets and negatives are 0 at padded places.
    """

    ids: Tensor
    lengths: Tensor
    mask: Tensor
    times: Tensor
    targets: Tensor
    negatives: Tensor
    features: Tensor

    def args(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, field.name) for field in fields(self))

    @property
    def places(self) -> Tensor:
        """[N]: 0, 1, ..."""
        return torch.arange(self.ids.shape[1])

    @property
    def causal(self) -> Tensor:
        """bool [N, N]."""
        return self.places[:, None] >= self.places

    @property
    def seen(self) -> Tensor:
        """bool [B, 1, N, N]: valid keys, not behind their query."""
        return (self.causal & self.mask[:, None])[:, None]


Body = Callable[["Small", Inputs], Tensor]
Weigh = Callable[[Tensor, Inputs], Tensor]


class Small(nn.Module):
    """Items with features, one layer of attention, a tied head: an idiom's body says how they are put together."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body
        self.items, self.positions = nn.Embedding(ITEMS + 1, DIM), nn.Embedding(LONGEST, DIM)
        self.feature = nn.Linear(FEATURES, DIM)
        self.norm, self.qkv, self.out = nn.LayerNorm(DIM), nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.feed = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))
        self.score, self.bias = nn.Linear(DIM, 1), nn.Parameter(torch.randn(2 * LONGEST))
        self.register_buffer("triangle", torch.ones(LONGEST, LONGEST, dtype=torch.bool).tril())

    def forward(
        self, ids: Tensor, lengths: Tensor, mask: Tensor, times: Tensor, targets: Tensor, negatives: Tensor,
        features: Tensor,
    ) -> tuple[Tensor]:  # fmt: skip
        return (self.body(self, Inputs(ids, lengths, mask, times, targets, negatives, features)),)

    def tokens(self, d: Inputs) -> Tensor:
        """[B, N, DIM]."""
        return self.items(d.ids) + self.feature(d.features)

    def states(self, d: Inputs) -> Tensor:
        """Tokens through the feed-forward network."""
        x = self.tokens(d)
        return x + self.feed(self.norm(x))

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values [B, HEADS, N, DIM / HEADS]."""
        return tuple(t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(self.norm(x)).chunk(3, -1))

    def attend(self, x: Tensor, weigh: Callable[[Tensor], Tensor]) -> Tensor:
        """x + attention; `weigh` makes weights of scores [B, HEADS, N, N]."""
        q, k, v = self.heads(x)
        weights = weigh(q @ k.transpose(-1, -2) / (DIM // HEADS) ** 0.5)
        return x + self.out((weights @ v).transpose(1, 2).flatten(2))

    def softmax_attention(self, x: Tensor, d: Inputs) -> Tensor:
        """Causal attention over valid keys."""
        return self.attend(x, lambda scores: torch.softmax(scores.masked_fill(~d.seen, -1e9), -1))

    def loss(self, x: Tensor, d: Inputs) -> Tensor:
        """Cross entropy with the targets that are not 0."""
        logits = x @ self.items.weight.T
        return F.cross_entropy(logits.flatten(0, 1), d.targets.flatten(), ignore_index=0, reduction="sum")


def weighing(weigh: Weigh) -> Body:
    """The model whose attention takes its weights from (scores, inputs)."""
    return lambda m, d: m.loss(m.attend(m.tokens(d), lambda scores: weigh(scores, d)), d)


@dataclass(frozen=True)
class Idiom:
    """A model and what is expected of it.

    Attributes:
        body: the model.
        attentions: how many jagged attentions it becomes.
        dense: token-wise or pairwise operators that stay over padded places, and rightly so.
        side: where its padding is, "right" or "left"; "" for both.
        reads: on which side the model's own semantics read padded places: "left", "right" or "both".
        misses: (part of the reason, part of the line) of what must be named as staying dense.
        breaks: part of the line at which torch.compile leaves the model to Python.
        dynamo: needs Dynamo: a region (checkpoint, autocast) that it alone records.
        dtype: of parameters and features.
        tolerance: relative, of outputs and gradients.
    """

    body: Body
    attentions: int = 0
    dense: frozenset[str] = frozenset()
    side: str = ""
    reads: str = ""
    misses: tuple[tuple[str, str], ...] = ()
    breaks: str = ""
    dynamo: bool = False
    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-9
