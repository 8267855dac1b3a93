"""The keys that a query can need: a hull [low, high) over j in padded coordinates, from a score program.

The hull covers the program's support: a kernel may skip what lies outside, and evaluates the mask inside.
"""

from __future__ import annotations

from collections.abc import Mapping

from gr_compile.analysis.branches import Question
from gr_compile.analysis.expr import (
    FALSE,
    TRUE,
    Expr,
    Ranges,
    add,
    and_,
    binary,
    coefficient_of,
    const,
    ge0,
    index,
    not_,
    scale,
    sub,
    substitute,
    terms,
    where,
)
from gr_compile.analysis.implies import implies, impossible, project
from gr_compile.analysis.linear import Budget, OutOfStepsError, both_signs
from gr_compile.analysis.support import live, nonzero

_MOST_DISJUNCTS = 6  # beyond, the bounds of all alternatives become one
_MOST_BRANCHES = 64
_MOST_CANDIDATES = 12
_ROW = frozenset({"b", "i"})
_KEY = "j"
_GUARDS = frozenset({"ge0", "eq0"})


def key_interval(
    score: Expr, post: Expr | None, ranges: Ranges, definitions: Mapping[Expr, Expr] | None = None
) -> tuple[Expr | None, Expr | None]:
    """`(low, high)` over b and i: no key outside low <= j < high matters to row i. None: the range itself.

    Args:
        score: f of the program; for a softmax every key with an unmasked logit counts, whatever `post` does.
        post: None for a pointwise program, of which the keys with P != 0 count.
        ranges: of b, i, j and the head indices.
        definitions: integer loads -> what they are, to see that an alternative is impossible.

    Finite additive masks count as masks only in rows in which key i itself is unmasked: in the others a
    softmax gives weight to masked keys, and the hull is the whole range. An empty row has high <= low.
    """
    if post is None:
        support, guard = nonzero(score), TRUE
    else:
        logit = live(score)
        support, guard = logit.condition, TRUE
        if logit.assumes_bounded_scores:
            guard = substitute(support, {index(_KEY): index("i")})
            if not guard.free <= _ROW or not _is_key(index("i"), ranges):
                return None, None
            if implies(ranges, TRUE, guard):
                guard = TRUE
    hull = _hull(support, ranges, definitions or {})
    if hull is None:
        return None, None
    first, last = ranges.lo[_KEY], add(ranges.hi[_KEY], const(1))
    low, high = where(guard, hull[0], first, "i"), where(guard, hull[1], last, "i")
    return None if low is first else low, None if high is last else high


def _is_key(place: Expr, ranges: Ranges) -> bool:
    lowest, highest = sub(place, ranges.lo[_KEY]), sub(ranges.hi[_KEY], place)
    return ranges.ge0(lowest) and ranges.ge0(highest)


def _hull(support: Expr, ranges: Ranges, definitions: Mapping[Expr, Expr]) -> tuple[Expr, Expr] | None:
    """`(low, high)` of the j with `support`; None when there are too many alternatives."""
    first, last = ranges.lo[_KEY], add(ranges.hi[_KEY], const(1))
    if support is FALSE:
        return first, first
    disjuncts = _disjuncts(project(ranges, support, _ROW | {_KEY}), ranges, definitions)
    if disjuncts is None:
        return None
    if not disjuncts:
        return first, first
    if len(disjuncts) > _MOST_DISJUNCTS:
        return _common_hull(support, disjuncts, ranges)
    lows: list[Expr] = []
    highs: list[Expr] = []
    for disjunct in disjuncts:
        low, high = _bounds(disjunct, ranges)
        condition = and_(*(part for part in disjunct if _KEY not in part.free and part.op in _GUARDS))
        guard = condition if len(disjuncts) > 1 else TRUE
        lows.append(where(guard, _extremum("maximum", low, ranges), last, "i"))
        highs.append(where(guard, _extremum("minimum", high, ranges), first, "i"))
    return _extremum("minimum", lows, ranges), _extremum("maximum", highs, ranges)


def _common_hull(support: Expr, disjuncts: list[tuple[Expr, ...]], ranges: Ranges) -> tuple[Expr, Expr]:
    """The bounds of single alternatives that hold for all of them."""
    key, first, last = index(_KEY), ranges.lo[_KEY], add(ranges.hi[_KEY], const(1))
    bounds = [_bounds(disjunct, ranges) for disjunct in disjuncts]
    lows, highs = (
        sorted(
            {value for sides in bounds for value in sides[k]},
            key=lambda value: (len(terms(value)), value.key),
        )
        for k in (0, 1)
    )
    proved_lows = [x for x in lows[:_MOST_CANDIDATES] if implies(ranges, support, ge0(sub(key, x)))]
    proved_highs = [x for x in highs[:_MOST_CANDIDATES] if implies(ranges, support, not_(ge0(sub(key, x))))]
    return (
        _extremum("maximum", [first, *proved_lows], ranges),
        _extremum("minimum", [last, *proved_highs], ranges),
    )


def _disjuncts(support: Expr, ranges: Ranges, definitions: Mapping[Expr, Expr]) -> list[tuple[Expr, ...]] | None:
    """The alternatives that are possible; None when they are too many."""
    question = Question(ranges, solves=lambda atom: False, exclusive=False, budget=Budget())
    found: list[tuple[Expr, ...]] = []
    try:
        for leaf in question.expand([support]):
            if not impossible(ranges, substitute(and_(*leaf), definitions)):
                found.append(leaf)
            if len(found) > _MOST_BRANCHES:
                return None
    except OutOfStepsError:
        return None
    return found


def _bounds(disjunct: tuple[Expr, ...], ranges: Ranges) -> tuple[list[Expr], list[Expr]]:
    """Lower bounds and (exclusive) upper bounds of j, over b and i."""
    key = index(_KEY)
    lows, highs = [ranges.lo[_KEY]], [add(ranges.hi[_KEY], const(1))]
    for part in disjunct:
        values = both_signs(part.args[0]) if part.op == "eq0" else part.args[:1] if part.op == "ge0" else ()
        for value in values:
            linear = coefficient_of(value, key)
            if linear is None or linear[0].op != "const" or not linear[1].free <= _ROW:
                continue
            if linear[0].args[0] == 1:
                lows.append(scale(linear[1], -1))
            elif linear[0].args[0] == -1:
                highs.append(add(linear[1], const(1)))
    return lows, highs


def _extremum(op: str, values: list[Expr], ranges: Ranges) -> Expr:
    """The minimum or maximum of `values`, without those that the ranges show to be no better than another."""
    kept: list[Expr] = []
    for value in dict.fromkeys(values):
        if any(_at_least(op, other, value, ranges) for other in kept):
            continue
        kept = [other for other in kept if not _at_least(op, value, other, ranges)]
        kept.append(value)
    result = kept[0]
    for value in kept[1:]:
        result = binary(op, result, value, "i")
    return result


def _at_least(op: str, one: Expr, other: Expr, ranges: Ranges) -> bool:
    """Does `one` make `other` superfluous in the extremum?"""
    difference = sub(other, one) if op == "minimum" else sub(one, other)
    return ranges.ge0(difference) or implies(ranges, TRUE, ge0(difference))
