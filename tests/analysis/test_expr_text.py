"""Expressions as text: an exact round trip, the same in every process, and a form for people."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
from grids import B, I, J, MaskGenerator, N
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_compile.analysis.expr import (
    Expr,
    add,
    and_,
    binary,
    cast,
    compare,
    const,
    eq0,
    load,
    make,
    not_,
    or_,
    parse,
    scale,
    show,
    sub,
    substitute,
    to_text,
    unary,
    walk,
)

S = make("s", (), "f32")
X = load("x", (I,), "f32")
CAUSAL = compare("ge", I, J)
INFINITY = float("inf")


NUMBERS = [0.0, -0.0, 0.1, -2.5, 1e-8, -1e9, INFINITY, -INFINITY, float("nan")]


def score_program() -> Expr:
    bias = load("bias", (add(sub(J, I), N, const(-1)),), "f32")
    logits = binary("add", binary("mul", S, const(0.125), "f32"), bias, "f32")
    return binary("mul", unary("silu", logits), cast(and_(CAUSAL, load("valid", (B, J), "b")), "f32"), "f32")


def test_text_round_trip() -> None:
    odd = [const(v, "f64") for v in NUMBERS] + [const(True), const(-3), load('a "name"\n', (), "bf16")]
    exprs = {"score": score_program(), "low": sub(I, const(4)), **{f"odd{k}": e for k, e in enumerate(odd)}}
    text = to_text(exprs)
    parsed = parse(text)
    assert parsed == exprs
    assert to_text(parsed) == text
    assert parse(to_text({})) == {}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 100_000))
def test_text_round_trip_of_random_masks(seed: int) -> None:
    generator = MaskGenerator(seed)
    exprs = {"mask": generator.mask(), "integer": generator.integer()}
    assert parse(to_text(exprs)) == exprs


def test_text_keeps_sharing() -> None:
    expr = X
    for _ in range(500):
        expr = binary("add", unary("sin", expr), expr, "f32")
    text = to_text({"x": expr})
    assert len(text.splitlines()) < 1100
    assert parse(text)["x"] is expr
    assert len(show(expr)) < 10_000 and len(walk(expr)) == 1002
    assert substitute(expr, {I: J}).free == {"j"}


def test_text_is_the_same_in_every_process() -> None:
    build = (
        "import sys; sys.path.insert(0, 'tests/analysis'); import test_expr_text as t\n"
        "[t.make('size', (f'x{k}',)) for k in range(1000)]; t.not_(t.CAUSAL)\n"
        "print(t.to_text({'score': t.score_program(), 'mask': t.MaskGenerator(5).mask()}), end='')"
    )
    environment = {"PYTHONHASHSEED": "1", "PYTHONPATH": "."}
    command = [sys.executable, "-c", build]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert found == to_text({"score": score_program(), "mask": MaskGenerator(5).mask()})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1"),
        ("gr_expr 1\n%1 = size:i \"N\"", "expected %0"),
        ("gr_expr 1\nx = %0", "line 2"),
        ("gr_expr 1\n%0 = size:i \"N", "cannot read"),
        ("gr_expr 1\n%0 = load:f32 \"x\" (", "unbalanced"),
        ("gr_expr 1\n%0 = size:f8 \"N\"", "unknown dtype"),
        ("gr_expr 1\nnothing", "line 2"),
    ],
)  # fmt: skip
def test_bad_text_is_an_error_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_names_in_text() -> None:
    with pytest.raises(ValueError, match="cannot name"):
        to_text({"a b": X})


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: CAUSAL, "i >= j"),
        (lambda: not_(CAUSAL), "j > i"),
        (lambda: or_(CAUSAL, eq0(sub(I, N))), "(i >= j | i == N)"),
        (lambda: not_(eq0(sub(I, N))), "i != N"),
        (lambda: sub(scale(I, 2), const(3)), "2*i - 3"),
        (lambda: binary("mul", X, const(0.5), "f32"), "(x[i] * 0.5)"),
        (lambda: compare("ge", X, S), "(s() <= x[i])"),
        (lambda: cast(I, "f32"), "f32(i)"),
        (lambda: const(0), "0"),
    ],
)
def test_show(build: Callable[[], Expr], text: str) -> None:
    assert show(build()) == repr(build()) == text
