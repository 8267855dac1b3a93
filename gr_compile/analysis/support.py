"""The support of a score program: what follows from a value that is not 0, or a logit that is not masked out.

Both assume finite values: 0 * x = 0 and -inf + x = -inf.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

from gr_compile.analysis.bounds import above
from gr_compile.analysis.expr import (
    FALSE,
    TRUE,
    Expr,
    and_,
    choose,
    const,
    eq0,
    is_mask_cast,
    not_,
    operands_of,
    or_,
    walk,
)

_LARGE = 1e3  # a factor or a constant that can undo an additive mask
MASKED = -1e4
"""A constant at most this is an additive mask: exp underflows to 0 unless the row's maximum is masked too."""

_UNDERFLOWS = -1e3
"""At most this: exp is 0 in every float dtype, and with it the sigmoid and what is a multiple of them."""

_ZERO_FAR_BELOW = frozenset({"exp", "gelu", "gelu_tanh", "sigmoid", "silu", "softplus"})
_ZERO_AT_ZERO = frozenset({
    "abs", "ceil", "dropout", "erf", "expm1", "floor", "gelu", "gelu_tanh", "log1p", "neg", "relu", "round",
    "sign", "silu", "sin", "sqrt", "tanh", "trunc",
})  # fmt: skip
_NONZERO_IF_ANY = frozenset({"add", "sub", "maximum", "minimum"})


def nonzero(expr: Expr) -> Expr:
    """A boolean that is implied by `expr != 0`: TRUE when nothing is known.

    SiLU or GELU of `score + mask` counts as non-zero unless the score has a bound that leaves the sum far below 0: a
    score of any size may undo the mask.
    """
    found: dict[Expr, Expr] = {}
    for node in walk(expr):
        found[node] = _nonzero(node, found)
    return found[expr]


def _nonzero(node: Expr, found: dict[Expr, Expr]) -> Expr:
    op, args = node.op, node.args
    if node.dtype == "b":
        return node
    if op == "const":
        return const(bool(args[0]))
    if op == "cast":
        return found[args[0]]
    if op == "where":
        return choose(args[0], found[args[1]], found[args[2]])
    if op in _NONZERO_IF_ANY:
        return or_(found[args[0]], found[args[1]])
    if op == "mul":
        return and_(found[args[0]], found[args[1]])
    if op in _ZERO_FAR_BELOW:
        return and_(found[args[0]] if op in _ZERO_AT_ZERO else TRUE, above(args[0], _UNDERFLOWS))
    if op == "div" or op in _ZERO_AT_ZERO or (op == "pow" and args[1].op == "const" and args[1].args[0] > 0):
        return found[args[0]]
    if op == "poly" and len(args) == 1:
        return and_(*(found[factor] for factor in args[0][0]))
    return not_(eq0(node)) if node.dtype == "i" else TRUE


@dataclass(frozen=True)
class Live:
    """What an unmasked logit implies.

    Attributes:
        condition: true wherever the logit is not masked out.
        assumes_bounded_scores: the condition rests on finite additive masks: it holds for rows that have an
            unmasked logit, while scores differ by far less than 1e4. Masks of -inf and choices are exact.
    """

    condition: Expr
    assumes_bounded_scores: bool


_Scaled: TypeAlias = tuple[Expr, float]
_Answer: TypeAlias = tuple[Expr, bool]


def live(logit: Expr) -> Live:
    """What follows from `logit`, an operand of a softmax, not being masked out."""
    exact = _live(logit, -math.inf)
    relaxed = and_(exact, _live(logit, MASKED))
    if relaxed is exact or relaxed is FALSE:  # a constant shift of the whole row masks nothing
        return Live(exact, False)
    return Live(relaxed, True)


def _live(logit: Expr, threshold: float) -> Expr:
    """What `not (logit <= threshold)` implies, evaluated without recursion over (expression, factor)."""
    large = _large_products(logit)
    done: dict[_Scaled, _Answer] = {}
    stack: list[_Scaled] = [(logit, 1.0)]
    while stack:
        scaled = stack[-1]
        parts = _parts(scaled)
        waiting = [part for part in parts if part not in done]
        if waiting:
            stack.extend(waiting)
        else:
            stack.pop()
            done[scaled] = _combine(scaled, [done[part] for part in parts], threshold, scaled[0] in large)
    return done[logit, 1.0][0]


def _large_products(expr: Expr) -> set[Expr]:
    """The nodes with a number times a large constant below."""
    found: set[Expr] = set()
    for node in walk(expr):
        product = node.op in ("mul", "div") and any(_is_large(x, node.op) for x in node.args)
        if product or any(x in found for x in operands_of(node.args)):
            found.add(node)
    return found


def _is_large(expr: Expr, op: str) -> bool:
    if expr.op != "const" or not isinstance(expr.args[0], float) or expr.args[0] == 0:
        return False
    return abs(expr.args[0]) >= _LARGE if op == "mul" else abs(expr.args[0]) <= 1 / _LARGE


def _parts(scaled: _Scaled) -> list[_Scaled]:
    """What the question whether `expr * factor` is masked out depends on."""
    (expr, factor), args = scaled, scaled[0].args
    if expr.op in ("add", "maximum", "minimum"):
        return [(args[0], factor), (args[1], factor)]
    if expr.op == "sub":
        return [(args[0], factor), (args[1], -factor)]
    if expr.op == "where":
        return [(args[1], factor), (args[2], factor)]
    if expr.op == "neg":
        return [(args[0], -factor)]
    if expr.op in ("mul", "div") and args[1].op == "const" and args[1].args[0] != 0:
        number = args[1].args[0]
        return [(args[0], factor * number if expr.op == "mul" else factor / number)]
    if expr.op == "mul" and args[0].op == "const" and args[0].args[0] != 0:
        return [(args[1], factor * args[0].args[0])]
    if expr.op == "cast" and not is_mask_cast(expr) and args[0].dtype != "i":
        return [(args[0], factor)]
    return []


def _combine(scaled: _Scaled, parts: list[_Answer], threshold: float, large: bool) -> _Answer:
    """The condition, and whether the value may be so large that it undoes a finite mask it is added to.

    In `s + (1 - m) * -1e9` the number m, times 1e9, may: nothing is masked where m is not 0. (Where m is a
    boolean, the product is a choice of constants.)
    """
    expr, factor = scaled
    if expr.op == "const":
        value = expr.args[0] * factor
        return const(not value <= threshold), value >= _LARGE
    if not parts:
        return TRUE, large or abs(factor) >= _LARGE
    conditions = [condition for condition, _ in parts]
    unbounded = any(too_large for _, too_large in parts)
    if expr.op == "where":
        return choose(expr.args[0], conditions[0], conditions[1]), unbounded
    if expr.op in ("maximum", "minimum") and (expr.op == "maximum") == (factor > 0):
        return or_(*conditions), unbounded
    if expr.op in ("add", "sub") and unbounded and threshold != -math.inf:
        return TRUE, True
    return and_(*conditions), unbounded
