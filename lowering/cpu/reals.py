"""Bounds of floats that are computed from whole numbers: of what is cut to whole numbers again, and of powers.

    sqrt(float(|t_i - t_j|))  of times in 31 bits   lies in 0 .. 46341

Bounds are over the reals; whoever uses them leaves room for the rounding of every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from gr_compile.analysis.expr import Expr

if TYPE_CHECKING:
    from gr_compile.lowering.cpu.lanes import Lanes

Bounds: TypeAlias = tuple[float, float]
ANY: Bounds = (-math.inf, math.inf)
_WIDE = ("f32", "f64")  # half precision rounds too coarsely, and overflows


def bounds(node: Expr, lanes: Lanes) -> Bounds:
    """Bounds of a float; ANY where nothing is known. What is NaN has none."""
    if node.dtype == "i":
        least, most = lanes.interval(node)
        return float(least), float(most)
    if node.dtype not in _WIDE:
        return ANY
    if node.op == "const":
        known = float(node.args[0])
        return ANY if math.isnan(known) else (known, known)
    if node.op == "cast":
        return (0.0, 1.0) if node.args[0].dtype == "b" else bounds(node.args[0], lanes)
    if node.op in _GROWING:
        low, high = bounds(node.args[0], lanes)
        return _GROWING[node.op](low), _GROWING[node.op](high)
    rule = _RULES.get(node.op)
    return ANY if rule is None else _known(rule(node, lanes))


def is_positive(node: Expr, lanes: Lanes) -> bool:
    """Is a float above 0, and by more than what underflows?"""
    return bounds(node, lanes)[0] > 1e-30


def _known(found: Bounds) -> Bounds:
    return ANY if any(map(math.isnan, found)) else found


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


_GROWING: Mapping[str, Callable[[float], float]] = {
    "exp": _exp,
    "relu": lambda x: max(x, 0.0),
    "sigmoid": lambda x: 1 / (1 + _exp(-x)),
    "softplus": _softplus,
    "tanh": math.tanh,
}


def _negative(node: Expr, lanes: Lanes) -> Bounds:
    low, high = bounds(node.args[0], lanes)
    return -high, -low


def _abs(node: Expr, lanes: Lanes) -> Bounds:
    low, high = bounds(node.args[0], lanes)
    return (0.0 if low <= 0 <= high else min(abs(low), abs(high))), max(abs(low), abs(high))


def _sqrt(node: Expr, lanes: Lanes) -> Bounds:
    low, high = bounds(node.args[0], lanes)
    return (math.sqrt(low), math.sqrt(high)) if low >= 0 else ANY


def _whole(node: Expr, lanes: Lanes) -> Bounds:
    low, high = bounds(node.args[0], lanes)
    return low - 1, high + 1


def _add(node: Expr, lanes: Lanes) -> Bounds:
    (a, b), (c, d) = (bounds(x, lanes) for x in node.args)
    return a + c, b + d


def _sub(node: Expr, lanes: Lanes) -> Bounds:
    (a, b), (c, d) = (bounds(x, lanes) for x in node.args)
    return a - d, b - c


def _product(x: Bounds, y: Bounds) -> Bounds:
    corners = [a * b for a in x for b in y]
    return ANY if any(map(math.isnan, corners)) else (min(corners), max(corners))


def _mul(node: Expr, lanes: Lanes) -> Bounds:
    left, right = (bounds(x, lanes) for x in node.args)
    return _product(left, right)


def _div(node: Expr, lanes: Lanes) -> Bounds:
    above, (low, high) = (bounds(x, lanes) for x in node.args)
    return ANY if low <= 0 <= high else _product(above, (1 / high, 1 / low))


def _maximum(node: Expr, lanes: Lanes) -> Bounds:
    (a, b), (c, d) = (bounds(x, lanes) for x in node.args)
    return max(a, c), max(b, d)


def _minimum(node: Expr, lanes: Lanes) -> Bounds:
    (a, b), (c, d) = (bounds(x, lanes) for x in node.args)
    return min(a, c), min(b, d)


_RULES: Mapping[str, Callable[[Expr, Lanes], Bounds]] = {
    "abs": _abs,
    "add": _add,
    "ceil": _whole,
    "div": _div,
    "floor": _whole,
    "maximum": _maximum,
    "minimum": _minimum,
    "mul": _mul,
    "neg": _negative,
    "round": _whole,
    "sqrt": _sqrt,
    "sub": _sub,
    "trunc": _whole,
}
