"""The decision procedure: what it must prove, what it must not, and a fuzz that catches planted bugs."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from grids import FACTS, LENGTH, B, Grid, I, J, MaskGenerator, N, ranges, small_grid

from gr_compile.analysis import branches, implies, linear
from gr_compile.analysis.expr import (
    FALSE,
    TRUE,
    Expr,
    Ranges,
    add,
    and_,
    binary,
    cast,
    compare,
    const,
    ge0,
    index,
    load,
    make,
    mul,
    not_,
    or_,
    scale,
    size,
    sub,
    terms,
    where,
)

CAUSAL = compare("ge", I, J)
SUFFIX = frozenset({"S"})
PAIR_KEYS = frozenset({"b", "j"})


def valid(place: Expr) -> Expr:
    return compare("lt", place, LENGTH)


def left_valid(place: Expr) -> Expr:
    return compare("ge", place, sub(N, LENGTH))


def given(place: Expr) -> Expr:
    return load("S", (B, place), "b")


def present(place: Expr) -> Expr:
    return compare("ne", load("ids", (B, place), "i"), const(0))


def stu_ids(place: Expr) -> Expr:
    """HSTU's places: contextual ones are 0, targets share the last."""
    plain = binary("maximum", add(place, const(-2)), const(0), "i")
    return binary("minimum", plain, sub(LENGTH, load("targets", (B,), "i")), "i")


STU = or_(compare("eq", I, J), compare("gt", stu_ids(I), stu_ids(J)))
WINDOW = and_(CAUSAL, compare("lt", sub(I, J), const(128)))


# ---------------------------------------------------------------------- what must be proved
@pytest.mark.parametrize(
    ("premise", "conclusion"),
    [
        (and_(CAUSAL, valid(I)), valid(J)),
        (and_(CAUSAL, left_valid(J)), left_valid(I)),
        (and_(CAUSAL, present(J)), present(J)),
        (and_(WINDOW, valid(I)), valid(J)),
        (and_(STU, valid(I)), valid(J)),
        (and_(compare("eq", I, J), given(I)), given(J)),
        (and_(compare("le", I, J), CAUSAL, given(I)), given(J)),
        (and_(compare("le", I, J), CAUSAL, present(I)), present(J)),
        (and_(or_(CAUSAL, compare("lt", J, const(2))), valid(I), compare("ge", LENGTH, const(2))), valid(J)),
        (compare("gt", binary("minimum", I, J, "i"), const(2)), compare("gt", J, const(2))),
        (compare("eq", binary("mod", I, const(2), "i"), const(1)), compare("ge", I, const(1))),
        (compare("eq", scale(I, 2), add(scale(J, 2), const(1))), FALSE),
        (compare("eq", mul(cast(given(J), "i"), add(I, const(1))), const(0)), not_(given(J))),
        (compare("lt", where(given(J), J, N, "i"), N), given(J)),
        (ge0(sub(const(-1), make("wrap", (I, N), "i"))), FALSE),
    ],
)  # fmt: skip
def test_proves(premise: Expr, conclusion: Expr) -> None:
    assert implies.implies(ranges(), premise, conclusion, FACTS)


@pytest.mark.parametrize(
    ("premise", "conclusion"),
    [
        (and_(CAUSAL, left_valid(I)), left_valid(J)),  # causal and left-padded
        (and_(CAUSAL, given(I)), given(J)),  # an arbitrary mask
        (and_(CAUSAL, present(I)), present(J)),  # ids with holes
        (valid(I), valid(J)),
        (and_(compare("ge", add(I, const(1)), J), valid(I)), valid(J)),  # looks one ahead
        (and_(STU, given(I)), given(J)),
        (
            and_(or_(CAUSAL, compare("lt", J, const(2))), valid(I)),
            valid(J),
        ),  # a prefix longer than the sequence
        (TRUE, valid(J)),
        (CAUSAL, compare("gt", I, J)),
        (compare("eq", binary("mod", I, const(2), "i"), const(1)), compare("ge", I, const(2))),
    ],
)
def test_does_not_prove(premise: Expr, conclusion: Expr) -> None:
    assert not implies.implies(ranges(), premise, conclusion, FACTS)


def test_suffix_closed_masks() -> None:
    premise = and_(CAUSAL, given(I))
    assert implies.implies(ranges(), premise, given(J), suffix_closed=SUFFIX)
    assert not implies.implies(ranges(), and_(CAUSAL, given(J)), given(I), suffix_closed=SUFFIX)
    assert not implies.implies(ranges(), premise, load("T", (B, J), "b"), suffix_closed=SUFFIX)
    assert not implies.implies(ranges(), premise, load("S", (index("c"), J), "b"), suffix_closed=SUFFIX)


