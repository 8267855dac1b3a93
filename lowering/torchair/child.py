"""The process that converts: `python -m gr_compile.lowering.torchair.child`, and on its input one folder a graph.

It is started before there is a graph: what it imports takes as long as capturing a model does.

torchair replaces signal handlers, the logging class and parts of Dynamo when it is imported; here that harms nobody.
The way is torchair's own, with its decompositions and its AOTAutograd call; only the native module is a stand-in.
"""

from __future__ import annotations

import copy
import gc
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sympy
import torch
import torch.fx as fx
from torch._dynamo.source import ConstantSource
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._mode_utils import no_dispatch

import gr_compile.lowering.cpu.kernels  # noqa: F401  (registers them)
from gr_compile.inspection.replay import load_program
from gr_compile.lowering.ascendc.attention.printed import AttentionCall, calls_of
from gr_compile.lowering.torchair import converters, replay, standin
from gr_compile.lowering.torchair.decompositions import decompositions
from gr_compile.lowering.torchair.request import INPUTS, PROGRAM, RAN, REQUEST, RESULT, Part
from gr_compile.numerics import outputs_and_gradients


def main() -> None:
    """Convert each graph; what went wrong with one is written beside it and stops no other."""
    standin.install()
    import torchair  # type: ignore[import-not-found, unused-ignore]  # noqa: F401

    gc.disable()  # the process ends soon: walking through all that it has imported is in vain
    for folder in map(Path, sys.stdin.read().splitlines()):
        conversion = _Conversion(folder)
        found: dict[str, Any] = {"parts": [], "error": ""}
        try:
            conversion.convert()
        except Exception as error:
            found["error"] = _reason(error)
        found["parts"] = [asdict(part) for part in conversion.parts]
        found["missing"], found["fixed"] = conversion.missing, conversion.fixed
        (folder / RESULT).write_text(json.dumps(found, indent=1), encoding="utf-8")


def _reason(error: BaseException) -> str:
    """The innermost failure, in a line: torchair wraps errors in others of the same type without their text."""
    while error.__context__ is not None and not str(error).strip():
        error = error.__context__
    innermost = error.__context__ if error.__context__ is not None else error
    text = next((line for line in str(innermost).splitlines() if line.strip()), "")
    return f"{type(innermost).__name__}: {text}"


