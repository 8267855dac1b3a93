"""Integer linear constraints `p >= 0`: feasibility and projection by Fourier-Motzkin with integer tightening.

Products of atoms count as variables of their own. The answer "infeasible" is a proof; no other answer is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from gr_compile.analysis.algebra import Monomial, poly
from gr_compile.analysis.expr import Expr, Ranges, add, const, make, mul, scale, sub, terms

Coefficients: TypeAlias = frozenset[tuple[Monomial, int]]


class OutOfStepsError(Exception):
    """The step budget is spent: nothing is proved."""


@dataclass
class Budget:
    """Steps that a question may take before it counts as not proved."""

    steps: int = 20_000

    def spend(self, steps: int = 1) -> None:
        """Raises OutOfStepsError when none are left."""
        self.steps -= steps
        if self.steps < 0:
            raise OutOfStepsError


@dataclass
class Rows:
    """Constraints `sum of coefficient * monomial + constant >= 0`, the tightest of each left side.

    Attributes:
        constants: coefficients -> constant.
        infeasible: a constraint without variables is violated.
    """

    constants: dict[Coefficients, int] = field(default_factory=dict)
    infeasible: bool = False

    def add(self, coefficients: Mapping[Monomial, int]) -> None:
        """Add a row, divided by its common divisor; the constant is rounded down: solutions are integers."""
        constant = coefficients.get((), 0)
        divisor = math.gcd(*(c for m, c in coefficients.items() if m))
        if divisor == 0:
            self.infeasible |= constant < 0
            return
        left = frozenset((m, c // divisor) for m, c in coefficients.items() if m and c)
        constant //= divisor
        self.constants[left] = min(constant, self.constants.get(left, constant))

    def cheapest(self, dropped: Callable[[Monomial], bool]) -> Monomial | None:
        """The variable to eliminate next: first where that loses no integer solution, then by rows added."""
        lower: dict[Monomial, list[int]] = {}
        upper: dict[Monomial, list[int]] = {}
        for left in self.constants:
            for monomial, coefficient in left:
                (lower if coefficient > 0 else upper).setdefault(monomial, []).append(abs(coefficient))

        def cost(monomial: Monomial) -> tuple[bool, int]:
            low, high = lower.get(monomial, [1]), upper.get(monomial, [1])
            count = len(lower.get(monomial, ())), len(upper.get(monomial, ()))
            return max(low) > 1 and max(high) > 1, count[0] * count[1] - count[0] - count[1]

        return min(filter(dropped, dict.fromkeys((*lower, *upper))), key=cost, default=None)

    def eliminate(self, variable: Monomial, budget: Budget) -> None:
        """Replace the rows on `variable` by what they imply together."""
        lower: list[tuple[int, dict[Monomial, int]]] = []
        upper: list[tuple[int, dict[Monomial, int]]] = []
        for left in [left for left in self.constants if any(m == variable for m, _ in left)]:
            row = dict(left)
            row[()] = self.constants.pop(left)
            coefficient = row.pop(variable)
            (lower if coefficient > 0 else upper).append((abs(coefficient), row))
        budget.spend(len(lower) * len(upper))
        for a, low in lower:
            for b, high in upper:
                row = {m: b * c for m, c in low.items()}
                for m, c in high.items():
                    row[m] = row.get(m, 0) + a * c
                self.add({m: c for m, c in row.items() if c or not m})

    def project(self, dropped: Callable[[Monomial], bool], budget: Budget) -> None:
        """Eliminate every variable that `dropped` names, the cheapest first, until a contradiction shows."""
        while not self.infeasible:
            variable = self.cheapest(dropped)
            if variable is None:
                return
            self.eliminate(variable, budget)


def rows_of(values: Iterable[Expr]) -> Rows:
    """The constraints `value >= 0`."""
    rows = Rows()
    for value in values:
        rows.add(terms(value))
    return rows


def feasible(values: Iterable[Expr], ranges: Ranges, budget: Budget) -> bool:
    """Can all `value >= 0` hold together? False is a proof that they cannot."""
    constraints = list(values)
    rows = rows_of([*constraints, *known_bounds(constraints, ranges)])
    rows.project(lambda monomial: True, budget)
    return not rows.infeasible


def known_bounds(values: Iterable[Expr], ranges: Ranges) -> list[Expr]:
    """What is >= 0 by the ranges of the atoms in `values`, and by the meaning of // and %."""
    found: list[Expr] = []
    seen: set[Monomial] = set()
    waiting = [monomial for value in values for monomial in terms(value)]
    while waiting:
        monomial = waiting.pop()
        if monomial in seen:
            continue
        seen.add(monomial)
        new = _bounds_of_atom(monomial[0], ranges) if len(monomial) == 1 else _bounds_of_product(monomial, ranges)
        found += new
        waiting += [m for value in new for m in terms(value)]
        waiting += [(atom,) for atom in monomial]
    return found


def _bounds_of_product(monomial: Monomial, ranges: Ranges) -> list[Expr]:
    lows = [ranges.lower(atom) for atom in monomial]
    if all(low is not None and low.op == "const" and low.args[0] >= 0 for low in lows):
        return [poly({monomial: 1})]
    return []


def _bounds_of_atom(atom: Expr, ranges: Ranges) -> list[Expr]:
    low, high = ranges.lower(atom), ranges.upper(atom)
    found = [sub(atom, low)] if low is not None else []
    if high is not None:
        found.append(sub(high, atom))
    if atom.op in ("floordiv", "mod"):
        value, divisor = atom.args
        if divisor.op == "const" and divisor.args[0] > 0:
            quotient = make("floordiv", (value, divisor), "i")
            rest = sub(value, mul(divisor, quotient))
            found += [rest, sub(add(divisor, const(-1)), rest)]
            if atom.op == "mod":
                found += [sub(atom, rest), sub(rest, atom)]
    return found


def both_signs(value: Expr) -> tuple[Expr, Expr]:
    """`value == 0` as two constraints."""
    return value, scale(value, -1)
