"""Expressions: identity, canonical integers, bit-exact folding, ranges."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref

import pytest
import torch
from grids import B, Grid, I, J, MaskGenerator, N, ranges, small_grid
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_compile.analysis.expr import (
    BINARY,
    FALSE,
    TORCH_DTYPE,
    TRUE,
    UNARY,
    Expr,
    Ranges,
    add,
    and_,
    binary,
    cast,
    clamp,
    compare,
    const,
    divmod_,
    eq0,
    ge0,
    index,
    load,
    make,
    mul,
    not_,
    or_,
    promote,
    scale,
    show,
    size,
    sub,
    substitute,
    unary,
    where,
)

S = make("s", (), "f32")
X = load("x", (I,), "f32")
CAUSAL = compare("ge", I, J)
INFINITY = float("inf")


# ---------------------------------------------------------------------- identity
def test_equal_expressions_are_one_object() -> None:
    assert load("x", (I,), "f32") is X
    assert binary("add", X, S, "f32") is binary("add", X, S, "f32")
    assert binary("add", X, S, "f32") is not binary("add", S, X, "f32")  # floats keep their order
    assert and_(CAUSAL, eq0(I)) is and_(eq0(I), CAUSAL)


def test_constants_of_different_types_and_signs_differ() -> None:
    values = [const(1), const(True), const(1.0), const(1.0, "f64"), const(0.0), const(-0.0), const(0), FALSE]
    assert len(set(values)) == len(values)
    assert const(float("nan")) is const(float("nan"))
    assert const(INFINITY) is not const(-INFINITY)
    assert math.copysign(1, const(-0.0).args[0]) == -1


def test_expressions_are_immutable() -> None:
    with pytest.raises(AttributeError, match="immutable"):
        X.op = "y"
    with pytest.raises(TypeError, match="make"):
        Expr()
    assert copy.deepcopy(X) is X and copy.copy(X) is X
    assert pickle.loads(pickle.dumps(CAUSAL)) is CAUSAL


def test_unknown_names_are_errors() -> None:
    with pytest.raises(ValueError, match="unknown dtype 'f8'"):
        make("load", ("x", ()), "f8")
    with pytest.raises(ValueError, match="unknown unary operation"):
        unary("silly", X)
    with pytest.raises(ValueError, match="unknown binary operation"):
        binary("silly", X, X, "f32")
    with pytest.raises(ValueError, match="not an integer"):
        const(1.5, "i")


def test_nodes_can_be_collected() -> None:
    kept, dropped = make("size", ("kept",)), weakref.ref(make("size", ("short-lived",)))
    for k in range(1 << 16):
        make("const", (k + 10**12,), "i")
    gc.collect()
    assert dropped() is None and make("size", ("kept",)) is kept


def test_free_indices() -> None:
    assert binary("mul", load("q", (B, I), "f32"), load("k", (B, J), "f32"), "f32").free == {"b", "i", "j"}
    assert substitute(CAUSAL, {J: N}).free == {"i"}


# ---------------------------------------------------------------------- integers and booleans
def test_polynomials_are_canonical() -> None:
    assert sub(add(I, J), J) is I
    assert mul(add(I, const(1)), sub(I, const(1))) is sub(mul(I, I), const(1))
    assert sub(mul(N, add(I, J)), add(mul(J, N), mul(I, N))) is const(0)
    assert ge0(add(scale(I, 2), const(-3))) is ge0(sub(I, const(2)))  # 2 i >= 3 is i >= 2
    assert eq0(sub(scale(I, 2), scale(J, 2))) is eq0(sub(J, I))
    assert eq0(add(scale(I, 2), const(1))) is FALSE


def test_booleans_simplify() -> None:
    assert not_(not_(CAUSAL)) is CAUSAL
    assert not_(CAUSAL) is compare("lt", I, J)
    assert and_(CAUSAL, not_(CAUSAL)) is FALSE
    assert or_(CAUSAL, not_(CAUSAL)) is TRUE
    assert and_(CAUSAL, TRUE, and_(CAUSAL, CAUSAL)) is CAUSAL
    assert or_(CAUSAL, FALSE) is CAUSAL


def test_masks_as_numbers() -> None:
    mask = cast(CAUSAL, "i")
    assert sub(const(1), sub(const(1), mask)) is mask
    assert cast(not_(load("m", (), "b")), "i") is sub(const(1), cast(load("m", (), "b"), "i"))
    assert mul(mask, mask) is mask
    assert compare("gt", mask, const(0)) is CAUSAL
    assert compare("eq", sub(const(1), mask), const(1)) is not_(CAUSAL)
    assert where(CAUSAL, const(5), const(2), "i") is add(scale(mask, 3), const(2))


def test_one_minus_mask_takes_one_form() -> None:
    """The spellings of an additive mask are one expression."""
    blocked = where(CAUSAL, const(0.0), const(-1e4), "f32")
    mask = cast(CAUSAL, "f32")
    zero = const(0.0)  # -1e4 * 0.0 is -0.0, which one more addition turns into 0.0
    inverted = binary("mul", binary("sub", const(1.0), mask, "f32"), const(-1e4), "f32")
    assert binary("add", inverted, zero, "f32") is blocked
    integers = cast(sub(const(1), cast(CAUSAL, "i")), "f32")
    assert binary("add", binary("mul", integers, const(-1e4), "f32"), zero, "f32") is blocked
    filled = where(compare("eq", mask, const(0.0)), const(-1e4), const(0.0), "f32")
    assert filled is blocked
    assert compare("lt", blocked, const(-1.0)) is not_(CAUSAL)


def test_comparisons_with_ranges() -> None:
    known = ranges()
    assert compare("lt", I, N, known) is TRUE
    assert compare("gt", I, N, known) is FALSE
    assert compare("eq", I, N, known) is FALSE
    assert compare("ge", I, J, known) is CAUSAL
    assert compare("ne", I, I) is FALSE


def test_comparisons_of_floats_keep_nan() -> None:
    assert compare("eq", X, X).op == "compare"
    assert not_(compare("lt", X, S)) is not compare("ge", X, S)
    assert compare("gt", X, S) is compare("lt", S, X)
    assert compare("lt", const(float("nan")), const(1.0)) is FALSE
    assert compare("ne", const(float("nan")), const(float("nan"))) is TRUE


def test_whole_floats_compare_as_integers_where_that_is_exact() -> None:
    ids = load("ids", (I,), "i")
    assert compare("gt", cast(ids, "f32"), const(0.0)) is compare("gt", ids, const(0))
    assert compare("lt", const(3.0), cast(ids, "f32")) is compare("lt", const(3), ids)
    assert compare("gt", cast(ids, "f32"), const(2.0**24)).op == "compare"
    assert compare("gt", cast(ids, "bf16"), const(256.0, "bf16")).op == "compare"
    assert compare("gt", cast(ids, "f32"), const(0.5)).op == "compare"


# ---------------------------------------------------------------------- ranges and division
def test_divmod_undoes_flattening() -> None:
    known = ranges()
    flat = add(mul(I, N), J)
    assert divmod_(flat, N, known) == (I, J)
    heads = Ranges()
    heads.bound("g", const(4))
    heads.bound("h", size("H"))
    g, h = index("g"), index("h")
    assert divmod_(add(scale(h, 4), g), const(4), heads) == (h, g)
    assert divmod_(add(flat, N), N, known) == (add(I, const(1)), J)


def test_divmod_toeplitz() -> None:
    """pad, repeat, reshape, slice: the index that a relative position bias reads."""
    known = ranges()
    row = sub(scale(N, 3), const(1))  # 2 N - 1 weights and N zeros, repeated; rows of the result are one shorter
    flat = add(mul(I, sub(row, const(1))), J, N, const(-1))
    assert divmod_(flat, row, known) == (I, add(sub(J, I), N, const(-1)))


@pytest.mark.parametrize("divisor", [2, 3, -2])
def test_divmod_is_floored_like_torch(divisor: int) -> None:
    for value in (-7, -1, 0, 1, 7):
        q, r = divmod_(const(value), const(divisor), Ranges())
        assert q.args[0] * divisor + r.args[0] == value
        assert r.args[0] == torch.remainder(torch.tensor(value), divisor).item()
    q, r = divmod_(sub(I, J), const(divisor), Ranges())
    grid = small_grid()
    torch.testing.assert_close(grid.evaluate(add(scale(q, divisor), r)), grid.evaluate(sub(I, J)), rtol=0, atol=0)


def test_ranges_bound_integer_tensors() -> None:
    known = ranges()
    length = load("len", (B,), "i")
    assert not known.ge0(length)
    known.bound_load("len", const(0), N)
    assert known.ge0(length) and known.ge0(sub(N, length)) and not known.ge0(sub(length, const(1)))
    assert known.within(make("mod", (sub(I, J), const(3)), "i"), const(3))
    assert known.ge0(cast(CAUSAL, "i"))


def test_size_min() -> None:
    assert Ranges().size_min(sub(mul(N, N), N)) == 0
    assert Ranges(min_size=2).size_min(sub(N, const(1))) == 1
    assert Ranges().size_min(sub(const(1), N)) is None
    assert Ranges().size_min(I) is None


# ---------------------------------------------------------------------- floats, bit for bit
def same_bits(one: float, other: float) -> bool:
    return one.hex() == other.hex()


NUMBERS = [0.0, -0.0, 1.0, -1.0, 0.1, -2.5, 3.0, 1e-8, -1e4, -1e9, 65504.0, INFINITY, -INFINITY, float("nan")]


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("op", BINARY)
def test_constants_fold_as_torch_computes(op: str, dtype: str) -> None:
    for a in NUMBERS:
        for b in NUMBERS:
            left, right = (torch.tensor(v, dtype=TORCH_DTYPE[dtype]) for v in (a, b))
            folded = binary(op, const(left.item(), dtype), const(right.item(), dtype), dtype)
            expected = BINARY[op](left, right).item()
            if op == "pow":
                expected = torch.pow(left, right.item()).item()
            assert same_bits(folded.args[0], expected), (a, b)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("op", UNARY)
def test_unary_constants_fold_as_torch_computes(op: str, dtype: str) -> None:
    for a in NUMBERS:
        value = torch.tensor(a, dtype=TORCH_DTYPE[dtype])
        assert same_bits(unary(op, const(value.item(), dtype)).args[0], UNARY[op](value).item()), a


def test_half_precision_scalars_are_not_rounded_before_use() -> None:
    two = torch.tensor(2.0, dtype=torch.bfloat16)
    folded = binary("mul", const(2.0, "bf16"), const(0.3, "bf16"), "bf16")
    assert folded.args[0] == (two * 0.3).item()
    assert where(CAUSAL, const(0.3, "bf16"), load("x", (I,), "bf16"), "bf16").args[1].args[0] != 0.3
    assert cast(const(0.1), "bf16").args[0] == torch.tensor(0.1).to(torch.bfloat16).item()


def test_nothing_is_reassociated_or_lost() -> None:
    half = const(0.5)
    nested = binary("mul", binary("mul", X, half, "f32"), half, "f32")
    assert nested.op == "mul" and nested.args[0].op == "mul"
    assert binary("add", X, const(0.0), "f32").op == "add"  # -0.0 + 0.0 is 0.0
    assert binary("sub", X, const(0.0), "f32") is X
    assert binary("mul", X, const(1.0), "f32") is X
    assert binary("mul", X, const(0.0), "f32").op == "mul"  # inf * 0 is nan
    assert binary("div", X, X, "f32").op == "div"


def test_casts() -> None:
    half = load("h", (I,), "bf16")
    assert cast(cast(half, "f32"), "bf16") is half
    assert cast(cast(X, "bf16"), "f32").op == "cast"
    assert cast(cast(I, "f32"), "f64").args[0] is cast(I, "f32")
    assert cast(const(2.7), "i") is const(2)
    assert cast(const(INFINITY), "i").op == "cast"
    assert cast(cast(CAUSAL, "f32"), "b") is CAUSAL
    assert cast(X, "b") is compare("ne", X, const(0.0))
    assert promote("f16", "bf16") == "f32" and promote("i", "f16") == "f16" and promote("b", "i") == "i"


def test_operations_go_inside_a_choice_with_a_constant_arm() -> None:
    masked = where(CAUSAL, X, const(-INFINITY), "f32")
    assert unary("exp", masked) is where(CAUSAL, unary("exp", X), const(0.0), "f32")
    doubled = binary("mul", masked, const(2.0), "f32")
    assert doubled is where(CAUSAL, binary("mul", X, const(2.0), "f32"), const(-INFINITY), "f32")
    assert where(CAUSAL, where(CAUSAL, X, S, "f32"), S, "f32") is where(CAUSAL, X, S, "f32")
    assert where(not_(compare("eq", I, J)), X, S, "f32") is where(compare("eq", I, J), S, X, "f32")


def test_clamp_of_integers() -> None:
    grid = small_grid()
    clamped = clamp(sub(I, J), const(-1), const(1))
    torch.testing.assert_close(grid.evaluate(clamped), grid.evaluate(sub(I, J)).clamp(-1, 1), rtol=0, atol=0)


# ---------------------------------------------------------------------- simplification keeps values
def plain_compare(op: str, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return {"lt": left < right, "le": left <= right, "gt": left > right, "ge": left >= right,
            "eq": left == right, "ne": left != right}[op]  # fmt: skip


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 100_000), st.sampled_from(["lt", "le", "gt", "ge", "eq", "ne"]))
def test_integer_operations_mean_what_torch_means(seed: int, op: str) -> None:
    generator, grid = MaskGenerator(seed), small_grid()
    left, right = generator.integer(), generator.integer()
    a, b = grid.evaluate(left), grid.evaluate(right)
    known = ranges()
    functions: list[tuple[Expr, torch.Tensor]] = [
        (compare(op, left, right), plain_compare(op, a, b)),
        (compare(op, left, right, known), plain_compare(op, a, b)),
        (not_(compare(op, left, right)), ~plain_compare(op, a, b)),
        (mul(left, right), a * b),
        (binary("maximum", left, right, "i"), torch.maximum(a, b)),
        (unary("abs", left), a.abs()),
        (unary("sign", left), a.sign()),
        (cast(compare(op, left, right), "i"), plain_compare(op, a, b).long()),
        (divmod_(left, const(3), known)[0], torch.div(a, 3, rounding_mode="floor")),
        (divmod_(left, N, known)[1], torch.remainder(a, grid.evaluate(N))),
    ]
    for expr, expected in functions:
        assert torch.equal(grid.evaluate(expr), expected.to(grid.evaluate(expr).dtype)), show(expr)
    if known.ge0(left):
        assert (a >= 0).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.integers(0, 100_000))
def test_substitution_is_evaluation_elsewhere(seed: int) -> None:
    mask, grid = MaskGenerator(seed).mask(), small_grid()
    swapped = Grid({**grid.values, "i": grid.values["j"], "j": grid.values["i"]})
    assert torch.equal(grid.evaluate(substitute(mask, {I: J, J: I})), swapped.evaluate(mask))
