"""What a pass's tests show: that it fires in a whole model, that the numbers stay, and why it leaves things alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hoist_scale import HoistScale
from torch import nn

import gr_compile


class Scorer(nn.Module):
    """Scores of a catalogue, divided by a temperature: what the pass is for."""

    def __init__(self, dim: int = 8, items: int = 100, bias: bool = False) -> None:
        super().__init__()
        self.head = nn.Linear(dim, items, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.head(torch.tanh(x))
        return F.log_softmax(logits / 0.05, dim=-1)


def compiled(model, *inputs, passes=("canonicalize", HoistScale())):
    """(the pass's record, the output): compiled with the pass alone, every stage compared with the one before."""
    fast = gr_compile.optimize(model, passes=list(passes), target="eager", verify="numerics")
    output = fast(*inputs)
    record = gr_compile.report(fast)[0].passes[-1]
    return record, output


def test_it_fires_and_the_numbers_stay():
    model, x = Scorer(), torch.randn(3, 5, 8, requires_grad=True)
    record, output = compiled(model, x)
    assert record.changed and [match.what for match in record.matches] == ["scale of linear"]
    assert record.matches[0].where.code == "return F.log_softmax(logits / 0.05, dim=-1)"
    torch.testing.assert_close(output, model(x))
    (gradient,) = torch.autograd.grad(output.pow(2).sum(), x)
    (expected,) = torch.autograd.grad(model(x).pow(2).sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_the_scale_stands_in_front_of_the_linear():
    record, _ = compiled(Scorer(), torch.randn(3, 5, 8))
    assert record.operators_after == record.operators_before
    later, _ = compiled(Scorer(), torch.randn(3, 5, 8), passes=["canonicalize", HoistScale(), HoistScale()])
    assert not later.misses


@pytest.mark.parametrize(
    ("model", "reason", "code"),
    [
        (Scorer(bias=True), "the linear adds a bias, which is scaled, too", "logits = self.head(torch.tanh(x))"),
        (Scorer(items=12), "8 features become 12: less than min-widening", "logits = self.head(torch.tanh(x))"),
    ],
)
def test_it_says_why_not(model, reason, code):
    record, _ = compiled(model, torch.randn(3, 5, 8))
    (miss,) = record.misses
    assert not record.changed and miss.reason == reason and miss.where.code == code


def test_a_result_that_is_read_elsewhere():
    def scores(x, weight):
        logits = F.linear(x, weight)
        scaled = logits / 0.05
        return scaled.sum() + logits.amax()

    record, _ = compiled(scores, torch.randn(3, 8), torch.randn(100, 8))
    (miss,) = record.misses
    assert miss.reason == "the linear's unscaled result is read, too"
    assert miss.where.code == "return scaled.sum() + logits.amax()"


def test_options():
    record, _ = compiled(Scorer(items=12), torch.randn(3, 5, 8), passes=["canonicalize", HoistScale(min_widening=1.5)])
    assert record.changed and record.text == "hoist-scale{min-widening=1.5}"
    with pytest.raises(ValueError, match="at least 1"):
        HoistScale(min_widening=0.5)
