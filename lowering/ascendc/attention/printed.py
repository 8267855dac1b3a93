"""Attention as an operator project holds it: the kernels of the calls that graphs make, one for each set of constants.

    calls of a graph  ->  Programs(kernels=[Printed(key 1), Printed(key 2)], refused=[(call, "dropout: ...")])
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx as fx

from gr_compile.lowering.ascendc.attention import sizes
from gr_compile.lowering.ascendc.attention.backward import Backward
from gr_compile.lowering.ascendc.attention.call import Call
from gr_compile.lowering.ascendc.attention.forward import Forward
from gr_compile.lowering.ascendc.attention.printer import Printer
from gr_compile.lowering.ascendc.example import Sizes, at_example
from gr_compile.lowering.ascendc.machine import Machine
from gr_compile.lowering.ascendc.tiling import DoesNotFit, Tiling, solve
from gr_compile.lowering.cpu.lanes import Unsupported
from gr_compile.ops.jagged_attention import backward_inputs, inputs_of

FORWARD, BACKWARD = "gr::jagged_attention", "gr::jagged_attention_backward"
OPERATORS = (FORWARD, BACKWARD)
_NO_COUNTS: Sizes = {}


@dataclass(frozen=True)
class AttentionCall:
    """A call of the operator, or of its backward: then `needs` says which of q, k, v and the leaves want a gradient."""

    call: Call
    needs: tuple[bool, ...] | None = None

    @property
    def operator(self) -> str:
        return FORWARD if self.needs is None else BACKWARD

    def constants(self) -> AttentionCall:
        """What its kernel is printed for."""
        return replace(self, call=self.call.constants())

    def printer(self) -> Printer:
        """Its kernel.

        Raises:
            Unsupported: there is none; the message says why.
        """
        if self.needs is None:
            return Forward(self.call)
        if any(self.needs[:2]) and self.call.program.product is None:
            raise Unsupported("a gradient of q or k, which the program does not read")
        return Backward(self.call, self.needs)

    def described(self) -> dict[str, Any]:
        """The call as JSON."""
        return {"call": self.call.described(), "needs": None if self.needs is None else list(self.needs)}

    @staticmethod
    def read(described: dict[str, Any]) -> AttentionCall:
        """The call that `described` wrote."""
        needs = described["needs"]
        return AttentionCall(Call.read(described["call"]), None if needs is None else tuple(needs))


def calls_of(graph_module: fx.GraphModule, counts: Sizes = _NO_COUNTS) -> list[AttentionCall]:
    """The calls of a graph with fake values; a leaf's extent that is a symbol there is a size of the call.

    Args:
        counts: the values of symbols that are told by data, in the example.
    """
    targets = {torch.ops.gr.jagged_attention.default, torch.ops.gr.jagged_attention_backward.default}
    nodes = graph_module.graph.nodes
    return [call_of(node, counts) for node in nodes if node.op == "call_function" and node.target in targets]


def call_of(node: fx.Node, counts: Sizes) -> AttentionCall:
    """The call that a node with fake values is; `counts`: of sizes that only data tells."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    given = {**dict(zip(names, node.args)), **node.kwargs}
    values: dict[str, Any] = fx.node.map_arg(given, lambda x: x.meta["val"])
    leaves = values["leaves"]
    opened = frozenset(
        (at, dim) for at, leaf in enumerate(leaves) for dim, x in enumerate(leaf.shape) if isinstance(x, torch.SymInt)
    )
    known = {name: at_example(value, counts) for name, value in values.items()}
    needs = known.pop("needs_grad", None)
    grad = known.pop("grad_out", None)
    operands = [known[name] for name in names if name in known]
    inputs = inputs_of(*operands) if needs is None else backward_inputs(grad, operands, needs)
    return AttentionCall(replace(Call.of(inputs), open=opened), None if needs is None else tuple(needs))


@dataclass(frozen=True)
class Printed:
    """A kernel of an operator: what it serves, and the tile that was chosen for it.

    Attributes:
        key: its tiling key, from 1.
        serves: the constants; sizes are 0.
    """

    key: int
    serves: AttentionCall
    printer: Printer
    tiling: Tiling

    @property
    def name(self) -> str:
        """Of its namespace and file."""
        return f"program_{self.key}"

    def numbers(self, call: Call, machine: Machine) -> dict[str, int]:
        """The tiling's fields, `blocks` and `workspace` of a call that it serves."""
        return sizes.numbers(self.printer, self.tiling, call, machine.unified_buffer, machine.cube_cores)


@dataclass(frozen=True)
class Programs:
    """Kernels by operator, in the order of their keys, and the reason where a call has none."""

    kernels: dict[str, tuple[Printed, ...]]
    refused: dict[AttentionCall, str]

    def of(self, call: AttentionCall) -> Printed | None:
        """The kernel that serves a call."""
        wanted = call.constants()
        return next((x for x in self.kernels.get(call.operator, ()) if x.serves == wanted), None)


def print_programs(calls: Iterable[AttentionCall], machine: Machine) -> Programs:
    """A kernel for each set of constants in `calls`, tiles chosen for a machine; the same ones in any order."""
    distinct = sorted(dict.fromkeys(call.constants() for call in calls), key=_text)
    found: dict[str, tuple[Printed, ...]] = {}
    refused: dict[AttentionCall, str] = {}
    for wanted in distinct:
        earlier = found.get(wanted.operator, ())
        try:
            printer = wanted.printer()
            one = Printed(len(earlier) + 1, wanted, printer, solve(printer.demand(), machine))
        except (Unsupported, DoesNotFit) as error:
            refused[wanted] = str(error)
            continue
        found[wanted.operator] = (*earlier, one)
    return Programs(found, refused)


def _text(call: AttentionCall) -> str:
    return repr(call.described())


def signatures(printed: Sequence[Printed]) -> list[dict[str, str]]:
    """The dtypes of the variables Q, V and O that the kernels of an operator have, each once."""
    found = []
    for one in printed:
        call = one.serves.call
        out = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[call.program.out_dtype]
        kinds = (call.qk_dtype, call.v_dtype)
        q, v = (str(kind).removeprefix("torch.") for kind in kinds)
        if {"Q": q, "V": v, "O": out} not in found:
            found.append({"Q": q, "V": v, "O": out})
    return found
