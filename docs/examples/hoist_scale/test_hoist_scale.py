"""What a pass's tests show: it fires in whole models, the numbers stay, and what it leaves alone it names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hoist_scale import HoistScale
from torch import nn

import gr_compile
from gr_compile.model_zoo import HSTU, HSTUConfig

ALONE = ["canonicalize", HoistScale()]
SCALED = ["default,-fuse-sampled-logits", HoistScale()]  # which takes scale and loss into one operator


class Scorer(nn.Module):
    """Scores of a catalogue, divided by a temperature: what the pass is for."""

    def __init__(self, items: int = 100, bias: bool = False) -> None:
        super().__init__()
        self.head = nn.Linear(8, items, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.head(torch.tanh(x))
        return F.log_softmax(logits / 0.05, dim=-1)


def compiled(model, *inputs, passes=ALONE, dump=None):
    """(the pass's record, the output); outputs and gradients are compared after every pass."""
    fast = gr_compile.optimize(model, passes=passes, target="eager", verify="numerics", dump=dump)
    output = fast(*inputs)
    (report,) = gr_compile.report(fast)
    return next(record for record in report.passes if record.name == "hoist-scale"), output


def test_it_fires_and_the_numbers_stay():
    model, x = Scorer().double(), torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    record, output = compiled(model, x)
    assert record.changed and [match.what for match in record.matches] == ["scale of linear"]
    assert record.matches[0].where.code == "return F.log_softmax(logits / 0.05, dim=-1)"
    torch.testing.assert_close(output, model(x))
    (gradient,) = torch.autograd.grad(output.pow(2).sum(), x)
    (expected,) = torch.autograd.grad(model(x).pow(2).sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_the_scale_stands_in_front_of_the_linear(tmp_path):
    compiled(Scorer(), torch.randn(3, 5, 8), dump=str(tmp_path))
    (program,) = tmp_path.rglob("02_hoist-scale.py")
    lines = program.read_text().splitlines()
    scale, linear = (next(k for k, line in enumerate(lines) if name in line) for name in ("div.", "linear."))
    assert scale < linear


def test_it_fires_in_a_whole_model():
    model = HSTU(HSTUConfig(num_items=200, max_seq_len=16, embedding_dim=16, num_layers=1, dropout=0.0))
    ids = torch.randint(1, 200, (4, 16)) * (torch.arange(16) < torch.tensor([16, 3, 9, 1])[:, None])
    stamps = torch.arange(16).expand(4, 16) * 60
    record, loss = compiled(model, ids, stamps, ids.roll(-1, 1), passes=SCALED)
    assert len(record.matches) == 1 and not record.misses
    torch.testing.assert_close(loss, model(ids, stamps, ids.roll(-1, 1)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Scorer(bias=True), "the linear adds a bias, which is scaled, too"),
        (Scorer(items=12), "8 features become 12: less than min-widening"),
    ],
)
def test_it_says_why_not_and_where(model, reason):
    record, _ = compiled(model, torch.randn(3, 5, 8))
    (miss,) = record.misses
    assert not record.changed and miss.reason == reason and miss.hint
    assert miss.where.code == "logits = self.head(torch.tanh(x))"
    assert Path(miss.where.file) == Path(__file__)


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
    passes = ["canonicalize", HoistScale(min_widening=1.5)]
    record, _ = compiled(Scorer(items=12), torch.randn(3, 5, 8), passes=passes)
    assert record.changed and record.text == "hoist-scale{min-widening=1.5}"
    with pytest.raises(ValueError, match="at least 1"):
        HoistScale(min_widening=0.5)
