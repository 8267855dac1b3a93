"""PassBench: a model through the passes, every graph on the way kept, outputs and gradients held against eager."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import gr_compile
from gr_compile.backend import Session
from gr_compile.constants import Constants
from gr_compile.editor import GraphEditor
from gr_compile.graph_pass import GraphReport, Match, Miss, PassRecord, StageEvent
from gr_compile.optimize import _compiled
from gr_compile.pipeline import PassContext, Pipeline, run_pipeline

Batch = tuple[Any, ...]
Kept = Callable[..., torch.Tensor]
PACK, FUSE = "eliminate-padding", "fuse-jagged-attention"
ATTENTION = torch.ops.gr.jagged_attention.default
OUTPUT_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
_SMALL = 1e-3  # a gradient whose norm is a smaller share of all gradients' is compared at that share


@dataclass
class Stages:
    """The graphs of one compilation: stage -> a copy of the graph as it was then ("captured", passes, "final")."""

    report: GraphReport
    graphs: dict[str, fx.GraphModule] = field(default_factory=dict)

    def before(self, stage: str) -> fx.GraphModule:
        names = list(self.graphs)
        return self.graphs[names[names.index(stage) - 1]]


@dataclass
class PassBench:
    """`model` optimised with `passes`; every batch is run through it on construction.

    Args:
        batches: positional arguments of the model, one tuple a call.
        kept: for models with per-place outputs under padded_outputs="zero": batch -> the valid places, bool [B, N].
        dynamic: sizes are symbolic from the first batch on (floats are not).
        may_fail: keep going where a pass failed, a graph broke or nothing was captured.
        options: of `gr_compile.optimize`.
    """

    model: nn.Module
    batches: Sequence[Batch]
    passes: Any = "default"
    target: str = "eager"
    kept: Kept | None = None
    dynamic: bool = True
    may_fail: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    compilations: list[Stages] = field(default_factory=list)

    def __post_init__(self) -> None:
        options = {"dynamic": self.dynamic or None, **self.options}
        self.fast = gr_compile.optimize(self.model, passes=self.passes, target=self.target, **options)
        session = _compiled(self.fast).session
        session.hooks = [*session.hooks, self._keep]
        with torch._dynamo.config.patch(specialize_float=True):
            for batch in self.batches:
                self.fast(*batch)
        if not self.may_fail:
            self._compiled_cleanly(session)

    def _keep(self, event: StageEvent) -> None:
        if event.index == 0:
            self.compilations.append(Stages(event.report))
        self.compilations[-1].graphs[event.stage] = _copied(event.graph_module)

    def _compiled_cleanly(self, session: Session) -> None:
        for report in session.reports:
            assert not report.passes_failed, report.passes_failed
            assert report.not_captured is None, str(report.not_captured)
        assert self.compilations, "nothing was compiled"

    # ---------------------------------------------------------------------------------------- what was done
    @property
    def reports(self) -> list[GraphReport]:
        return gr_compile.report(self.fast)

    def graph(self, stage: str = "final", compilation: int = -1) -> fx.GraphModule:
        return self.compilations[compilation].graphs[stage]

    def operators_before(self, stage: str, compilation: int = -1) -> Counter[str]:
        return operators(self.compilations[compilation].before(stage))

    def operators_after(self, stage: str, compilation: int = -1) -> Counter[str]:
        return operators(self.graph(stage, compilation))

    def matches(self, stage: str | None = None) -> list[Match]:
        return [match for record in self._records(stage) for match in record.matches]

    def misses(self, stage: str | None = None) -> list[Miss]:
        return [miss for record in self._records(stage) for miss in record.misses]

    def _records(self, stage: str | None) -> list[Any]:
        return [r for report in self.reports for r in report.passes if stage in (None, r.name)]

    def assert_fires(self, *stages: str) -> PassBench:
        """The passes match, in every graph compiled so far."""
        for stage in stages or (PACK, FUSE):
            for compilation in self.compilations:
                record = next(r for r in compilation.report.passes if r.name == stage)
                assert record.matches, f"{stage} did nothing: {[str(m) for m in record.misses]}"
        return self

    def assert_misses(self, stage: str, reason: str, line: str) -> Miss:
        """A miss whose reason contains `reason`, at the source line that contains `line`."""
        misses = self.misses(stage)
        found = [m for m in misses if reason in m.reason and m.where is not None and line in m.where.code]
        assert found, f"no miss {reason!r} at {line!r} among {[str(m) for m in misses]}"
        return found[0]

    def run_again(self, passes: Any = None, compilation: int = -1) -> list[PassRecord]:
        """The pipeline once more on the graph that it made: what each pass says."""
        stages = self.compilations[compilation]
        graph_module = _copied(stages.graphs["final"])
        session = _compiled(self.fast).session
        pipeline = session.pipeline if passes is None else Pipeline.parse(passes)
        report = GraphReport(stages.report.model, "again", 0, self.target, pipeline.text())
        run_pipeline(pipeline, graph_module, PassContext(GraphEditor(graph_module), session.config, Constants(), report))
        return report.passes

    # -------------------------------------------------------------------------------------------- parity
    def assert_parity(self, gradients: bool = True, scale: float = 1.0) -> PassBench:
        """Outputs and gradients of every batch against eager float64; a float64 model must agree to 1e-7 and 1e-6.

        Args:
            scale: of both tolerances.
        """
        for batch in self.batches:
            self._compare(batch, gradients, scale)
        return self

    def _compare(self, batch: Batch, gradients: bool, scale: float) -> None:
        reference = copy.deepcopy(self.model).double()
        with sdpa_kernel(SDPBackend.MATH):
            want = run(reference, [_in_double(a) for a in batch], gradients, self.kept)
            got = run(self.fast, batch, gradients, self.kept)
        exact = next(self.model.parameters()).dtype == torch.float64
        output, gradient = (1e-7, 1e-6) if exact else (OUTPUT_TOLERANCE * scale, GRADIENT_TOLERANCE * scale)
        assert len(got.outputs) == len(want.outputs)
        for position, (a, b) in enumerate(zip(got.outputs, want.outputs)):
            assert_close(f"output {position}", a, b, output)
        total = sum(float(g.nan_to_num(0, 0, 0).norm()) ** 2 for g in want.gradients.values()) ** 0.5
        for name in sorted(want.gradients | got.gradients):
            b = want.gradients.get(name, torch.zeros(()))
            a = got.gradients.get(name, torch.zeros_like(b))
            assert_close(f"gradient of {name}", a, b.expand_as(a), gradient, _SMALL * total)


@dataclass
class Run:
    """Outputs, and the gradients of a fixed combination of them for parameters and floating inputs."""

    outputs: list[torch.Tensor]
    gradients: dict[str, torch.Tensor]


def run(model: nn.Module, batch: Sequence[Any], gradients: bool = True, kept: Kept | None = None) -> Run:
    model.zero_grad(set_to_none=True)
    leaves = [a.detach().clone().requires_grad_() if differentiable(a) else a for a in batch]
    with torch.set_grad_enabled(gradients):
        result = model(*leaves)
    outputs = [o for o in torch.utils._pytree.tree_leaves(result) if isinstance(o, torch.Tensor)]
    if kept is not None:
        outputs = [_only(kept(*batch), o) for o in outputs]
    found = {}
    if gradients:
        sum((weights_of(o) * o).sum() for o in outputs if o.requires_grad).backward()  # type: ignore[union-attr]
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found |= {f"input {k}": leaf.grad for k, leaf in enumerate(leaves) if differentiable(leaf)}
        found = {name: grad for name, grad in found.items() if grad is not None}
        model.zero_grad(set_to_none=True)
    return Run([o.detach() for o in outputs], found)


def _only(places: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """The output at valid places, 0 elsewhere; outputs without places stay as they are."""
    if output.shape[: places.dim()] != places.shape:
        return output
    shaped = places.reshape(*places.shape, *[1] * (output.dim() - places.dim()))
    return torch.where(shaped, output, torch.zeros_like(output))


def differentiable(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype.is_floating_point and value.requires_grad


def weights_of(output: torch.Tensor) -> torch.Tensor:
    """Fixed weights that differ from element to element."""
    steps = torch.arange(output.numel(), dtype=torch.float64).reshape(output.shape)
    return (torch.cos(steps) + 0.3).to(output.dtype)


def assert_close(what: str, got: torch.Tensor, want: torch.Tensor, tolerance: float, least: float = 1e-12) -> None:
    """Relative to the norm of `want`. Where eager is NaN (0 * NaN of a fully masked padded row) anything may stand."""
    assert got.shape == want.shape, f"{what}: {tuple(got.shape)}, not {tuple(want.shape)}"
    got, want = got.double(), want.double()
    finite = ~want.isnan()
    assert not bool((got.isnan() & finite).any()), f"{what}: NaN where eager has none"
    assert torch.equal(got.isinf() & finite, want.isinf()), f"{what}: infinite at other elements"
    got, want = (torch.where(finite, x, 0.0).nan_to_num(0, 0, 0) for x in (got, want))
    error = float((got - want).norm()) / max(float(want.norm()), least, 1e-12)
    assert error <= tolerance, f"{what}: relative error {error:.2e}"


def _in_double(value: Any) -> Any:
    if not isinstance(value, torch.Tensor) or not value.dtype.is_floating_point:
        return value
    return value.detach().double().requires_grad_(value.requires_grad)


# ------------------------------------------------------------------------------------------------- graphs
def operators(graph_module: fx.GraphModule) -> Counter[str]:
    """Calls by the operator's short name: "linear", "nonzero", "jagged_attention"."""
    return Counter(short_name(node) for node in graph_module.graph.nodes if node.op == "call_function")


