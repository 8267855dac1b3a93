"""Trial: an idiom without Dynamo, one graph for all its batches: numbers, what was left dense, what leaks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
import torch.fx as fx
from fuzzing.direct import Direct
from idiom import FEATURES, HEADS, Idiom, Inputs, Small
from padded_models import data
from pass_bench import assert_close, short_name
from torch import Tensor

import gr_compile
from gr_compile.analysis import operators as ops
from gr_compile.graph_pass import Miss, StageEvent
from gr_compile.optimize import _compiled
from gr_compile.sizes import size_expr

B, N = 5, 7
LENGTHS = ([3, 7, 1, 0, 5], [9, 2, 7, 7, 1], [0, 0, 0, 4, 0], [7, 7, 7, 7, 7], [1, 1, 1, 1, 1])
"""Some of everything, above N, nearly all empty, all full, all ones."""
_VIEWS = (ops.Reshape, ops.Permute, ops.Expand, ops.Slice, ops.Select, ops.Items, ops.Item)


def inputs(lengths: list[int], side: str, seed: int = 0, dtype: torch.dtype = torch.float64) -> Inputs:
    lengths = [min(length, N) for length in lengths] if side == "left" else lengths
    made = data(lengths, N, side, seed)
    generator = torch.Generator().manual_seed(seed)
    negatives = torch.randint(1, 21, made.ids.shape, generator=generator) * made.mask
    features = torch.randn(len(lengths), N, FEATURES, generator=generator, dtype=torch.float64).to(dtype)
    return Inputs(*made.args(), negatives, features.requires_grad_())


def batches(idiom: Idiom, sides: Sequence[str] = ("right", "left")) -> Iterator[Inputs]:
    for side in sides if not idiom.side else {idiom.side} & {*sides}:
        for seed, lengths in enumerate(LENGTHS):
            yield inputs(lengths, side, seed, idiom.dtype)


def dirty(d: Inputs, places: Tensor, junk: float | Tensor) -> Inputs:
    """The batch with other features at some places."""
    features = torch.where(places[..., None], junk, d.features.detach())
    return replace(d, features=features.detach().requires_grad_())


class Trial:
    """A model, and the same one compiled.

    Args:
        dynamo: through `gr_compile.optimize`; else without Dynamo, sizes static.
        dynamic: sizes are symbolic from the first batch on (floats are not).
    """

    def __init__(self, idiom: Idiom, dynamo: bool = False, dynamic: bool = False) -> None:
        self.idiom, self.dynamo = idiom, dynamo or idiom.dynamo
        torch.manual_seed(0)
        self.model = Small(idiom.body).to(idiom.dtype)
        self.graphs: list[fx.GraphModule] = []
        if self.dynamo:
            self.fast: Any = gr_compile.optimize(self.model, target="eager", dynamic=dynamic)
            session = _compiled(self.fast).session
            session.hooks = [*session.hooks, self._keep]
        else:
            self.fast = Direct(self.model, passes="default", hooks=[self._keep])

    def _keep(self, event: StageEvent) -> None:
        if event.stage == "final":
            self.graphs.append(event.graph_module)

    # -------------------------------------------------------------------------------------------- numbers
    def results(self, model: Any, d: Inputs) -> list[Tensor]:
        """The output, gradients of the features and of all parameters."""
        leaves = [d.features, *self.model.parameters()]
        with torch._dynamo.config.patch(specialize_float=True):
            (output,) = model(*d.args())
        weights = torch.cos(torch.arange(output.numel(), dtype=output.dtype)).view_as(output) + 0.3
        grads = torch.autograd.grad((output * weights).sum(), leaves, allow_unused=True)
        return [output.detach(), *(torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves))]

    def assert_parity(self, junk: float = 0.0) -> None:
        """Outputs and gradients are eager's, for every batch; `junk` is added to the features of padded places."""
        for clean in batches(self.idiom):
            d = dirty(clean, ~clean.mask, clean.features + junk) if junk else clean
            wanted, got = self.results(self.model, d), self.results(self.fast, d)
            largest = max(float(x.nan_to_num().norm()) for x in wanted[1:])
            for what, a, b in zip(self.names, got, wanted):
                assert_close(what, a, b, self.idiom.tolerance, 1e-6 * largest if what != "output" else 1e-9)
        assert not [failed for report in self.reports if (failed := report.passes_failed or report.not_captured)]

    def assert_spreads(self) -> None:
        """NaN at padded places makes exactly those outputs NaN that eager makes NaN."""
        for clean in batches(self.idiom):
            d = dirty(clean, ~clean.mask, float("nan"))
            (wanted,), (got,) = self.model(*d.args()), self.fast(*d.args())
            assert got.isnan().equal(wanted.isnan())

    @cached_property
    def names(self) -> list[str]:
        return ["output", "features", *(name for name, _ in self.model.named_parameters())]

    def assert_no_leak(self) -> None:
        """What stands at padded places changes no bit of the output or of a gradient.

        Sequences without a valid place keep what they have: read-outs of one place read the first, means read all.
        """
        blind = [side for side in ("right", "left") if self.idiom.reads not in (side, "both")]
        for d in batches(self.idiom, blind):
            clean, padded = self.results(self.fast, d), ~d.mask & d.mask.any(1, keepdim=True)
            for junk in (1e30, float("nan")):
                for what, a, b in zip(self.names, clean, self.results(self.fast, dirty(d, padded, junk))):
                    same = a.eq(b) | a.isnan() & b.isnan()
                    assert same.all(), f"{junk} at padded places reaches {what}"

    # --------------------------------------------------------------------------------------------- graph
    @property
    def reports(self) -> list[Any]:
        if self.dynamo:
            return gr_compile.report(self.fast)
        return [report for session in self.fast.sessions for report in session.reports]

    @property
    def misses(self) -> list[Miss]:
        return [miss for report in self.reports for record in report.passes for miss in record.misses]

    def assert_as_expected(self) -> None:
        """As many jagged attentions as expected, and nothing else over padded places but what may be."""
        (graph,) = self.graphs
        said = [str(miss) for miss in self.misses]
        fused = [node for node in graph.graph.nodes if short_name(node) == "jagged_attention"]
        assert len(fused) == self.idiom.attentions, said
        if not self.idiom.misses:
            assert dense_work(graph) == self.idiom.dense, said
        for reason, line in self.idiom.misses:
            assert any(reason in miss.reason and miss.where and line in miss.where.code for miss in self.misses), said


def dense_work(graph: fx.GraphModule) -> set[str]:
    """Operators in use, other than views, that make a value with features for every padded place, or any value for pairs."""
    graph.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    ids = next(node for node in graph.graph.find_nodes(op="placeholder") if node.name.strip("_") in ("l_ids", "l__ids"))
    sizes = [size_expr(size) for size in ids.meta["val"].shape]
    calls = [node for node in graph.graph.nodes if node.op == "call_function"]
    return {short_name(node) for node in calls if _is_dense(node, *sizes)}


def _is_dense(node: fx.Node, batch: Any, length: Any) -> bool:
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or isinstance(ops.kind_of(node), _VIEWS) or short_name(node) == "unpack":
        return False
    shape = [size_expr(size) for size in value.shape]
    if shape.count(length) >= 2:
        return True
    places = batch * length in shape or (length in shape and (batch in shape or batch * HEADS in shape))
    features = [size for size in shape if size not in (1, batch, length, batch * length)]
    return value.dtype.is_floating_point and places and bool(features)
