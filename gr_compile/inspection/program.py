"""Prints a graph as a standalone Python program: provenance, readable forward, recorded inputs, a check.

A call of an operator becomes one line, with its type and, when it changes, the user's line above it:

    # hstu.py:31 in forward: x = self.embedding(ids)
    embedding = aten.embedding.default(embedding_weight, ids)  # f32[s0, 50, 64]
"""

from __future__ import annotations

import hashlib
import keyword
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

import torch
import torch.fx as fx
from torch._subclasses.fake_tensor import FakeTensor

from gr_compile.graph_pass import SourceLine, source_line
from gr_compile.inspection.inputs import input_source
from gr_compile.inspection.values import Imports, SourcePrinter, describe, short_name, size_hint

_RESERVED = (
    *("aten", "gr", "prims", "math", "operator", "torch", "inf", "nan", "replay", "sys"),
    *("forward", "main", "make_inputs", "INPUTS", "PROGRAM"),
)
_INLINE_ELEMENTS = 16
_SAVED_BYTES = 256 << 20


class ProgramError(Exception):
    """The graph holds something that has no form as a Python program."""


@dataclass(frozen=True)
class ProgramLine:
    """One line of the readable forward: its text, the node that it shows, and the user's line behind it."""

    text: str
    node: str = ""
    where: SourceLine | None = None


@dataclass(frozen=True)
class PrintedProgram:
    """A program: its whole source, the lines of its forward, and the constants to be saved beside it."""

    source: str
    lines: tuple[ProgramLine, ...]
    files: dict[str, torch.Tensor]

    @property
    def forward_text(self) -> str:
        """The readable forward alone: what two stages' diff compares."""
        return "".join(line.text + "\n" for line in self.lines)


@dataclass
class _Writer:
    """State of printing one program (nested graphs become functions of their own)."""

    imports: Imports = field(default_factory=Imports)
    lines: list[ProgramLine] = field(default_factory=list)
    files: dict[str, torch.Tensor] = field(default_factory=dict)
    functions: list[ProgramLine] = field(default_factory=list)
    constants: dict[str, str] = field(default_factory=dict)

    def loaded(self, value: torch.Tensor, device: str) -> str:
        """A name of the module for a constant that is saved: loaded once, and outside of what a tracer may follow."""
        file = self.save(value)
        name = PurePath(file).stem.upper()
        self.constants[name] = f"replay.load_constant(__file__, {file!r}{device})"
        return name

    def save(self, value: torch.Tensor) -> str:
        """Keep a constant for a file named by its content, so that all stages share it."""
        plain = value.detach().cpu().contiguous()
        raw = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
        label = f"{plain.dtype}{tuple(plain.shape)}".encode()
        name = f"constant_{hashlib.sha256(label + raw).hexdigest()[:12]}.pt"
        self.files[name] = plain.clone()
        return name


def print_program(
    graph_module: fx.GraphModule,
    *,
    provenance: str = "made by gr_compile",
    previous: str = "",
    exact: bool = False,
    ignore_zeros: bool = False,
) -> PrintedProgram:
    """The graph as a program. `previous`: the file that `--check` compares with; `exact`: bitwise.

    `ignore_zeros`: the comparison passes over places where this stage's output is exactly zero (padding that
    the user declared not to care for). Raises ProgramError when the graph has calls of opaque modules.
    """
    writer = _Writer()
    names = _write_function(writer, graph_module, "forward")
    placeholders = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    inputs = [input_source(node, names, writer.save) for node in placeholders]
    sections = [
        "\n".join("# " + line for line in provenance.splitlines()),
        _import_text(writer.imports),
        _inputs_text(inputs),
        *(["\n".join(f"{name} = {source}" for name, source in writer.constants.items())] if writer.constants else []),
        *(["\n".join(line.text for line in writer.functions)] if writer.functions else []),
        "\n".join(line.text for line in writer.lines),
        _main_text(previous, exact, _half_precision(graph_module), ignore_zeros),
    ]
    return PrintedProgram("\n\n\n".join(sections) + "\n", (*writer.functions, *writer.lines), writer.files)


