"""canonicalize: one spelling of everything, and not a bit of any value changed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models import WIDTH, Layer, Mlp, Places, Sequences, assert_same_run, batch, graphs, optimize, vectors
from torch.utils.checkpoint import checkpoint

import gr_compile
from gr_compile.backend import Session
from gr_compile.config import Config
from gr_compile.constants import Constants
from gr_compile.editor import GraphEditor
from gr_compile.graph_pass import GraphReport, StageEvent
from gr_compile.optimize import _compiled
from gr_compile.passes.canonicalize import Canonicalize
from gr_compile.pipeline import PassContext, Pipeline, run_pipeline

aten = torch.ops.aten
MASK = torch.arange(4) < 2
WEIGHT = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
BIAS = torch.arange(3.0)


class Watched:
    """A function run with canonicalize only; the final graph is kept."""

    def __init__(self, function, *args) -> None:
        self.fast = optimize(function, passes="canonicalize")
        session: Session = _compiled(self.fast).session
        session.hooks = [*session.hooks, self._keep]
        self.result = self.fast(*args)
        self.record = gr_compile.report(self.fast)[0].passes[0]

    def _keep(self, event: StageEvent) -> None:
        self.graph = event.graph_module

    @property
    def operators(self) -> list[str]:
        return [
            str(n.target).removeprefix("aten.") for n in self.graph.graph.nodes if n.op == "call_function"
        ]


def twice(x):
    return torch.sigmoid(x) * torch.sigmoid(x)


CASES = {
    "masked_fill with an inverted mask": (lambda x: x.masked_fill(~MASK, 0.0), ["where.ScalarOther"]),
    "masked_fill": (lambda x: x.masked_fill(MASK, float("-inf")), ["where.ScalarSelf"]),
    "masked_fill of integers stays": (
        lambda x: x.long().masked_fill(MASK, 1), ["_to_copy.default", "masked_fill.Scalar"],
    ),
    "addmm": (lambda x: torch.addmm(BIAS, x, WEIGHT.t()), ["linear.default"]),
    "addmm of a matrix that is not transposed stays": (
        lambda x: torch.addmm(BIAS[:1].expand(4), x, WEIGHT.t() @ WEIGHT), None,
    ),
    "softmax of differences to the maximum": (lambda x: (x - x.amax(-1, keepdim=True)).softmax(-1), ["softmax.int"]),
    "and to max's, detached": (lambda x: (x - x.detach().max(1, keepdim=True)[0]).softmax(-1), ["softmax.int"]),
    "softmax of differences to another dimension's maximum stays": (
        lambda x: (x - x.amax(0, keepdim=True)).softmax(-1), ["amax.default", "sub.Tensor", "softmax.int"],
    ),
    "softmax of differences to another's maximum stays": (
        lambda x: (x - (2 * x).amax(-1, keepdim=True)).softmax(-1),
        ["mul.Tensor", "amax.default", "sub.Tensor", "softmax.int"],
    ),
    "softmax of differences to the minimum stays": (
        lambda x: (x - x.amin(-1, keepdim=True)).softmax(-1), ["amin.default", "sub.Tensor", "softmax.int"],
    ),
    "cast to the same dtype": (lambda x: x.to(torch.float32) + x.float() + 1, ["add.Tensor", "add.Tensor"]),
    "cast to another dtype stays": (lambda x: x.double() + 1, ["_to_copy.default", "add.Tensor"]),
    "whole slice": (lambda x: x[:, :] * 2 + x[:, :4], ["mul.Tensor", "add.Tensor"]),
    "part of a slice stays": (lambda x: x[:, 1:] * 2, ["slice.Tensor", "mul.Tensor"]),
    "slice with a step stays": (lambda x: x[:, ::2] * 2, ["slice.Tensor", "mul.Tensor"]),
    "dropout that does nothing": (lambda x: F.dropout(x, 0.5, training=False) + F.dropout(x, 0.0), ["add.Tensor"]),
    "expand and reshape to the same shape": (lambda x: x.expand(-1, 4).reshape(x.shape) * 2, ["mul.Tensor"]),
    "permutation of nothing": (lambda x: x.permute(0, 1) * 2, ["mul.Tensor"]),
    "repeated call": (twice, ["sigmoid.default", "mul.Tensor"]),
    "repeated masked_fill": (
        lambda x: x.masked_fill(MASK, 0.0) * x.masked_fill(MASK, 0.0), ["where.ScalarSelf", "mul.Tensor"],
    ),
    "calls that differ in a constant": (lambda x: (x + 1) * (x + 1.0), ["add.Tensor", "add.Tensor", "mul.Tensor"]),
    "parts folded into another dimension": (
        lambda x: torch.cat(torch.split(x, 2, dim=1), 0) * 2, ["reshape.default", "permute.default", "reshape.default", "mul.Tensor"],
    ),
    "parts put back": (lambda x: torch.cat(torch.chunk(x, 2, 1), 1) * 2, ["mul.Tensor"]),
    "columns stacked as rows": (lambda x: torch.stack([x[:, i] for i in range(4)], 0) * 2, ["permute.default", "mul.Tensor"]),
    "slices one behind the other": (
        lambda x: torch.cat([x[:, :2], x[:, 2:]], 0) * 2, ["reshape.default", "permute.default", "reshape.default", "mul.Tensor"],
    ),
    "parts in another order stay": (
        lambda x: torch.cat([x[:, 2:], x[:, :2]], 1) * 2, ["slice.Tensor", "slice.Tensor", "cat.default", "mul.Tensor"],
    ),
    "parts that are not all stay": (
        lambda x: torch.cat(torch.split(x, 1, dim=1)[:3], 0) * 2, None,
    ),
    "unequal parts stay": (
        lambda x: torch.cat([x[:, :1], x[:, 1:]], 1) * 2, ["slice.Tensor", "slice.Tensor", "cat.default", "mul.Tensor"],
    ),
    "parts of two tensors stay": (
        lambda x: torch.cat([x[:, :2], (x + 1)[:, 2:]], 1) * 2, ["slice.Tensor", "add.Tensor", "slice.Tensor", "cat.default", "mul.Tensor"],
    ),
    "ones of the shape of a value": (lambda x: torch.ones_like(x.exp()) * 2, ["full.default", "mul.Tensor"]),
    "a fill of the shape of a value": (lambda x: torch.full_like(x.exp(), 0.5, dtype=torch.int64) * 2, ["full.default", "mul.Tensor"]),
    "negative zero is another constant": (lambda x: (x * 0.0) / (x * -0.0), ["mul.Tensor", "mul.Tensor", "div.Tensor"]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_spelling_and_bitwise_the_same_values(name):
    function, expected = CASES[name]
    watched = Watched(function, vectors())
    assert torch.equal(watched.result.nan_to_num(7), function(vectors()).nan_to_num(7))
    assert watched.result.dtype == function(vectors()).dtype
    if expected is not None:
        assert watched.operators == expected
    assert watched.record.changed == bool(watched.record.matches)


def test_random_calls_are_never_merged():
    watched = Watched(lambda x: torch.rand_like(x) - torch.rand_like(x), vectors())
    assert watched.operators.count("rand_like.default") == 2
    assert not torch.equal(watched.result, torch.zeros(5, 4))
    dropped = Watched(lambda x: F.dropout(x, 0.5) - F.dropout(x, 0.5), vectors())
    assert dropped.operators.count("dropout.default") == 2


def test_calls_to_be_recomputed_are_not_merged():
    layer = torch.nn.Linear(4, 4)

    def f(x):
        return checkpoint(layer, x, use_reentrant=False) + checkpoint(layer, x, use_reentrant=False)

    assert Watched(f, vectors().requires_grad_()).operators.count("linear.default") == 2


def test_outputs_stay_tensors_of_their_own():
    def f(x):
        return x * 2, x * 2, x.to(torch.float32, copy=True)

    x = vectors()
    first, second, copied = Watched(f, x).result
    first.zero_()
    copied.zero_()
    assert torch.equal(second, vectors() * 2)
    assert torch.equal(x, vectors())


def test_a_match_names_the_users_line():
    (match,) = Watched(twice, vectors()).record.matches
    assert match.what == "repeated call" and "torch.sigmoid(x) * torch.sigmoid(x)" in match.where.code


@pytest.mark.parametrize("function, args", [
    (Layer(), (torch.randn(2, 5, WIDTH), torch.ones(2, 5, 5, dtype=torch.bool))),
    (Sequences(layers=2), batch([5, 2, 0], 5)),
    (CASES["repeated masked_fill"][0], (vectors(),)),
    (lambda x: (x.masked_fill(~MASK, 0.0).float() + x.masked_fill(~MASK, 0.0))[:, :], (vectors(),)),
])  # fmt: skip
def test_a_second_run_changes_nothing(function, args):
    graph_module = Watched(function, *args).graph
    report = GraphReport("again", "0", 0, "eager", "canonicalize")
    context = PassContext(GraphEditor(graph_module), Config(), Constants(), report)
    run_pipeline(Pipeline((Canonicalize(),)), graph_module, context)
    assert not report.passes[0].changed, [match.what for match in report.passes[0].matches]


@pytest.mark.parametrize("model, args", [
    (Sequences(layers=2), batch([5, 2, 0], 5)), (Places(), batch([4, 4], 4)), (Mlp(0.0), (vectors(),)),
])  # fmt: skip
def test_models_keep_their_outputs_and_gradients(model, args):
    assert_same_run(optimize(model, passes="bitwise", verify="full"), model, *args)


def test_sizes_stay_symbolic():
    fast = optimize(
        lambda x: x.reshape(x.shape).masked_fill(~(x > 0), 0.0) * x.shape[0],
        passes="canonicalize",
        dynamic=True,
    )
    for rows in (5, 7, 9):
        torch.testing.assert_close(fast(vectors(rows)), vectors(rows).clamp(min=0) * rows)
    assert graphs(fast) == 1
