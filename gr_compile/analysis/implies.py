"""Does one boolean expression imply another, for all values of loads, sizes and indices within their ranges?

A small decision procedure over integer linear constraints and boolean loads. "Yes" is a proof; "no" says that
it was not proved, be it false, beyond the procedure, or beyond the step budget. Floats are opaque.
"""

from __future__ import annotations

from collections.abc import Iterable

from gr_compile.analysis.algebra import poly
from gr_compile.analysis.branches import Question, linear_parts
from gr_compile.analysis.expr import TRUE, Expr, Ranges, and_, ge0, index, load, not_, or_, sub
from gr_compile.analysis.linear import Budget, OutOfStepsError, known_bounds, rows_of

_NOTHING: frozenset[str] = frozenset()
_MOST_DISJUNCTS = 32


def implies(
    ranges: Ranges, premise: Expr, conclusion: Expr, facts: Iterable[Expr] = (),
    suffix_closed: frozenset[str] = _NOTHING, budget: Budget | None = None,
) -> bool:  # fmt: skip
    """Is it proved that `conclusion` is true wherever `premise` is?

    Args:
        ranges: of the indices; sizes are at least `ranges.min_size`.
        facts: integers known to be >= 0, e.g. N - lengths[b].
        suffix_closed: names of boolean tensors S for which S[.., x] and x >= y imply S[.., y].
        budget: how long to try.
    """
    if premise is conclusion or conclusion is TRUE:
        return True
    return impossible(ranges, and_(premise, not_(conclusion)), facts, suffix_closed, budget)


def impossible(
    ranges: Ranges, formula: Expr, facts: Iterable[Expr] = (),
    suffix_closed: frozenset[str] = _NOTHING, budget: Budget | None = None,
) -> bool:  # fmt: skip
    """Is it proved that `formula` is true nowhere? Arguments as in `implies`."""
    question = Question(ranges, suffix_closed, budget=budget or Budget())
    try:
        return not any(question.consistent(leaf) for leaf in question.expand([formula, *map(ge0, facts)]))
    except OutOfStepsError:
        return False


def project(
    ranges: Ranges, premise: Expr, keep: frozenset[str], facts: Iterable[Expr] = (),
    suffix_closed: frozenset[str] = _NOTHING, budget: Budget | None = None,
) -> Expr:  # fmt: skip
    """What `premise` says about the indices in `keep`, whatever the others are: implied by it; else TRUE.

    The other indices are eliminated from each alternative: equalities are substituted, the rest goes by
    Fourier-Motzkin. E.g. from `i >= j and i < lengths[b]`, keeping b and j: `j < lengths[b]`. Arguments as in
    `implies`; what `ranges` and `facts` imply by themselves is left out.
    """
    known = list(facts)
    question = Question(
        ranges,
        suffix_closed,
        splits=lambda part: not part.free <= keep,
        solves=lambda atom: atom.op == "index" and atom.args[0] not in keep,
        exclusive=False,
        budget=budget or Budget(),
    )
    disjuncts: list[Expr] = []
    try:
        for leaf in question.expand([premise, *map(ge0, known)]):
            if not question.consistent(leaf):
                continue
            disjunct = _without(question, leaf, keep, known)
            if disjunct is TRUE or len(disjuncts) == _MOST_DISJUNCTS:
                return TRUE
            disjuncts.append(disjunct)
    except OutOfStepsError:
        return TRUE
    return or_(*_widest(disjuncts, ranges, known, suffix_closed))


def _without(question: Question, leaf: tuple[Expr, ...], keep: frozenset[str], facts: list[Expr]) -> Expr:
    """The conjunction `leaf` over the indices in `keep` only."""
    known = set(map(ge0, facts))
    kept = [part for part in leaf if part.free <= keep and part not in known]
    dropping = [value for value in linear_parts(leaf) if not value.free <= keep]
    rows = rows_of([*linear_parts(leaf), *known_bounds(dropping, question.ranges)])
    rows.project(lambda monomial: any(not atom.free <= keep for atom in monomial), question.budget)
    implied = (ge0(poly({**dict(left), (): constant})) for left, constant in rows.constants.items())
    derived = [*_smaller_places(question, leaf, keep), *sorted(implied, key=lambda part: part.key)]
    for part in dict.fromkeys(derived):
        if part not in kept and not implies(
            question.ranges, and_(*kept), part, facts, question.suffix_closed, question.budget
        ):
            kept.append(part)
    return and_(*_irredundant(question, kept, facts))


def _irredundant(question: Question, parts: list[Expr], facts: list[Expr]) -> list[Expr]:
    """`parts` without the comparisons that the others imply."""
    left = list(dict.fromkeys(parts))
    for part in tuple(left):
        rest = [x for x in left if x is not part]
        if part.op == "ge0" and implies(question.ranges, and_(*rest), part, facts, budget=question.budget):
            left = rest
    return left


def _smaller_places(question: Question, leaf: tuple[Expr, ...], keep: frozenset[str]) -> list[Expr]:
    """S[.., y] for every kept index y with S[.., x] and x >= y in `leaf`, S suffix-closed."""
    found: list[Expr] = []
    for part in leaf:
        if part.op != "load" or part.args[0] not in question.suffix_closed or not part.args[1]:
            continue
        *batch, last = part.args[1]
        for name in sorted(keep):
            smaller = index(name)
            if smaller is last or smaller in batch or not frozenset().union(*(x.free for x in batch)) <= keep:
                continue
            if implies(question.ranges, and_(*leaf), ge0(sub(last, smaller)), budget=question.budget):
                found.append(load(part.args[0], (*batch, smaller), part.dtype))
    return found


def _widest(disjuncts: list[Expr], ranges: Ranges, facts: list[Expr], suffix_closed: frozenset[str]) -> list[Expr]:
    """`disjuncts` without those that imply another one."""
    left = list(dict.fromkeys(disjuncts))
    for part in tuple(left):
        if any(implies(ranges, part, other, facts, suffix_closed) for other in left if other is not part):
            left.remove(part)
    return left
