"""Element rules, one an operator: pointwise arithmetic, comparisons and logic, casts, generators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.contraction import dot
from gr_compile.analysis.element import Blocked, Elements, Indices, Rule
from gr_compile.analysis.element_views import VIEW_RULES
from gr_compile.analysis.element_writes import WRITE_RULES
from gr_compile.analysis.expr import (
    FALSE,
    FLOAT_DTYPES,
    Expr,
    add,
    and_,
    binary,
    cast,
    compare,
    const,
    divmod_,
    elu,
    leaky_relu,
    make,
    mul,
    not_,
    or_,
    sub,
    unary,
    where,
)
from gr_compile.analysis.softmax_rules import SOFTMAX_RULES

aten = torch.ops.aten
RULES: dict[Any, Rule] = {**VIEW_RULES, **WRITE_RULES, **SOFTMAX_RULES}
_CASE_SPLITS_AND_GATHERS = {
    aten.pad.default, aten.constant_pad_nd.default, aten.cat.default, aten.concat.default, aten.stack.default,
    aten.roll.default, aten.index.Tensor, aten.embedding.default, aten.index_select.default, aten.gather.default,
}  # fmt: skip
VIEW_OPERATORS = frozenset(VIEW_RULES) - _CASE_SPLITS_AND_GATHERS


def _register(*targets: Any) -> Callable[[Rule], Rule]:
    def add_rule(rule: Rule) -> Rule:
        for target in targets:
            RULES[target] = rule
        return rule

    return add_rule


# ------------------------------------------------------------------------------------------ arithmetic
_UNARY = (
    "silu", "sigmoid", "relu", "tanh", "exp", "log", "log1p", "sqrt", "abs", "neg", "floor", "trunc", "sin", "cos",
    "rsqrt", "erf", "log2", "expm1", "reciprocal", "sign", "ceil",
)  # fmt: skip
_NARROW = (torch.int8, torch.uint8, torch.int16)
_BINARY = ("add", "sub", "mul", "div", "maximum", "minimum")


def _unwrapped(pull: Elements, node: fx.Node, value: Expr) -> Expr:
    """`value`, where it is what torch computes: its integers of 8 and 16 bits wrap around, ours have no bounds."""
    held = node.meta["val"].dtype
    if held in _NARROW:
        least, most = torch.iinfo(held).min, torch.iinfo(held).max
        if not (pull.ranges.ge0(sub(value, const(least))) and pull.ranges.ge0(sub(const(most), value))):
            raise Blocked(f"{str(held).removeprefix('torch.')} arithmetic, which may wrap around", node)
    return value


def _unary_rule(name: str) -> Rule:
    def rule(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
        operand = pull.broadcast(node.args[0], node, indices)
        if pull.dtype(node) in ("i", "b") or operand.dtype == pull.dtype(node):
            return _unwrapped(pull, node, unary(name, operand))
        return unary(name, cast(operand, pull.dtype(node)))

    return rule


def _operand(pull: Elements, operand: Any, node: fx.Node, indices: Indices, dtype: str) -> Expr:
    """A Python float takes part in arithmetic of any float dtype as it is written: torch does not round it."""
    if isinstance(operand, float) and dtype in FLOAT_DTYPES:
        return const(operand, dtype)
    return pull.broadcast(operand, node, indices)


def _binary_rule(name: str) -> Rule:
    def rule(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
        dtype = pull.dtype(node)
        left, right = (_operand(pull, a, node, indices, dtype) for a in node.args[:2])
        factor = ops.argument(node, 2, "alpha", 1) if name in ("add", "sub") else 1
        if factor != 1:
            right = binary("mul", right, const(factor) if right.dtype == "i" else const(float(factor), dtype), dtype)
        return _unwrapped(pull, node, binary(name, left, right, dtype))

    return rule


for _name in _UNARY:
    if hasattr(aten, _name):
        RULES[getattr(aten, _name).default] = _unary_rule(_name)
for _name in _BINARY:
    for _overload in getattr(aten, _name).overloads():
        if _overload in ("Tensor", "Scalar", "default"):
            RULES[getattr(getattr(aten, _name), _overload)] = _binary_rule(_name)
RULES[aten.min.other] = _binary_rule("minimum")
RULES[aten.max.other] = _binary_rule("maximum")


@_register(aten.gelu.default)
def _gelu(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    tanh = ops.argument(node, 1, "approximate", "none") == "tanh"
    return unary("gelu_tanh" if tanh else "gelu", pull.broadcast(node.args[0], node, indices))


@_register(aten.softplus.default)
def _softplus(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    if ops.argument(node, 1, "beta", 1) != 1 or ops.argument(node, 2, "threshold", 20) != 20:
        raise Blocked("a softplus with a beta or a threshold of its own", node)
    return unary("softplus", pull.broadcast(node.args[0], node, indices))


@_register(aten.square.default)
def _square(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    base = pull.broadcast(node.args[0], node, indices)
    return _unwrapped(pull, node, binary("mul", base, base, pull.dtype(node)))


@_register(aten.leaky_relu.default)
def _leaky_relu(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    slope = float(ops.argument(node, 1, "negative_slope", 0.01))
    return leaky_relu(pull.broadcast(node.args[0], node, indices), slope)


@_register(aten.elu.default)
def _elu(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    if ops.argument(node, 2, "scale", 1) != 1 or ops.argument(node, 3, "input_scale", 1) != 1:
        raise Blocked("an elu with scales of its own", node)
    return elu(pull.broadcast(node.args[0], node, indices), float(ops.argument(node, 1, "alpha", 1)))


@_register(aten.hardtanh.default, aten.relu6.default)
def _hardtanh(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    """A clamp whose derivative at its bounds is 0."""
    value, dtype = pull.broadcast(node.args[0], node, indices), pull.dtype(node)
    if dtype not in FLOAT_DTYPES:
        raise Blocked("a hardtanh of integers", node)
    bounds = (0, 6) if node.target is aten.relu6.default else (
        ops.argument(node, 1, "min_val", -1), ops.argument(node, 2, "max_val", 1)
    )  # fmt: skip
    low, high = (const(float(bound), dtype) for bound in bounds)
    return where(compare("le", value, low), low, where(compare("ge", value, high), high, value, dtype), dtype)


@_register(aten.rsub.Scalar, aten.rsub.Tensor)
def _rsub(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    if ops.argument(node, 2, "alpha", 1) != 1:
        raise Blocked("rsub with alpha", node)
    left, right = (pull.broadcast(a, node, indices) for a in node.args[:2])
    return _unwrapped(pull, node, binary("sub", right, left, pull.dtype(node)))


@_register(aten.div.Tensor_mode, aten.div.Scalar_mode, aten.floor_divide.default, aten.floor_divide.Scalar)
def _divide(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    left, right = (pull.broadcast(a, node, indices) for a in node.args[:2])
    mode = node.kwargs.get("rounding_mode", "floor")
    if mode is None:
        return binary("div", left, right, pull.dtype(node))
    if pull.dtype(node) != "i":  # rounded as one operation: 1.0 // 0.1 is 9 in float32, where 1.0 / 0.1 is 10
        return binary("floordiv" if mode == "floor" else "truncdiv", left, right, pull.dtype(node))
    if mode == "floor" or pull.ranges.ge0(left):
        plain = right.op in ("const", "size", "poly")
        return divmod_(left, right, pull.ranges)[0] if plain else make("floordiv", (left, right), "i")
    return make("truncdiv", (left, right), "i")


@_register(aten.remainder.Scalar, aten.remainder.Tensor)
def _remainder(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    left, right = (pull.broadcast(a, node, indices) for a in node.args[:2])
    if pull.dtype(node) != "i":
        raise Blocked("the remainder of floats", node)
    plain = right.op in ("const", "size", "poly")
    return divmod_(left, right, pull.ranges)[1] if plain else make("mod", (left, right), "i")


@_register(aten.pow.Tensor_Scalar)
def _power(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    base, dtype = cast(pull.broadcast(node.args[0], node, indices), pull.dtype(node)), pull.dtype(node)
    if node.args[1] == 2:
        return _unwrapped(pull, node, binary("mul", base, base, dtype))
    if dtype == "i":
        raise Blocked("a power of integers", node)
    return binary("pow", base, const(float(node.args[1]), dtype), dtype)  # type: ignore[arg-type]


@_register(aten.pow.Scalar)
def _power_of(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    """A number to the power of a tensor: a decay by distance."""
    exponent, dtype = pull.broadcast(node.args[1], node, indices), pull.dtype(node)
    if dtype not in FLOAT_DTYPES:
        raise Blocked("a power of integers", node)
    return binary("pow", const(float(node.args[0]), dtype), cast(exponent, dtype), dtype)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------- comparisons and logic
def _compare_rule(name: str) -> Rule:
    def rule(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
        left, right = (pull.broadcast(a, node, indices) for a in node.args[:2])
        if isinstance(node.args[1], float):  # integers and booleans compare with a number as float32
            right = cast(right, left.dtype if left.dtype in FLOAT_DTYPES else "f32")
        elif (
            right.op == "const"
            and left.dtype not in ("b", right.dtype)
            and not (left.dtype == "i" and right.dtype != "i")
        ):
            right = cast(right, left.dtype)
        return compare(name, left, right, pull.ranges)

    return rule


for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    for _overload in ("Tensor", "Scalar"):
        RULES[getattr(getattr(aten, _name), _overload)] = _compare_rule(_name)


def _logic_rule(name: str) -> Rule:
    def rule(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
        if pull.dtype(node) != "b":
            raise Blocked("a bitwise operation on integers", node)
        left, right = (cast(pull.broadcast(a, node, indices), "b") for a in node.args[:2])
        if name == "and":
            return and_(left, right)
        if name == "or":
            return or_(left, right)
        return or_(and_(left, not_(right)), and_(not_(left), right))

    return rule


for _name in ("and", "or", "xor"):
    for _spelling in (f"__{_name}__", f"bitwise_{_name}", f"logical_{_name}"):
        for _overload in getattr(aten, _spelling).overloads():
            if _overload in ("Tensor", "Scalar", "default"):
                RULES[getattr(getattr(aten, _spelling), _overload)] = _logic_rule(_name)


@_register(aten.bitwise_not.default, aten.logical_not.default)
def _not(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    if pull.dtype(node) != "b":
        raise Blocked("bitwise_not of integers", node)
    return not_(cast(pull.broadcast(node.args[0], node, indices), "b"))


@_register(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar)
def _where(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    condition, yes, no = (pull.broadcast(a, node, indices) for a in node.args[:3])
    return where(cast(condition, "b"), yes, no, pull.dtype(node))


@_register(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def _masked_fill(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    source, condition, value = (pull.broadcast(a, node, indices) for a in node.args[:3])
    return where(cast(condition, "b"), value, source, pull.dtype(node))


@_register(aten.clamp.default, aten.clamp.Tensor, aten.clamp_min.default, aten.clamp_max.default, aten.clamp_min.Tensor)
def _clamp(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    value, dtype = pull.broadcast(node.args[0], node, indices), pull.dtype(node)
    name = str(node.target)
    low = None if "clamp_max" in name else ops.argument(node, 1, "min")
    high = ops.argument(node, 1, "max") if "clamp_max" in name else ops.argument(node, 2, "max")
    for bound, function in ((low, "maximum"), (high, "minimum")):
        if bound is not None:
            value = binary(function, value, cast(pull.broadcast(bound, node, indices), dtype), dtype)
    return value


# --------------------------------------------------------------------------------- casts and identities
@_register(
    aten.to.dtype, aten._to_copy.default, aten.to.device, aten.to.dtype_layout, aten.type_as.default, aten.to.other
)
def _cast(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    value = cast(pull.broadcast(node.args[0], node, indices), pull.dtype(node))
    source: Any = node.args[0]
    held = node.meta["val"].dtype
    fits = torch.promote_types(source.meta["val"].dtype, held) == held
    return value if fits else _unwrapped(pull, node, value)


@_register(aten.clone.default, aten.contiguous.default, aten.alias.default, aten.lift_fresh_copy.default)
def _identity(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    return pull.broadcast(node.args[0], node, indices)


@_register(aten.detach.default)
def _detach(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    """The operand, where no gradient flows to it anyway: derivatives of an expression do not stop at a detach."""
    if not pull.closed(node.args[0]):  # type: ignore[arg-type]
        raise Blocked("a gradient that stops between a query and a key (detach, no_grad)", node)
    return pull.broadcast(node.args[0], node, indices)


@_register(aten.dropout.default)
def _dropout(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    value = pull.broadcast(node.args[0], node, indices)
    probability, training = float(node.args[1]), bool(node.args[2])  # type: ignore[arg-type]
    if not training or probability == 0:
        return value
    return make("dropout", (value, const(probability, "f32")), value.dtype)


# ------------------------------------------------------------------------------------------ generators
@_register(aten.arange.default, aten.arange.start, aten.arange.start_step)
def _arange(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    bounds = [pull.element(a, ()) for a in node.args]
    start, step = (const(0), const(1)) if len(bounds) == 1 else (bounds[0], bounds[2] if len(bounds) > 2 else const(1))
    if start.dtype != "i" or step.dtype != "i":
        raise Blocked("an arange of floats", node)
    return cast(add(start, mul(step, indices[0])), pull.dtype(node))


def _fill_rule(position: int | None, value: float = 0) -> Rule:
    def rule(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
        given = value if position is None else node.args[position]
        element = pull.element(given, ())
        return cast(element, pull.dtype(node))

    return rule


for _name, _value in (
    ("zeros", 0),
    ("ones", 1),
    ("zeros_like", 0),
    ("ones_like", 1),
    ("new_zeros", 0),
    ("new_ones", 1),
):
    RULES[getattr(aten, _name).default] = _fill_rule(None, _value)
for _name, _position in (("full", 1), ("full_like", 1), ("new_full", 2), ("scalar_tensor", 0)):
    RULES[getattr(aten, _name).default] = _fill_rule(_position)


@_register(aten.fill.Scalar, aten.fill.Tensor)
def _fill(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    return cast(pull.element(node.args[1], ()), pull.dtype(node))


@_register(aten.eye.default)
def _eye(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    return cast(compare("eq", indices[0], indices[1], pull.ranges), pull.dtype(node))


def _triangle_rule(upper: bool) -> Rule:
    def rule(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
        diagonal = pull.scalar(ops.argument(node, 1, "diagonal", 0))
        offset, dtype = sub(indices[-1], indices[-2]), pull.dtype(node)
        kept = pull.at_least_zero(sub(offset, diagonal) if upper else sub(diagonal, offset))
        zero = FALSE if dtype == "b" else cast(const(0), dtype)
        return where(kept, pull.broadcast(node.args[0], node, indices), zero, dtype)

    return rule


RULES[aten.tril.default] = _triangle_rule(False)
RULES[aten.triu.default] = _triangle_rule(True)


for _target in (
    aten.einsum.default, aten.matmul.default, aten.bmm.default, aten.mm.default, aten.baddbmm.default,
    aten.addmm.default, aten.linear.default,
):  # fmt: skip
    RULES[_target] = dot