def _half_precision(graph_module: fx.GraphModule) -> torch.dtype | None:
    """bfloat16 or float16 where the graph computes in it: rounding then shows in float32 outputs too."""
    values = (node.meta.get("val") for node in graph_module.graph.nodes)
    found = {value.dtype for value in values if isinstance(value, torch.Tensor)}
    return next((dtype for dtype in (torch.bfloat16, torch.float16) if dtype in found), None)


def _import_text(imports: Imports) -> str:
    standard = sorted(module for module in imports.modules)
    lines = [f"import {module}" for module in sorted({"sys", *standard})]
    if imports.numbers:
        lines.append(f"from math import {', '.join(sorted(imports.numbers))}")
    lines += ["", "import torch", ""]
    if "gr" in imports.namespaces:
        lines.append("import gr_compile.ops  # registers torch.ops.gr")
    lines.append("from gr_compile.inspection import replay")
    spaces = sorted(space for space in imports.namespaces if space.isidentifier())
    return "\n".join([*lines, "", *(f"{space} = torch.ops.{space}" for space in spaces)]).rstrip()


def _inputs_text(inputs: list[tuple[str, str]]) -> str:
    entries = [f"    {source}," + (f"  # {comment}" if comment else "") for source, comment in inputs]
    return "\n".join(
        [
            "INPUTS = [",
            *entries,
            "]",
            "",
            "",
            "def make_inputs(seed=0):",
            '    """The recorded inputs, rebuilt: shapes, strides, dtypes and ranges as compiled for."""',
            "    return replay.make_inputs(INPUTS, seed, __file__)",
        ]
    )


def _main_text(previous: str, exact: bool, precision: torch.dtype | None, ignore_zeros: bool) -> str:
    options = [f"previous={previous!r}"] if previous else []
    options += ["exact=True"] if exact else []
    options += [f"precision={precision}"] if precision else []
    options += ["ignore_zeros=True"] if ignore_zeros else []
    extra = "".join(f", {option}" for option in options)
    return "\n".join(
        [
            f"PROGRAM = replay.Program(__file__, forward, make_inputs, tuple(i.name for i in INPUTS){extra})",
            "",
            "",
            "def main():",
            '    """Run on rebuilt inputs; --check compares with the stage before; --seed N."""',
            "    return replay.main(PROGRAM)",
            "",
            "",
            'if __name__ == "__main__":',
            "    sys.exit(main())",
        ]
    )


def _write_function(writer: _Writer, graph_module: fx.GraphModule, function: str) -> dict[fx.Node, str]:
    names = _variable_names(graph_module.graph)
    placeholders = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    scope = _Scope(writer, graph_module, names)
    scope.lines.append(ProgramLine(f"def {function}({', '.join(names[node] for node in placeholders)}):"))
    for node in placeholders:
        scope.note_symbols(node)
    for node in graph_module.graph.nodes:
        scope.write(node)
    if function == "forward":
        writer.lines = scope.lines
    else:
        writer.functions += [*scope.lines, ProgramLine(""), ProgramLine("")]
    return names


def _variable_names(graph: fx.Graph) -> dict[fx.Node, str]:
    """A short, unique variable for each node; names of nodes that are no inputs stay, for stable diffs."""
    taken = set(_RESERVED)
    names: dict[fx.Node, str] = {}
    nodes = [node for node in graph.nodes if node.op != "placeholder"]
    for node in nodes:
        names[node] = _free(node.name, taken)
    for node in graph.nodes:
        if node.op == "placeholder":
            names[node] = _free(short_name(node.name), taken)
    return names


def _free(wanted: str, taken: set[str]) -> str:
    name = wanted + "_" if keyword.iskeyword(wanted) else wanted
    number = 1
    while name in taken:
        number += 1
        name = f"{wanted}_v{number}"
    taken.add(name)
    return name


