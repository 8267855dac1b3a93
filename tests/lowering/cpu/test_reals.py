"""Bounds of floats that are computed of whole numbers: no value lies outside of them, and what is not known has none."""

from __future__ import annotations

import math

import pytest
import torch

from gr_compile.analysis import expr as E
from gr_compile.analysis.expr import Expr, const, index, load
from gr_compile.lowering.cpu.lanes import Lanes
from gr_compile.lowering.cpu.reals import ANY, bounds, is_positive
from gr_compile.ops.evaluate import evaluate

i, j = index("i"), index("j")
HOUR, OTHER = load("hour", [i], "i"), load("other", [j], "i")  # int8
X, Y = E.cast(HOUR, "f32"), E.cast(OTHER, "f32")
REAL = load("real", [j], "f32")
LANES = Lanes({"hour": torch.int8, "other": torch.int8, "real": torch.float32}, narrow=True)


def f(op: str, left: Expr, right: Expr | float) -> Expr:
    return E.binary(op, left, right if isinstance(right, Expr) else const(right, "f32"), "f32")


SIZE = E.unary("abs", X)
EXPRESSIONS = {
    "sum": f("add", X, Y),
    "difference": f("sub", X, Y),
    "product": f("mul", X, Y),
    "quotient": f("div", X, f("add", E.unary("abs", Y), 0.5)),
    "negative": E.unary("neg", f("add", X, 3.0)),
    "size": SIZE,
    "root": E.unary("sqrt", SIZE),
    "whole": E.unary("floor", f("div", X, 7.0)),
    "rounded up": E.unary("ceil", f("div", X, 7.0)),
    "between": f("minimum", f("maximum", X, -3.0), 5.0),
    "exp": E.unary("exp", f("div", X, 16.0)),
    "softplus": E.unary("softplus", X),
    "sigmoid": E.unary("sigmoid", X),
    "relu": E.unary("relu", Y),
    "tanh": E.unary("tanh", X),
    "much": f("mul", f("sub", E.unary("exp", f("div", X, 32.0)), SIZE), f("add", Y, -200.0)),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_every_value_is_inside(name: str) -> None:
    node = EXPRESSIONS[name]
    low, high = bounds(node, LANES)
    numbers = torch.arange(-128, 128)
    values = {HOUR: numbers.view(1, 1, 256, 1), OTHER: numbers.view(1, 1, 1, 256)}
    found = evaluate(node, values)
    room = 1e-5 * max(abs(low), abs(high))
    assert low - room <= float(found.min()) and float(found.max()) <= high + room
    assert math.isfinite(low) and math.isfinite(high)


@pytest.mark.parametrize(
    "node",
    [REAL, E.unary("sqrt", X), f("div", X, Y), E.unary("log", SIZE), E.unary("abs", E.cast(HOUR, "f16")), f("add", X, math.nan)],
)
def test_what_is_not_known_has_no_bounds(node: Expr) -> None:
    assert bounds(node, LANES) == ANY


def test_what_is_positive() -> None:
    after = f("add", SIZE, 1.0)
    for node in (after, E.unary("sqrt", after), f("add", E.unary("softplus", REAL), 0.1), f("maximum", REAL, 1e-6)):
        assert is_positive(node, LANES)
    for node in (SIZE, REAL, E.unary("exp", REAL), f("add", E.unary("softplus", REAL), -0.1), f("maximum", REAL, 0.0)):
        assert not is_positive(node, LANES)
