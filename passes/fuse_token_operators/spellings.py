"""What several spellings of one thing are: a cast, a square, 1 / sqrt, SiLU, operands in either order."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis.operators import argument

aten = torch.ops.aten
MULTIPLY = (aten.mul.Tensor,)
_CASTS = (aten.to.dtype, aten._to_copy.default)
_HALVES = (torch.float16, torch.bfloat16)


def value_of(node: Any) -> torch.Tensor | None:
    """The fake tensor of a node; None for what is no tensor."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return value if isinstance(value, torch.Tensor) else None


def pairs(node: Any, targets: tuple[Any, ...]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """(one operand, the other) of a call of two tensors, in either order."""
    if isinstance(node, fx.Node) and node.target in targets and len(node.args) >= 2:
        a, b = node.args[:2]
        if value_of(a) is not None and value_of(b) is not None:
            yield a, b  # type: ignore[misc]
            yield b, a  # type: ignore[misc]


def cast_source(node: fx.Node) -> fx.Node | None:
    """x, where the node is x in float32 or back in 16 bits, and nothing else."""
    source = node.args[0] if node.target in _CASTS else None
    made, given = value_of(node), value_of(source)
    if made is None or given is None or made.device != given.device:
        return None
    if {made.dtype, given.dtype} - {*_HALVES, torch.float32}:
        return None
    return source if torch.float32 in (made.dtype, given.dtype) else None  # type: ignore[return-value]


def squared(node: Any) -> fx.Node | None:
    """x, where the node is x²."""
    if not isinstance(node, fx.Node):
        return None
    if node.target is aten.square.default or (node.target is aten.pow.Tensor_Scalar and node.args[1] == 2):
        return node.args[0]  # type: ignore[return-value]
    if node.target is aten.mul.Tensor and node.args[0] is node.args[1]:
        return node.args[0] if value_of(node.args[0]) is not None else None  # type: ignore[return-value]
    return None


def inverse_root(node: Any) -> fx.Node | None:
    """s, where the node is 1 / sqrt(s)."""
    if not isinstance(node, fx.Node):
        return None
    if node.target is aten.rsqrt.default or (node.target is aten.pow.Tensor_Scalar and node.args[1] == -0.5):
        return node.args[0]  # type: ignore[return-value]
    if node.target is aten.reciprocal.default:
        return root(node.args[0])
    return None


def root(node: Any) -> fx.Node | None:
    """s, where the node is sqrt(s)."""
    if not isinstance(node, fx.Node):
        return None
    if node.target is aten.sqrt.default or (node.target is aten.pow.Tensor_Scalar and node.args[1] == 0.5):
        return node.args[0]  # type: ignore[return-value]
    return None


def activated(node: fx.Node) -> fx.Node | None:
    """x, where the node is SiLU(x), also spelled x * sigmoid(x)."""
    if node.target is aten.silu.default:
        return node.args[0]  # type: ignore[return-value]
    for x, other in pairs(node, MULTIPLY):
        if other.target is aten.sigmoid.default and other.args[0] is x and len(other.users) == 1:
            return x
    return None


def readers(node: fx.Node) -> list[fx.Node]:
    """Who reads a value; SiLU's product stands for the sigmoid, too."""
    found = list(node.users)
    products = {user for user in found if activated(user) is node}
    return [user for user in found if not (user.target is aten.sigmoid.default and products >= set(user.users))]


def item_of(node: fx.Node, position: int) -> bool:
    """Is the node result `position` of a call?"""
    return node.target is operator.getitem and bool(node.args[1] == position)


def last_dim(node: fx.Node, dim: Any) -> bool:
    """Is `dim` the last dimension of the node's value?"""
    value = value_of(node)
    return value is not None and isinstance(dim, int) and dim % value.dim() == value.dim() - 1


def given(node: fx.Node, name: str) -> Any:
    """An argument by its name in the schema, or its default."""
    for place, one in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if one.name == name:
            return argument(node, place, name, one.default_value if one.has_default_value() else None)
    raise KeyError(name)

