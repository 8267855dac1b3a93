"""Lookups that pairs make in tables of the unified buffer, in few instructions.

    table[j - i + n]     ->     Gather at 4 j + (4 n - 4 i), both one-sided columns; cut where extremes do not prove it
    table[bucket(|t_i - t_j|)]     ->     Gather from a table by the leading bits of float(|t_i - t_j|)

A bucket function is a step function (gr_compile.lowering.cpu.buckets). Where float32 tells the numbers on both sides
of every step apart, numbers are compared in float32; a cell of leading bits holds one step at most, and what lies on
either side of it stands in neighbouring elements of a table.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from gr_compile.analysis.expr import Expr, scale
from gr_compile.lowering.ascendc.attention.scalar import is_simple
from gr_compile.lowering.cpu.buckets import Bucket
from gr_compile.lowering.cpu.lanes import INT32, Lanes, fits
from gr_compile.ops.evaluate import reads_block, side_groups

Sides = tuple[Expr, Expr]
_MOST_CELLS = 2048  # of a table
_ASSUMED_BELOW = 1 << 30


@dataclass(frozen=True)
class Steps:
    """A step function of |`argument`|, or of an `argument` that is never negative.

    cell = bits(float(|argument|)) >> shift;  value = values[cell + (float(|argument|) >= limits[cell])]

    Attributes:
        edges: the float32 numbers at which a step begins, the second step first; levels: the value of every step.
    """

    argument: Expr
    absolute: bool
    shift: int
    limits: tuple[float, ...]
    values: tuple[int, ...]
    edges: tuple[float, ...]
    levels: tuple[int, ...]


def sides(node: Expr, lanes: Lanes) -> Sides | None:
    """(of a row, of a key): byte offsets whose sum is where `node` reads a table of one dimension, for all heads.

    None where `node` is no such load.
    """
    if node.op != "load" or len(node.args[1]) != 1:
        return None
    index = node.args[1][0]
    groups = [scale(x, 4) for x in side_groups(index)] if index.op == "poly" else []
    if len(groups) != 2 or "h" in index.free:
        return None
    if any(reads_block(x) or not is_simple(x) or not fits(lanes.interval(x), INT32) for x in groups):
        return None
    row, key = groups if "i" in groups[0].free else groups[::-1]
    return (row, key) if fits(lanes.interval(scale(index, 4)), INT32) else None


def steps_of(bucket: Bucket, lanes: Lanes) -> Steps | None:
    """A bucket function as steps of float32; None where that is too coarse, or the table too large."""
    inner, absolute = _argument(bucket.argument)
    floor, high = lanes.interval(bucket.argument)
    if not fits(lanes.interval(inner), INT32) or (not absolute and floor < 0):
        return None
    changes = [(place, value) for place, value in bucket.steps if place > floor]
    first = next((value for place, value in reversed(bucket.steps) if place <= floor), bucket.first)
    if any(_float(place) == _float(place - 1) for place, _ in changes):
        return None
    top = 1 << 31 if high >= _ASSUMED_BELOW else high  # times that are wider than assumed wrap, and stay in the table
    for shift in range(23, 17, -1):
        cells = [_bits(place) >> shift for place, _ in changes]
        count = (_bits(top) >> shift) + 1
        if count > _MOST_CELLS:
            return None
        if len(set(cells)) == len(cells):
            levels = (first, *(value for _, value in changes))
            limits, values = [math.inf] * count, [first] * (count + 1)
            for cell, (place, _) in zip(cells, changes):
                limits[cell] = _float(place)
            for cell, value in zip(cells, levels[1:]):
                values[cell + 1 :] = [value] * (count - cell)
            edges = tuple(_float(place) for place, _ in changes)
            return Steps(inner, absolute, shift, tuple(limits), tuple(values), edges, levels)
    return None


def _argument(node: Expr) -> tuple[Expr, bool]:
    """x and True where `node` is |x|, or the greater of |x| and a constant; it is the least that a bucket sees then."""
    inner = node
    if node.op == "maximum" and "const" in (node.args[0].op, node.args[1].op):
        inner = node.args[0] if node.args[1].op == "const" else node.args[1]
    return (inner.args[0], True) if inner.op == "abs" else (node, False)


def _bits(x: int) -> int:
    return int(struct.unpack("I", struct.pack("f", float(x)))[0])


def _float(x: int) -> float:
    return float(struct.unpack("f", struct.pack("f", float(x)))[0])


def runs(values: tuple[int, ...] | tuple[float, ...]) -> list[tuple[int, int, float]]:
    """(from, to, value) of neighbours that are equal."""
    found: list[tuple[int, int, float]] = []
    for at, value in enumerate(values):
        if found and found[-1][2] == value:
            found[-1] = (found[-1][0], at + 1, value)
        else:
            found.append((at, at + 1, value))
    return found
