"""Derivatives against torch autograd in float64, at ties, far out and in half precision."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_compile.analysis.derive import derivative, float_leaves
from gr_compile.analysis.expr import (
    BINARY,
    UNARY,
    Expr,
    binary,
    cast,
    clamp,
    compare,
    const,
    elu,
    index,
    is_const,
    leaky_relu,
    load,
    make,
    unary,
    walk,
    where,
)

TORCH = {
    "f64": torch.float64,
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "b": torch.bool,
}
X = load("x", (index("i"),), "f64")
Y = load("y", (index("j"),), "f64")


def number(value: float) -> Expr:
    return const(value, "f64")


def evaluate(expr: Expr, values: dict[Expr, torch.Tensor]) -> torch.Tensor:
    done = dict(values)
    for node in walk(expr):
        if node not in done and node.op not in ("index", "poly"):
            done[node] = _node(node, [done[x] for x in node.args if isinstance(x, Expr) and x in done])
    return done[expr]


def _node(node: Expr, parts: list[torch.Tensor]) -> torch.Tensor:
    if node.op == "const":
        return torch.tensor(node.args[0], dtype=TORCH[node.dtype])
    if node.op == "where":
        return torch.where(*parts)
    if node.op == "cast":
        return parts[0].to(TORCH[node.dtype])
    if node.op == "not":
        return ~parts[0]
    if node.op == "and":
        return torch.stack(torch.broadcast_tensors(*parts)).all(0)
    if node.op == "compare":
        return getattr(torch, node.args[0])(*parts)
    if node.op == "pow" and node.args[1].op == "const":
        return torch.pow(parts[0], node.args[1].args[0])
    return UNARY[node.op](parts[0]) if node.op in UNARY else BINARY[node.op](*parts)


def autograd(expr: Expr, leaf: Expr, values: dict[Expr, torch.Tensor]) -> torch.Tensor:
    tracked = {x: v.clone().requires_grad_() for x, v in values.items()}
    out = evaluate(expr, tracked)
    if not out.requires_grad:
        return torch.zeros_like(values[leaf])
    (grad,) = torch.autograd.grad(out.sum(), tracked[leaf], allow_unused=True)
    return torch.zeros_like(values[leaf]) if grad is None else grad


def check(expr: Expr, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
    values = {X: x, Y: x.flip(0) if y is None else y}
    for leaf in (X, Y):
        slope = derivative(expr, leaf)
        assert slope.dtype == expr.dtype
        found = evaluate(slope, values).expand(x.shape)
        torch.testing.assert_close(found, autograd(expr, leaf, values), rtol=1e-9, atol=1e-12, equal_nan=True)


GRID = torch.tensor([-90.0, -20.5, -3.0, -1.0, -0.25, 0.0, 0.25, 0.5, 1.0, 3.0, 19.0, 20.5, 90.0], dtype=torch.float64)
POSITIVE = GRID[GRID > 0]
POSITIVE_ONLY = {"log", "log1p", "log2", "sqrt", "rsqrt", "reciprocal"}
LIKE_TORCH: list[tuple[str, Expr, Callable[[torch.Tensor], torch.Tensor]]] = [
    ("clamp", clamp(X, number(-1), number(1)), lambda x: x.clamp(-1, 1)),
    ("clamp min", clamp(X, number(0), None), lambda x: x.clamp(min=0)),
    ("leaky_relu", leaky_relu(X, 0.2), lambda x: torch.nn.functional.leaky_relu(x, 0.2)),
    ("elu", elu(X, 1.5), lambda x: torch.nn.functional.elu(x, 1.5)),
    ("maximum", binary("maximum", X, number(1), "f64"), lambda x: torch.maximum(x, torch.ones_like(x))),
    ("minimum", binary("minimum", X, number(-1), "f64"), lambda x: torch.minimum(x, -torch.ones_like(x))),
    ("cube", binary("pow", X, number(3), "f64"), lambda x: x**3),
    ("one", binary("pow", X, number(0), "f64"), lambda x: x**0),
]


@pytest.mark.parametrize("op", UNARY)
def test_unary(op: str) -> None:
    check(unary(op, X), POSITIVE if op in POSITIVE_ONLY else GRID)
    check(binary("mul", unary(op, binary("mul", X, number(0.5), "f64")), Y, "f64"), POSITIVE)


@pytest.mark.parametrize("op", BINARY)
def test_binary(op: str) -> None:
    check(binary(op, X, Y, "f64"), POSITIVE)
    check(binary(op, X, X, "f64"), POSITIVE)


@pytest.mark.parametrize(("name", "expr", "function"), LIKE_TORCH)
def test_conventions_at_ties_and_bounds(
    name: str, expr: Expr, function: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    x = GRID.clone().requires_grad_()
    out = function(x)
    torch.testing.assert_close(evaluate(expr, {X: GRID}), out.detach(), rtol=0, atol=0)
    (grad,) = torch.autograd.grad(out.sum(), x)
    found = evaluate(derivative(expr, X), {X: GRID}).expand(GRID.shape)
    torch.testing.assert_close(found, grad, rtol=1e-12, atol=0)


@pytest.mark.parametrize("op", ["silu", "gelu", "gelu_tanh", "sigmoid", "tanh", "softplus", "erf"])
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_no_nan_far_out(op: str, dtype: str) -> None:
    leaf = load("x", (index("i"),), dtype)
    far = torch.tensor([-1e4, -500.0, -90.0, 90.0, 500.0, 1e4], dtype=TORCH[dtype])
    slope = evaluate(derivative(unary(op, leaf), leaf), {leaf: far})
    assert slope.isfinite().all()
    limit = {"silu": 1.0, "gelu": 1.0, "gelu_tanh": 1.0, "softplus": 1.0}.get(op, 0.0)
    torch.testing.assert_close(slope, torch.tensor([0.0] * 3 + [limit] * 3, dtype=TORCH[dtype]), rtol=0, atol=1e-30)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("op", ["silu", "gelu", "gelu_tanh", "sigmoid", "tanh"])
def test_half_precision_agrees_with_torch(op: str, dtype: str) -> None:
    leaf = load("x", (index("i"),), dtype)
    x = GRID.to(TORCH[dtype])
    expr = unary(op, leaf)
    found = evaluate(derivative(expr, leaf), {leaf: x})
    expected = autograd(expr, leaf, {leaf: x})
    assert found.dtype == x.dtype
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-3)


def test_masks_cut_the_gradient() -> None:
    s = make("s", (), "f32")
    causal = compare("ge", index("i"), index("j"))
    masked = where(causal, s, const(float("-inf")), "f32")
    assert derivative(masked, s) is cast(causal, "f32")
    slope = derivative(unary("silu", masked), s)
    assert slope.op == "where" and slope.args[0] is causal and is_const(slope.args[2], 0)
    assert is_const(derivative(cast(causal, "f32"), s), 0)


def test_dropout_is_linear() -> None:
    sm = make("sm", (), "f32")
    dropped = make("dropout", (binary("mul", sm, const(2.0), "f32"), const(0.5)), "f32")
    assert derivative(dropped, sm) is make("dropout", (const(2.0), const(0.5)), "f32")


def test_unknown_operations_are_errors() -> None:
    with pytest.raises(NotImplementedError, match="dot"):
        derivative(make("dot", (X, Y), "f64"), X)


def test_float_leaves() -> None:
    s = make("s", (), "f32")
    bias = load("bias", (load("bucket", (index("i"),), "i"),), "f32")
    hidden = load("hidden", (index("j"),), "f32")
    expr = binary("add", where(compare("gt", hidden, const(0.0)), s, bias, "f32"), bias, "f32")
    assert set(float_leaves(expr)) == {s, bias}
    assert float_leaves(expr) == float_leaves(expr)
    assert float_leaves(cast(index("i"), "f32")) == []


# ---------------------------------------------------------------------- random programs
SMOOTH = [
    "silu",
    "sigmoid",
    "tanh",
    "gelu",
    "gelu_tanh",
    "sin",
    "cos",
    "erf",
    "softplus",
    "abs",
    "relu",
    "neg",
]


@st.composite
def programs(draw: st.DrawFn, depth: int = 4) -> Expr:
    """A random program over x and y."""
    if depth == 0:
        return draw(st.sampled_from([X, Y, X, number(0.5), number(-2.0)]))
    inner = functools.partial(draw, programs(depth - 1))
    kind = draw(st.sampled_from(["unary", "binary", "where", "cast"]))
    if kind == "unary":
        return unary(draw(st.sampled_from(SMOOTH)), inner())
    if kind == "binary":
        return binary(draw(st.sampled_from(["add", "sub", "mul", "maximum", "minimum"])), inner(), inner(), "f64")
    if kind == "where":
        return where(compare("lt", inner(), inner()), inner(), inner(), "f64")
    return binary("div", inner(), number(3.0), "f64")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(programs(), st.integers(0, 10_000))
def test_random_programs(expr: Expr, seed: int) -> None:
    torch.manual_seed(seed)
    check(expr, torch.randn(16, dtype=torch.float64) * 2, torch.randn(16, dtype=torch.float64) * 2)


def test_sharing_keeps_derivatives_small() -> None:
    expr = X
    for _ in range(200):
        expr = binary("mul", unary("sin", expr), expr, "f64")
    assert len(walk(derivative(expr, X))) < 200 * 8
    assert math.isfinite(float(evaluate(derivative(expr, X), {X: torch.tensor([0.5], dtype=torch.float64)})))
