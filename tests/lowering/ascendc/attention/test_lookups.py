"""Lookups of pairs: steps of float32 are the bucket function, what is proved to lie in a table, what is neither."""

from __future__ import annotations

import struct

import pytest
import torch
from attention_programs import PROGRAMS, operands

from gr_compile.analysis import expr as E
from gr_compile.analysis.expr import Expr, const, index, load, size
from gr_compile.lowering.ascendc.attention.call import Call
from gr_compile.lowering.ascendc.attention.forward import Forward
from gr_compile.lowering.ascendc.attention.lookups import Steps, runs, sides, steps_of
from gr_compile.lowering.ascendc.attention.table_gradients import touched
from gr_compile.lowering.cpu.buckets import bucket
from gr_compile.lowering.cpu.lanes import Lanes
from gr_compile.ops.evaluate import evaluate
from gr_compile.ops.jagged_attention import inputs_of

b, h, i, j, N = index("b"), index("h"), index("i"), index("j"), size("N")


def _lanes(name: str = "silu_rab_time") -> Lanes:
    return Forward(Call.of(inputs_of(*operands(name, [5, 3])))).context.lanes


APART = E.sub(load("times", [b, i], "i"), load("times", [b, j], "i"))
SIZE = E.unary("abs", APART)


def _log_step(argument: Expr, by: float, last: int) -> Expr:
    log = E.unary("log", E.cast(argument, "f32"))
    step = E.cast(E.unary("floor", E.binary("div", log, const(by, "f32"), "f32")), "i")
    return E.binary("minimum", step, const(last), "i")


BUCKETS = {
    "log": _log_step(E.binary("maximum", SIZE, const(1), "i"), 0.301, 63),
    "from 100": _log_step(E.binary("maximum", const(100), SIZE, "i"), 0.7, 20),
    "root": E.cast(E.unary("sqrt", E.unary("exp", E.unary("log", E.cast(E.add(SIZE, const(1)), "f32")))), "i"),
}  # fmt: skip


def _steps(name: str) -> tuple[Expr, Expr, Steps]:
    found = bucket(BUCKETS[name], _lanes())
    assert found is not None
    steps = steps_of(found, _lanes())
    assert steps is not None
    return BUCKETS[name], found.argument, steps


def _by_table(steps: Steps, x: int) -> int:
    (real,) = struct.unpack("f", struct.pack("f", float(abs(x) if steps.absolute else x)))
    cell = struct.unpack("I", struct.pack("f", real))[0] >> steps.shift
    return steps.values[cell + (real >= steps.limits[cell])]


@pytest.mark.parametrize("name", ["log", "from 100"])
def test_steps_are_the_bucket_function(name: str) -> None:
    node, argument, steps = _steps(name)
    assert steps.absolute and steps.argument in (APART, E.scale(APART, -1))
    edges = [int(x) + off for x in steps.edges for off in (-2, -1, 0, 1, 2)]
    numbers = torch.cat([torch.randint(0, 2**31, (500,)), torch.tensor([0, 1, 2**31 - 1, *edges])])
    places = numbers.clamp(min=100 if name == "from 100" else 1)  # the argument: the greater of a number and a constant
    wanted = evaluate(node, {argument: places.view(1, 1, -1)}).reshape(-1).tolist()
    assert [_by_table(steps, int(x)) for x in numbers] == wanted
    assert [_by_table(steps, -int(x)) for x in numbers] == wanted


def test_edges_and_levels_are_the_same_function() -> None:
    _, _, steps = _steps("log")
    for x in torch.randint(0, 2**31, (500,)).tolist():
        real = struct.unpack("f", struct.pack("f", float(x)))[0]
        assert steps.levels[sum(edge <= real for edge in steps.edges)] == _by_table(steps, x)


def test_what_float32_does_not_tell_apart_stays_a_bucket_of_whole_numbers() -> None:
    found = bucket(BUCKETS["root"], _lanes())
    assert found is None or steps_of(found, _lanes()) is None


@pytest.mark.parametrize(
    ("place", "row", "key"),
    [
        (E.add(E.sub(j, i), N, const(-1)), E.add(E.scale(i, -4), E.scale(N, 4), const(-4)), E.scale(j, 4)),
        (E.add(E.scale(i, 2), j), E.scale(i, 8), E.scale(j, 4)),
    ],
)  # fmt: skip
def test_both_sides_of_a_place(place: Expr, row: Expr, key: Expr) -> None:
    assert sides(load("position", [place], "f32"), _lanes()) == (row, key)


@pytest.mark.parametrize(
    "node",
    [
        load("position", [E.mul(i, j)], "f32"), load("position", [i], "f32"),
        load("position", [E.add(E.sub(j, i), h)], "f32"), load("times", [b, E.sub(j, i)], "f32"),
        load("position", [BUCKETS["log"]], "f32"),
    ],
    ids=["a product", "of a row", "of a head", "of two dimensions", "a bucket"],
)  # fmt: skip
def test_places_that_are_no_sum_of_a_row_and_a_key(node: Expr) -> None:
    assert sides(node, _lanes()) is None


def test_runs_of_equal_values() -> None:
    assert runs((3, 3, 1, 3)) == [(0, 2, 3), (2, 3, 1), (3, 4, 3)] and runs(()) == []


def test_a_tile_touches_at_least_one_step_and_at_most_all() -> None:
    _, _, steps = _steps("log")
    assert 1 <= touched(steps, 65536) < touched(steps, 512) <= len(steps.levels)


@pytest.mark.parametrize("name", [x for x in PROGRAMS if x != "functions_of_time"])  # whose steps may wrap: see _place
def test_a_bias_that_lies_in_its_tables_is_not_cut(name: str) -> None:
    printer = Forward(Call.of(inputs_of(*operands(name, [5, 3]))))
    inside, outside = (" ".join(x.lines) for x in (printer.share_inside, printer.share))
    assert "Maxs(" not in inside and ("Maxs(" in outside) == ("position" in printer.program.leaves)
    assert printer.share_inside.work.passes <= 13
