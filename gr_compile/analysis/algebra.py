"""Integers as canonical polynomials, and booleans over them: `p >= 0`, `p == 0`, and, not.

`or` is not a node of its own: `or_(a, b)` is `not (not a and not b)`, so that there is one form of each.
Import these names from `gr_compile.analysis.expr`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

from gr_compile.analysis.node import FALSE, TRUE, Expr, const, is_mask_cast, make, order

Monomial: TypeAlias = tuple[Expr, ...]


def _term_order(term: tuple[Monomial, int]) -> tuple[int, list[tuple[str, str, bytes]]]:
    return len(term[0]), [atom.rank for atom in term[0]]


def terms(expr: Expr) -> dict[Monomial, int]:
    """An integer as a polynomial: {product of atoms: coefficient}; the constant has the product ()."""
    if expr.op == "poly":
        return dict(expr.args)
    if expr.op == "const":
        return {(): expr.args[0]} if expr.args[0] else {}
    return {(expr,): 1}


def sorted_terms(expr: Expr) -> list[tuple[Monomial, int]]:
    """`terms` in an order that depends on content only, the constant first."""
    return sorted(terms(expr).items(), key=_term_order)


def poly(coefficients: Mapping[Monomial, int]) -> Expr:
    """The integer with these `terms`, in canonical form. Monomials come sorted, as `terms` gives them."""
    kept = sorted(((m, int(c)) for m, c in coefficients.items() if c), key=_term_order)
    if not kept:
        return const(0)
    if len(kept) == 1:
        monomial, coefficient = kept[0]
        if not monomial:
            return const(coefficient)
        if coefficient == 1 and len(monomial) == 1:
            return monomial[0]
    return make("poly", tuple(kept), "i")


def add(*parts: Expr) -> Expr:
    """The sum of integers."""
    total: dict[Monomial, int] = {}
    for part in parts:
        for monomial, coefficient in terms(part).items():
            total[monomial] = total.get(monomial, 0) + coefficient
    return poly(total)


def scale(expr: Expr, factor: int) -> Expr:
    """The integer `factor * expr`."""
    if expr.op == "poly" and len(expr.args) > 1 and factor:
        return make("poly", tuple((m, c * factor) for m, c in expr.args), "i")  # sorted already
    return poly({monomial: coefficient * factor for monomial, coefficient in terms(expr).items()})


def sub(left: Expr, right: Expr) -> Expr:
    """The integer `left - right`."""
    total = terms(left)
    for monomial, coefficient in terms(right).items():
        total[monomial] = total.get(monomial, 0) - coefficient
    return poly(total)


def mul(left: Expr, right: Expr) -> Expr:
    """The integer `left * right`, multiplied out."""
    total: dict[Monomial, int] = {}
    for m, c in terms(left).items():
        for n, d in terms(right).items():
            monomial = _product(m + n)
            if monomial is None:
                continue
            total[monomial] = total.get(monomial, 0) + c * d
    return poly(total)


def _product(factors: Monomial) -> Monomial | None:
    """The canonical monomial of `factors`, masks (0 or 1) joined into one; None when that is never true."""
    masks = [x for x in factors if is_mask_cast(x)]
    if len(masks) > 1:
        both = and_(*(x.args[0] for x in masks))
        if both is FALSE:
            return None
        rest = tuple(x for x in factors if not is_mask_cast(x))
        factors = rest if both is TRUE else (*rest, make("cast", (both,), "i"))
    return tuple(sorted(factors, key=order))


def atoms(expr: Expr) -> list[Expr]:
    """What the polynomial `expr` is over: indices, sizes, loads and other opaque integers."""
    return sorted({atom for monomial in terms(expr) for atom in monomial}, key=order)


def coefficient_of(expr: Expr, atom: Expr) -> tuple[Expr, Expr] | None:
    """`(a, rest)` with `expr = a * atom + rest`, neither with that factor; None when it occurs squared."""
    linear: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    for monomial, coefficient in terms(expr).items():
        count = monomial.count(atom)
        if count > 1:
            return None
        if count:
            linear[tuple(x for x in monomial if x is not atom)] = coefficient
        else:
            rest[monomial] = coefficient
    return poly(linear), poly(rest)


# ---------------------------------------------------------------------- booleans
def and_(*parts: Expr) -> Expr:
    """The conjunction, flat, without repetitions; FALSE when a part stands beside its negation."""
    seen: dict[Expr, None] = {}
    stack = list(reversed(parts))
    while stack:
        part = stack.pop()
        if part is FALSE:
            return FALSE
        if part.op == "and":
            stack.extend(reversed(part.args))
        elif part is not TRUE:
            seen[part] = None
    if any(not_(part) in seen for part in seen):
        return FALSE
    if not seen:
        return TRUE
    if len(seen) == 1:
        return next(iter(seen))
    return make("and", tuple(sorted(seen, key=order)), "b")


def or_(*parts: Expr) -> Expr:
    """The disjunction."""
    return not_(and_(*map(not_, parts)))


def not_(part: Expr) -> Expr:
    """The negation; of `p >= 0` it is `-1 - p >= 0`, as these are integers."""
    if part is TRUE:
        return FALSE
    if part is FALSE:
        return TRUE
    if part.op == "not":
        negated: Expr = part.args[0]
        return negated
    if part.op == "ge0":
        return ge0(sub(const(-1), part.args[0]))
    return make("not", (part,), "b")


def alternatives(part: Expr) -> tuple[Expr, ...] | None:
    """The parts of a disjunction made by `or_`, or None when `part` is none."""
    if part.op == "not" and part.args[0].op == "and":
        return tuple(not_(x) for x in part.args[0].args)
    return None


def ge0(value: Expr) -> Expr:
    """`value >= 0` for an integer; divided by the coefficients' common divisor."""
    if value.op == "const":
        return const(value.args[0] >= 0)
    split = split_mask(value)
    if split is not None:
        mask, if_true, if_false = split
        return choose(mask, const(if_true >= 0), const(if_false >= 0))
    coefficients = terms(value)
    divisor = math.gcd(*(c for m, c in coefficients.items() if m))
    if divisor > 1:
        value = poly({m: c // divisor for m, c in coefficients.items()})  # floors: tighter
    return make("ge0", (value,), "b")


def eq0(value: Expr) -> Expr:
    """`value == 0` for an integer; without common divisor, its first coefficient positive."""
    if value.op == "const":
        return const(value.args[0] == 0)
    split = split_mask(value)
    if split is not None:
        mask, if_true, if_false = split
        return choose(mask, const(if_true == 0), const(if_false == 0))
    coefficients = terms(value)
    divisor = math.gcd(*(c for m, c in coefficients.items() if m))
    if coefficients.get((), 0) % divisor:
        return FALSE
    leading = next(c for m, c in sorted_terms(value) if m)
    divisor = divisor if leading > 0 else -divisor
    return make("eq0", (poly({m: c // divisor for m, c in coefficients.items()}),), "b")


def split_mask(value: Expr) -> tuple[Expr, int, int] | None:
    """`(mask, value if it is true, value if not)` when the polynomial depends on one mask only."""
    coefficients = terms(value)
    rest = [m for m in coefficients if m]
    if len(rest) != 1 or len(rest[0]) != 1 or not is_mask_cast(rest[0][0]):
        return None
    base = coefficients.get((), 0)
    return rest[0][0].args[0], base + coefficients[rest[0]], base


def choose(condition: Expr, if_true: Expr, if_false: Expr) -> Expr:
    """`where` of booleans."""
    if if_true is if_false:
        return if_true
    return or_(and_(condition, if_true), and_(not_(condition), if_false))
