"""Target "ascend": its lowering writes GE graphs by torchair, on any host."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.fx as fx

import gr_compile.lowering.cpu.kernels  # noqa: F401  (registers them: graphs are run here, too)
from gr_compile.config import ConfigError
from gr_compile.inspection.program import print_program
from gr_compile.inspection.replay import TOLERANCES, difference
from gr_compile.lower import CapturedGraph, LowerError
from gr_compile.lowering.ascendc.attention.printed import AttentionCall
from gr_compile.lowering.ascendc.lowered import without_kernel, write_operators
from gr_compile.lowering.ascendc.machine import machine
from gr_compile.lowering.ascendc.operators import OPERATORS
from gr_compile.lowering.target import Compiled
from gr_compile.lowering.torchair import device, files, host, library, replay, sizes
from gr_compile.lowering.torchair.composed import COMPOSED
from gr_compile.lowering.torchair.convert import ConversionFailed, Converter, converter
from gr_compile.lowering.torchair.request import PROGRAM, RAN, Converted, Request
from gr_compile.numerics import outputs_and_gradients
from gr_compile.pipeline import Pipeline
from gr_compile.sizes import size_expr

_GE, _REPLAY = MODES = ("max-autotune", replay.MODE)
KERNELS = ("generated", "library")
_NO_DEVICE = (
    "no kernel of a gr:: operator, and none of Huawei's, was built or run",
    "nothing ran on a device; the inputs' placement in the graphs is the CPU's",
)
_CHECKED = {
    _GE: (
        "every operator has a GE converter: torchair's own, unmodified, or one made from the table of gr:: operators",
        "torchair's converter built each GE graph, through its own decompositions and AOTAutograd call",
    ),
    _REPLAY: (
        "torchair's own decompositions, AOTAutograd call and passes over FX made each graph",
        "no size in a graph is left to the data, and no operator waits for the device: T is an input, rounded up",
    ),
}
_NOT_CHECKED = {
    _GE: (
        "GE did not read the graphs: torchair's native module was a stand-in, no operator was looked up or compiled",
        *_NO_DEVICE,
    ),
    _REPLAY: (
        "nothing was captured or replayed: torchair's steps behind its passes over FX need torch_npu and a device",
        "that torch_npu has a kernel for every operator of a graph",
        *_NO_DEVICE,
    ),
}
COUNTS = "counts.py"
_GE_TYPES = {str(row.overload): row.ge_type for row in OPERATORS.values()}
_NOISE = 1e-3


@dataclass(frozen=True)
class AscendLowering:
    """Writes, for each graph, the GE graph of its forward and, in training, of its backward (.pbtxt).

    Attributes:
        mode: "max-autotune": GE graphs. "npugraph_ex": the FX graphs that a device captures and replays.
        kernels: "generated", or "library": Huawei's operators where a call fits one.
    """

    mode: str = "max-autotune"
    kernels: str = "generated"
    machine: str = "910b1"
    name: ClassVar[str] = "ascend"

    def __post_init__(self) -> None:
        check_options(self.mode, self.kernels)
        try:
            machine(self.machine)
        except ValueError as error:
            raise ConfigError(f"machine={self.machine!r}: {error}") from error

    def adapt(self, pipeline: Pipeline) -> Pipeline:
        return replay.with_buckets(pipeline) if self.mode == replay.MODE else pipeline

    def supports(self, operator: str) -> bool:
        return operator in OPERATORS or operator in COMPOSED

    @contextmanager
    def at_work(self) -> Iterator[Callable[[Sequence[CapturedGraph], Path], dict[str, Any]]]:
        """The process that converts starts here: it imports while the model is captured."""
        try:
            found = files.find()
        except files.TorchairMissing as error:
            raise LowerError(str(error)) from error
        with _temporary_folder() as scratch, converter(found, scratch) as child:
            yield lambda graphs, folder: self._write(graphs, folder, child, found)

    def _write(
        self, graphs: Sequence[CapturedGraph], folder: Path, child: Converter, found: files.TorchairFiles
    ) -> dict[str, Any]:
        try:
            work = [Work(graph, self.mode, self.kernels) for graph in graphs]
            with _writing_temporary(child.folder):
                converted = child.convert([item.request for item in work])
            refuse_failures(converted)
            described = [item.finish(one, child.folder, folder) for item, one in zip(work, converted)]
            operators = write_operators(
                [(item.request.graph, item.known) for item in work], _types(converted), folder, machine(self.machine),
                [AttentionCall.read(call) for one in converted for part in one.parts for call in part.attention],
            )  # fmt: skip
        except (ConversionFailed, sizes.DataDependentSize) as error:
            raise LowerError(str(error)) from error
        return {
            "operators": operators,
            "warnings": (warnings := without_kernel(operators["without_kernel"])),
            "torchair": {"version": found.version, "origin": found.origin},
            "mode": self.mode,
            "graphs": described,
            **self._checks(work, described, warnings),
        }

    def _checks(
        self, work: Sequence[Work], described: Sequence[dict[str, Any]], warnings: Sequence[str]
    ) -> dict[str, list[str]]:
        """What was checked, and what was not."""
        compared = sum(item["largest_difference"] is not None for item in described)
        gradients = ", gradients included" if any(item.graph.training for item in work) else ""
        made = "the FX graph that each GE graph is made of" if self.mode == _GE else "each graph that is to be captured"
        ran = f"{made}, run on the CPU on the given inputs: {compared} of "
        ran += f"{len(described)} equal to the model's own operators{gradients}"
        left = [] if compared == len(described) else ["numbers: see the graphs' notes"]
        if any(item.request.library for item in work):
            left.append("what Huawei's operators compute: the numbers are those of the gr:: operators in their place")
        return {
            "checked": [*_CHECKED[self.mode], *([ran] if compared else [])],
            "not_checked": [*warnings, *_NOT_CHECKED[self.mode], *left],
        }


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    with ExitStack() as held:
        with _writing_temporary("that is to hold the graphs"):
            folder = Path(held.enter_context(tempfile.TemporaryDirectory()))
        yield folder


@contextmanager
def _writing_temporary(folder: object) -> Iterator[None]:
    """What the operating system refuses inside has nothing to do with the folder that the user named."""
    try:
        yield
    except OSError as error:
        raise LowerError(f"the temporary folder {folder} cannot be written: {error}; TMPDIR names another") from error


def _types(converted: Sequence[Converted]) -> set[str]:
    """GE types of the operators: a graph to replay names those of torch."""
    return {_GE_TYPES.get(name, name) for one in converted for part in one.parts for name in part.operators}


def refuse_failures(converted: Sequence[Converted]) -> None:
    """Raises LowerError for the first graph that has no GE graph, with all operators that have no converter."""
    for one in converted:
        if one.missing:
            counted = ", ".join(f"{name} ({number}x)" for name, number in sorted(one.missing.items()))
            raise LowerError(f"{one.name} holds operators that neither torchair nor gr_compile converts: {counted}")
        if one.error:
            raise LowerError(f"torchair cannot convert {one.name}: {one.error}")


class Work:
    """One graph: what is sent to be converted, and what is made of the answer."""

    def __init__(self, graph: CapturedGraph, mode: str = _GE, kernels: str = "generated") -> None:
        self.graph = graph
        prepared = sizes.prepare(graph.graph)
        self.counts, self.prelude = prepared.count(graph.inputs), prepared.prelude
        self.assertions = prepared.assertions
        self.known = {size_expr(size): count for size, count in zip(prepared.sizes, self.counts)}
        self.incomparable = incomparable(graph)
        self.choices = library.choices(prepared.main, graph.training) if kernels == "library" else []
        self.request = Request(
            graph.name, prepared.main, [*graph.inputs, *self.counts], graph.training, graph.dynamic,
            not self.incomparable, mode,
            {choice.program: choice.attributes for choice in self.choices if choice.attributes},
        )  # fmt: skip

    def finish(self, converted: Converted, scratch: Path, folder: Path) -> dict[str, Any]:
        """Move the graph's files to their place, compare the numbers, describe both."""
        own = folder / self.graph.name
        own.mkdir()
        kept = [part.file for part in converted.parts] + [PROGRAM]
        for name in (*kept, *(path.name for path in (scratch / self.graph.name).glob("constant_*.pt"))):
            shutil.copyfile(scratch / self.graph.name / name, own / name)
        if self.prelude is not None:
            printed = print_program(
                self.prelude, provenance=f"made by gr_compile: the last inputs of {self.graph.name}"
            )
            (own / COUNTS).write_text(printed.source, encoding="utf-8")
            for name, constant in printed.files.items():
                torch.save(constant, own / name)
        gap = None if self.incomparable else self.compare(scratch / self.graph.name / RAN)
        return {
            "name": self.graph.name,
            "program": f"{self.graph.name}/{PROGRAM}",
            "parts": [
                {"name": p.name, "file": f"{self.graph.name}/{p.file}", "operators": dict(p.operators)}
                for p in converted.parts
            ],
            "inputs": [node.name for node in self.request.graph.graph.find_nodes(op="placeholder")],
            "counts": dict(zip(self._counted(), self.counts)),
            "fixed": dict(converted.fixed or {}),
            "largest_difference": gap,
            "kernels": [asdict(choice) for choice in self.choices],
            "notes": self._notes(converted, gap),
        }

    def _counted(self) -> list[str]:
        """The inputs that are counts of places; `counts.py` computes them."""
        placeholders = self.request.graph.graph.find_nodes(op="placeholder")
        return [node.name for node in placeholders[len(self.graph.inputs) :]]

    def _notes(self, converted: Converted, gap: float | None) -> list[str]:
        notes = [f"graph break, Python runs here: {miss}" for miss in self.graph.report.graph_breaks]
        if gap is None:
            notes.append(f"numbers were not compared: {self.incomparable}")
        else:
            notes.append(f"run on the CPU, it differs from the model's own operators by {gap:.1e} at most")
        notes += [f"holds for {name} = {value} alone" for name, value in (converted.fixed or {}).items()]
        notes += [f"{one.operator}, {one.calls} calls: {one.chosen}: {one.why}" for one in self.choices]
        if self.assertions:
            notes.append(f"assertions of the model that are left out, since no node can stop a run: {self.assertions}")
        if any("recompute" in node.meta for node in self.graph.graph.graph.nodes):
            notes.append("checkpointed regions keep their activations: nothing is computed twice")
        return notes

    def compare(self, path: Path) -> float:
        """The largest relative difference of outputs and gradients from the captured graph's.

        Raises:
            LowerError: it is beyond rounding.
        """
        inputs = [_leaf(value) for value in self.graph.inputs[: len(_placeholders(self.graph.captured))]]
        want = outputs_and_gradients(self.graph.captured, inputs, self.graph.training)
        got = torch.load(path, weights_only=True)
        limits = TOLERANCES[_coarsest(self.graph.captured)]
        norms = [float(grad.double().norm()) for grad in want[1] if grad is not None]
        gaps = [difference(ours, theirs, self.graph.ignore_zeros) / limits[0] for ours, theirs in zip(got[0], want[0])]
        gaps += [
            difference(*_filled(ours, theirs), floor=_NOISE * max(norms, default=0.0)) / limits[1]
            for ours, theirs in zip(got[1], want[1]) if ours is not None or theirs is not None
        ]  # fmt: skip
        worst = max(gaps, default=0.0)
        if len(got[0]) != len(want[0]) or worst > 1:
            raise LowerError(
                f"{self.graph.name}: what is lowered does not compute what the model computes: off by {worst:.1e} "
                "times what rounding allows; compile with verify='numerics' to find the pass"
            )
        return worst * limits[0]


