"""Supports: what a non-zero value and an unmasked logit imply, by cases and against torch."""

from __future__ import annotations

import pytest
import torch
from grids import LENGTH, B, Grid, I, J, MaskGenerator, N, small_grid

from gr_compile.analysis.expr import (
    FALSE,
    TRUE,
    UNARY,
    Expr,
    and_,
    binary,
    cast,
    compare,
    const,
    load,
    make,
    not_,
    or_,
    sub,
    unary,
    walk,
    where,
)
from gr_compile.analysis.support import live, nonzero

S = make("s", (), "f32")
CAUSAL = compare("ge", I, J)
VALID = compare("lt", J, LENGTH)
INFINITY = float("inf")
ZERO = const(0.0)
NUMERIC = binary("sub", const(1.0), load("mask", (B, J), "f32"), "f32")  # a mask that is given as numbers
UNBOUNDED = binary("mul", NUMERIC, const(-1e9), "f32")


def additive(mask: Expr, value: float) -> Expr:
    return binary("add", S, where(mask, ZERO, const(value), "f32"), "f32")


# ---------------------------------------------------------------------- non-zero
@pytest.mark.parametrize(
    ("expr", "support"),
    [
        (binary("mul", unary("silu", S), cast(CAUSAL, "f32"), "f32"), CAUSAL),
        (binary("mul", binary("mul", cast(VALID, "f32"), S, "f32"), cast(CAUSAL, "f32"), "f32"),
         and_(CAUSAL, VALID)),
        (binary("div", where(CAUSAL, S, ZERO, "f32"), cast(N, "f32"), "f32"), CAUSAL),
        (unary("silu", where(CAUSAL, S, ZERO, "f32")), CAUSAL),
        (unary("exp", where(CAUSAL, S, const(-INFINITY), "f32")), CAUSAL),
        (unary("relu", where(CAUSAL, S, const(-1.0), "f32")), CAUSAL),
        (unary("sigmoid", where(CAUSAL, S, ZERO, "f32")), TRUE),
        (unary("exp", where(CAUSAL, S, ZERO, "f32")), TRUE),
        (unary("softplus", where(CAUSAL, S, ZERO, "f32")), TRUE),
        (unary("cos", where(CAUSAL, S, ZERO, "f32")), TRUE),
        (unary("silu", additive(CAUSAL, -1e9)), TRUE),  # small, but not zero
        (unary("silu", binary("add", unary("tanh", S), where(CAUSAL, ZERO, const(-1e9), "f32"), "f32")), CAUSAL),
        (unary("exp", binary("add", unary("tanh", S), where(CAUSAL, ZERO, const(-1e9), "f32"), "f32")), CAUSAL),
        (unary("tanh", binary("add", unary("tanh", S), where(CAUSAL, ZERO, const(-1e9), "f32"), "f32")), TRUE),
        (unary("gelu", additive(CAUSAL, -1e9)), TRUE),
        (binary("add", cast(CAUSAL, "f32"), cast(VALID, "f32"), "f32"), or_(CAUSAL, VALID)),
        (binary("pow", cast(CAUSAL, "f32"), S, "f32"), TRUE),
        (binary("pow", where(CAUSAL, S, ZERO, "f32"), const(2.0), "f32"), CAUSAL),
        (make("dropout", (where(CAUSAL, S, ZERO, "f32"), const(0.5)), "f32"), CAUSAL),
        (cast(where(CAUSAL, S, ZERO, "f32"), "bf16"), CAUSAL),
        (cast(sub(I, J), "f32"), compare("ne", I, J)),
        (const(float("nan")), TRUE),
        (const(-0.0), FALSE),
        (load("given", (I, J), "f32"), TRUE),
        (CAUSAL, CAUSAL),
    ],
)  # fmt: skip
def test_nonzero(expr: Expr, support: Expr) -> None:
    assert nonzero(expr) is support


@pytest.mark.parametrize("op", UNARY)
def test_nonzero_trusts_only_operations_that_keep_zero(op: str) -> None:
    value = make("where", (CAUSAL, S, load("zero", (I,), "f32")), "f32")
    masked = make("mul", (value, cast(VALID, "f32")), "f32")
    keeps = bool(UNARY[op](torch.tensor(0.0)) == 0)
    assert nonzero(make(op, (masked,), "f32")) is (VALID if keeps else TRUE)


def test_random_products_are_zero_outside_their_support() -> None:
    grid = small_grid()
    values = Grid({**grid.values, "s": torch.randn(len(grid.values["i"]))})
    for seed in range(200):
        generator = MaskGenerator(seed)
        parts = [
            where(generator.mask(1), S, ZERO, "f32"),
            cast(generator.mask(1), "f32"),
            cast(sub(I, J), "f32"),
        ]
        expr = parts[0]
        for part in parts[1:]:
            expr = binary(generator.random.choice(["mul", "add", "sub", "maximum", "minimum"]), expr, part, "f32")
        expr = unary(generator.random.choice(["silu", "relu", "sigmoid", "tanh", "exp", "neg"]), expr)
        outside = ~values.evaluate(nonzero(expr))
        assert not outside.any() or (values.evaluate(expr)[outside] == 0).all(), str(expr)


