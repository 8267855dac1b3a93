"""What the comparison with eager execution lets through, and what it does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from fuzzing import check as checking
from fuzzing.check import Results, check
from torch import Tensor, nn

BATCH = {
    "B": 3, "N": 5, "D": 4, "M": 3, "fill": "half", "side": "right", "targets": "same", "mask_dtype": "bool",
    "float_grad": False, "junk": "none", "seed": 11,
}  # fmt: skip


class Cancels(nn.Module):
    """A norm sums to 0 over its own features: the first output is the rounding of its terms, the second is not."""

    def __init__(self) -> None:
        super().__init__()
        self.item, self.norm = nn.Embedding(20, 4), nn.LayerNorm(4)

    def forward(self, ids: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        x = self.norm(self.item(ids))
        return x.sum(), x


class Washes(nn.Module):
    """0 * NaN, which packing takes for 0, made a number again."""

    def forward(self, ids: Tensor, *rest: Tensor) -> tuple[Tensor]:
        features = rest[5]
        return (torch.nan_to_num((features * (ids != 0)[..., None]).log_softmax(1), 5.0),)


@pytest.mark.parametrize(("mode", "least", "most"), [("autocast", 1e-4, 0.5), ("train", 1e-17, 1e-13)])
def test_what_cancels_is_as_inexact_as_its_terms(mode: str, least: float, most: float) -> None:
    torch.manual_seed(0)
    dtype = torch.float32 if mode == "autocast" else torch.float64
    model = Cancels().to(dtype)
    wanted = checking._run_watched(model, BATCH, mode, dtype)
    (cancelled, plain), _ = checking._rounding(model, BATCH, mode, dtype, wanted)
    assert least < cancelled < most
    assert 0 < plain < most


@pytest.mark.parametrize(
    ("off", "caught"), [(lambda x: x, False), (lambda x: x * (1 + 1e-12), False), (lambda x: x + 1e-6, True)]
)
def test_a_wrong_output_is_caught(off: Callable[[Tensor], Tensor], caught: bool) -> None:
    torch.manual_seed(0)
    model = Cancels().double()
    wanted = checking._run_watched(model, BATCH, "train", torch.float64)
    rounding = checking._rounding(model, BATCH, "train", torch.float64, wanted)
    for number in range(2):
        outputs = [off(x) if k == number else x for k, x in enumerate(wanted.outputs)]
        failure = checking._difference(dataclasses.replace(wanted, outputs=outputs), wanted, "train", rounding)
        assert (failure is not None) == caught
    gradients = [off(g) for g in wanted.gradients if g is not None]
    failure = checking._difference(Results(wanted.outputs, list(gradients)), wanted, "train", rounding)
    assert (failure is not None) == caught


def test_nothing_is_said_of_numbers_made_of_nan() -> None:
    """Nor is a model called wrong for them."""
    batch = {**BATCH, "junk": "nan"}
    assert checking._run_watched(Washes(), batch, "train", torch.float64).washed
    assert not checking._run_watched(Washes(), BATCH, "train", torch.float64).washed
    assert check(Washes, [batch], dynamo=False).failure is None
