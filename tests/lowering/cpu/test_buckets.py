"""Bucket functions as tables: equal to the model's own expression at every integer, or no table at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from gr_compile.analysis import expr as E
from gr_compile.analysis.expr import Expr, const, index, load, make
from gr_compile.lowering.cpu import buckets
from gr_compile.lowering.cpu.buckets import Bucket, find_tables, is_inexact, is_step
from gr_compile.lowering.cpu.lanes import Lanes, Unsupported

b, i, j = (index(x) for x in "bij")
EARLIER, LATER = load("times", [b, j], "i"), load("times", [b, i], "i")
REAL = load("real", [b, j], "f32")
DISTANCE = E.unary("abs", E.sub(LATER, EARLIER))
SECONDS = E.binary("maximum", DISTANCE, const(1), "i")
X, HALF_X = E.cast(SECONDS, "f32"), E.cast(SECONDS, "bf16")
LOG = E.unary("log", X)
AFTER = E.cast(E.sub(LATER, EARLIER), "f32")


def lanes(narrow: bool = True) -> Lanes:
    return Lanes({"times": torch.int64, "real": torch.float32}, narrow)


def f(op: str, left: Expr, right: Expr | float, dtype: str = "f32") -> Expr:
    return E.binary(op, left, right if isinstance(right, Expr) else const(right), dtype)


def clamp(x: Expr, low: int, high: int) -> Expr:
    return E.binary("minimum", E.binary("maximum", x, const(low), "i"), const(high), "i")


@dataclass(frozen=True)
class Function:
    """A bucket function of SECONDS, and what a model writes for it, over integers a >= 1."""

    expr: Expr
    torch: Callable[[Tensor], Tensor]


FUNCTIONS = {
    "HSTU": Function(
        clamp(E.cast(f("div", LOG, 0.301), "i"), 0, 128),
        lambda a: (torch.log(a.float()) / 0.301).long().clamp(0, 128),
    ),
    "HSTU, a coarser clamp": Function(
        clamp(E.cast(f("div", LOG, 0.301), "i"), 3, 17),
        lambda a: (torch.log(a.float()) / 0.301).long().clamp(3, 17),
    ),
    "T5": Function(
        E.cast(f("mul", f("div", E.unary("log", f("div", X, 16.0)), 2.0794415416798357), 16.0), "i"),
        lambda a: (torch.log(a.float() / 16) / 2.0794415416798357 * 16).long(),
    ),
    "log1p, rounded up": Function(
        E.cast(E.unary("ceil", E.unary("log1p", X)), "i"),
        lambda a: torch.log1p(a.float()).ceil().long(),
    ),
    "in bfloat16": Function(
        E.cast(f("mul", E.unary("log", HALF_X), 2.0, "bf16"), "i"),
        lambda a: (torch.log(a.bfloat16()) * 2).long(),
    ),
    "in float64": Function(
        E.cast(E.unary("log", E.cast(SECONDS, "f64")), "i"),
        lambda a: torch.log(a.double()).long(),
    ),
    "log2": Function(
        E.cast(f("mul", E.unary("log2", X), 2.0), "i"),
        lambda a: (torch.log2(a.float()) * 2).long(),
    ),
    "falling": Function(
        E.cast(f("sub", const(50.0), LOG), "i"),
        lambda a: (50 - torch.log(a.float())).long(),
    ),
    "bounded": Function(
        E.cast(f("mul", E.unary("tanh", f("div", X, 86400.0)), 31.0), "i"),
        lambda a: (torch.tanh(a.float() / 86400) * 31).long(),
    ),
    "a condition": Function(
        E.compare("le", LOG, const(7.5)),
        lambda a: (torch.log(a.float()) <= 7.5).long(),
    ),
    "constant": Function(
        E.cast(f("div", E.unary("sigmoid", X), 2.0), "i"),
        lambda a: (torch.sigmoid(a.float()) / 2).long(),
    ),
}  # fmt: skip


def read(table: Bucket, places: Tensor) -> Tensor:
    """As a kernel reads a table."""
    cells = ((places | 1).float().view(torch.int32) >> table.shift) - table.base
    cells = cells.clamp(0, len(table.values) - 1).long()
    above = (places >= torch.tensor(table.thresholds)[cells]).long()
    return torch.tensor(table.values)[cells, above]


def wide_range(table: Bucket, low: int, high: int) -> Tensor:
    """Small integers, all around every threshold and power of two, both ends, and some of every size."""
    around = torch.arange(-70, 71)
    steps = torch.tensor(table.thresholds).view(-1, 1).clamp(low + 70, high - 70) + around
    powers = 2 ** torch.arange(63).view(-1, 1) + torch.tensor([-1, 0, 1])
    some = torch.logspace(0, torch.tensor(float(high)).log2() - 0.01, 20_000, base=2, dtype=torch.float64).long()
    found = torch.cat([torch.arange(5000), steps.flatten(), powers.flatten(), some, torch.tensor([low, high])])
    return found[(found >= low) & (found <= high)]


@pytest.mark.parametrize("narrow", [True, False], ids=["32 bits", "64 bits"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_table_is_the_function(name: str, narrow: bool) -> None:
    function, types = FUNCTIONS[name], lanes(narrow)
    table = find_tables([function.expr], types)[function.expr]
    assert table.argument is SECONDS
    places = wide_range(table, *types.interval(SECONDS))
    assert int(places.max()) == (2**31 - 2**16 - 1 if narrow else 2**63 - 1)
    want = function.torch(places)
    torch.testing.assert_close(read(table, places), want, rtol=0, atol=0)
    assert table.range[0] <= int(want.min()) and int(want.max()) <= table.range[1]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_thresholds_are_where_the_function_changes(name: str) -> None:
    table = find_tables([FUNCTIONS[name].expr], lanes())[FUNCTIONS[name].expr]
    changes = [at for at, (below, above) in zip(table.thresholds, table.values) if below != above]
    at = torch.tensor(changes, dtype=torch.int64)
    assert bool((FUNCTIONS[name].torch(at) != FUNCTIONS[name].torch(at - 1)).all())


def test_clamps_around_a_step_are_part_of_its_table() -> None:
    step, types = E.cast(f("div", LOG, 0.301), "i"), lanes()
    clamped = clamp(step, 3, 17)
    used = load("bias", [E.add(E.scale(clamped, 2), i)], "f32")
    tables = find_tables([used], types)
    assert list(tables) == [clamped]
    assert tables[clamped].range == types.interval(clamped) == (3, 17)
    assert len(set(tables[clamped].values)) <= 2 * (17 - 3) + 1


NO_TABLE_NEEDED = {
    "exact to the last bit": E.cast(E.unary("sqrt", X), "i"),
    "no step": f("mul", LOG, 2.0),
    "a step of a score": E.cast(E.unary("exp", make("s", (), "f32")), "i"),
    "integers": clamp(DISTANCE, 0, 9),
}


@pytest.mark.parametrize("name", NO_TABLE_NEEDED)
def test_nothing_to_tabulate(name: str) -> None:
    assert find_tables([NO_TABLE_NEEDED[name]], lanes()) == {}


def saturating(scale: float) -> Expr:
    """40 tanh(x / scale): few steps, of which the last lies at about 4 scale."""
    return f("mul", E.unary("tanh", f("div", X, scale)), 40.0)


NO_TABLE_POSSIBLE = {
    "not monotone": E.cast(f("mul", E.unary("sin", X), 9.0), "i"),
    "grows, then falls": E.cast(f("sub", saturating(1e5), saturating(1e7)), "i"),
    "grows, then falls, as a sum": E.cast(f("add", saturating(1e5), E.unary("neg", saturating(1e7))), "i"),
    "a product of two": E.cast(f("mul", LOG, LOG), "i"),
    "of a float": E.cast(E.unary("log", REAL), "i"),
    "of two integers": E.cast(f("add", LOG, E.unary("log", E.cast(LATER, "f32"))), "i"),
    "of negative integers": E.cast(f("mul", E.unary("sigmoid", f("div", AFTER, 1e5)), 9.0), "i"),
    "too many steps": E.cast(f("mul", LOG, 1000.0), "i"),
    "in floating point only": E.unary("floor", LOG),
}


@pytest.mark.parametrize("name", NO_TABLE_POSSIBLE)
def test_no_table_no_kernel(name: str) -> None:
    with pytest.raises(Unsupported, match="no bucket of one integer"):
        find_tables([NO_TABLE_POSSIBLE[name]], lanes())


def test_a_logarithm_that_wobbles_at_a_step_has_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def wobbling(node: Expr, values: dict[Expr, Tensor]) -> Tensor:
        (places,) = values.values()
        return places.ge(1000).long() - places.eq(1003).long()

    monkeypatch.setattr(buckets, "evaluate", wobbling)
    assert buckets.bucket(FUNCTIONS["HSTU"].expr, lanes()) is None


@pytest.mark.parametrize(
    "node, expected",
    [
        (E.cast(X, "i"), True),
        (E.compare("lt", LOG, REAL), True),
        (E.unary("floor", X), True),
        (f("floordiv", X, 3.0), True),
        (f("div", X, 3.0), False),
        (E.binary("floordiv", SECONDS, const(3), "i"), False),
        (E.cast(SECONDS, "f32"), False),
        (SECONDS, False),
    ],
)  # fmt: skip
def test_steps(node: Expr, expected: bool) -> None:
    assert is_step(node) is expected


@pytest.mark.parametrize(
    "node, expected",
    [
        (LOG, True),
        (E.cast(LOG, "i"), True),
        (f("pow", X, 0.5), True),
        (E.unary("sqrt", X), False),
        (f("div", f("add", X, 1.0), 3.0), False),
        (SECONDS, False),
    ],
)  # fmt: skip
def test_what_libraries_may_round_otherwise(node: Expr, expected: bool) -> None:
    assert is_inexact(node) is expected
    assert not is_inexact(node, tables=[node])