# ---------------------------------------------------------------------- unmasked
@pytest.mark.parametrize(
    ("logit", "condition", "assumes"),
    [
        (where(CAUSAL, S, const(-INFINITY), "f32"), CAUSAL, False),
        (additive(CAUSAL, -INFINITY), CAUSAL, False),
        (additive(CAUSAL, -1e4), CAUSAL, True),
        (additive(CAUSAL, torch.finfo(torch.float32).min), CAUSAL, True),
        (additive(CAUSAL, -100.0), TRUE, False),
        (where(CAUSAL, S, const(-1e9), "f32"), CAUSAL, True),
        (binary("add", additive(CAUSAL, -1e4), where(VALID, ZERO, const(-1e4), "f32"), "f32"),
         and_(CAUSAL, VALID), True),
        (binary("add", additive(CAUSAL, -INFINITY), where(VALID, ZERO, const(-1e4), "f32"), "f32"),
         and_(CAUSAL, VALID), True),
        (binary("sub", S, where(CAUSAL, ZERO, const(1e9), "f32"), "f32"), CAUSAL, True),
        (binary("mul", additive(CAUSAL, -1e5), const(0.05), "f32"), TRUE, False),
        (binary("mul", additive(CAUSAL, -1e6), const(0.05), "f32"), CAUSAL, True),
        (binary("div", additive(CAUSAL, -1e4), const(8.0), "f32"), TRUE, False),
        (binary("div", additive(CAUSAL, -INFINITY), const(8.0), "f32"), CAUSAL, False),
        (unary("neg", binary("add", S, where(CAUSAL, ZERO, const(1e9), "f32"), "f32")), CAUSAL, True),
        (binary("mul", additive(CAUSAL, -1e9), const(-1.0), "f32"), TRUE, False),
        (binary("minimum", S, where(CAUSAL, const(1e9), const(-1e9), "f32"), "f32"), CAUSAL, True),
        (binary("maximum", S, where(CAUSAL, ZERO, const(-1e9), "f32"), "f32"), TRUE, False),
        (cast(additive(CAUSAL, -INFINITY), "f64"), CAUSAL, False),
        (binary("add", S, const(-1e6), "f32"), TRUE, False),  # a shift of the whole row
        (unary("tanh", additive(CAUSAL, -1e9)), TRUE, False),
        (binary("add", additive(CAUSAL, -1e9), where(VALID, const(1e9), ZERO, "f32"), "f32"), TRUE, False),
        (binary("add", additive(CAUSAL, -1e9), where(VALID, const(2.0), ZERO, "f32"), "f32"), CAUSAL, True),
        (UNBOUNDED, TRUE, False),
        (binary("add", additive(CAUSAL, -1e9), UNBOUNDED, "f32"), TRUE, False),
        (binary("add", additive(CAUSAL, -INFINITY), UNBOUNDED, "f32"), CAUSAL, False),
        (S, TRUE, False),
    ],
)  # fmt: skip
def test_live(logit: Expr, condition: Expr, assumes: bool) -> None:
    found = live(logit)
    assert found.condition is condition
    assert found.assumes_bounded_scores is assumes


def test_exact_masks_are_minus_infinity_in_torch() -> None:
    grid = small_grid()
    values = Grid({**grid.values, "s": torch.randn(len(grid.values["i"]))})
    for seed in range(200):
        generator = MaskGenerator(seed)
        logit = where(generator.mask(1), S, const(-INFINITY), "f32")
        logit = binary("add", logit, where(generator.mask(1), ZERO, const(-INFINITY), "f32"), "f32")
        logit = binary(generator.random.choice(["maximum", "minimum", "add"]), logit, S, "f32")
        logit = binary(generator.random.choice(["mul", "div"]), logit, const(0.5), "f32")
        found = live(logit)
        masked = ~values.evaluate(found.condition)
        assert not found.assumes_bounded_scores
        assert (values.evaluate(logit)[masked] == -INFINITY).all()


@pytest.mark.parametrize("op", ["exp", "gelu", "gelu_tanh", "sigmoid", "silu", "softplus"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_is_far_below_zero_vanishes_with_its_derivative(op: str, dtype: torch.dtype) -> None:
    below = torch.linspace(-1e3, -1e9, 1001, dtype=torch.float64).to(dtype).requires_grad_()
    values = UNARY[op](below)
    (slopes,) = torch.autograd.grad(values.sum(), below)
    assert not values.any() and not slopes.any()


def test_finite_masks_vanish_in_softmax() -> None:
    scores = torch.tensor([3.0, -2.0, 5.0])
    mask = torch.tensor([True, True, False])
    weights = torch.softmax(scores + torch.where(mask, 0.0, -1e4), 0)
    assert weights[2] == 0
    blind = torch.softmax(scores + torch.full((3,), -1e4), 0)
    assert (blind > 0).all()  # why the assumption is told


def test_deep_programs_do_not_recurse() -> None:
    logit, product = additive(CAUSAL, -INFINITY), binary("mul", S, cast(CAUSAL, "f32"), "f32")
    for _ in range(3000):
        logit = binary("add", logit, S, "f32")
        product = binary("mul", product, S, "f32")
    assert live(logit).condition is CAUSAL
    assert nonzero(product) is CAUSAL
    assert len(walk(logit)) > 3000 and not_(TRUE) is FALSE
    assert nonzero(load("x", (B,), "i")) is compare("ne", load("x", (B,), "i"), const(0))