def _placeholders(graph_module: fx.GraphModule) -> list[fx.Node]:
    return list(graph_module.graph.find_nodes(op="placeholder"))


def _leaf(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().clone().requires_grad_(value.requires_grad)


def _filled(ours: Any, theirs: Any) -> tuple[Any, Any]:
    """No gradient is a gradient of zeros."""
    return (torch.zeros_like(theirs) if ours is None else ours, torch.zeros_like(ours) if theirs is None else theirs)


def _coarsest(graph_module: fx.GraphModule) -> torch.dtype:
    values = (node.meta.get("val") for node in graph_module.graph.nodes)
    found = {value.dtype for value in values if isinstance(value, torch.Tensor)}
    order = (torch.bfloat16, torch.float16, torch.float32)
    return next((dtype for dtype in order if dtype in found), torch.float64)


def incomparable(graph: CapturedGraph) -> str:
    """Why what is lowered cannot be held against the model; "" where it can."""
    changed = [one.name for one in graph.report.passes if one.changed and one.numerics == "changes-objective"]
    if changed:
        return f"{', '.join(changed)} changed what the model computes"
    random = draws(graph.captured)
    return f"the model draws random numbers ({random})" if random else ""


def draws(graph_module: fx.GraphModule) -> str:
    """The first operator that draws random numbers; "" where none does."""
    for node in graph_module.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) and not _drops_nothing(node):
            return str(node.target)
    return ""


