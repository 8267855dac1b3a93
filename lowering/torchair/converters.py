"""torchair's converters of the `gr::` operators, made from the table: one GE node a call.

    y = gr::segment_expand(values, offsets, T)
    op { type: "GrSegmentExpand"  input: values, offsets, total  output_desc: y }

An input that is a number becomes a Const, or the node that gives it where it is a size of the call. Runs where torchair
can be imported: in the process that converts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.utils._pytree as pytree

from gr_compile.lowering.ascendc.operators import NO_NUMBER, OPERATORS, Operator, Port
from gr_compile.lowering.torchair import library

Library = Mapping[str, Mapping[str, Any]]  # by score program, the attributes of the library's node
_STUBS = (("NotImplementedError",), ("RuntimeError",), ("AssertionError",))  # all that such a converter names


class CannotConvert(RuntimeError):
    """A call that the table does not allow; the message names the operator and the operand."""


def register_all(chosen: Library) -> None:
    """Register a converter for every operator of the table; `chosen`: the programs that the library computes."""
    import torchair  # type: ignore[import-not-found, unused-ignore]

    for row in OPERATORS.values():
        torchair.register_fx_node_ge_converter(row.overload)(converter_of(row, chosen))


def converter_of(row: Operator, chosen: Library) -> Callable[..., Any]:
    """The converter of one operator."""

    def convert(*args: Any, meta_outputs: Any = None, **kwargs: Any) -> Any:
        given = _bound(row, args, kwargs)
        attributes = chosen.get(given["program"]) if row.name == "jagged_attention" else None
        return _Call(row, given).build() if attributes is None else _shipped(given, attributes)

    return convert


def _shipped(given: Mapping[str, Any], attributes: Mapping[str, Any]) -> Any:
    """The node of Huawei's attention; its query offsets stand for the keys', which are the same rows."""
    from torchair import ge  # type: ignore[import-not-found, unused-ignore]

    sources = {"q": "q", "k": "k", "v": "v", "seq_offset_q": "query_offsets"}
    inputs = {name: given[sources[name]] if name in sources else None for name, _ in library.INPUTS}
    wrap = {"int": ge.attr.Int, "float": ge.attr.Float, "bool": ge.attr.Bool}
    attrs = {name: wrap[kind](attributes[name]) for name, kind in library.ATTRIBUTES.items()}
    return ge.custom_op(library.ATTENTION, inputs=inputs, outputs=[name for name, _ in library.OUTPUTS], attrs=attrs)


def _bound(row: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    arguments = row.overload._schema.arguments
    given = dict(zip((argument.name for argument in arguments), args))
    defaults = {a.name: a.default_value for a in arguments if a.has_default_value()}
    return {**defaults, **given, **kwargs}


class _Call:
    """One call of an operator, on its way to a node."""

    def __init__(self, row: Operator, given: dict[str, Any]) -> None:
        from torchair import ge  # type: ignore[import-not-found, unused-ignore]

        self.ge, self.row = ge, row
        self.given = pytree.tree_map_only(torch.Tensor, self._literal, given)

    def build(self) -> Any:
        if why := self.row.unserved(self.given):
            raise CannotConvert(why)
        inputs = {port.name: self._input(port) for port in self.row.inputs}
        attributes = {a.name: self._attribute(a.name, a.type, self.given[a.argument]) for a in self.row.attributes}
        if self.row.overload._schema.returns[0].type.kind() == "ListType":
            return self._gradients(inputs, attributes)
        outputs = [port.name for port in self.row.outputs]
        return self.ge.custom_op(self.row.ge_type, inputs=inputs, outputs=outputs, attrs=attributes)

    def _input(self, port: Port) -> Any:
        value = self.given[port.argument]
        if port.role == "dynamic":
            return [item for item in value if dtype_of(item) == port.types[0]]
        if value is None:
            if port.role != "optional":
                raise CannotConvert(f"gr::{self.row.name}: {port.name} is missing")
            return None
        if not isinstance(value, self.ge.Tensor):
            return self._constant(port, value)
        found = dtype_of(value)
        if found is not None and found not in port.types:
            raise CannotConvert(f"gr::{self.row.name}: {port.name} is {found}; Ascend takes {', '.join(port.types)}")
        return value

    def _constant(self, port: Port, value: Any) -> Any:
        """A number, or a list of numbers, as an input; torchair has packed a list with sizes before."""
        like = (self.row.like or {}).get(port.argument)
        dtype = dtype_of(self.given[like]) if like is not None else "int64"
        return self._const(value, dtype or "int64")

    def _literal(self, value: torch.Tensor) -> Any:
        """A tensor of the graph's own, with its dtype."""
        made = self._const(value, str(value.dtype).removeprefix("torch."))
        made.set_meta(value)
        return made

    def _const(self, value: Any, dtype: str) -> Any:
        from torchair.ge._ge_graph import Const, torch_type_to_ge_type  # type: ignore[import-not-found, unused-ignore]

        return Const(value, dtype=torch_type_to_ge_type(getattr(torch, dtype)))

    def _attribute(self, name: str, kind: str, value: Any) -> Any:
        attr = self.ge.attr
        if name.endswith("_types"):
            return attr.Str(",".join(dtype_of(item) or "" for item in value))
        if kind == "list_bool":
            return attr.ListBool([bool(item) for item in value])
        if kind in ("float", "bool"):
            value = NO_NUMBER if value is None else value
            if not isinstance(value, (bool, float, int)):
                raise CannotConvert(f"gr::{self.row.name}: {name} must be a constant of the model")
            return attr.Float(float(value)) if kind == "float" else attr.Bool(bool(value))
        if kind == "int" and not isinstance(value, int):
            raise CannotConvert(f"gr::{self.row.name}: {name} must be a constant of the model, not a size of the call")
        return attr.Int(value) if kind == "int" else attr.Str(value)

    def _gradients(self, inputs: dict[str, Any], attributes: dict[str, Any]) -> list[Any]:
        """q, k, v and the leaves in torch's order, which are outputs by name and by dtype here.

        A gradient that nobody needs has no elements in torch. That of a leaf is no output of the node.
        """
        fixed = [port.name for port in self.row.outputs if port.role == "required"]
        needed = self.given["needs_grad"][len(fixed) :]
        kinds = [dtype_of(leaf) if need else None for leaf, need in zip(self.given["leaves"], needed)]
        dynamic = [port for port in self.row.outputs if port.role == "dynamic" and port.types[0] in kinds]
        names = [*fixed, *((port.name, kinds.count(port.types[0])) for port in dynamic)]
        made = self.ge.custom_op(self.row.ge_type, inputs=inputs, outputs=names, attrs=attributes)
        by_type = {port.types[0]: iter(_listed(part)) for port, part in zip(dynamic, made[len(fixed) :])}
        rest = [next(by_type[kind]) if kind is not None else self._const([], _gradient_dtype(self)) for kind in kinds]
        return [*made[: len(fixed)], *rest]


def _gradient_dtype(call: _Call) -> str:
    return dtype_of(call.given["v"]) or "float32"


def _listed(part: Any) -> Iterable[Any]:
    return part if isinstance(part, (list, tuple)) else [part]


def dtype_of(value: Any) -> str | None:
    """The torch dtype of a GE tensor, by name; None where torchair has not noted it."""
    meta = getattr(value, "meta", None)
    return str(meta.dtype).removeprefix("torch.") if isinstance(meta, torch.Tensor) else None


# ------------------------------------------------------------------------------------------ what torchair has
def has_converter(target: Any) -> bool:
    """Does torchair convert this operator? Many of its converters are stubs that raise."""
    from torchair._ge_concrete_graph.fx2ge_converter import (  # type: ignore[import-not-found, unused-ignore]
        _CONVERTERS,
    )

    converter = getattr(target, "_ge_converter", None) or _CONVERTERS.get(target)
    if converter is None:
        return False
    code = getattr(getattr(converter, "__wrapped__", converter), "__code__", None)
    return getattr(code, "co_names", ()) not in _STUBS
