"""A graph on its way to the process that converts it: a program, what its inputs look like, and what they were.

<name>/program.py      the graph as `inspection.program` prints it, with its constants beside it
<name>/request.json    inputs [{name, shape, stride, dtype, requires_grad} or {name, size}], hints of symbols,
                       sizes: what they were in the call, training, threads to run with
<name>/inputs.pt       the inputs of the call, where the graph is to be run, too
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree

from gr_compile.inspection.program import print_program
from gr_compile.inspection.values import size_hint
from gr_compile.sizes import size_expr

REQUEST, PROGRAM, INPUTS, RESULT, RAN = "request.json", "program.py", "inputs.pt", "result.json", "ran.pt"


@dataclass(frozen=True)
class Request:
    """A graph to convert.

    Attributes:
        graph: every size known when it is called.
        inputs: those of the call that compiled it, counts included.
        training: convert its backward, too.
        dynamic: sizes stay symbols; otherwise they are those of the call.
        run: run what torchair has made of the graph, operator by operator, on the inputs.
        mode: torchair's: "max-autotune" makes GE graphs, "npugraph_ex" graphs to capture.
        library: by score program, the attributes of the operator of Huawei's that computes it.
    """

    name: str
    graph: fx.GraphModule
    inputs: Sequence[Any]
    training: bool
    dynamic: bool
    run: bool
    mode: str = "max-autotune"
    library: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Put it into a folder of its own below `folder`, and say which."""
        own = folder / self.name
        own.mkdir(parents=True)
        printed = print_program(self.graph, provenance=f"made by gr_compile: {self.name}, as it is lowered")
        (own / PROGRAM).write_text(printed.source, encoding="utf-8")
        for name, constant in printed.files.items():
            torch.save(constant, own / name)
        if self.run:
            torch.save([_plain(value) for value in self.inputs], own / INPUTS)
        (own / REQUEST).write_text(json.dumps(self._described(), indent=1), encoding="utf-8")
        return own

    def _described(self) -> dict[str, Any]:
        hints: dict[str, int] = {}
        placeholders = self.graph.graph.find_nodes(op="placeholder")
        described = [self._input(node, value, hints) for node, value in zip(placeholders, self.inputs)]
        sizes = [
            (str(size_expr(node.meta["val"])), int(value)) for node, value in zip(placeholders, self.inputs)
            if isinstance(node.meta["val"], torch.SymInt)
        ]  # fmt: skip
        return {
            "inputs": described, "hints": hints, "sizes": dict(sizes), "training": self.training, "run": self.run,
            "mode": self.mode, "threads": torch.get_num_threads(),
            "library": {program: dict(attributes) for program, attributes in self.library.items()},
        }  # fmt: skip

    def _input(self, node: fx.Node, value: Any, hints: dict[str, int]) -> dict[str, Any]:
        fake = node.meta["val"]
        if not isinstance(fake, torch.Tensor):
            return {"name": node.name, "size": self._size(fake, hints, value)}
        return {
            "name": node.name,
            "shape": [self._size(size, hints) for size in fake.shape],
            "stride": [self._size(step, hints) for step in fake.stride()],
            "dtype": str(fake.dtype).removeprefix("torch."),
            "requires_grad": isinstance(value, torch.Tensor) and value.requires_grad,
        }

    def _size(self, size: Any, hints: dict[str, int], value: Any = None) -> Any:
        """A number, or an expression in symbols whose hints are noted; `value`: what it was in the call."""
        if not isinstance(size, torch.SymInt):
            return size
        expression = size_expr(size)
        if expression.is_Integer:
            return int(expression)
        known = int(value) if value is not None and expression.is_Symbol else None
        if not self.dynamic:
            return known if known is not None else size_hint(size)
        if known is not None:
            hints[str(expression)] = known if expression in self._backed(size) else self._apart(known)
        for symbol in expression.free_symbols - {expression if known is not None else None}:
            hints.setdefault(str(symbol), _hint(size, symbol))
        return str(expression)

    @staticmethod
    def _backed(size: torch.SymInt) -> Any:
        return size.node.shape_env.backed_var_to_val

    def _apart(self, count: int) -> int:
        """What a count is taken for: no size that the graph has anyway.

        Where the two were equal, tracing would ask whether they are, and settle the count on that number.
        """
        taken = _constant_sizes(self.graph.graph) | {int(value) for value in self.inputs if isinstance(value, int)}
        apart = max(count, 2) + 1
        while apart in taken:
            apart += 1
        return apart


def _constant_sizes(graph: fx.Graph) -> set[int]:
    values = (leaf for node in graph.nodes for leaf in pytree.tree_leaves(node.meta.get("val")))
    return {
        size for value in values if isinstance(value, torch.Tensor) for size in value.shape if isinstance(size, int)
    }


def _hint(size: torch.SymInt, symbol: Any) -> int:
    return int(size.node.shape_env.backed_var_to_val[symbol])


def _plain(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


@dataclass(frozen=True)
class Part:
    """A GE graph that torchair has made: of a forward or a backward.

    Attributes:
        operators: how many nodes there are of each GE type.
        attention: the calls of jagged attention and its backward, as `AttentionCall.described` says them.
    """

    name: str
    file: str
    operators: Mapping[str, int]
    attention: Sequence[dict[str, Any]] = ()


@dataclass(frozen=True)
class Converted:
    """What the process said of a graph.

    Attributes:
        error: why there is no GE graph; "" where there is one.
        missing: operators without a converter, with how often they occur.
        fixed: symbols that the graph holds for one value alone, and the value.
    """

    name: str
    parts: tuple[Part, ...]
    error: str = ""
    missing: Mapping[str, int] | None = None
    fixed: Mapping[str, int] | None = None

    @classmethod
    def read(cls, folder: Path) -> Converted:
        """What lies in a graph's folder after the process has ended."""
        try:
            found = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return cls(folder.name, (), "the process that converts ended without a word of this graph")
        parts = tuple(Part(**part) for part in found.pop("parts"))
        return cls(folder.name, parts, **found)
