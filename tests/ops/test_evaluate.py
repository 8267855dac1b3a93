"""The evaluator: bit for bit what eager computes in that dtype, and every part at its smallest shape."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from gr_compile.analysis import expr as E
from gr_compile.analysis.expr import Expr, const, index, load, make, size
from gr_compile.ops.attention_blocks import hoisted
from gr_compile.ops.evaluate import Value, evaluate, operands, schedule

b, h, i, j = (index(name) for name in "bhij")
N, M, HEADS = 7, 5, 3
FLOATS = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64}
PLACES: dict[Expr, Value] = {
    b: 1,
    h: torch.arange(HEADS).view(-1, 1, 1),
    i: torch.arange(N).view(1, -1, 1),
    j: torch.arange(M).view(1, 1, -1),
}
IDX = [torch.arange(n).view(s) for n, s in ((HEADS, (-1, 1, 1)), (N, (1, -1, 1)), (M, (1, 1, -1)))]


@pytest.mark.parametrize("dtype", FLOATS)
def test_float_arithmetic_is_eager_s(dtype: str) -> None:
    torch.manual_seed(0)
    x = (torch.randn(HEADS, N, M) * 3).to(FLOATS[dtype])
    y = torch.rand(HEADS, N, M).add(0.5).to(FLOATS[dtype])
    s, t = make("s", (), dtype), make("sm", (), dtype)
    values = {**PLACES, s: x, t: y}
    third, size_n = const(0.3, dtype), E.cast(size("N"), dtype)

    def check(expr: Expr, want: Tensor) -> None:
        got = evaluate(expr, values, sizes={"N": 7})
        assert got.dtype == want.dtype, expr
        assert torch.equal(got.nan_to_num(9.0), want.nan_to_num(9.0)), expr

    for op, function in E.BINARY.items():
        check(make(op, (s, t), dtype), function(x, y))
        if op not in ("maximum", "minimum"):
            check(make(op, (s, third), dtype), function(x, third.args[0]))
    for op, unary in E.UNARY.items():
        check(make(op, (s,), dtype), unary(x))
    check(E.binary("div", s, size_n, dtype), x / 7)
    check(E.binary("mul", third, s, dtype), x * third.args[0])
    check(make("sub", (const(1, dtype), s), dtype), 1 - x)
    check(make("div", (const(1, dtype), t), dtype), torch.ones((), dtype=y.dtype) / y)
    check(make("pow", (const(2, dtype), t), dtype), 2.0**y)
    check(make("maximum", (s, const(0, dtype)), dtype), x.clamp(min=0))
    check(E.where(E.compare("lt", s, const(0, dtype)), t, const(-1, dtype), dtype), torch.where(x < 0, y, -1))
    check(E.cast(s, "f32"), x.float())
    check(E.cast(make("floor", (s,), dtype), "i"), x.floor().long())
    check(E.compare("le", s, t), x <= y)


def test_time_buckets_are_eager_s() -> None:
    torch.manual_seed(0)
    stamps = torch.randint(0, 2**31, (2, 4000)).sort(1).values
    places: dict[Expr, Value] = {
        b: 1,
        i: torch.arange(4000).view(1, -1, 1),
        j: torch.arange(4000).view(1, 1, -1),
    }
    distance = E.sub(load("ts", [b, i], "i"), load("ts", [b, j], "i"))
    seconds = E.cast(E.binary("maximum", E.unary("abs", distance), const(1), "i"), "f32")
    bucket = E.cast(E.binary("div", E.unary("log", seconds), const(0.301, "f32"), "f32"), "i")
    gap = (stamps[1][:, None] - stamps[1][None]).abs().clamp(min=1).float()
    assert torch.equal(evaluate(bucket, places, {"ts": stamps})[0], (torch.log(gap) / 0.301).long())


INTEGERS: list[tuple[Expr, Callable[..., Tensor]]] = [
    (E.add(E.sub(j, i), size("N"), const(-1)), lambda h, i, j: j - i + N - 1),
    (E.add(E.scale(E.mul(i, j), 2), h, const(3)), lambda h, i, j: 2 * i * j + h + 3),
    (E.add(E.scale(i, -2), E.mul(size("N"), h)), lambda h, i, j: -2 * i + N * h),
    (E.binary("mod", E.sub(i, j), const(3), "i"), lambda h, i, j: (i - j) % 3),
    (E.binary("floordiv", E.sub(i, j), const(3), "i"), lambda h, i, j: (i - j) // 3),
    (E.binary("truncdiv", E.sub(i, j), const(3), "i"), lambda h, i, j: ((i - j) / 3).trunc().long()),
    (E.binary("minimum", i, E.add(j, h), "i"), lambda h, i, j: torch.minimum(i, j + h)),
    (E.ge0(E.sub(i, j)), lambda h, i, j: i >= j),
    (E.ge0(E.sub(E.mul(i, j), E.add(i, size("N")))), lambda h, i, j: i * j - i - N >= 0),
    (E.eq0(E.sub(E.scale(i, 2), j)), lambda h, i, j: 2 * i == j),
    (E.or_(E.eq0(E.sub(i, j)), E.not_(E.ge0(E.sub(h, const(1))))), lambda h, i, j: (i == j) | (h < 1)),
    (E.cast(E.and_(E.ge0(E.sub(i, j)), E.ge0(E.sub(j, const(2)))), "i"),
     lambda h, i, j: ((i >= j) & (j >= 2)).long()),
    (E.add(b, size("N")), lambda h, i, j: torch.tensor(1 + N)),
    (E.ge0(E.sub(size("N"), const(3))), lambda h, i, j: torch.tensor(True)),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(INTEGERS)))
def test_integers_and_booleans(number: int) -> None:
    expr, dense = INTEGERS[number]
    got, want = evaluate(expr, PLACES, sizes={"N": N}), dense(*IDX)
    assert torch.equal(got.expand(HEADS, N, M), want.expand(HEADS, N, M)) and got.dtype == want.dtype


def test_loads_are_clamped_and_converted() -> None:
    table, stamps = torch.randn(4), torch.arange(2 * N, dtype=torch.int32).view(2, N)
    beyond = load("table", [E.sub(i, const(2))], "f32")
    assert torch.equal(evaluate(beyond, PLACES, {"table": table}), table[(IDX[1] - 2).clamp(0, 3)])
    column = load("stamps", [b, i], "i")
    assert torch.equal(evaluate(column, PLACES, {"stamps": stamps}), stamps[1].long().view(1, -1, 1))
    scalar = load("scalar", [], "f32")
    assert evaluate(scalar, PLACES, {"scalar": torch.tensor(2.5)}).item() == 2.5
    fixed = load("stamps", [const(1), const(99)], "i")
    assert evaluate(fixed, PLACES, {"stamps": stamps}).item() == 2 * N - 1
    pairs = load("pairs", [j, b, i], "f32")
    dense = torch.randn(M, 2, N)
    assert torch.equal(evaluate(pairs, PLACES, {"pairs": dense}), dense[IDX[2], 1, IDX[1]])
    assert evaluate(load("none", [i], "f32"), PLACES, {"none": torch.empty(0)}).tolist() == [[[0.0]] * N]


def test_shapes_stay_small() -> None:
    row, key, both = (E.cast(x, "f32") for x in (i, j, E.sub(i, j)))
    shape = lambda expr: tuple(evaluate(expr, PLACES).shape)  # noqa: E731
    assert shape(E.unary("exp", row)) == (1, N, 1) and shape(E.unary("exp", key)) == (1, 1, M)
    assert shape(E.unary("exp", both)) == (1, N, M)
    assert shape(E.binary("mul", E.cast(h, "f32"), row, "f32")) == (HEADS, N, 1)


def test_one_sided_parts_are_hoisted_and_computed_once() -> None:
    relative = E.add(E.sub(j, i), size("N"), const(-1))
    left, right = operands(relative)
    assert {left.free, right.free} == {frozenset("i"), frozenset("j")}
    column = E.unary("log", E.cast(load("a", [b, i], "i"), "f32"))
    score = E.binary(
        "add", make("s", (), "f32"), E.binary("mul", column, E.cast(relative, "f32"), "f32"), "f32"
    )
    assert column in hoisted((score,)) and left in hoisted((score,)) and relative not in hoisted((score,))
    steps = schedule((score, column), {b, i, j, h, make("s", (), "f32")}).nodes
    assert len(steps) == len(set(steps)) and steps[-1] is score


def test_dropout_needs_noise_and_unknown_operations_are_named() -> None:
    s = make("s", (), "f32")
    values = {**PLACES, s: torch.ones(1, N, M)}
    with pytest.raises(AssertionError, match="seed"):
        evaluate(make("dropout", (s, const(0.5, "f32")), "f32"), values)
    with pytest.raises(NotImplementedError, match="'cumsum'"):
        evaluate(make("cumsum", (s,), "f32"), values)
