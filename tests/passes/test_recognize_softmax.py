"""recognize-softmax: every spelling of weights over their sum is one softmax; what is none stays and says why.

In float64, where 1 + 1e-17 is 1.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import gr_compile
from gr_compile.config import Config
from gr_compile.constants import Constants
from gr_compile.editor import GraphEditor
from gr_compile.graph_pass import GraphReport, StageEvent
from gr_compile.optimize import _compiled
from gr_compile.passes.recognize_softmax import RecognizeSoftmax
from gr_compile.pipeline import PassContext, Pipeline, run_pipeline

PASSES = "canonicalize,recognize-softmax"


def over_sum(e):
    return e / e.sum(-1, keepdim=True)


def shifted(x):
    return torch.exp(x - x.amax(-1, keepdim=True))


def hidden(x, m):
    return x.masked_fill(~m, -1e9)


SOFTMAX, MASKED, SAFE = ["softmax.int"], ["where.ScalarOther", "softmax.int"], ["where.ScalarOther"] * 2 + ["_safe_softmax.default"]
SPELLINGS = {
    "exp over its sum": (lambda x, m: over_sum(x.exp()), SOFTMAX),
    "less the maximum": (lambda x, m: over_sum(shifted(x)), SOFTMAX),
    "less the maximum of all": (lambda x, m: over_sum(torch.exp(x - x.max())), SOFTMAX),
    "less max's values, detached": (lambda x, m: over_sum(torch.exp(x - x.max(-1, keepdim=True)[0].detach())), SOFTMAX),
    "another dimension": (lambda x, m: x.exp() / x.exp().sum(1, keepdim=True), SOFTMAX),
    "sum without keepdim": (lambda x, m: x.exp() / x.exp().sum(-1)[..., None], SOFTMAX),
    "a number beside the sum": (lambda x, m: shifted(x) / (shifted(x).sum(-1, keepdim=True) + 1e-17), SOFTMAX),
    "a sum of at least": (lambda x, m: shifted(x) / shifted(x).sum(-1, keepdim=True).clamp(min=1e-3), SOFTMAX),
    "normalize": (lambda x, m: F.normalize(shifted(x), p=1, dim=-1), SOFTMAX),
    "exp of log_softmax": (lambda x, m: x.log_softmax(-1).exp(), SOFTMAX),
    "less logsumexp": (lambda x, m: torch.exp(x - torch.logsumexp(x, -1, keepdim=True)), SOFTMAX),
    "masked_fill of weights": (lambda x, m: over_sum(x.exp().masked_fill(~m, 0.0)), MASKED),
    "where of weights": (lambda x, m: over_sum(torch.where(m, x.exp(), torch.zeros_like(x))), MASKED),
    "an inverted mask": (lambda x, m: over_sum(x.exp().masked_fill(m.logical_not(), 0.0)), MASKED),
    "weights times a mask": (lambda x, m: over_sum(shifted(x) * m), MASKED),
    "weights times a float mask": (lambda x, m: over_sum(m.to(x.dtype) * x.exp()), MASKED),
    "weights times two masks": (
        lambda x, m: over_sum(shifted(x) * m.to(x.dtype) * m[:1].to(x.dtype)), ["where.ScalarOther", *MASKED],
    ),
    "a mask of fewer dimensions": (lambda x, m: over_sum(shifted(x) * m[0, :1].float()), MASKED),
    "a softmax that is masked": (lambda x, m: over_sum(x.softmax(-1) * m), MASKED),
    "masked before and after, a number beside the sum": (
        lambda x, m: (e := shifted(hidden(x, m)) * m.to(x.dtype)) / (e.sum(-1, keepdim=True) + 1e-17), SAFE,
    ),
    "masked before and after by -inf": (
        lambda x, m: (e := shifted(x.masked_fill(~m, -math.inf)) * m) / e.sum(-1, keepdim=True).clamp(min=1e-6),
        ["where.ScalarOther", *MASKED],
    ),
}  # fmt: skip
STAY = {
    "a number beside the sum of masked weights": (
        lambda x, m: (e := shifted(x) * m) / (e.sum(-1, keepdim=True) + 1e-17), "a number is added to the sum",
    ),
    "another mask before than after": (
        lambda x, m: (e := shifted(hidden(x, m)) * m.mT) / (e.sum(-1, keepdim=True) + 1e-17), "a number is added",
    ),
    "a fill that may be a maximum": (
        lambda x, m: (e := shifted(x.masked_fill(~m, -1.0)) * m) / (e.sum(-1, keepdim=True) + 1e-17), "a number is added",
    ),
    "a number that does not vanish": (
        lambda x, m: shifted(x) / (shifted(x).sum(-1, keepdim=True) + 1e-9), "a number is added to the sum",
    ),
    "a sum of at least two": (
        lambda x, m: shifted(x) / shifted(x).sum(-1, keepdim=True).clamp(min=2.0), "a number is added to the sum",
    ),
    "a number beside the sum of what has no maximum": (
        lambda x, m: x.exp() / (x.exp().sum(-1, keepdim=True) + 1e-17), "a number is added to the sum",
    ),
    "weights times any number": (lambda x, m: over_sum(shifted(x) * x.abs()), "not known to be 0 or 1"),
    "no exponential": (lambda x, m: over_sum(x.abs()), ""),
    "the sum of others": (lambda x, m: x.exp() / (2 * x).exp().sum(-1, keepdim=True), ""),
    "the sum of all": (lambda x, m: x.exp() / x.exp().sum((-2, -1), keepdim=True), ""),
    "the sum over another dimension": (lambda x, m: x.exp() / x.exp().sum(-1)[:, None], ""),
    "a softmax over another dimension": (lambda x, m: over_sum(x.softmax(1) * m), ""),
    "filled with another number": (lambda x, m: over_sum(x.exp().masked_fill(~m, 0.1)), ""),
    "a product of two sums": (lambda x, m: x.exp() / (x.exp().sum(-1, keepdim=True) * 2), ""),
    "a sum bounded from above": (lambda x, m: shifted(x) / shifted(x).sum(-1, keepdim=True).clamp(1e-9, 2.0), ""),
    "a sum in another dtype": (lambda x, m: x.exp() / x.exp().sum(-1, keepdim=True, dtype=torch.float32), ""),
    "a logarithm that others read": (lambda x, m: (y := x.log_softmax(-1)).exp() + y, ""),
    "less another's logsumexp": (lambda x, m: torch.exp(x - torch.logsumexp(2 * x, -1, keepdim=True)), ""),
}  # fmt: skip


def inputs(n=5, dtype=torch.float64, seed=0):
    """Every row has a key."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, n, n, generator=generator, dtype=dtype)
    return x.requires_grad_(), (torch.rand(3, n, n, generator=generator) < 0.6) | torch.eye(n, dtype=torch.bool) | (torch.arange(n) == 0)


