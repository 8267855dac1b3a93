"""What a rounding, and a factor of a score, are moved past, and what they are not."""

from __future__ import annotations

import math

import pytest

from gr_compile.analysis import expr as E
from gr_compile.analysis.expr import Expr, const, index, make
from gr_compile.lowering.ascendc.attention.narrowing import unrounded
from gr_compile.lowering.ascendc.attention.scaling import scaled

X, MASK = make("s", (), "f32"), E.ge0(E.sub(index("i"), index("j")))
HALF = E.cast(X, "f16")
ZERO, INF = const(0.0, "f16"), const(-math.inf, "f32")
TWICE = E.binary("mul", X, const(2.0, "f32"), "f32")


@pytest.mark.parametrize(
    ("node", "dtype", "wanted"),
    [
        (HALF, "f16", X), (HALF, "bf16", HALF), (X, "f16", X), (HALF, "", X),
        (make("where", (MASK, HALF, ZERO), "f16"), "f16", E.where(MASK, X, const(0.0, "f32"), "f32")),
        (E.binary("add", HALF, HALF, "f16"), "f16", E.binary("add", HALF, HALF, "f16")),
    ],
    ids=["a cast", "to another dtype", "of none", "to any", "under a mask", "of a sum"],
)  # fmt: skip
def test_unrounded(node: Expr, dtype: str, wanted: Expr) -> None:
    assert unrounded(node, dtype) == wanted


def test_a_number_that_rounds_is_rounded() -> None:
    inside = make("where", (MASK, HALF, const(0.1, "f16")), "f16")
    assert unrounded(inside, "f16") == inside


@pytest.mark.parametrize(
    ("score", "wanted"),
    [
        (TWICE, (2.0, X)), (E.where(MASK, TWICE, INF, "f32"), (2.0, E.where(MASK, X, INF, "f32"))),
        (X, (1.0, X)), (E.binary("mul", X, const(-2.0, "f32"), "f32"), None),
        (E.where(MASK, TWICE, const(-1e4, "f32"), "f32"), None), (E.binary("mul", X, X, "f32"), None),
        (E.binary("mul", HALF, const(2.0, "f16"), "f16"), None),
    ],
    ids=["a product", "under a mask", "nothing", "negative", "a finite mask", "no number", "in half precision"],
)  # fmt: skip
def test_scaled(score: Expr, wanted: tuple[float, Expr] | None) -> None:
    assert scaled(score) == (wanted or (1.0, score))
