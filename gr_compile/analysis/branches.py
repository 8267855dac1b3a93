"""Boolean expressions as a disjunction of consistent conjunctions, worked off branch by branch.

A branch is a list of conjuncts. It is settled (min, max, abs and choices lifted out of comparisons,
equalities substituted, decided alternatives dropped), then split at its smallest disjunction.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from gr_compile.analysis.expr import (
    FALSE,
    TRUE,
    Expr,
    Ranges,
    add,
    alternatives,
    and_,
    atoms,
    coefficient_of,
    const,
    ge0,
    is_mask_cast,
    not_,
    or_,
    scale,
    sub,
    substitute,
    terms,
    walk,
)
from gr_compile.analysis.linear import Budget, both_signs, feasible

_MOST_PAIRS = 16
_SOLVED = ("index", "load", "size")  # what an equality may eliminate, in this order


@dataclass(frozen=True)
class Question:
    """What holds while a formula is taken apart.

    Attributes:
        ranges: of indices and integer tensors.
        suffix_closed: names of boolean tensors S with: S[.., x] and x >= y imply S[.., y].
        splits: which disjunctions to split.
        solves: which atoms an equality may eliminate.
        exclusive: later alternatives hold the negation of earlier ones.
    """

    ranges: Ranges
    suffix_closed: frozenset[str] = frozenset()
    splits: Callable[[Expr], bool] = lambda disjunction: True
    solves: Callable[[Expr], bool] = lambda atom: True
    exclusive: bool = True
    budget: Budget = field(default_factory=Budget)

    def expand(self, parts: Iterable[Expr]) -> Iterator[tuple[Expr, ...]]:
        """The branches of the conjunction of `parts` that are not refuted on the way. OutOfStepsError."""
        stack = [tuple(parts)]
        while stack:
            branch = self.settle(stack.pop())
            if branch is None:
                continue
            splits = [part for part in branch if alternatives(part) and self.splits(part)]
            if not splits:
                yield branch
                continue
            if not feasible(linear_parts(branch), self.ranges, self.budget):
                continue
            chosen = min(splits, key=lambda part: len(part.args[0].args))
            rest = tuple(part for part in branch if part is not chosen)
            earlier: tuple[Expr, ...] = ()
            for choice in alternatives(chosen) or ():
                stack.append((*rest, choice, *earlier))
                earlier = (*earlier, not_(choice)) if self.exclusive else ()

    def settle(self, parts: Iterable[Expr]) -> tuple[Expr, ...] | None:
        """The conjunction of `parts`, nothing left to lift or to substitute; None when contradictory."""
        while True:
            self.budget.spend()
            whole = and_(*parts)
            if whole is FALSE:
                return None
            branch = whole.args if whole.op == "and" else () if whole is TRUE else (whole,)
            parts = [lift(part) for part in branch]
            if any(new is not old for new, old in zip(parts, branch)):
                continue
            solved = self._substituted(branch)
            parts = solved if solved is not None else _propagated(branch)
            if solved is None and all(new is old for new, old in zip(parts, branch)):
                return branch

    def _substituted(self, branch: tuple[Expr, ...]) -> list[Expr] | None:
        """The branch without one atom that an equality determines; what is known of the atom goes over."""
        for part in branch:
            if part.op != "eq0":
                continue
            solution = self._solved(part.args[0], branch)
            if solution is not None:
                atom, value = solution
                low, high = self.ranges.lower(atom), self.ranges.upper(atom)
                bounds = [] if low is None else [ge0(sub(value, low))]
                bounds += [] if high is None else [ge0(sub(high, value))]
                return [*(substitute(x, {atom: value}) for x in branch if x is not part), *bounds]
        return None

    def _solved(self, value: Expr, branch: tuple[Expr, ...]) -> tuple[Expr, Expr] | None:
        """`(atom, expression)` from `value == 0`: an index where there is one, else a load or a size."""
        candidates = [atom for atom in atoms(value) if atom.op in _SOLVED and self.solves(atom)]
        for atom in sorted(candidates, key=lambda atom: _SOLVED.index(atom.op)):
            linear = coefficient_of(value, atom)
            if linear is None or linear[0].op != "const" or abs(linear[0].args[0]) != 1:
                continue
            if atom.op == "load" and any(_one_difference(atom, x) is not None for x in _loads(branch)):
                continue  # it stays, to be compared with the other place
            solution = scale(linear[1], -linear[0].args[0])
            if atom not in walk(solution):
                return atom, solution
        return None

    # ---------------------------------------------------------------------- theory
    def consistent(self, branch: tuple[Expr, ...]) -> bool:
        """Can the branch, all of whose parts count as literals, hold? False is a proof that it cannot."""
        different = [part.args[0].args[0] for part in branch if part.op == "not" and part.args[0].op == "eq0"]
        rows, apart = self._loads_apart(branch)
        constraints = [*linear_parts(branch), *rows]
        if not self._consistent_rows(constraints, [*different, *apart]):
            return False
        merged = self._merged(branch, constraints)
        return merged is None or any(self.consistent(leaf) for leaf in self.expand(merged))

    def _consistent_rows(self, constraints: list[Expr], different: list[Expr]) -> bool:
        """`constraints >= 0` and `different != 0` together: a side that is impossible fixes the other one."""
        if not feasible(constraints, self.ranges, self.budget):
            return False
        waiting, changed = list(dict.fromkeys(different)), True
        while changed:
            changed = False
            for value in tuple(waiting):
                above, below = (
                    feasible([*constraints, add(side, const(-1))], self.ranges, self.budget)
                    for side in both_signs(value)
                )
                if not above and not below:
                    return False
                if above != below:
                    constraints.append(add(value if above else scale(value, -1), const(-1)))
                    waiting.remove(value)
                    changed = True
        return True

    def _loads_apart(self, branch: tuple[Expr, ...]) -> tuple[list[Expr], list[Expr]]:
        """From S[.., x] and not S[.., y]: `x != y`, and `y > x` when S is suffix-closed."""
        rows: list[Expr] = []
        apart: list[Expr] = []
        true = [part for part in branch if part.op == "load"]
        false = [part.args[0] for part in branch if part.op == "not" and part.args[0].op == "load"]
        for yes, no in itertools.islice(itertools.product(true, false), _MOST_PAIRS):
            place = _one_difference(yes, no)
            if place is None:
                continue
            difference = sub(no.args[1][place], yes.args[1][place])
            if yes.args[0] in self.suffix_closed and place == len(yes.args[1]) - 1:
                rows.append(add(difference, const(-1)))
            else:
                apart.append(difference)
        return rows, apart

    def _merged(self, branch: tuple[Expr, ...], constraints: list[Expr]) -> list[Expr] | None:
        """The branch with one integer load replaced by another at provably the same place, or None."""
        for one, other in itertools.islice(itertools.combinations(_loads(branch), 2), _MOST_PAIRS):
            place = _one_difference(one, other)
            if place is None:
                continue
            difference = sub(one.args[1][place], other.args[1][place])
            if difference.op != "const" and not self._consistent_rows(list(constraints), [difference]):
                return [substitute(part, {other: one}) for part in branch]
        return None


def _loads(branch: tuple[Expr, ...]) -> list[Expr]:
    """The integer loads below `branch`."""
    return [node for node in walk(*branch) if node.op == "load" and node.dtype == "i"]


def _one_difference(one: Expr, other: Expr) -> int | None:
    """The only position at which two loads of one tensor read different places."""
    if one.args[0] != other.args[0] or len(one.args[1]) != len(other.args[1]):
        return None
    places = [k for k, (x, y) in enumerate(zip(one.args[1], other.args[1])) if x is not y]
    return places[0] if len(places) == 1 else None


def linear_parts(branch: Iterable[Expr]) -> list[Expr]:
    """What the comparisons of integers among the conjuncts say is >= 0."""
    found: list[Expr] = []
    for part in branch:
        if part.op == "ge0":
            found.append(part.args[0])
        elif part.op == "eq0":
            found += both_signs(part.args[0])
    return found


def _propagated(branch: tuple[Expr, ...]) -> list[Expr]:
    """Disjunctions without alternatives that other conjuncts contradict, and without what is already true."""
    known = set(branch)
    parts: list[Expr] = []
    for part in branch:
        choices = alternatives(part)
        if choices is None:
            parts.append(part)
        elif any(all(x in known for x in _conjuncts(choice)) for choice in choices):
            parts.append(TRUE)
        else:
            alive = [c for c in choices if not any(not_(x) in known for x in _conjuncts(c))]
            parts.append(part if len(alive) == len(choices) else or_(*alive))
    return parts


def _conjuncts(part: Expr) -> tuple[Expr, ...]:
    return part.args if part.op == "and" else (part,)


# ---------------------------------------------------------------------- lifting
def lift(part: Expr) -> Expr:
    """A comparison of integers with one min, max, abs, choice, mask or wrap taken out of it: exact."""
    if part.op == "not" and part.args[0].op == "eq0":
        value = part.args[0].args[0]
        if _liftable(value) is None:
            return part
        return or_(*(ge0(add(side, const(-1))) for side in both_signs(value)))
    if part.op not in ("ge0", "eq0"):
        return part
    value = part.args[0]
    atom = _liftable(value)
    if atom is None:
        return part
    if part.op == "eq0":
        return and_(*map(ge0, both_signs(value)))
    if atom.op in ("minimum", "maximum", "abs"):
        return _lift_extremum(part, atom)
    if atom.op == "where":
        condition, if_true, if_false = atom.args
    elif atom.op == "wrap":
        place, extent = atom.args
        condition, if_true, if_false = ge0(place), place, add(place, extent)
    else:
        condition, if_true, if_false = atom.args[0], const(1), const(0)
    return or_(
        and_(condition, substitute(part, {atom: if_true})),
        and_(not_(condition), substitute(part, {atom: if_false})),
    )


def _liftable(value: Expr) -> Expr | None:
    ops = ("minimum", "maximum", "abs", "where", "wrap")
    return next((x for m in terms(value) for x in m if x.op in ops or is_mask_cast(x)), None)


def _lift_extremum(part: Expr, atom: Expr) -> Expr:
    left, right = (atom.args[0], scale(atom.args[0], -1)) if atom.op == "abs" else atom.args
    replaced = [substitute(part, {atom: x}) for x in (left, right)]
    linear = coefficient_of(part.args[0], atom)
    if linear is not None and linear[0].op == "const" and atom not in walk(linear[1]):
        largest = atom.op != "minimum"
        return or_(*replaced) if largest == (linear[0].args[0] > 0) else and_(*replaced)
    wins = ge0(sub(left, right) if atom.op != "minimum" else sub(right, left))
    return or_(and_(wins, replaced[0]), and_(not_(wins), replaced[1]))
