"""Bounds of floating expressions: between which numbers does a value lie, whatever its operands hold?

Intervals are rounded outwards by more than the operations' own rounding, so that what they exclude does not occur.
"""

from __future__ import annotations

import math
from typing import TypeAlias

from gr_compile.analysis.expr import FALSE, TRUE, Expr, and_, choose, is_mask_cast, or_, walk

Interval: TypeAlias = tuple[float, float]
_ANY: Interval = (-math.inf, math.inf)
_RELATIVE = {"f16": 2.0**-10, "bf16": 2.0**-7, "f32": 2.0**-22, "f64": 2.0**-51}
_DEEPEST = 12
_OF_ANYTHING: dict[str, Interval] = {
    "tanh": (-1.0, 1.0), "sin": (-1.0, 1.0), "cos": (-1.0, 1.0), "erf": (-1.0, 1.0), "sigmoid": (0.0, 1.0),
    "relu": (0.0, math.inf), "abs": (0.0, math.inf), "exp": (0.0, math.inf), "sqrt": (0.0, math.inf),
}  # fmt: skip


def intervals(expr: Expr) -> dict[Expr, Interval]:
    """Bounds of `expr` and of every number below it."""
    found: dict[Expr, Interval] = {}
    for node in walk(expr):
        low, high = _interval(node, found)
        slack = _RELATIVE.get(node.dtype, 0.0)
        exact = node.op == "const" or node.dtype not in _RELATIVE
        found[node] = (low, high) if exact else (low - slack * abs(low), high + slack * abs(high))
    return found


def _interval(node: Expr, found: dict[Expr, Interval]) -> Interval:
    op = node.op
    if op == "const":
        return float(node.args[0]), float(node.args[0])
    if is_mask_cast(node):
        return 0.0, 1.0
    if op in _OF_ANYTHING:
        return _OF_ANYTHING[op]
    if op == "cast":
        return found[node.args[0]] if node.args[0].dtype in _RELATIVE else _ANY
    if op == "neg":
        low, high = found[node.args[0]]
        return -high, -low
    if op == "where":
        (a, b), (c, d) = found[node.args[1]], found[node.args[2]]
        return min(a, c), max(b, d)
    if op not in ("add", "sub", "mul", "div", "maximum", "minimum"):
        return _ANY
    return _of_two(op, found[node.args[0]], found[node.args[1]])


def _of_two(op: str, left: Interval, right: Interval) -> Interval:
    if op == "sub":
        return _of_two("add", left, (-right[1], -right[0]))
    if op == "add":
        return left[0] + right[0], left[1] + right[1]
    if op == "maximum":
        return max(left[0], right[0]), max(left[1], right[1])
    if op == "minimum":
        return min(left[0], right[0]), min(left[1], right[1])
    if not all(map(math.isfinite, (*left, *right))) or (op == "div" and right[0] <= 0 <= right[1]):
        return _ANY
    ends = [x * y if op == "mul" else x / y for x in left for y in right]
    return min(ends), max(ends)


def above(expr: Expr, least: float) -> Expr:
    """A boolean that is implied by `expr > least`, a finite number: TRUE when nothing is known.

    float16 gives no answer: a mask of -1e9 is -inf there, and silu(-inf) is no 0.
    """
    if any(node.dtype == "f16" or (node.op == "const" and not math.isfinite(node.args[0])) for node in walk(expr)):
        return TRUE
    return _above(expr, least, intervals(expr), _DEEPEST)


def _above(expr: Expr, least: float, known: dict[Expr, Interval], depth: int) -> Expr:
    if expr.dtype in _RELATIVE:
        least -= 2 * _RELATIVE[expr.dtype] * abs(least)
    if known[expr][1] <= least:
        return FALSE
    if depth == 0:
        return TRUE
    if expr.op == "where":
        return choose(expr.args[0], *(_above(arm, least, known, depth - 1) for arm in expr.args[1:]))
    if expr.op == "add":
        highs = [known[operand][1] for operand in expr.args[::-1]]
        return and_(*(
            _above(operand, least - most, known, depth - 1)
            for operand, most in zip(expr.args, highs) if math.isfinite(most)
        ))  # fmt: skip
    if expr.op in ("maximum", "minimum"):
        sides = [_above(operand, least, known, depth - 1) for operand in expr.args]
        return or_(*sides) if expr.op == "maximum" else and_(*sides)
    return TRUE