def test_ranges_and_facts_count() -> None:
    assert implies.implies(ranges(), TRUE, compare("lt", I, N))
    assert not implies.implies(Ranges(), TRUE, compare("lt", I, N))
    assert implies.implies(ranges(), valid(I), compare("lt", I, N))
    assert not implies.implies(ranges(), TRUE, compare("le", LENGTH, N))
    assert implies.implies(ranges(), TRUE, compare("le", LENGTH, N), FACTS)
    bounded = ranges()
    bounded.bound_load("len", const(0), N)
    assert implies.implies(bounded, TRUE, and_(compare("le", LENGTH, N), compare("ge", LENGTH, const(0))))
    assert not implies.implies(Ranges(min_size=0), TRUE, compare("ge", size("T"), const(1)))


def test_what_is_computed_of_sizes_may_be_zero() -> None:
    """`N // 4` of three places."""
    assert implies.implies(ranges(), TRUE, compare("ge", N, const(1)))
    assert not implies.implies(ranges(), TRUE, compare("ge", size("(s0//4)"), const(1)))
    assert ranges().size_min(add(N, N)) == 2 and ranges().size_min(add(N, size("(s0//4)"))) is None


def test_a_spent_budget_proves_nothing() -> None:
    premise, conclusion = and_(STU, valid(I)), valid(J)
    assert implies.implies(ranges(), premise, conclusion, FACTS)
    assert not implies.implies(ranges(), premise, conclusion, FACTS, budget=linear.Budget(3))
    assert implies.project(ranges(), premise, PAIR_KEYS, budget=linear.Budget(3)) is TRUE


def test_many_disjunctions_stay_within_the_budget() -> None:
    parts = [or_(given(add(I, const(k))), compare("lt", J, const(k))) for k in range(60)]
    assert not implies.implies(ranges(), and_(*parts), given(sub(J, const(1))))


# ---------------------------------------------------------------------- projection
@pytest.mark.parametrize(
    ("premise", "keep", "expected"),
    [
        (and_(CAUSAL, valid(I)), PAIR_KEYS, valid(J)),
        (and_(CAUSAL, valid(J)), PAIR_KEYS, valid(J)),
        (and_(CAUSAL, valid(J)), frozenset({"b", "i"}), compare("gt", LENGTH, const(0))),
        (and_(compare("eq", I, add(J, const(1))), given(I)), PAIR_KEYS,
         and_(given(add(J, const(1))), compare("gt", N, add(J, const(1))))),
        (and_(CAUSAL, given(I)), PAIR_KEYS, TRUE),
        (or_(and_(CAUSAL, valid(I)), valid(J)), PAIR_KEYS, valid(J)),
        (and_(STU, valid(I)), PAIR_KEYS, valid(J)),
        (and_(valid(I), not_(valid(I))), PAIR_KEYS, FALSE),
        (TRUE, PAIR_KEYS, TRUE),
    ],
)  # fmt: skip
def test_project(premise: Expr, keep: frozenset[str], expected: Expr) -> None:
    found = implies.project(ranges(), premise, keep, FACTS)
    assert found.free <= keep
    assert implies.implies(ranges(), found, expected, FACTS)
    assert implies.implies(ranges(), expected, found, FACTS)


def test_project_says_it_briefly() -> None:
    assert implies.project(ranges(), and_(CAUSAL, valid(I)), PAIR_KEYS) is valid(J)
    assert implies.project(ranges(), and_(CAUSAL, given(I)), PAIR_KEYS, suffix_closed=SUFFIX) is given(J)
    assert implies.project(ranges(), and_(CAUSAL, left_valid(J)), PAIR_KEYS, FACTS) is left_valid(J)


# ---------------------------------------------------------------------- against brute force
def check_implications(seeds: range) -> tuple[int, int]:
    """(proved, true) of random implications; raises when a proved one is false."""
    proved = true = 0
    grids = {closed: small_grid(closed) for closed in (False, True)}
    for seed in seeds:
        masks = MaskGenerator(seed)
        premise, conclusion = masks.mask(), masks.mask(1)
        if seed % 3 == 0:
            conclusion = or_(conclusion, *(x for x in premise.args[:1] if isinstance(x, Expr) and x.dtype == "b"))
        closed = seed % 2 == 1
        grid = grids[closed]
        holds = bool((~grid.evaluate(premise) | grid.evaluate(conclusion)).all())
        claimed = implies.implies(
            ranges(), premise, conclusion, FACTS, SUFFIX if closed else frozenset(), linear.Budget(2000)
        )
        assert holds or not claimed, f"seed {seed}: {premise} does not imply {conclusion}"
        proved, true = proved + claimed, true + holds
    return proved, true


def check_projections(seeds: range) -> tuple[int, int]:
    """(exact, all) of random projections; raises when one is not implied by its premise."""
    exact = total = 0
    grids = {closed: small_grid(closed) for closed in (False, True)}
    for seed in seeds:
        premise = MaskGenerator(seed).mask()
        closed = seed % 2 == 1
        name, grid = ("j" if seed % 3 else "i"), grids[closed]
        projected = implies.project(
            ranges(), premise, frozenset({"b", name}), FACTS, SUFFIX if closed else frozenset(),
            linear.Budget(2000),
        )  # fmt: skip
        assert projected.free <= {"b", name}, f"seed {seed}: {projected} of {premise}"
        assert_implied(grid, premise, projected, f"seed {seed}: {premise} does not imply {projected}")
        exact, total = exact + is_exact(grid, premise, projected, name), total + 1
    return exact, total


