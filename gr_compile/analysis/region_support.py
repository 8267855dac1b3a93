"""The support of a region: what must hold of (b, h, i, j) for key j to contribute to query i."""

from __future__ import annotations

from gr_compile.analysis.expr import FALSE, Expr, and_, compare, const, make, or_, substitute, walk, where
from gr_compile.analysis.region import Region
from gr_compile.analysis.support import live, nonzero


def support(region: Region) -> Expr:
    """Implied by: key j matters to query i. Of a pointwise program, P V != 0.

    Under a softmax every unmasked logit is part of the sum, whatever the weights are multiplied with afterwards; a
    masked key matters only through P = post(0) != 0.
    """
    if region.post is None:
        return and_(nonzero(_by_cases(region.score)), nonzero(region.value_element))
    weight = make("sm", (), region.score.dtype)
    masked = substitute(region.post, {weight: const(0.0, weight.dtype)})
    return or_(visible(region), and_(nonzero(_by_cases(masked)), nonzero(region.value_element)))


def visible(region: Region) -> Expr:
    """Of a softmax: implied by an unmasked logit."""
    return live(_by_cases(region.score)).condition


def _by_cases(expr: Expr) -> Expr:
    """`expr`, split by whether each number that serves as a mask is 0: (1 - mask) * finfo.min folds where it is."""
    used = [a for p in walk(expr) if p.dtype != "b" and p.op != "load" for a in p.args if isinstance(a, Expr)]
    numbers = [a for a in used if a.op == "load" and a.dtype != "b" and a.free and a.free < {"b", "i", "j"}]
    for number in dict.fromkeys(numbers):
        zero = const(0) if number.dtype == "i" else const(0.0, number.dtype)
        folded = substitute(expr, {number: zero})
        if folded is not expr and _masks(folded):
            expr = where(compare("eq", number, zero), folded, expr, expr.dtype)
    return expr


def _masks(folded: Expr) -> bool:
    """With the number at 0, is nothing left, or a logit shifted by a large negative constant?"""
    return nonzero(folded) is FALSE or any(
        part.op == "const" and isinstance(part.args[0], float) and part.args[0] <= -1e3 for part in walk(folded)
    )


def blind_rows_are_zero(region: Region) -> bool:
    """Only -inf masks under a safe softmax: a row without keys is 0, whatever its keys. Or there is no such row."""
    return region.sighted or (region.fully_masked == "zero" and not live(region.score).assumes_bounded_scores)
