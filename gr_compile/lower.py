"""`lower`: from a model and example inputs to files for a host that this one is not.

    model, *args  --capture, passes-->  graphs  --the target's lowering-->  OUT/report.json, report.md, graph_0/...

The folder is written whole or not at all. What was checked, and what was not, stands in the report.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
import torch.fx as fx
from torch import nn

from gr_compile.backend import Backend, Session, target_class
from gr_compile.compiled import signature_of
from gr_compile.config import Config, ConfigError, PaddedOutputs, Padding, check_declared_arguments
from gr_compile.graph_pass import GraphReport, Pass, StageEvent
from gr_compile.inspection.explain import versions
from gr_compile.output_folder import FolderError, writing, written_whole
from gr_compile.pipeline import Pipeline

REPORT, REPORT_TEXT, SCHEMA = "report.json", "report.md", 1
_ANY_NUMBER = 1 << 30  # of models of one class: each `lower` is a compilation of the same code to Dynamo


class LowerError(RuntimeError):
    """A model that cannot be lowered, or a folder that cannot be written; the message says why and what to do."""


@dataclass
class CapturedGraph:
    """One graph of the model, after the passes.

    Attributes:
        captured: the graph before the passes: what the model computes.
        graph: the graph after them, with the same inputs.
        inputs: those of the call.
        training: gradients are wanted.
        dynamic: sizes are symbols; otherwise those of the call.
        ignore_zeros: the user does not care for padded places, which are zero.
    """

    name: str
    captured: fx.GraphModule
    graph: fx.GraphModule
    inputs: Sequence[Any]
    training: bool
    dynamic: bool
    ignore_zeros: bool
    report: GraphReport


Write = Callable[[Sequence[CapturedGraph], Path], dict[str, Any]]
"""Writes the graphs' files into an empty folder; gives JSON for the report: graphs, checked, not_checked; and
warnings, where what is written will not run as it is.

Raises:
    LowerError: why there are none.
