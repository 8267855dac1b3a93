"""One table of the `gr::` operators as Ascend sees them, for projects, bindings, GE and documents.

    gr::unpack(Tensor values, Tensor index, SymInt batch, SymInt length, Scalar fill)
        -> GrUnpack   inputs values, index, batch, length, fill   outputs y

What the torch schema says is read from it, argument by argument, and not written again:

    Tensor            a required input                  Tensor?           an optional input
    SymInt, SymInt[]  an input that is int64: a GE attribute is a constant, a size need not be one
    Scalar            an input of the dtype of another argument, so that any number keeps its value
    float, bool, str  an attribute, as is bool[]        Tensor[]          a dynamic input for each dtype
    float?            an attribute: `NO_NUMBER` where there is none

A row adds what no schema knows: dtypes, which sizes are constants of the model (attributes after all), the names of
outputs, and the arguments that no kernel takes. GE gives all elements of a dynamic input one dtype; a list of tensors
of several dtypes becomes one dynamic input a dtype, and the attribute `<name>_types` says in which order they stood:
"float32,int64" (an operator's definition knows no list of strings).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch

import gr_compile.ops  # noqa: F401  (registers them)

Role = Literal["required", "optional", "dynamic"]
AttributeType = Literal["int", "float", "bool", "str", "list_bool"]
FORMAT = "ND"
VENDOR = "gr"  # of the operator package: it is installed into vendors/gr

FLOATS = ("float32", "float16", "bfloat16")
WHOLE = ("int32", "int64")
MOVED = (*FLOATS, *WHOLE, "bool")
NO_NUMBER = -1.0  # stands for a float? that is None: none of ours may be negative
_ATTRIBUTE_OF: Mapping[str, AttributeType] = {
    "int": "int", "float": "float", "Optional[float]": "float", "bool": "bool", "str": "str", "List[bool]": "list_bool",
}  # fmt: skip


@dataclass(frozen=True)
class Port:
    """An input or an output.

    Attributes:
        types: the dtypes that it may have, by torch's names.
        variable: ports of one variable have one dtype; "" where only one dtype is possible.
        argument: the torch argument (or result) behind it.
    """

    name: str
    role: Role
    types: tuple[str, ...]
    variable: str = ""
    argument: str = ""


@dataclass(frozen=True)
class Attribute:
    """A constant of a call; `argument` is the torch argument that gives it."""

    name: str
    type: AttributeType
    argument: str


@dataclass(frozen=True)
class Operator:
    """A row: a `gr::` operator and what its torch schema does not say.

    Attributes:
        name: as in torch, without the namespace.
        summary: what it computes, in one line.
        variables: by argument or result, its type variable; what is not named is int64.
        types: the dtypes of each variable.
        results: names of the outputs; where torch returns a list, of its first elements.
        like: by Scalar argument, the argument whose dtype it has.
        constants: whole numbers that are constants of the model.
        lists: by Tensor[] argument, or by the rest of a list of results, the dtypes of the elements.
        without: optional arguments that no kernel takes; they must be None.
    """

    name: str
    summary: str
    variables: Mapping[str, str]
    types: Mapping[str, tuple[str, ...]]
    results: tuple[str, ...] = ("y",)
    like: Mapping[str, str] | None = None
    constants: frozenset[str] = frozenset()
    lists: Mapping[str, tuple[str, ...]] | None = None
    without: frozenset[str] = frozenset()

    @property
    def overload(self) -> Any:
        """The torch operator."""
        return getattr(torch.ops.gr, self.name).default

    @property
    def ge_type(self) -> str:
        """The type of the GE node and of the AscendC operator."""
        return "Gr" + "".join(word.capitalize() for word in self.name.split("_"))

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Those of the schema that kernels take."""
        return tuple(x for x in self.overload._schema.arguments if x.name not in self.without)

    def unserved(self, given: Mapping[str, Any]) -> str:
        """Why no kernel serves a call with these arguments; "" where one may."""
        named = [name for name in sorted(self.without) if given.get(name) is not None]
        return f"gr::{self.name}: no kernel takes {', '.join(named)}" if named else ""

    @cached_property
    def inputs(self) -> tuple[Port, ...]:
        return tuple(itertools.chain.from_iterable(map(self._ports, self.arguments)))

    @cached_property
    def attributes(self) -> tuple[Attribute, ...]:
        found = []
        for argument in self.arguments:
            kind, name = _kind(argument), argument.name
            if self._is_attribute(argument):
                found.append(Attribute(name, _ATTRIBUTE_OF[kind], name))
            elif kind == "List[Tensor]":
                found.append(Attribute(f"{name}_types", "str", name))
        return tuple(found)

    @cached_property
    def outputs(self) -> tuple[Port, ...]:
        arguments = {argument.name for argument in self.overload._schema.arguments}
        rest = [_list_ports(name, types) for name, types in (self.lists or {}).items() if name not in arguments]
        fixed = tuple(self._port(name, "required", name, name) for name in self.results)
        return (*fixed, *itertools.chain.from_iterable(rest))

    def signatures(self) -> Iterator[Mapping[str, str]]:
        """The dtypes of the variables in each kernel that there may be."""
        names = list(self.types)
        for chosen in itertools.product(*self.types.values()):
            yield dict(zip(names, chosen))

    def _is_attribute(self, argument: Any) -> bool:
        kind = _kind(argument)
        return kind in _ATTRIBUTE_OF and (kind != "int" or argument.name in self.constants)

    def _ports(self, argument: Any) -> tuple[Port, ...]:
        kind, name = _kind(argument), argument.name
        if self._is_attribute(argument):
            return ()
        if kind == "List[Tensor]":
            return _list_ports(name, (self.lists or {})[name])
        if kind == "number":
            return (self._port(name, "required", name, (self.like or {})[name]),)
        return (self._port(name, "optional" if kind == "Optional[Tensor]" else "required", name, name),)

    def _port(self, name: str, role: Role, argument: str, typed_by: str) -> Port:
        variable = self.variables.get(typed_by, "")
        return Port(name, role, self.types[variable] if variable else ("int64",), variable, argument)


