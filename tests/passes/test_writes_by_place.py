"""In-place writes to token values: which of them are packed, and which mix places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from padded_models import data
from pass_bench import PACK, PassBench
from torch import Tensor, nn

BATCHES = [data([3, 6, 1], 6), data([5, 1, 4, 2], 7, seed=1)]


class Model(nn.Module):
    """A feed-forward network, a write to what it makes, a loss of the targets that are not 0."""

    def __init__(self, write: Callable[..., Any]) -> None:
        super().__init__()
        self.items, self.feed, self.out, self.write = nn.Embedding(21, 8), nn.Linear(8, 16), nn.Linear(16, 8), write

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.out(F.gelu(self.feed(self.items(ids))))
        self.write(self, x, ids)
        return F.cross_entropy((x @ self.items.weight.T).flatten(0, 1), targets.flatten(), ignore_index=0)


def bench(write: Callable[..., Any]) -> PassBench:
    torch.manual_seed(0)
    return PassBench(Model(write).double(), [(d.ids, d.targets) for d in BATCHES], passes=f"canonicalize,{PACK}")


def swapped_features(m: Model, x: Tensor, ids: Tensor) -> None:
    x[:, :, [0, 1]] = x[:, :, [1, 0]]


def a_number_at_a_mask(m: Model, x: Tensor, ids: Tensor) -> None:
    x[ids % 3 == 0] = 0.5


def learned_feature(m: Model, x: Tensor, ids: Tensor) -> None:
    x[..., [2]] = m.items(ids)[..., [3]] * 2


def shifted(m: Model, x: Tensor, ids: Tensor) -> None:
    x[:, 1:] = x[:, :-1].clone()


def a_row_at_a_mask(m: Model, x: Tensor, ids: Tensor) -> None:
    x[ids % 3 == 0] = m.out.bias


def first_places(m: Model, x: Tensor, ids: Tensor) -> None:
    x[:, [0, 1]] = x[:, [1, 0]]


@pytest.mark.parametrize("write", [swapped_features, a_number_at_a_mask, learned_feature], ids=lambda w: w.__name__)
def test_a_write_of_each_place_is_packed(write: Callable[..., Any]) -> None:
    made = bench(write).assert_fires(PACK).assert_parity()
    assert not [miss for miss in made.misses(PACK) if "every place" in miss.reason]


@pytest.mark.parametrize(
    ("write", "line"),
    [(shifted, "x[:, 1:] ="), (a_row_at_a_mask, "= m.out.bias"), (first_places, "x[:, [0, 1]] =")],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_write_across_places_or_of_rows_at_a_mask_stays_dense_and_right(write: Callable[..., Any], line: str) -> None:
    bench(write).assert_parity().assert_misses(PACK, "may read every place", line)
