"""Which C type holds a node: bounds of integers, narrow and wide, lanes or one value."""

from __future__ import annotations

import itertools

import pytest
import torch

from gr_compile.analysis import expr as E
from gr_compile.analysis.expr import Expr, const, index, load, make, size
from gr_compile.lowering.cpu.lanes import INT32, INT64, Interval, Lanes, fits
from gr_compile.ops.evaluate import evaluate

b, h, i, j = (index(x) for x in "bhij")
LEAVES = {"time": torch.int64, "day": torch.int32, "hour": torch.int8, "flag": torch.bool, "real": torch.float32}
TIME_I, TIME_J = load("time", [b, i], "i"), load("time", [b, j], "i")
DAY, HOUR, FLAG, REAL = load("day", [b, j], "i"), load("hour", [b, j], "i"), load("flag", [b, j], "b"), load("real", [b, j], "f32")
OF_PAIRS = load("time", [b, i, j], "i")
PLACE, ASSUMED = (0, 2**30 - 1), (-1, LAST := 2**31 - 2**16 - 2)
BYTE = (-128, 127)


def real(x: Expr) -> Expr:
    return E.cast(x, "f32")


def binary(op: str, left: Expr, right: Expr) -> Expr:
    return E.binary(op, left, right, "i")


#                                                          narrow                 wide
INTERVALS: dict[str, tuple[Expr, Interval, Interval]] = {
    "constant":            (const(7),                      (7, 7),                (7, 7)),
    "place":               (i,                             PLACE,                 PLACE),
    "size":                (size("N"),                     PLACE,                 INT64),
    "difference of places": (E.sub(i, j),                  (1 - 2**30, 2**30 - 1), (1 - 2**30, 2**30 - 1)),
    "id or time":          (TIME_J,                        ASSUMED,               INT64),
    "of pairs":            (OF_PAIRS,                      INT64,                 INT64),
    "32 bits":             (DAY,                           INT32,                 INT32),
    "8 bits":              (HOUR,                          BYTE,                  BYTE),
    "distance of times":   (E.sub(TIME_I, TIME_J),         (-1 - LAST, LAST + 1),  INT64),
    "sum of times":        (E.add(TIME_I, TIME_J),         (-2, 2 * LAST),        INT64),
    "product of bytes":    (E.mul(HOUR, HOUR),             (-16256, 16384),       (-16256, 16384)),
    "product of times":    (E.mul(TIME_I, TIME_J),         (-LAST, LAST**2),       INT64),
    "absolute":            (E.unary("abs", E.sub(TIME_I, TIME_J)), (0, LAST + 1), INT64),
    "a little more than a distance": (E.add(E.unary("abs", E.sub(TIME_I, TIME_J)), const(60)), (60, LAST + 61), INT64),
    "absolute, never 0":   (E.unary("abs", binary("minimum", HOUR, const(-5))), (5, 128), (5, 128)),
    "at least 1":          (binary("maximum", HOUR, const(1)), (1, 127),          (1, 127)),
    "at most 64":          (binary("minimum", HOUR, const(64)), (-128, 64),       (-128, 64)),
    "either":              (E.where(FLAG, HOUR, E.add(HOUR, const(300)), "i"), (-128, 427), (-128, 427)),
    "flag as a number":    (E.cast(FLAG, "i"),             (0, 1),                (0, 1)),
    "float as a number":   (E.cast(REAL, "i"),             INT64,                 INT64),
    "root of a day":       (E.cast(E.unary("sqrt", real(E.binary("maximum", DAY, const(0), "i"))), "i"), (-6, 46347), (-6, 46347)),
    "root of what may be negative": (E.cast(E.unary("sqrt", real(DAY)), "i"), INT64, INT64),
    "hours of bytes":      (E.cast(E.binary("div", real(HOUR), const(60.0, "f32"), "f32"), "i"), (-4, 4), (-4, 4)),
    "a root of a float":   (E.cast(E.unary("sqrt", E.unary("abs", REAL)), "i"), INT64, INT64),
    "a quotient by 0":     (E.cast(E.binary("div", real(HOUR), real(HOUR), "f32"), "i"), INT64, INT64),
    "in half precision":   (E.cast(E.unary("abs", E.cast(HOUR, "f16")), "i"), INT64, INT64),
    "quotient":            (binary("floordiv", HOUR, const(24)), (-129, 128),     (-129, 128)),
    "remainder":           (binary("mod", DAY, const(7)),  (0, 6),                (0, 6)),
}  # fmt: skip