def _kind(argument: Any) -> str:
    return str(argument.real_type)


def _list_ports(name: str, types: tuple[str, ...]) -> tuple[Port, ...]:
    return tuple(Port(f"{name}_{dtype}", "dynamic", (dtype,), "", name) for dtype in types)


_PARTS = ("u", "v", "q", "k")
_GRAD_PARTS = tuple(f"grad_{part}" for part in _PARTS)
_WIDTHS = frozenset(f"{part}_width" for part in _PARTS)


def _typed(*names: str) -> dict[str, str]:
    """One variable, T, for all of them."""
    return dict.fromkeys(names, "T")


_SAMPLED = {"query": "Q", "table": "T", "ids": "I", "group": "G"}
_SAMPLED_TYPES = {"Q": FLOATS, "T": FLOATS, "I": WHOLE, "G": WHOLE}
_COPIES = frozenset({"stored", "scale"})
_ATTENTION = {"q": "Q", "k": "Q", "v": "V"}
_ATTENTION_TYPES = {"Q": FLOATS, "V": FLOATS, "O": FLOATS}
_ROWS: tuple[Operator, ...] = (
    Operator("pack", "rows of a padded tensor at flat places", {"dense": "T", "y": "T"}, {"T": MOVED}),
    Operator(
        "unpack", "those rows back at their places, a number elsewhere",
        {"values": "T", "y": "T"}, {"T": MOVED}, like={"fill": "values"},
    ),
    Operator(
        "segment_sum", "one sum for each sequence; whole numbers and booleans are summed as int64",
        {"values": "T", "y": "S"}, {"T": MOVED, "S": (*FLOATS, "int64")},
    ),
    Operator(
        "segment_expand", "the row of a sequence at each of its places", {"values": "T", "y": "T"}, {"T": MOVED}
    ),
    Operator("suffix_any", "is a place at or after this one true?", {"mask": "B", "y": "B"}, {"B": ("bool",)}),
    Operator("count_true", "how many elements are true", {"mask": "B"}, {"B": ("bool",)}),
    Operator("true_places", "the flat places of the true elements, ascending", {"mask": "B"}, {"B": ("bool",)}),
    Operator(
        "lookup_gradient", "the gradient of a table, each row summed in the order of its lookups",
        {"grad": "T", "ids": "I", "y": "T"}, {"T": FLOATS, "I": WHOLE}, constants=frozenset({"padding"}),
    ),
    Operator(
        "jagged_attention", "O[i] = sum over j of P[i, j] V[j], with P given by a score program",
        {**_ATTENTION, "y": "O"}, _ATTENTION_TYPES, constants=frozenset({"heads"}), lists={"leaves": MOVED},
    ),
    Operator(
        "jagged_attention_backward", "the gradients of q, k, v and the leaves, by recomputation",
        {**_ATTENTION, "grad_out": "O", "grad_q": "Q", "grad_k": "Q", "grad_v": "V"}, _ATTENTION_TYPES,
        results=("grad_q", "grad_k", "grad_v"), constants=frozenset({"heads"}),
        lists={"leaves": MOVED, "grad_leaves": FLOATS},
    ),
    Operator(
        "norm_gate", "u times the LayerNorm or RMSNorm of x over the features",
        _typed("x", "u", "weight", "bias", "y"), {"T": FLOATS},
    ),
    Operator(
        "norm_gate_backward", "the gradients of x, u, weight and bias",
        _typed("grad", "x", "u", "weight", "bias", "grad_x", "grad_u", "grad_weight", "grad_bias"), {"T": FLOATS},
        results=("grad_x", "grad_u", "grad_weight", "grad_bias"),
    ),
    Operator("rms_norm", "the RMSNorm of x over the features", _typed("x", "weight", "y"), {"T": FLOATS}),
    Operator(
        "rms_norm_backward", "the gradients of x and weight", _typed("grad", "x", "weight", "grad_x", "grad_weight"),
        {"T": FLOATS}, results=("grad_x", "grad_weight"),
    ),
    Operator(
        "silu_split", "four parts of the features, those activated through SiLU", _typed("x", *_PARTS), {"T": FLOATS},
        results=_PARTS, constants=_WIDTHS | {"activated"},
    ),
    Operator(
        "silu_split_backward", "the gradient of x from those of the parts", _typed(*_GRAD_PARTS, "x", "y"),
        {"T": FLOATS}, constants=frozenset({"activated"}),
    ),
    Operator(
        "sampled_logits", "the products of each token's query with the rows of a table at its ids, or their cosines",
        {**_SAMPLED, "y": "Q"}, _SAMPLED_TYPES, constants=frozenset({"padding"}), without=_COPIES,
    ),
    Operator(
        "sampled_logits_backward", "the gradients of query and table, each row summed in the order of its pairs",
        {**_SAMPLED, "grad": "Q", "grad_query": "Q", "grad_table": "T"}, _SAMPLED_TYPES,
        results=("grad_query", "grad_table"), constants=frozenset({"padding"}), without=_COPIES,
    ),
)  # fmt: skip
OPERATORS: Mapping[str, Operator] = {f"gr::{row.name}": row for row in _ROWS}


def as_markdown() -> str:
    """The table for people: one row an operator."""
    lines = ["| operator | GE type | inputs | attributes | outputs |", "|---|---|---|---|---|"]
    for name, row in OPERATORS.items():
        attributes = ", ".join(f"{attribute.name}: {attribute.type}" for attribute in row.attributes) or "–"
        cells = (", ".join(map(_spell, row.inputs)), attributes, ", ".join(map(_spell, row.outputs)))
        lines.append(f"| `{name}` | `{row.ge_type}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spell(port: Port) -> str:
    mark = {"required": "", "optional": "?", "dynamic": "…"}[port.role]
    return f"{port.name}{mark}: {port.variable or '/'.join(port.types)}"