"""


class Lowering(Protocol):
    """What a target offers beside running: files. Found as the attribute `lowering` of the target's class, and made
    with the target's options and `machine`.
    """

    name: str
    machine: str

    def adapt(self, pipeline: Pipeline) -> Pipeline:
        """The passes as the target needs them."""

    def supports(self, operator: str) -> bool:
        """Whether it knows a `gr::` operator."""

    def at_work(self) -> AbstractContextManager[Write]:
        """What writes the graphs. Entered before the model is captured: what takes long to start begins here.

        Raises:
            LowerError: nothing can be written on this host.
        """


def lower(
    model: Any,
    *args: Any,
    target: str = "ascend",
    out: str | os.PathLike[str] = "build/ascend",
    machine: str = "910b1",
    kwargs: Mapping[str, Any] | None = None,
    training: bool | None = None,
    dynamic: bool = True,
    passes: str | Pass | Sequence[str | Pass] | None = "default",
    padding: Mapping[str, int | str | Padding] | Literal["auto", "none"] = "auto",
    padded_outputs: PaddedOutputs | None = None,
    expected_fill: float | None = None,
) -> dict[str, Any]:
    """Write what another host needs to run a model, and a report of what was checked and what was not.

    The model is called once on the inputs, which captures it.

    Args:
        args, kwargs: example inputs.
        target: a target that writes files, with its options: "ascend", "ascend{kernels=library}".
        machine: the processor, by the name of its description.
        out: the folder; one that an earlier `lower` wrote is replaced, any other that holds something is not touched.
        training: lower the backward, too. Default: `model.training`.
        dynamic: sizes of inputs, and the number of packed tokens, are symbols; False: those of this call.
        passes, padding, padded_outputs, expected_fill: as in `optimize`.

    Returns:
        The report, as in `report.json`.

    Raises:
        ConfigError, PipelineError: an argument that cannot be meant.
        LowerError: the model cannot be lowered, or the folder not be written.
    """
    name = type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", "function")
    config = Config(
        passes=passes, target=target, padding=padding, padded_outputs=padded_outputs, dynamic=dynamic,
        expected_fill=expected_fill, model=name,
    )  # fmt: skip
    if (signature := signature_of(model)) is not None:
        check_declared_arguments(config.declared, signature, name)
    lowering = find_lowering(target, machine)
    if training is not None and not isinstance(training, bool):
        raise ConfigError(f"training={training!r}: True, False, or None for the model's own mode")
    train = bool(getattr(model, "training", False)) if training is None else training
    with _folder(Path(out)) as folder, lowering.at_work() as write:
        session = Session(config, lowering.adapt(Pipeline.parse(passes, lowering.name)))
        graphs = capture_graphs(model, args, dict(kwargs or {}), session, lowering, train)
        with writing(Path(out)):
            found = write(graphs, folder)
            report = {
                "schema": SCHEMA, "target": target, "machine": lowering.machine, "model": name, "training": train,
                "dynamic": dynamic, "passes": session.pipeline.text(), "versions": versions(), **found,
            }  # fmt: skip
            (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            (folder / REPORT_TEXT).write_text(as_markdown(report), encoding="utf-8")
    return report


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    try:
        with written_whole(out, REPORT, {"schema", "target", "graphs"}) as folder:
            yield folder
    except FolderError as error:
        raise LowerError(f"{error}") from error


def find_lowering(target: str, machine: str) -> Lowering:
    """The lowering that a target offers, for a machine.

    Raises:
        ConfigError: there is no such target, option or machine, or the target writes no files.
    """
    found, options = target_class(target)
    made = getattr(found, "lowering", None)
    if made is None:
        raise ConfigError(f"target={target!r} runs models and writes no files; gr_compile.optimize takes it")
    lowering: Lowering = made(machine=machine, **options)
    return lowering


# --------------------------------------------------------------------------------------------- capture
@dataclass
class _Collector:
    """Stands where a target stands: keeps the graphs that run, with their inputs."""

    lowering: Lowering
    training: bool
    session: Session
    stages: dict[str, fx.GraphModule] = field(default_factory=dict)
    graphs: list[CapturedGraph] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.lowering.name

    def supports(self, operator: str) -> bool:
        return self.lowering.supports(operator)

    def hook(self, event: StageEvent) -> None:
        """Keep copies of the graph as it was before the passes, and as it is after them."""
        if event.record is None:
            self.stages[event.stage] = fx.GraphModule(event.graph_module, copy.deepcopy(event.graph_module.graph))

    def compile(self, graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        stages, self.stages = self.stages, {}
        if "final" not in stages:
            return graph_module.forward
        report, config = self.session.reports[-1], self.session.config
        taken = len(stages["captured"].graph.find_nodes(op="placeholder"))

        def run(*args: Any) -> Any:
            self.graphs.append(
                CapturedGraph(
                    f"graph_{len(self.graphs)}", stages["captured"], stages["final"], _kept(args[:taken]),
                    self.training, config.dynamic is not False, config.outputs_at_padding == "zero", report,
                )
            )  # fmt: skip
            return graph_module.forward(*args)

        return run


def _kept(args: Sequence[Any]) -> list[Any]:
    """The inputs as they are before the graph runs, which may write to buffers."""
    copies = (a.detach().clone().requires_grad_(a.requires_grad) if isinstance(a, torch.Tensor) else a for a in args)
    return list(copies)


def capture_graphs(
    model: Any, args: Sequence[Any], kwargs: dict[str, Any], session: Session, lowering: Lowering, training: bool
) -> list[CapturedGraph]:
    """Call a model once, and return its graphs with what they were called with.

    Raises:
        LowerError: something of it is not captured, or there is nothing to capture.
    """
    collector = _Collector(lowering, training, session)
    session.hooks = [collector.hook]
    make: Any = torch.compile
    compiled = make(model, backend=Backend(session, collector), dynamic=session.config.dynamic)
    settings = torch._dynamo.config.patch(
        capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True, specialize_float=True,
        recompile_limit=_ANY_NUMBER, accumulated_recompile_limit=_ANY_NUMBER,
    )  # fmt: skip
    with settings, _written_out(), torch.set_grad_enabled(training):
        compiled(*args, **kwargs)
    lost = [report.not_captured for report in session.reports if report.not_captured is not None]
    if lost:
        raise LowerError(f"{session.config.model} is not captured whole, and what is not cannot be lowered: {lost[0]}")
    if not collector.graphs:
        raise LowerError(f"{session.config.model} computes nothing with tensors: there is no graph to lower")
    return collector.graphs


@contextmanager
def _written_out() -> Iterator[None]:
    """torch's own encoder and attention, which are one kernel of the CPU's each in inference, as operators."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


# ------------------------------------------------------------------------------------------ the report
def as_markdown(report: Mapping[str, Any]) -> str:
    """The report for people."""
    kind = f"{'training' if report['training'] else 'inference'}, {'dynamic' if report['dynamic'] else 'static'} sizes"
    lines = [f"# {report['model']} for {report['target']}", "", f"{kind}; passes: `{report['passes']}`", ""]
    lines += [line for warning in report.get("warnings", ()) for line in (f"**Warning:** {warning}", "")]
    for graph in report["graphs"]:
        lines += [f"## {graph['name']}", ""]
        for part in graph["parts"]:
            counts = ", ".join(f"{name} {number}" for name, number in sorted(part["operators"].items()))
            lines += [f"- `{part['file']}`: {sum(part['operators'].values())} nodes ({counts})"]
        lines += [f"- {note}" for note in graph["notes"]] + [""]
    lines += _operators_text(report.get("operators") or {})
    for title, key in (("Checked", "checked"), ("Not checked", "not_checked")):
        lines += [f"## {title}", "", *(f"- {text}" for text in report[key]), ""]
    return "\n".join(lines)


def _operators_text(found: Mapping[str, Any]) -> list[str]:
    """Of a target that writes operators of its own: which have a kernel, their tiling and why, and which have none."""
    if not found or not (found["kernels"] or found["without_kernel"]):
        return []
    where = f"`{found['folder']}/`; tilings at the example's sizes" if found["folder"] else "No project is written"
    lines = ["## Operators", "", f"{where}, for {found['machine']}:", ""]
    lines += [f"- `{one['operator']}` ({one['calls']}x): {one['reason']}" for one in found["kernels"]]
    for one in found["without_kernel"]:
        lines.append(f"- `{one['operator']}` ({one['calls']}x): no kernel is printed: {one['reason']}")
    lines += [f"- {said}" for said in found["second_opinion"]]
    return [*lines, ""]