def _drops_nothing(node: fx.Node) -> bool:
    """A dropout of rate 0, or outside training; attention whose dropout has rate 0."""
    schema: Any = getattr(node.target, "_schema", None)
    given = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
    given.update(zip((argument.name for argument in schema.arguments), node.args))
    given.update(node.kwargs)
    return given.get("p", given.get("dropout_p")) == 0 or given.get("train", True) is False


def check_options(mode: str, kernels: str) -> None:
    """Raises ConfigError for an option of the target that has no such value."""
    for name, value, known in (("mode", mode, MODES), ("kernels", kernels, KERNELS)):
        if value not in known:
            raise ConfigError(f"target='ascend{{{name}={value}}}': {name} is one of {', '.join(known)}")
    if mode == replay.MODE and kernels != "generated":
        raise ConfigError(
            f"target='ascend{{mode={mode},kernels={kernels}}}': Huawei's operators are nodes of GE graphs, and {mode} "
            f"makes none; take kernels=generated, or mode={_GE}"
        )


@dataclass(frozen=True)
class AscendTarget:
    """What `optimize(target="ascend")` runs: torchair's own backend, with our converters and decompositions.

    Where torch_npu, CANN or an operator package is missing, files are all that there is of it.
    """

    mode: str = "max-autotune"
    kernels: str = "generated"
    name: ClassVar[str] = "ascend"
    lowering: ClassVar[type[AscendLowering]] = AscendLowering

    def __post_init__(self) -> None:
        check_options(self.mode, self.kernels)
        if missing := host.lacking():
            raise ConfigError(
                f"target='ascend' cannot run models here; this host lacks {', '.join(missing)} (`gr-compile doctor` "
                "says more). gr_compile.lower(model, *args, target='ascend') writes what a host with an NPU needs"
            )

    def adapt(self, pipeline: Pipeline) -> Pipeline:
        """The passes as the mode needs them."""
        return replay.with_buckets(pipeline) if self.mode == replay.MODE else pipeline

    def supports(self, operator: str) -> bool:
        return operator in OPERATORS or operator in COMPOSED

    def compile(self, graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Compiled:
        return device.compiled(graph_module, inputs, self.mode, self.kernels)
