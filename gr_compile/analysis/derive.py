"""Derivatives of score programs, as score programs.

Rules of our own, in the form that is stable in floating point (SiLU' is s (1 + x (1 - s)), no NaN far out),
with torch autograd's conventions where a function has no derivative. In half-precision programs slopes of
unary functions are computed in float32, as torch's own backward kernels do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

from gr_compile.analysis.expr import (
    FLOAT_DTYPES,
    Expr,
    binary,
    cast,
    compare,
    const,
    is_const,
    make,
    operands_of,
    unary,
    walk,
    where,
)

Slope: TypeAlias = Callable[[Expr, Expr], Expr]
_LEAVES = frozenset({"load", "dot", "s", "sm"})
_SOFTPLUS_THRESHOLD = 20.0  # torch.nn.functional.softplus is linear above it


def derivative(expr: Expr, leaf: Expr) -> Expr:
    """d `expr` / d `leaf`, in the dtype of `expr`; the constant 0 where it does not depend on it.

    Conventions are torch autograd's: relu'(0) = 0, abs'(0) = 0, a tie in maximum gives half to each side,
    rounding functions and comparisons give 0. A dropout is linear: its derivative drops the same elements.

    Raises:
        NotImplementedError: an operation without a rule.
    """
    slopes: dict[Expr, Expr] = {}
    for node in walk(expr):
        if node is leaf:
            slopes[node] = const(1.0, node.dtype)
        elif node.dtype not in FLOAT_DTYPES or all(_is_zero(slopes[x]) for x in operands_of(node.args)):
            slopes[node] = const(0.0, node.dtype if node.dtype in FLOAT_DTYPES else "f32")
        else:
            slopes[node] = _rule(node, [slopes[x] for x in operands_of(node.args)])
    return slopes[expr]


def float_leaves(expr: Expr) -> list[Expr]:
    """The loads, products and softmax values that `expr` depends on through floats, in `walk` order."""
    reached: set[Expr] = set()
    stack = [expr]
    while stack:
        node = stack.pop()
        if node.dtype in FLOAT_DTYPES and node not in reached:
            reached.add(node)
            if node.op not in _LEAVES:
                stack.extend(operands_of(node.args))
    return [node for node in walk(expr) if node in reached and node.op in _LEAVES]


def _is_zero(expr: Expr) -> bool:
    return is_const(expr, 0)


def _add(left: Expr, right: Expr) -> Expr:
    if _is_zero(left) or _is_zero(right):
        return right if _is_zero(left) else left
    return binary("add", left, right, left.dtype)


def _sub(left: Expr, right: Expr) -> Expr:
    if _is_zero(right):
        return left
    return unary("neg", right) if _is_zero(left) else binary("sub", left, right, left.dtype)


def _mul(left: Expr, right: Expr) -> Expr:
    """The product; a zero wins over whatever the other side is, so that no 0 * inf arises."""
    if _is_zero(left) or _is_zero(right):
        return const(0.0, left.dtype)
    return binary("mul", left, right, left.dtype)


def _div(left: Expr, right: Expr) -> Expr:
    return left if _is_zero(left) else binary("div", left, right, left.dtype)


def _number(value: float, like: Expr) -> Expr:
    return const(value, like.dtype)


def _rule(node: Expr, slopes: list[Expr]) -> Expr:
    op, args = node.op, node.args
    if op in _UNARY:
        wide = "f64" if node.dtype == "f64" else "f32"
        slope = _UNARY[op](cast(args[0], wide), cast(node, wide))
        return _mul(cast(slope, node.dtype), slopes[0])
    if op in _BINARY:
        return _BINARY[op](node, slopes[0], slopes[1])
    if op == "where":
        return where(args[0], slopes[1], slopes[2], node.dtype)
    if op == "cast":
        return cast(slopes[0], node.dtype)
    if op == "dropout":
        return make("dropout", (slopes[0], args[1]), node.dtype)
    raise NotImplementedError(f"derivative of {op}: {node}")


# ---------------------------------------------------------------------- unary: from operand x, result y
def _one_minus(y: Expr) -> Expr:
    return binary("sub", _number(1.0, y), y, y.dtype)


def _silu(x: Expr, y: Expr) -> Expr:
    sigmoid = unary("sigmoid", x)
    return _mul(sigmoid, _add(_number(1.0, x), _mul(x, _one_minus(sigmoid))))


def _gelu(x: Expr, y: Expr) -> Expr:
    """The normal distribution at x, plus x times its density."""
    inside = unary("erf", _mul(x, _number(math.sqrt(0.5), x)))
    below = _mul(_number(0.5, x), _add(_number(1.0, x), inside))
    density = unary("exp", _mul(_number(-0.5, x), _mul(x, x)))
    return _add(below, _mul(x, _mul(density, _number(1 / math.sqrt(2 * math.pi), x))))


def _gelu_tanh(x: Expr, y: Expr) -> Expr:
    scale, cubic = math.sqrt(2 / math.pi), 0.044715
    square = _mul(x, x)
    inside = _mul(_number(scale, x), _add(x, _mul(_number(cubic, x), _mul(square, x))))
    tanh = unary("tanh", inside)
    growth = _mul(_number(scale, x), _add(_number(1.0, x), _mul(_number(3 * cubic, x), square)))
    left = _mul(_number(0.5, x), _add(_number(1.0, x), tanh))
    return _add(left, _mul(_mul(_number(0.5, x), x), _mul(_one_minus(_mul(tanh, tanh)), growth)))


def _softplus(x: Expr, y: Expr) -> Expr:
    linear = compare("gt", x, _number(_SOFTPLUS_THRESHOLD, x))
    return where(linear, _number(1.0, x), unary("sigmoid", x), x.dtype)


def _flat(x: Expr, y: Expr) -> Expr:
    return _number(0.0, x)


_UNARY: dict[str, Slope] = {
    "abs": lambda x, y: unary("sign", x),
    "ceil": _flat,
    "cos": lambda x, y: unary("neg", unary("sin", x)),
    "erf": lambda x, y: _mul(_number(2 / math.sqrt(math.pi), x), unary("exp", unary("neg", _mul(x, x)))),
    "exp": lambda x, y: y,
    "expm1": lambda x, y: unary("exp", x),
    "floor": _flat,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "log": lambda x, y: unary("reciprocal", x),
    "log1p": lambda x, y: unary("reciprocal", _add(x, _number(1.0, x))),
    "log2": lambda x, y: unary("reciprocal", _mul(x, _number(math.log(2), x))),
    "neg": lambda x, y: _number(-1.0, x),
    "reciprocal": lambda x, y: unary("neg", _mul(y, y)),
    "relu": lambda x, y: cast(compare("gt", x, _number(0.0, x)), x.dtype),
    "round": _flat,
    "rsqrt": lambda x, y: _mul(_number(-0.5, y), _mul(y, _mul(y, y))),
    "sigmoid": lambda x, y: _mul(y, _one_minus(y)),
    "sign": _flat,
    "silu": _silu,
    "sin": lambda x, y: unary("cos", x),
    "softplus": _softplus,
    "sqrt": lambda x, y: binary("div", _number(0.5, y), y, y.dtype),
    "tanh": lambda x, y: _one_minus(_mul(y, y)),
    "trunc": _flat,
}


# ---------------------------------------------------------------------- binary: from the operands' slopes
def _quotient(node: Expr, da: Expr, db: Expr) -> Expr:
    right = node.args[1]
    return _sub(_div(da, right), _mul(_div(node, right), db))


def _extremum(node: Expr, da: Expr, db: Expr) -> Expr:
    """The slope of the side that wins; the mean of both at a tie."""
    left, right = node.args
    half = _number(0.5, node)
    tie = _add(_mul(half, da), _mul(half, db))
    wins = compare("gt" if node.op == "maximum" else "lt", left, right)
    return where(compare("eq", left, right), tie, where(wins, da, db, node.dtype), node.dtype)


def _power(node: Expr, da: Expr, db: Expr) -> Expr:
    base, exponent = node.args
    less = binary("sub", exponent, _number(1.0, node), node.dtype)
    slope = _mul(exponent, binary("pow", base, less, node.dtype))
    if exponent.op != "const":
        slope = where(compare("eq", exponent, _number(0.0, node)), _number(0.0, node), slope, node.dtype)
    by_exponent = where(
        compare("eq", base, _number(0.0, node)),
        _number(0.0, node),
        _mul(node, unary("log", base)),
        node.dtype,
    )
    return _add(_mul(slope, da), _mul(by_exponent, db))


def _remainder(node: Expr, da: Expr, db: Expr) -> Expr:
    return _sub(da, _mul(binary("floordiv", node.args[0], node.args[1], node.dtype), db))


_BINARY: dict[str, Callable[[Expr, Expr, Expr], Expr]] = {
    "add": lambda node, da, db: _add(da, db),
    "sub": lambda node, da, db: _sub(da, db),
    "mul": lambda node, da, db: _add(_mul(da, node.args[1]), _mul(node.args[0], db)),
    "div": _quotient,
    "floordiv": lambda node, da, db: _number(0.0, node),
    "truncdiv": lambda node, da, db: _number(0.0, node),
    "mod": _remainder,
    "maximum": _extremum,
    "minimum": _extremum,
    "pow": _power,
}
