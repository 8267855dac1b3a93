"""Pointwise operations on expressions: comparisons, where, casts, arithmetic; simplified bit-exactly.

Constants are folded by torch's own arithmetic, and operations go inside a choice that has a constant arm, so
that `1 - mask`, `mask * -1e4` and `masked_fill` take one form. Nothing is re-associated.
Import these names from `gr_compile.analysis.expr`.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import torch

from gr_compile.analysis.algebra import (
    add,
    and_,
    choose,
    eq0,
    ge0,
    mul,
    not_,
    or_,
    scale,
    sorted_terms,
    split_mask,
    sub,
)
from gr_compile.analysis.node import (
    FALSE,
    FLOAT_DTYPES,
    TORCH_DTYPE,
    TRUE,
    Expr,
    const,
    is_const,
    is_mask_cast,
    make,
    order,
    rounded,
)
from gr_compile.analysis.ranges import Ranges

UNARY: dict[str, Callable[[Any], Any]] = {
    "abs": torch.abs,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "erf": torch.erf,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "floor": torch.floor,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": functools.partial(torch.nn.functional.gelu, approximate="tanh"),
    "log": torch.log,
    "log1p": torch.log1p,
    "log2": torch.log2,
    "neg": torch.neg,
    "reciprocal": torch.reciprocal,
    "relu": torch.relu,
    "round": torch.round,
    "rsqrt": torch.rsqrt,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "silu": torch.nn.functional.silu,
    "sin": torch.sin,
    "softplus": torch.nn.functional.softplus,
    "sqrt": torch.sqrt,
    "tanh": torch.tanh,
    "trunc": torch.trunc,
}
BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "floordiv": functools.partial(torch.div, rounding_mode="floor"),
    "truncdiv": functools.partial(torch.div, rounding_mode="trunc"),
    "mod": torch.remainder,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "pow": torch.pow,
}
_PYTHON_SCALAR_OK = frozenset({"add", "sub", "mul", "div", "floordiv", "truncdiv", "mod", "pow"})
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {"lt": operator.lt, "le": operator.le, "eq": operator.eq}
_SWAPPED = {"gt": "lt", "ge": "le"}
_PROMOTION = ("b", "i", "f16", "bf16", "f32", "f64")
_EXACT_INTEGERS = {"f16": 2**11, "bf16": 2**8, "f32": 2**24, "f64": 2**53}
_WIDER = {("f16", "f32"), ("f16", "f64"), ("bf16", "f32"), ("bf16", "f64"), ("f32", "f64")}


def promote(left: str, right: str) -> str:
    """The dtype in which torch computes with tensors of dtypes `left` and `right`."""
    if {left, right} == {"f16", "bf16"}:
        return "f32"
    return max(left, right, key=_PROMOTION.index)


# ---------------------------------------------------------------------- comparisons
def compare(op: str, left: Expr, right: Expr, ranges: Ranges | None = None) -> Expr:
    """`left op right` for op in lt, le, gt, ge, eq, ne; integers become `p >= 0` or `p == 0`.

    With `ranges`, integer comparisons that they decide become TRUE or FALSE.
    """
    if op == "ne":
        return not_(compare("eq", left, right, ranges))
    if op in _SWAPPED:
        return compare(_SWAPPED[op], right, left, ranges)
    if left.dtype == right.dtype == "b" and op == "eq":
        return choose(left, right, not_(right))
    dtype = promote(left.dtype, right.dtype)
    if dtype in ("b", "i"):
        return _compare_integers(op, cast(left, "i"), cast(right, "i"), ranges)
    left, right = _rounded_const(cast(left, dtype)), _rounded_const(cast(right, dtype))
    if left.op == "const" and right.op == "const":
        return const(bool(_COMPARE[op](left.args[0], right.args[0])))
    for this, other, flip in ((left, right, False), (right, left, True)):
        if other.op != "const":
            continue
        arms = _arms(this)
        if arms is not None:
            a, b = (compare(op, other, x) if flip else compare(op, x, other) for x in arms[1:])
            return choose(arms[0], a, b)
        whole = _as_integers(this, other)
        if whole is not None:
            return _compare_integers(op, *(whole[::-1] if flip else whole), ranges)
    if op == "eq" and order(right) < order(left):
        left, right = right, left
    return make("compare", (op, left, right), "b")


def _compare_integers(op: str, left: Expr, right: Expr, ranges: Ranges | None) -> Expr:
    if op == "eq":
        difference = sub(left, right)
        if ranges is not None and (ranges.ge0(sub(difference, const(1))) or ranges.ge0(sub(const(-1), difference))):
            return FALSE
        return eq0(difference)
    difference = sub(sub(right, left), const(1 if op == "lt" else 0))
    if ranges is not None and ranges.ge0(difference):
        return TRUE
    if ranges is not None and ranges.ge0(sub(const(-1), difference)):
        return FALSE
    return ge0(difference)


def _as_integers(value: Expr, constant: Expr) -> tuple[Expr, Expr] | None:
    """`float(n)` against a whole constant as a comparison of integers, where rounding cannot matter."""
    number = constant.args[0]
    if value.op != "cast" or value.args[0].dtype != "i" or not math.isfinite(number) or number != int(number):
        return None
    if abs(number) >= _EXACT_INTEGERS[value.dtype]:
        return None
    return value.args[0], const(int(number))


# ---------------------------------------------------------------------- where, cast
def where(condition: Expr, if_true: Expr, if_false: Expr, dtype: str) -> Expr:
    """`if_true` where `condition`, else `if_false`, both cast to `dtype`."""
    if_true, if_false = _rounded_const(cast(if_true, dtype)), _rounded_const(cast(if_false, dtype))
    if condition.op == "not" or _is_flipped(condition):
        condition, if_true, if_false = not_(condition), if_false, if_true
    if if_true.op == "where" and if_true.args[0] is condition:
        if_true = if_true.args[1]
    if if_false.op == "where" and if_false.args[0] is condition:
        if_false = if_false.args[2]
    if condition is TRUE or if_true is if_false:
        return if_true
    if condition is FALSE:
        return if_false
    if dtype == "b":
        return choose(condition, if_true, if_false)
    if dtype == "i" and if_true.op == if_false.op == "const":
        return add(if_false, scale(cast(condition, "i"), if_true.args[0] - if_false.args[0]))
    one, zero = const(1, dtype), const(0, dtype)
    if if_true is one and if_false is zero:
        return cast(condition, dtype)
    if if_true is zero and if_false is one:
        return cast(not_(condition), dtype)
    return make("where", (condition, if_true, if_false), dtype)


def _is_flipped(condition: Expr) -> bool:
    """A choice uses that of `p >= 0` and its negation whose first coefficient is positive."""
    return condition.op == "ge0" and next(c for m, c in sorted_terms(condition.args[0]) if m) < 0


def cast(value: Expr, dtype: str) -> Expr:
    """`value` converted to `dtype` as torch converts it: a constant is rounded, a float to bool is `!= 0`."""
    if value.dtype == dtype:
        return value
    if value.op == "const":
        return _cast_const(value, dtype)
    if dtype == "b":
        if is_mask_cast(value):
            mask: Expr = value.args[0]
            return mask
        return not_(compare("eq", value, const(0, value.dtype)))
    if value.op == "cast":
        inner: Expr = value.args[0]
        if inner.dtype == "b" or (inner.dtype, value.dtype) in _WIDER:
            return cast(inner, dtype)
    arms = _arms(value)
    if arms is not None:
        return where(arms[0], cast(arms[1], dtype), cast(arms[2], dtype), dtype)
    if dtype == "i" and value.dtype == "b" and value.op == "not":
        return sub(const(1), cast(value.args[0], "i"))  # so that a mask and its negation cancel in a sum
    split = split_mask(value) if value.dtype == "i" else None
    if split is not None:
        mask, if_true, if_false = split
        return where(mask, cast(const(if_true), dtype), cast(const(if_false), dtype), dtype)
    return make("cast", (value,), dtype)


def _cast_const(value: Expr, dtype: str) -> Expr:
    number = value.args[0]
    if dtype == "i" and isinstance(number, float) and not math.isfinite(number):
        return make("cast", (value,), dtype)  # undefined in C: left to the device
    tensor = torch.tensor(number, dtype=TORCH_DTYPE[value.dtype])
    return const(tensor.to(TORCH_DTYPE[dtype]).item(), dtype)


def _rounded_const(value: Expr) -> Expr:
    """A half-precision constant as a tensor holds it; see `const`."""
    if value.op == "const" and value.dtype in ("f16", "bf16"):
        return const(rounded(value.args[0], value.dtype), value.dtype)
    return value


def _arms(value: Expr) -> tuple[Expr, Expr, Expr] | None:
    """`(condition, if_true, if_false)` of a choice with a constant arm: pointwise operations go inside."""
    if value.op == "where" and (value.args[1].op == "const" or value.args[2].op == "const"):
        return value.args[0], value.args[1], value.args[2]
    if is_mask_cast(value) and value.dtype in FLOAT_DTYPES:
        return value.args[0], const(1, value.dtype), const(0, value.dtype)
    return None


# ---------------------------------------------------------------------- arithmetic
def unary(op: str, value: Expr) -> Expr:
    """`op(value)` for an op of `UNARY`; integers become float32 first where op has no integer form."""
    if op not in UNARY:
        raise ValueError(f"unknown unary operation {op!r}: one of {', '.join(UNARY)}")
    if value.dtype == "b":
        value = cast(value, "i")
    if value.dtype == "i":
        whole = _unary_integer(op, value)
        if whole is not None:
            return whole
        value = cast(value, "f32")
    if value.op == "const":
        operand = torch.tensor(value.args[0], dtype=TORCH_DTYPE[value.dtype])
        return const(UNARY[op](operand).item(), value.dtype)
    arms = _arms(value)
    if arms is not None:
        return where(arms[0], unary(op, arms[1]), unary(op, arms[2]), value.dtype)
    return make(op, (value,), value.dtype)


def _unary_integer(op: str, value: Expr) -> Expr | None:
    if op == "neg":
        return scale(value, -1)
    if op in ("floor", "ceil", "trunc", "round"):
        return value
    if op == "relu":
        return binary("maximum", value, const(0), "i")
    if op == "abs":
        if value.op == "const":
            return const(abs(value.args[0]))
        first = next(c for m, c in value.args if m) if value.op == "poly" else 1
        return make("abs", (value if first > 0 else scale(value, -1),), "i")
    if op == "sign":
        return sub(cast(ge0(sub(value, const(1))), "i"), cast(ge0(sub(const(-1), value)), "i"))
    return None


def binary(op: str, left: Expr, right: Expr, dtype: str) -> Expr:
    """`left op right` for an op of `BINARY`, both cast to `dtype`, which is the result's."""
    if op not in BINARY:
        raise ValueError(f"unknown binary operation {op!r}: one of {', '.join(BINARY)}")
    if dtype == "b":
        return _binary_boolean(op, cast(left, "b"), cast(right, "b"))
    if dtype == "i":
        return _binary_integer(op, cast(left, "i"), cast(right, "i"))
    left, right = cast(left, dtype), cast(right, dtype)
    if left.op == "const" and right.op == "const":
        return _fold(op, left, right)
    if is_mask_cast(left) and is_mask_cast(right) and op in ("mul", "minimum", "maximum"):
        masks = (left.args[0], right.args[0])
        return cast(or_(*masks) if op == "maximum" else and_(*masks), dtype)
    for this, other, flip in ((left, right, False), (right, left, True)):
        arms = _arms(this) if other.op == "const" else None
        if arms is not None:
            a, b = (binary(op, other, x, dtype) if flip else binary(op, x, other, dtype) for x in arms[1:])
            return where(arms[0], a, b, dtype)
    if op in ("mul", "div") and is_const(right, 1):
        return left
    if op == "mul" and is_const(left, 1):
        return right
    if op == "sub" and is_const(right, 0) and math.copysign(1.0, right.args[0]) > 0:
        return left  # exact for zeros of both signs, which x + 0.0 is not
    return make(op, (left, right), dtype)


