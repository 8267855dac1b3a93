"""Key intervals: the hulls of published masks, and of random ones against brute force."""

from __future__ import annotations

import pytest
import torch
from grids import LENGTH, B, I, J, MaskGenerator, N, ranges, small_grid

from gr_compile.analysis import intervals
from gr_compile.analysis.expr import (
    FALSE,
    Expr,
    add,
    and_,
    binary,
    cast,
    compare,
    const,
    index,
    load,
    make,
    or_,
    sub,
    unary,
    where,
)
from gr_compile.analysis.intervals import key_interval
from gr_compile.analysis.support import live, nonzero

S = make("s", (), "f32")
SM = make("sm", (), "f32")
CAUSAL = compare("ge", I, J)
VALID = compare("lt", J, LENGTH)
WINDOW = and_(CAUSAL, compare("lt", sub(I, J), const(5)))
PREFIX = or_(CAUSAL, compare("lt", J, const(4)))
INFINITY = float("inf")
AFTER = add(I, const(1))


def masked(mask: Expr, value: float = -INFINITY) -> Expr:
    return where(mask, S, const(value), "f32")


def smallest(*values: Expr) -> Expr:
    found = values[0]
    for value in values[1:]:
        found = binary("minimum", found, value, "i")
    return found


def stu_ids(place: Expr) -> Expr:
    return smallest(place, sub(LENGTH, load("targets", (B,), "i")))


STU = or_(compare("eq", I, J), compare("gt", stu_ids(I), stu_ids(J)))


@pytest.mark.parametrize(
    ("mask", "low", "high"),
    [
        (CAUSAL, None, AFTER),
        (VALID, None, smallest(N, LENGTH)),
        (and_(CAUSAL, VALID), None, smallest(AFTER, LENGTH)),
        (WINDOW, binary("maximum", const(0), sub(I, const(4)), "i"), AFTER),
        (compare("ge", J, I), I, None),
        (compare("eq", I, J), I, AFTER),
        (PREFIX, None, binary("maximum", AFTER, smallest(N, const(4)), "i")),
        (STU, None, AFTER),
        (load("given", (I, J), "b"), None, None),
        (compare("ge", load("time", (B, I), "i"), load("time", (B, J), "i")), None, None),
        (and_(CAUSAL, load("head", (index("h"),), "b")), None, AFTER),
    ],
)  # fmt: skip
def test_hulls_of_masks(mask: Expr, low: Expr | None, high: Expr | None) -> None:
    found_low, found_high = key_interval(masked(mask), SM, ranges())
    assert (found_low, found_high) == (low, high)


def test_nothing_is_read_when_all_is_masked() -> None:
    low, high = key_interval(masked(FALSE), SM, ranges())
    assert low is None and high is const(0)


def test_pointwise_programs() -> None:
    program = binary("mul", unary("silu", S), cast(and_(CAUSAL, VALID), "f32"), "f32")
    assert key_interval(program, None, ranges()) == (None, smallest(AFTER, LENGTH))
    assert key_interval(unary("silu", masked(CAUSAL, -1e9)), None, ranges()) == (None, AFTER)
    unmasked = unary("silu", binary("add", S, where(CAUSAL, const(0.0), const(-1e9), "f32"), "f32"))
    assert key_interval(unmasked, None, ranges()) == (None, None)


def test_post_does_not_narrow_the_keys_of_a_softmax() -> None:
    """What post zeroes still counts in the denominator."""
    post = where(CAUSAL, SM, const(0.0), "f32")
    assert key_interval(S, post, ranges()) == (None, None)


def test_finite_masks_widen_rows_that_may_be_masked_whole() -> None:
    assert key_interval(masked(CAUSAL, -1e9), SM, ranges()) == (None, AFTER)
    low, high = key_interval(masked(and_(CAUSAL, VALID), -1e9), SM, ranges())
    sees_itself = compare("lt", I, LENGTH)
    assert low is None and high is where(sees_itself, smallest(AFTER, LENGTH), N, "i")
    per_head = and_(CAUSAL, load("mask", (index("h"), J), "b"))
    assert key_interval(masked(per_head, -1e9), SM, ranges()) == (None, None)
    unequal = ranges()
    unequal.bound("i", add(N, const(1)))
    assert key_interval(masked(CAUSAL, -1e9), SM, unequal) == (None, None)


def test_definitions_rule_alternatives_out() -> None:
    column = load("shifted", (B, J), "i")
    mask = or_(WINDOW, and_(compare("gt", column, J), compare("ge", J, I)))
    assert key_interval(masked(mask), SM, ranges())[0] is not None
    assert key_interval(masked(mask), SM, ranges())[1] is None
    assert key_interval(masked(mask), SM, ranges(), {column: sub(J, const(1))})[1] is AFTER


def check_hulls(seeds: range) -> int:
    """The number of hulls narrower than the range; raises when one leaves out a key of the support."""
    grid, narrow = small_grid(), 0
    for seed in seeds:
        generator = MaskGenerator(seed)
        mask = generator.mask()
        softmax = seed % 2 == 0
        finite = seed % 4 == 0
        if softmax:
            score, post = masked(mask, -1e9 if finite else -INFINITY), SM
            support = grid.evaluate(live(score).condition)
        else:
            score, post = binary("mul", S, cast(mask, "f32"), "f32"), None
            support = grid.evaluate(nonzero(score))
        if finite:  # a row without an unmasked key reads every key
            rows = grid.groups["i"]
            seen = torch.zeros(int(rows.max()) + 1, dtype=torch.int64).index_add(0, rows, support.long())
            support = support | (seen[rows] == 0)
        low, high = key_interval(score, post, ranges())
        key = grid.values["j"]
        inside = torch.ones_like(support)
        for bound, above in ((low, True), (high, False)):
            if bound is not None:
                assert bound.free <= {"b", "i"}
                inside &= (key >= grid.evaluate(bound)) if above else (key < grid.evaluate(bound))
        assert not (support & ~inside).any(), f"seed {seed}: {mask} is not within [{low}, {high})"
        narrow += low is not None or high is not None
    return narrow


def test_fuzz_hulls() -> None:
    assert check_hulls(range(160)) > 40


def _one_off(disjunct: tuple[Expr, ...], known: object) -> tuple[list[Expr], list[Expr]]:
    lows, highs = _real_bounds(disjunct, known)  # type: ignore[arg-type]
    return lows, [*highs[:1], *(sub(x, const(1)) for x in highs[1:])]


_real_bounds = intervals._bounds
_real_extremum = intervals._extremum
MUTANTS = {
    "the upper bound is inclusive": ("_bounds", _one_off),
    "hulls are intersections": (
        "_extremum",
        lambda op, values, known: _real_extremum("maximum" if op == "minimum" else "minimum", values, known),
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_fuzz_catches_planted_bugs(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, *MUTANTS[mutant])
    with pytest.raises(AssertionError, match="is not within"):
        check_hulls(range(300))


def test_the_fuzz_catches_finite_masks_that_count_as_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "live", lambda logit: type(live(logit))(live(logit).condition, False))
    with pytest.raises(AssertionError, match="is not within"):
        check_hulls(range(300))
