"""Bounds of floating values: what an interval says is so, and what it cannot say is not said."""

from __future__ import annotations

import math
import random

import pytest
import torch
from grids import Grid, I, J, MaskGenerator, small_grid

from gr_compile.analysis.bounds import above, intervals
from gr_compile.analysis.expr import FALSE, TRUE, Expr, and_, binary, cast, compare, const, make, or_, unary, where

S = make("s", (), "f32")
CAUSAL, NEAR = compare("ge", I, J), compare("ge", J, I)
ZERO = const(0.0)


def masked(mask: Expr, least: float, dtype: str = "f32") -> Expr:
    return where(mask, const(0.0, dtype), const(least, dtype), dtype)


def plus(left: Expr, right: Expr) -> Expr:
    return binary("add", left, right, left.dtype)


BOUNDED = unary("tanh", S)
CLAMPED = binary("minimum", binary("maximum", S, const(-50.0), "f32"), const(50.0), "f32")
ABOVE = {
    "a bounded score": (plus(BOUNDED, masked(CAUSAL, -1e9)), CAUSAL),
    "a clamped score": (plus(masked(CAUSAL, -1e4), CLAMPED), CAUSAL),
    "a score with a ceiling alone": (plus(binary("minimum", S, const(5.0), "f32"), masked(CAUSAL, -1e9)), CAUSAL),
    "a scaled score": (plus(binary("mul", BOUNDED, const(20.0), "f32"), masked(CAUSAL, -1e9)), CAUSAL),
    "two masks": (plus(plus(BOUNDED, masked(CAUSAL, -1e9)), masked(NEAR, -1e9)), and_(CAUSAL, NEAR)),
    "either of two": (
        binary("maximum", plus(BOUNDED, masked(CAUSAL, -1e9)), masked(NEAR, -1e9), "f32"), or_(CAUSAL, NEAR)
    ),
    "far below": (const(-2e3), FALSE),
    "a score of any size": (plus(S, masked(CAUSAL, -1e9)), TRUE),
    "a score with a floor alone": (plus(binary("maximum", S, const(5.0), "f32"), masked(CAUSAL, -1e9)), TRUE),
    "a mask that is small": (plus(BOUNDED, masked(CAUSAL, -20.0)), TRUE),
    "a score that undoes its mask": (plus(binary("mul", BOUNDED, const(1e9), "f32"), masked(CAUSAL, -1e9)), TRUE),
    "a mask that comes back": (plus(plus(BOUNDED, masked(CAUSAL, -1e9)), const(1e9)), TRUE),
    "half precision, where the mask is infinite": (plus(cast(BOUNDED, "f16"), masked(CAUSAL, -1e9, "f16")), TRUE),
    "an infinite mask": (plus(BOUNDED, masked(CAUSAL, -math.inf)), TRUE),
    "a quotient by what may be 0": (plus(binary("div", BOUNDED, unary("sin", S), "f32"), masked(CAUSAL, -1e9)), TRUE),
}


@pytest.mark.parametrize("case", ABOVE)
def test_what_a_value_that_is_not_far_below_zero_implies(case: str) -> None:
    expr, implied = ABOVE[case]
    assert above(expr, -1e3) is implied


def test_deep_sums_are_given_up() -> None:
    expr = plus(BOUNDED, masked(CAUSAL, -1e9))
    for _ in range(2000):
        expr = plus(expr, BOUNDED)
    assert above(expr, -1e3) is TRUE


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64"])
def test_random_values_lie_within_their_bounds(dtype: str) -> None:
    """Constants of very different size are added, so that rounding shows."""
    grid = small_grid()
    values = Grid({**grid.values, "s": torch.randn(len(grid.values["i"])) * 30})
    for seed in range(60):
        draw, masks = random.Random(seed), MaskGenerator(seed)
        expr = cast(unary(draw.choice(["tanh", "sigmoid", "relu", "abs", "cos"]), S), dtype)
        for _ in range(5):
            other = draw.choice([masked(masks.mask(1), draw.choice([-1e4, 3.3]), dtype), const(draw.uniform(-9, 9), dtype), expr])
            expr = binary(draw.choice(["add", "sub", "mul", "maximum", "minimum"]), expr, other, dtype)
        found, bounds = values.evaluate(expr).double(), intervals(expr)[expr]
        assert bool((found >= bounds[0]).all() and (found <= bounds[1]).all()), str(expr)
        least = draw.uniform(-20, 20)
        implied = values.evaluate(above(expr, least))
        assert bool((implied | ~(found > least)).all()), str(expr)