def _binary_boolean(op: str, left: Expr, right: Expr) -> Expr:
    if op in ("add", "maximum"):
        return or_(left, right)
    if op in ("mul", "minimum"):
        return and_(left, right)
    raise ValueError(f"{op} of booleans is a boolean in no torch operation")


def _binary_integer(op: str, left: Expr, right: Expr) -> Expr:
    if op == "add":
        return add(left, right)
    if op == "sub":
        return sub(left, right)
    if op == "mul":
        return mul(left, right)
    if op in ("maximum", "minimum"):
        difference = sub(left, right)
        if difference.op == "const":
            return left if (difference.args[0] >= 0) == (op == "maximum") else right
        return make(op, (left, right) if order(left) < order(right) else (right, left), "i")
    if op in ("floordiv", "truncdiv", "mod"):
        if is_const(right, 1):
            return const(0) if op == "mod" else left
        if left.op == "const" and right.op == "const" and right.args[0] != 0:
            return const(int(BINARY[op](torch.tensor(left.args[0]), right.args[0]).item()))
        return make(op, (left, right), "i")
    raise ValueError(f"{op} of integers is an integer in no torch operation that is known here")


def _fold(op: str, left: Expr, right: Expr) -> Expr:
    """The constant `left op right` by torch; an unrounded half-precision operand acts as a Python scalar."""
    dtype = left.dtype
    a, b = (torch.tensor(x.args[0], dtype=TORCH_DTYPE[dtype]) for x in (left, right))
    if op in _PYTHON_SCALAR_OK and a.item() == left.args[0]:
        return const(BINARY[op](a, right.args[0]).item(), dtype)
    if op in ("add", "mul") and b.item() == right.args[0]:
        return const(BINARY[op](b, left.args[0]).item(), dtype)
    return const(BINARY[op](a, b).item(), dtype)


def clamp(value: Expr, lo: Expr | None, hi: Expr | None) -> Expr:
    """torch.clamp; unlike maximum and minimum, its gradient at a bound is 1, so floats become choices."""
    dtype = value.dtype
    if lo is not None:
        below_lo = compare("lt", value, lo)
        value = binary("maximum", value, lo, "i") if dtype == "i" else where(below_lo, lo, value, dtype)
    if hi is not None:
        above_hi = compare("lt", hi, value)
        value = binary("minimum", value, hi, "i") if dtype == "i" else where(above_hi, hi, value, dtype)
    return value


def leaky_relu(value: Expr, slope: float = 0.01) -> Expr:
    """torch's leaky_relu, by its definition."""
    dtype = value.dtype
    scaled = binary("mul", value, const(slope, dtype), dtype)
    return where(compare("gt", value, const(0, dtype)), value, scaled, dtype)


def elu(value: Expr, alpha: float = 1.0) -> Expr:
    """torch's elu, by its definition."""
    dtype = value.dtype
    below = binary("mul", unary("expm1", value), const(alpha, dtype), dtype)
    return where(compare("le", value, const(0, dtype)), below, value, dtype)