@dataclass
class _Scope:
    """One function of the program."""

    writer: _Writer
    graph_module: fx.GraphModule
    names: dict[fx.Node, str]
    lines: list[ProgramLine] = field(default_factory=list)
    bindings: dict[str, str] = field(default_factory=dict)
    last_where: SourceLine | None = None

    def __post_init__(self) -> None:
        self.printer = SourcePrinter(self.names, self.writer.imports, self._symbol)

    def write(self, node: fx.Node) -> None:
        """Append the lines of one node."""
        if node.op == "placeholder":
            return
        text = self._statement(node)
        where = source_line(node) if node.op not in ("output", "get_attr") else None
        if where is not None and where != self.last_where:
            self.lines.append(ProgramLine(f"    # {short_place(where)}", where=where))
            self.last_where = where
        comment = describe(node.meta.get("val")) if node.op != "output" else ""
        comment = "  # " + comment if comment else ""
        self.lines.append(ProgramLine(f"    {text}{comment}", node.name, where or source_line(node)))
        self.note_symbols(node)

    def _statement(self, node: fx.Node) -> str:
        name = self.names[node]
        if node.op == "output":
            return f"return {self.printer.value(node.args[0])}"
        if node.op == "get_attr":
            return f"{name} = {self._attribute(node)}"
        if node.op == "call_function":
            return f"{name} = {self.printer.call(node.target, node.args, node.kwargs)}"
        if node.op == "call_method":
            rest = self.printer.arguments(node.args[1:], node.kwargs)
            return f"{name} = {self.printer.value(node.args[0])}.{node.target}({rest})"
        raise ProgramError(f"{node.op} {node.target} has no form as a Python program")

    def _attribute(self, node: fx.Node) -> str:
        value: Any = self.graph_module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        if isinstance(value, fx.GraphModule):
            function = f"{self.names[node]}_graph"
            _write_function(self.writer, value, function)
            return function
        if not isinstance(value, torch.Tensor):
            return self.printer.value(value)
        return self._constant(value)

    def _constant(self, value: torch.Tensor) -> str:
        sizes = tuple(size_hint(size) for size in value.shape)
        device = "" if value.device.type == "cpu" else f", device={str(value.device)!r}"
        bytes_held = value.element_size() * _product(sizes)
        if isinstance(value, FakeTensor) or bytes_held > _SAVED_BYTES or value.layout != torch.strided:
            return f"torch.ones({sizes}, dtype={value.dtype}{device})  # not the constant: fake or too large"
        if _product(sizes) <= _INLINE_ELEMENTS and not value.is_complex():
            inner = self.printer.value(value.detach().cpu().tolist())
            shape = f".reshape({sizes})" if 0 in sizes else ""
            return f"torch.tensor({inner}, dtype={value.dtype}{device}){shape}"
        return self.writer.loaded(value, device)

    def note_symbols(self, node: fx.Node) -> None:
        """Remember how a size symbol can be had from this node, should an argument name it."""
        value, name = node.meta.get("val"), self.names[node]
        for text, size in _sizes(value, name):
            expression = size.node.expr
            if getattr(expression, "is_symbol", False):
                self.bindings.setdefault(str(expression), text)

    def _symbol(self, symbol: str) -> str:
        return self.bindings.get(symbol, f"replay.unprintable({symbol!r})")


def _sizes(value: object, name: str) -> Iterator[tuple[str, torch.SymInt]]:
    if isinstance(value, torch.SymInt):
        yield name, value
    elif isinstance(value, torch.Tensor):
        for place, size in enumerate(value.shape):
            if isinstance(size, torch.SymInt):
                yield f"{name}.shape[{place}]", size
    elif isinstance(value, (tuple, list)):
        for place, item in enumerate(value):
            yield from _sizes(item, f"{name}[{place}]")


def _product(sizes: tuple[int, ...]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def short_place(where: SourceLine) -> str:
    """`hstu.py:31 in forward: x = ...`: without the folders, which differ between machines."""
    return f"{PurePath(where.file).name}:{where.line} in {where.function}: {where.code}"
