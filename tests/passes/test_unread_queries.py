"""What attention makes of padded queries that nobody reads: never an inf or nan that reaches a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from padded_models import data
from pass_bench import FUSE, PACK, PassBench
from torch import Tensor, nn

Score = Callable[["Model", Tensor, Tensor], Tensor]
BATCHES = [data([3, 6, 1, 0], 6), data([1, 7, 2, 0, 5], 7, seed=1)]


class Model(nn.Module):
    """`weights` makes the attention's weights [B, N, N] from x [B, N, D] and the keys' mask [B, 1, N]."""

    def __init__(self, weights: Score, scale: float) -> None:
        super().__init__()
        self.items, self.key, self.gate = nn.Embedding(21, 8), nn.Linear(8, 8), nn.Linear(8, 1)
        self.weights, self.scale = weights, scale

    def forward(self, ids: Tensor) -> Tensor:
        valid = ids != 0
        x = self.scale * F.gelu(self.key(self.items(ids)))
        mixed = self.weights(self, x, valid[:, None]) @ x
        return (mixed * valid[..., None]).sum(1)


def finite(x: Tensor, keys: Tensor) -> Tensor:
    return (x @ x.mT).masked_fill(~keys, -1e4)


def threshold(m: Model, x: Tensor, keys: Tensor) -> Tensor:
    score = finite(x, keys)
    return torch.softmax(score.masked_fill(score < score.topk(2, -1)[0][..., -1:], -math.inf), -1)


def finite_threshold(m: Model, x: Tensor, keys: Tensor) -> Tensor:
    score = finite(x, keys)
    return torch.softmax(score.masked_fill(score < m.gate(x), -1e9), -1)


def gated(m: Model, x: Tensor, keys: Tensor) -> Tensor:
    """A learned threshold of each query may mask every key but the first."""
    score = x @ x.mT
    first = torch.arange(x.shape[1]) == 0
    return torch.softmax(torch.where((score > m.gate(x)) & keys | first, score, -math.inf), -1)


def divided(m: Model, x: Tensor, keys: Tensor) -> Tensor:
    weights = F.relu(x @ x.mT) * keys
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-3)


def divided_by_what_may_be_zero(m: Model, x: Tensor, keys: Tensor) -> Tensor:
    weights = F.relu((x * x) @ (x * x + 1e-3).mT) * keys + torch.eye(x.shape[1], dtype=x.dtype)
    return weights / weights.sum(-1, keepdim=True)


def exponential(m: Model, x: Tensor, keys: Tensor) -> Tensor:
    """Without the maximum taken off: scores of made-up queries must not overflow."""
    weights = torch.exp((F.normalize(x, dim=-1) @ x.mT) / 8) * keys
    return weights / (weights.sum(-1, keepdim=True) + 1e-6)


def root(m: Model, x: Tensor, keys: Tensor) -> Tensor:
    return torch.sqrt(F.relu(x @ x.mT) + m.gate(x).exp()) * keys


BLOCKED = [
    (threshold, "aten.where", "score.masked_fill(score < score.topk"),
    (gated, "aten.where", "torch.where((score > m.gate(x)) & keys"),
    (divided_by_what_may_be_zero, "aten.div", "weights / weights.sum(-1, keepdim=True)"),
    (root, "aten.sqrt", "torch.sqrt(F.relu(x @ x.mT)"),
]
TAME = [finite_threshold, divided, exponential]


def bench(weights: Score, scale: float = 1.0) -> PassBench:
    torch.manual_seed(0)
    return PassBench(Model(weights, scale).double(), [(d.ids,) for d in BATCHES])


@pytest.mark.parametrize(("weights", "operator", "line"), BLOCKED, ids=[w.__name__ for w, _, _ in BLOCKED])
def test_what_may_not_be_finite_keeps_its_queries(weights: Score, operator: str, line: str) -> None:
    made = bench(weights).assert_parity()
    found = [m for m in made.misses(PACK) if "may make inf or nan" in m.reason]
    assert any(operator in m.reason and m.where is not None and line in m.where.code for m in found), made.misses(PACK)


@pytest.mark.parametrize("weights", TAME, ids=[w.__name__ for w in TAME])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_what_stays_finite_is_packed(weights: Score, scale: float) -> None:
    made = bench(weights, scale).assert_fires(PACK).assert_parity()
    assert not [m for m in made.misses(PACK) if "may make inf or nan" in m.reason]


def test_scores_are_not_compared_with_their_own_threshold_after_rounding_anew() -> None:
    made = bench(threshold)
    miss = made.assert_misses(FUSE, "of the same products", "score.topk")
    assert "not fused" in miss.reason
    single = PassBench(Model(threshold, 1.0), [(d.ids,) for d in BATCHES])
    single.assert_parity()