def assert_implied(grid: Grid, premise: Expr, conclusion: Expr, message: str) -> None:
    assert (~grid.evaluate(premise) | grid.evaluate(conclusion)).all(), message


def is_exact(grid: Grid, premise: Expr, projected: Expr, name: str) -> bool:
    groups = grid.groups[name]
    some = torch.zeros(int(groups.max()) + 1, dtype=torch.int64)
    some.index_add_(0, groups, grid.evaluate(premise).long())
    return bool(((some[groups] > 0) == grid.evaluate(projected)).all())


def test_fuzz_implies() -> None:
    proved, true = check_implications(range(800))
    assert proved > 0.6 * true > 100, (proved, true)


def test_fuzz_project() -> None:
    exact, total = check_projections(range(220))
    assert exact > 0.5 * total, (exact, total)


# ---------------------------------------------------------------------- planted bugs
def _ceil_rows(self: linear.Rows, coefficients: dict[tuple[Expr, ...], int]) -> None:
    constant = coefficients.get((), 0)
    divisor = math.gcd(*(c for m, c in coefficients.items() if m))
    if divisor == 0:
        self.infeasible |= constant <= 0
        return
    left = frozenset((m, c // divisor) for m, c in coefficients.items() if m and c)
    self.constants[left] = min(constant // divisor, self.constants.get(left, constant // divisor))


def _loosest_rows(self: linear.Rows, coefficients: dict[tuple[Expr, ...], int]) -> None:
    _real_add(self, {**coefficients, (): coefficients.get((), 0) - 1})


_real_add = linear.Rows.add
_real_lift = branches._lift_extremum
_real_apart = branches.Question._loads_apart


def _no_bounds_of_products(values: list[Expr], ranges: Ranges) -> list[Expr]:
    return [value for atom in {x for v in values for m in terms(v) for x in m} for value in (add(atom, const(-1)),)]


def _swapped_extremum(part: Expr, atom: Expr) -> Expr:
    if atom.op == "abs":
        return _real_lift(part, atom)
    other = make("minimum" if atom.op == "maximum" else "maximum", atom.args, "i")
    return _real_lift(branches.substitute(part, {atom: other}), other)


def _always_closed(self: branches.Question, branch: tuple[Expr, ...]) -> tuple[list[Expr], list[Expr]]:
    rows, apart = _real_apart(self, branch)
    return [*rows, *(add(value, const(-1)) for value in apart)], []


def _all_smaller(question: branches.Question, leaf: tuple[Expr, ...], keep: frozenset[str]) -> list[Expr]:
    return [load(p.args[0], (B, index(n)), "b") for p in leaf if p.op == "load" for n in sorted(keep - {"b"})]


def _forgetful(self: linear.Rows, dropped: Callable[[tuple[Expr, ...]], bool], budget: linear.Budget) -> None:
    for left in [left for left in self.constants if any(dropped(m) for m, _ in left)]:
        constant = self.constants.pop(left)
        self.add({**{m: c for m, c in left if not dropped(m)}, (): constant})


def _careless_merge(self: branches.Question, branch: tuple[Expr, ...], rows: list[Expr]) -> list[Expr] | None:
    loads = [x for x in branches.walk(*branch) if x.op == "load" and x.dtype == "i" and len(x.args[1]) == 2]
    return [branches.substitute(x, {loads[1]: loads[0]}) for x in branch] if len(loads) > 1 else None


MUTANTS = {
    "a row without variables fails at 0": (linear.Rows, "add", _ceil_rows),
    "every row is tightened by one": (linear.Rows, "add", _loosest_rows),
    "atoms are at least 1": (linear, "known_bounds", _no_bounds_of_products),
    "min and max are confused": (branches, "_lift_extremum", _swapped_extremum),
    "every boolean tensor is suffix-closed": (branches.Question, "_loads_apart", _always_closed),
    "all integer loads of a tensor are one": (branches.Question, "_merged", _careless_merge),
}
PROJECTION_MUTANTS = {
    "suffixes without comparing places": (implies, "_smaller_places", _all_smaller),
    "dropped indices count as 0": (linear.Rows, "project", _forgetful),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_fuzz_catches_planted_bugs(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*MUTANTS[mutant])
    with pytest.raises(AssertionError, match="does not imply"):
        check_implications(range(300, 800))


@pytest.mark.parametrize("mutant", PROJECTION_MUTANTS)
def test_the_fuzz_catches_planted_bugs_of_project(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*PROJECTION_MUTANTS[mutant])
    with pytest.raises(AssertionError, match="does not imply"):
        check_projections(range(220))