def short_name(node: fx.Node) -> str:
    packet = getattr(node.target, "overloadpacket", node.target)
    return str(getattr(packet, "__name__", packet))


def _copied(graph_module: fx.GraphModule) -> fx.GraphModule:
    """A copy whose nodes keep their values."""
    graph: Any = fx.Graph()
    table: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(graph_module.graph, table)
    output = graph.output(result)
    for old, new in table.items():
        new.meta = dict(old.meta)
    output.meta = {}
    return fx.GraphModule(graph_module, graph)


def data_dependent(graph_module: fx.GraphModule) -> list[str]:
    """Operators whose answer, or its size, needs the device's memory to be read."""
    tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    return [
        node.name for node in graph_module.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and tags & set(node.target.tags)
        and (node.target is not torch.ops.aten.index.Tensor or _by_mask(node))
    ]  # fmt: skip


def _by_mask(node: fx.Node) -> bool:
    return any(isinstance(i, fx.Node) and i.meta["val"].dtype == torch.bool for i in node.args[1])  # type: ignore[union-attr]


def pair_values(graph_module: fx.GraphModule, length: Any) -> list[fx.Node]:
    """Floating values with two dimensions of the padded length: what fusion must not leave behind."""
    return [
        node for node in graph_module.graph.nodes
        if isinstance(value := node.meta.get("val"), torch.Tensor) and node.op == "call_function"
        and value.dtype.is_floating_point and [str(s) for s in value.shape].count(str(length)) >= 2
    ]  # fmt: skip


def padded_values(graph_module: fx.GraphModule, targets: Sequence[Any]) -> list[fx.Node]:
    """Calls of `targets` whose result has the padded batch and length as leading dimensions."""
    found = []
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and node.target in targets and node.meta["val"].dim() > 2:
            found.append(node)
    return found
