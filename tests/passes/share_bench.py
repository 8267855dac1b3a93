"""Models for share-logits: the padded recommender of `loss_models`, and rows of packed tokens with a loss of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from loss_models import Recommender, batch
from pass_bench import PassBench
from torch import Tensor, nn

SHARE, LOGITS = "share-logits", "fuse-sampled-logits"
LENGTHS, PLACES, R = [7, 3, 0, 1], 7, 5


def passes(expansion: int, start: str = "default") -> str:
    return f"{start},{SHARE}{{expansion={expansion}}}"


def bench(loss: Any, expansion: int = 3, batches: Any = None, **options: Any) -> PassBench:
    given = [batch(LENGTHS, PLACES, R)] if batches is None else batches
    return PassBench(Recommender(loss).double(), given, passes=passes(expansion), **options)


# --------------------------------------------------------------------------------------- packed tokens
D, V, T = 8, 50, 9


class Rows(nn.Module):
    """`body(m, x, ids, targets, weights)`: x [T, D], ids [T, R], targets [T], weights [T]."""

    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items, self.others = nn.Embedding(V, D), nn.Embedding(V, D)
        self.scale, self.body = nn.Parameter(torch.tensor(0.7)), body

    def forward(self, x: Tensor, ids: Tensor, targets: Tensor, weights: Tensor) -> Any:
        return self.body(self, x, ids, targets, weights)


def operands(items: int = V) -> tuple[Tensor, ...]:
    """Few items are hit often; two of three tokens have a weight."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(T, D, generator=generator, dtype=torch.float64).requires_grad_()
    ids, targets = (torch.randint(0, items, shape, generator=generator) for shape in ((T, R), (T,)))
    return x, ids, targets, (torch.arange(T) % 3).double()


def rows(body: Callable[..., Any], expansion: int = 3, items: int = V, start: str = f"canonicalize,{LOGITS}") -> PassBench:
    return PassBench(Rows(body).double(), [operands(items)], passes=passes(expansion, start))


def negatives(m: Rows, x: Tensor, ids: Tensor) -> Tensor:
    return torch.einsum("td,trd->tr", x, m.items(ids))


def logits(m: Rows, x: Tensor, i: Tensor, t: Tensor) -> Tensor:
    return torch.cat([(x * m.items(t)).sum(-1, keepdim=True), negatives(m, x, i)], 1)


def zeros(t: Tensor) -> Tensor:
    return torch.zeros_like(t)


def per_token(m: Rows, x: Tensor, i: Tensor, t: Tensor) -> Tensor:
    return -F.log_softmax(logits(m, x, i, t), 1)[:, 0]