class _Conversion:
    """One graph: its inputs made anew as fake tensors, its GE graphs written as they are made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.request = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
        self.parts: list[Part] = []
        self.missing: Counter[str] = Counter()
        self.fixed: dict[str, int] = {}
        self.counts: dict[sympy.Symbol, int] = {}

    def convert(self) -> None:
        converters.register_all(self.request["library"])
        forward = load_program(self.folder / PROGRAM).forward  # before any fake mode: its constants are real
        fake_mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        symbols = self._symbols(fake_mode)
        known = self.request["sizes"]
        self.counts = {size.node.expr: known[name] for name, size in symbols.items() if name in known}
        with fake_mode:
            inputs = [_input(entry, symbols) for entry in self.request["inputs"] if not _is_constant(entry)]
        compiled = self._compile(fake_mode, self._graph(forward), inputs)
        self._note_fixed(symbols)
        if self.request["run"]:
            self._run(compiled)

    def _symbols(self, fake_mode: FakeTensorMode) -> dict[str, Any]:
        shape_env: Any = fake_mode.shape_env
        made = {}
        for name, hint in self.request["hints"].items():
            source = ConstantSource(name)
            symbol = shape_env.create_symbol(hint, source, DimDynamic.DYNAMIC, None)
            made[name] = shape_env.create_symintnode(symbol, hint=hint, source=source)
        return made

    def _compile(self, fake_mode: FakeTensorMode, graph: fx.GraphModule, inputs: list[Any]) -> Any:
        from torchair import CompilerConfig
        from torchair.npu_fx_compiler import (  # type: ignore[import-not-found, unused-ignore]
            _compile_graph_with_aot,
            _get_merged_decompositions,
        )

        config = CompilerConfig()
        config.mode = self.request["mode"]
        own = decompositions(converters.has_converter)
        with (
            fake_mode,
            torch.set_grad_enabled(self.request["training"]),
            sdpa_kernel(SDPBackend.MATH),  # what the CPU's fused attention becomes has no converter
            torch._functorch.config.patch(force_non_lazy_backward_lowering=True),
            tracing(TracingContext(fake_mode)),
        ):
            return _compile_graph_with_aot(
                graph, _recorder(self, config), inputs, config, _get_merged_decompositions(config, own)
            )

    def _graph(self, forward: Callable[..., Any]) -> fx.GraphModule:
        """The program as a graph of one call: AOTAutograd traces through it. Settled sizes are no inputs of it."""
        graph = fx.Graph()
        entries = self.request["inputs"]
        operands = tuple(
            entry["size"] if _is_constant(entry) else graph.placeholder(entry["name"]) for entry in entries
        )
        graph.output(graph.call_function(forward, operands))
        return fx.GraphModule(torch.nn.Module(), graph)

    def keep(self, concrete: Any, attention: list[AttentionCall]) -> None:
        """Write the GE graph of the next part: the forward comes first."""
        file = self._next_part("pbtxt", Counter(op.type for op in concrete.graph.op), attention)
        concrete.dump(str(file))

    def keep_replayed(self, graph_module: fx.GraphModule, attention: list[AttentionCall]) -> None:
        """Write the FX graph whose operators are captured when it first runs, and replayed later."""
        called = [node for node in graph_module.graph.nodes if node.op == "call_function"]
        replay.check(graph_module)
        file = self._next_part("txt", Counter(str(node.target) for node in called), attention)
        file.write_text(str(graph_module.graph) + "\n", encoding="utf-8")

    def _next_part(self, suffix: str, counts: Counter[str], attention: list[AttentionCall]) -> Path:
        name = "backward" if self.parts else "forward"
        own = [call for call in attention if call.needs or call.call.program.text() not in self.request["library"]]
        self.parts.append(Part(name, f"{name}.{suffix}", dict(counts), [call.described() for call in own]))
        return self.folder / f"{name}.{suffix}"

    def _note_fixed(self, symbols: Mapping[str, Any]) -> None:
        """Tracing may have settled a size on what it was in the call: the graph then holds for that size alone."""
        for name, size in symbols.items():
            found: Any = size if isinstance(size, int) else size.node.expr
            if isinstance(size, int) or found.is_Integer:
                self.fixed[name] = int(found)

    def _run(self, compiled: Any) -> None:
        torch.set_num_threads(self.request["threads"])  # the caller's choice: this process began with a default
        recorded = torch.load(self.folder / INPUTS, weights_only=True)
        inputs = []
        for entry, value in zip(self.request["inputs"], recorded):
            if not _is_constant(entry):
                inputs.append(value.requires_grad_() if entry.get("requires_grad") else value)
        ran = outputs_and_gradients(compiled, inputs, self.request["training"])
        torch.save(ran, self.folder / RAN)


def _recorder(conversion: _Conversion, config: Any) -> Any:
    """torchair's compiler; what it returns runs the FX graph of the GE graph, as its debug.run_eagerly does.

    A graph that is to be captured ends after torchair's passes over FX: what follows needs a device.
    """
    from torchair._utils.graph_transform_observer import (  # type: ignore[import-not-found, unused-ignore]
        GraphTransformObserver,
    )
    from torchair.npu_fx_compiler import _NpuFxCompiler, _optimize_fx, _valid_graph

    class Recorder(_NpuFxCompiler):  # type: ignore[misc, unused-ignore]
        def __call__(self, graph_module: fx.GraphModule, inputs: list[Any]) -> Any:
            _note_missing(conversion, graph_module)
            attention = calls_of(graph_module, conversion.counts)
            concrete = super().__call__(graph_module, inputs).runner
            conversion.keep(concrete, attention)
            return concrete.fx_graph

    class Replayed(_NpuFxCompiler):  # type: ignore[misc, unused-ignore]
        def __call__(self, graph_module: fx.GraphModule, inputs: list[Any]) -> Any:
            attention = calls_of(graph_module, conversion.counts)
            with no_dispatch():
                optimised = copy.deepcopy(graph_module)
            optimised = _optimize_fx(optimised, config, GraphTransformObserver(optimised, inputs, config))
            _valid_graph(optimised)
            conversion.keep_replayed(optimised, attention)
            return optimised

    return Recorder(config) if conversion.request["mode"] == "max-autotune" else Replayed(config)


def _note_missing(conversion: _Conversion, graph_module: fx.GraphModule) -> None:
    """All operators without a converter at once: torchair itself stops at the first."""
    called = [node.target for node in graph_module.graph.nodes if node.op == "call_function"]
    overloads = [target for target in called if isinstance(target, torch._ops.OpOverload)]
    conversion.missing.update(str(target) for target in overloads if not converters.has_converter(target))
    if conversion.missing:
        raise converters.CannotConvert(f"no GE converter for {', '.join(sorted(conversion.missing))}")


def _is_constant(entry: dict[str, Any]) -> bool:
    return isinstance(entry.get("size"), int)


def _input(entry: dict[str, Any], symbols: Mapping[str, Any]) -> Any:
    def value(size: Any) -> Any:
        return size if isinstance(size, int) else eval(size, {"__builtins__": {}}, dict(symbols))

    if "size" in entry:
        return value(entry["size"])
    shape, stride = ([value(size) for size in entry[key]] for key in ("shape", "stride"))
    dtype = getattr(torch, entry["dtype"])
    return torch.empty_strided(shape, stride, dtype=dtype, requires_grad=entry["requires_grad"])


if __name__ == "__main__":
    main()