def run(function, x, m):
    x = x.detach().clone().requires_grad_()
    result = function(x, m)
    (result * torch.arange(1.0, x.shape[-1] + 1, dtype=x.dtype)).sum().backward()
    return result.detach(), x.grad


class Watched:
    """A function run with the pass; its record and the final graph."""

    def __init__(self, function, **options) -> None:
        self.fast = gr_compile.optimize(function, passes=PASSES, target="eager", **options)
        session = _compiled(self.fast).session
        session.hooks = [*session.hooks, self._keep]

    def _keep(self, event: StageEvent) -> None:
        self.graph = event.graph_module

    @property
    def record(self):
        return gr_compile.report(self.fast)[0].passes[-1]

    @property
    def operators(self):
        calls = [node for node in self.graph.graph.nodes if node.op == "call_function"]
        return [str(node.target).removeprefix("aten.") for node in calls]


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_spelling_becomes_a_softmax(name):
    function, expected = SPELLINGS[name]
    watched = Watched(function)
    x, m = inputs()
    for got, want in zip(run(watched.fast, x, m), run(function, x, m)):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    kept = [operator for operator in watched.operators if operator not in ("slice.Tensor", "select.int", "unsqueeze.default")]
    assert kept == expected and len(watched.record.matches) == 1 and not watched.record.misses


@pytest.mark.parametrize("name", STAY)
def test_what_is_no_softmax_stays(name):
    function, reason = STAY[name]
    watched = Watched(function)
    x, m = inputs()
    for got, want in zip(run(watched.fast, x, m), run(function, x, m)):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert not watched.record.matches and not watched.record.changed
    assert [reason in miss.reason and miss.where is not None for miss in watched.record.misses] == [True] * bool(reason)


@pytest.mark.parametrize("name", ["less the maximum", "weights times a mask", "masked_fill of weights"])
def test_rows_without_a_weight_are_nan_in_both(name):
    function, _ = SPELLINGS[name]
    x, m = inputs()
    m[1, 2] = False
    got, want = Watched(function).fast(x, m), function(x, m)
    torch.testing.assert_close(got, want, equal_nan=True)


def test_rows_without_a_weight_are_0_where_a_number_stands_beside_the_sum():
    function, _ = SPELLINGS["masked before and after, a number beside the sum"]
    x, m = inputs()
    m[1, 2] = False
    for got, want in zip(run(Watched(function).fast, x, m), run(function, x, m)):
        assert not want.isnan().any()
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("share, fires", [(0.2, True), (1.0, False)])
def test_a_number_vanishes_by_the_dtype(dtype, share, fires):
    eps = torch.finfo(dtype).eps
    torch._dynamo.reset()  # one number after the other would become an input

    def function(x, m):
        return shifted(x) / (shifted(x).sum(-1, keepdim=True) + share * eps)

    watched = Watched(function)
    x, m = inputs(dtype=dtype)
    torch.testing.assert_close(watched.fast(x, m), function(x, m), rtol=4 * eps, atol=4 * eps)
    assert bool(watched.record.matches) is fires


def test_a_second_run_changes_nothing():
    watched = Watched(SPELLINGS["weights times two masks"][0])
    watched.fast(*inputs())
    report = GraphReport("again", "0", 0, "eager", "recognize-softmax")
    context = PassContext(GraphEditor(watched.graph), Config(), Constants(), report)
    run_pipeline(Pipeline((RecognizeSoftmax(),)), watched.graph, context)
    assert not report.passes[0].changed


def test_one_graph_serves_every_size():
    function, _ = SPELLINGS["masked_fill of weights"]
    fast = Watched(function, dynamic=True).fast
    for n in (4, 6, 9):
        x, m = inputs(n)
        torch.testing.assert_close(fast(x, m), function(x, m))
    assert len(gr_compile.report(fast)) == 1


@settings(max_examples=8, deadline=None)
@given(n=st.integers(2, 9), scale=st.sampled_from([1e-3, 1.0, 30.0]), seed=st.integers(0, 99), name=st.sampled_from(sorted(SPELLINGS)))
def test_values_and_gradients_are_eagers(n, scale, seed, name):
    function, _ = SPELLINGS[name]
    x, m = inputs(n, seed=seed)
    for got, want in zip(run(Watched(function).fast, scale * x, m), run(function, scale * x, m)):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)