@pytest.mark.parametrize("name", INTERVALS)
def test_bounds_of_integers(name: str) -> None:
    node, narrow, wide = INTERVALS[name]
    assert Lanes(LEAVES, narrow=True).interval(node) == narrow
    assert Lanes(LEAVES, narrow=False).interval(node) == wide


@pytest.mark.parametrize("name", INTERVALS)
def test_32_bits_hold_what_fits(name: str) -> None:
    node, narrow, wide = INTERVALS[name]
    for found, is_narrow in ((narrow, True), (wide, False)):
        assert Lanes(LEAVES, is_narrow).vector_type(node) == ("vi" if fits(found, INT32) else "vl")


RANGES = [(-3, 2), (0, 4), (-5, -1), (1, 3), (2, 2)]
OPERATIONS = {
    "add": E.add(TIME_I, TIME_J),
    "polynomial": E.sub(E.mul(TIME_I, TIME_I), E.scale(TIME_J, 3)),
    "mul": E.mul(TIME_I, TIME_J),
    "maximum": binary("maximum", TIME_I, TIME_J),
    "minimum": binary("minimum", TIME_I, TIME_J),
    "abs": E.unary("abs", E.sub(TIME_I, TIME_J)),
    "floordiv": binary("floordiv", TIME_I, TIME_J),
    "truncdiv": binary("truncdiv", TIME_I, TIME_J),
    "mod": binary("mod", TIME_I, TIME_J),
    "where": E.where(E.ge0(TIME_I), TIME_I, E.scale(TIME_J, 2), "i"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_value_leaves_its_bounds(name: str) -> None:
    node = OPERATIONS[name]
    for x, y in itertools.product(RANGES, RANGES):
        lanes = Lanes(LEAVES, narrow=True, ranges={TIME_I: x, TIME_J: y})
        pairs = itertools.product(range(x[0], x[1] + 1), range(y[0], y[1] + 1))
        left, right = torch.tensor([(p, q) for p, q in pairs if q or ("div" not in name and name != "mod")]).T
        found = evaluate(node, {TIME_I: left.view(1, 1, -1), TIME_J: right.view(1, 1, -1)})
        low, high = lanes.interval(node)
        assert low <= int(found.min()) and int(found.max()) <= high, f"{x} {y}"


def test_a_replaced_node_has_the_range_of_its_table() -> None:
    bucket = E.cast(REAL, "i")
    lanes = Lanes(LEAVES, narrow=True, ranges={bucket: (0, 64)})
    assert lanes.interval(E.add(E.scale(bucket, 2), const(1))) == (1, 129)


@pytest.mark.parametrize(
    "node, kind",
    [
        (REAL, "vf"),
        (E.cast(REAL, "bf16"), "vf"),
        (E.cast(REAL, "f64"), "vd"),
        (FLAG, "vm"),
        (HOUR, "vi"),
        (OF_PAIRS, "vl"),
    ],
)  # fmt: skip
def test_lanes_of_floats_and_masks(node: Expr, kind: str) -> None:
    assert Lanes(LEAVES, narrow=True).vector_type(node) == kind


@pytest.mark.parametrize(
    "node, is_vector",
    [
        (TIME_J, True),
        (E.sub(TIME_I, TIME_J), True),
        (make("s", (), "f32"), True),
        (E.unary("exp", make("sm", (), "f32")), True),
        (TIME_I, False),
        (E.cast(h, "f32"), False),
        (size("N"), False),
    ],
)  # fmt: skip
def test_what_differs_from_key_to_key_is_in_lanes(node: Expr, is_vector: bool) -> None:
    assert Lanes(LEAVES, narrow=True).is_vector(node) is is_vector
