"""Bucket functions: whole numbers computed from a whole number through floating point, as thresholds.

    floor(log(max(|d|, 1)) / 0.301)     ->     a table of the d at which the result changes

A logarithm for every pair would be slow, and one of our own would put a few pairs in a million into another
bucket than torch does. So the model's own expression is evaluated by torch, in the model's dtype: it is proved
monotone, its steps are found by bisection, and its neighbourhood of every step is looked at, since a library's
logarithm is monotone up to its rounding only.

The table's cells are the leading bits of float(a | 1): in each cell the function changes at most once.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch

from gr_compile.analysis.expr import FLOAT_DTYPES, Expr, operands_of, walk
from gr_compile.lowering.cpu.lanes import INT64, Interval, Lanes, Unsupported
from gr_compile.ops.evaluate import SPECIAL, evaluate

EXACT = frozenset({"neg", "abs", "sqrt", "reciprocal", "relu", "sign", "floor", "ceil", "trunc", "round"})
_EXACT_BINARY = frozenset({"add", "sub", "mul", "div", "maximum", "minimum"})
_STRUCTURE = frozenset({"const", "load", "cast", "where", "compare", "and", "not", "ge0", "eq0", "index", "size"})
_GROWING = frozenset(
    {"exp", "expm1", "log", "log1p", "log2", "sqrt", "tanh", "sigmoid", "floor", "ceil", "trunc", "round", "erf"}
)
_STEPS = frozenset({"floor", "ceil", "trunc", "round", "sign"})
_MOST_STEPS = 2048
_NEIGHBOURS = 64
_WHAT_IS_NONE = (
    f"it is not shown to grow or fall with one whole number that is never negative, over at most {_MOST_STEPS} steps "
    "(cut it to the size of its table)"
)


@dataclass(frozen=True)
class Bucket:
    """`node` as a table over the integer `argument`.

    cell(a) = (bits(float(a | 1)) >> shift) - base;  node = values[cell][a >= thresholds[cell]].
    `first` is the value of the least argument, `steps` are (place, value from there on) of every change.
    """

    node: Expr
    argument: Expr
    shift: int
    base: int
    thresholds: tuple[int, ...]
    values: tuple[tuple[int, int], ...]
    first: int
    steps: tuple[tuple[int, int], ...]

    @property
    def range(self) -> Interval:
        found = [x for pair in self.values for x in pair]
        return min(found), max(found)


def is_step(node: Expr) -> bool:
    """Whether a small change of an operand can change the result by a whole step."""
    operand = next(operands_of(node.args), None)
    if operand is None or operand.dtype not in FLOAT_DTYPES:
        return False
    to_whole = node.op == "cast" and node.dtype in ("i", "b")
    return to_whole or node.op == "compare" or node.op in _STEPS or node.op in ("floordiv", "truncdiv", "mod")


def is_inexact(expr: Expr, tables: Collection[Expr] = (), exact: Collection[str] = EXACT) -> bool:
    """Whether two libraries may compute `expr` to different last bits, where `tables` and functions `exact` do not."""
    seen: set[Expr] = set()
    stack = [expr]
    while stack:
        node = stack.pop()
        if node in seen or node in tables:
            continue
        seen.add(node)
        if node.dtype in FLOAT_DTYPES and node.op not in exact and node.op not in _EXACT_BINARY | _STRUCTURE:
            return True
        stack.extend(operands_of(node.args))
    return False


def find_tables(roots: Iterable[Expr], lanes: Lanes, exact: Collection[str] = EXACT) -> dict[Expr, Bucket]:
    """A table for every step below `roots` that reads an inexact value and no score, the outermost that is possible.

    Args:
        exact: functions that are rounded alike everywhere. Those of EXACT that are not among them become tables where
            that is possible, and are left where it is not.

    Raises:
        Unsupported: such a step is no monotone function of one integer.
    """
    tables: dict[Expr, Bucket] = {}
    done: set[Expr] = set()

    def resolve(node: Expr) -> None:
        if node in done:
            return
        done.add(node)
        wants = is_step(node) and is_inexact(node, exact=exact) and not any(x.op in SPECIAL for x in walk(node))
        clamps = node.dtype == "i" and node.op in ("minimum", "maximum") and is_inexact(node, exact=exact)
        table = bucket(node, lanes, exact) if wants or clamps else None
        if table is not None:
            tables[node] = table
            lanes.ranges[node] = table.range
            return
        for operand in operands_of(node.args):
            resolve(operand)
        if wants and is_inexact(node, tables):
            raise Unsupported(f"a step of a float that is no bucket of one integer: {_WHAT_IS_NONE}: {node}")

    for root in roots:
        resolve(root)
    return tables


def bucket(node: Expr, lanes: Lanes, exact: Collection[str] = EXACT) -> Bucket | None:
    """The table of a step, or None where it is not a monotone function of one integer with few steps."""
    if node.dtype not in ("i", "b"):
        return None
    argument = _argument(node, exact)
    if argument is None:
        return None
    low, high = lanes.interval(argument)
    if low < 0 or _direction(node, argument, low) is None:
        return None
    return _table(node, argument, low, min(high, INT64[1]))


def _argument(node: Expr, exact: Collection[str]) -> Expr | None:
    """The one integer that an inexact function reads: what is exact below it."""
    found: set[Expr] = set()
    stack = list(operands_of(node.args))
    while stack:
        x = stack.pop()
        if (x.dtype in FLOAT_DTYPES and x.op != "load") or is_inexact(x, exact=exact):
            stack.extend(operands_of(x.args))
        elif x.op != "const":
            found.add(x)
    only = found.pop() if len(found) == 1 else None
    return only if only is not None and only.dtype == "i" else None


def _direction(node: Expr, argument: Expr, low: int) -> int | None:
    """1 or -1 where `node` grows or falls with `argument` >= low, 0 where it is constant; None: not proved."""
    if node is argument:
        return 1
    if node.op == "const":
        return 0
    ways = [_direction(x, argument, low) for x in operands_of(node.args)]
    if any(way is None for way in ways):
        return None
    known = [way for way in ways if way is not None]
    op, args = node.op, node.args
    if op == "cast" or op in _GROWING:
        return known[0]
    if op == "neg":
        return -known[0]
    if op in ("maximum", "minimum", "add"):
        return known[0] or known[1] if known[0] * known[1] >= 0 else None
    if op == "sub":
        return known[0] or -known[1] if known[0] * known[1] <= 0 else None
    if op in ("mul", "div") and args[1].op == "const" and args[1].args[0] != 0:
        return known[0] * int(math.copysign(1, args[1].args[0]))
    if op == "mul" and args[0].op == "const" and args[0].args[0] != 0:
        return known[1] * int(math.copysign(1, args[0].args[0]))
    if op == "compare" and args[0] in ("lt", "le") and 0 in known:
        return -known[0] or known[1]
    return None


def _values(node: Expr, argument: Expr, places: list[int]) -> list[int]:
    found = evaluate(node, {argument: torch.tensor(places, dtype=torch.int64).view(1, 1, -1)})
    return [int(x) for x in found.expand(1, 1, len(places)).reshape(-1).tolist()]


def _table(node: Expr, argument: Expr, low: int, high: int) -> Bucket | None:
    first, last = _values(node, argument, [low, high])
    if abs(last - first) > _MOST_STEPS:
        return None
    steps = _bisect(node, argument, low, high, first, last)
    if steps is None or not _is_monotone_near(node, argument, [x for x, _ in steps], low, high):
        return None
    for shift in range(23, 11, -1):
        found = _cells(steps, shift, low, high, first)
        if found is not None:
            base, thresholds, values = found
            return Bucket(node, argument, shift, base, thresholds, values, first, tuple(steps))
    return None


def _bisect(node: Expr, argument: Expr, low: int, high: int, first: int, last: int) -> list[tuple[int, int]] | None:
    """(place, value from there on) of every change, all intervals halved together."""
    open_: list[tuple[int, int, int, int]] = [(low, high, first, last)]
    found: list[tuple[int, int]] = []
    while open_:
        rest = []
        for a, b, x, y in open_:
            if x == y:
                continue
            if b - a == 1:
                found.append((b, y))
            else:
                rest.append((a, b, x, y))
        if len(rest) + len(found) > _MOST_STEPS:
            return None
        middles = [(a + b) // 2 for a, b, _, _ in rest]
        values = _values(node, argument, middles) if rest else []
        open_ = []
        for (a, b, x, y), middle, value in zip(rest, middles, values):
            open_ += [(a, middle, x, value), (middle, b, value, y)]
    return sorted(found)


def _is_monotone_near(node: Expr, argument: Expr, steps: list[int], low: int, high: int) -> bool:
    for step in steps:
        places = list(range(max(low, step - _NEIGHBOURS), min(high, step + _NEIGHBOURS) + 1))
        values = _values(node, argument, places)
        if values != sorted(values) and values != sorted(values, reverse=True):
            return False
    return True


def _cell(place: int, shift: int) -> int:
    return int(struct.unpack("I", struct.pack("f", float(torch.tensor(place | 1).to(torch.float32))))[0]) >> shift


def _cells(
    steps: list[tuple[int, int]], shift: int, low: int, high: int, first: int
) -> tuple[int, tuple[int, ...], tuple[tuple[int, int], ...]] | None:
    """Base, thresholds and values of the cells; None where a cell would hold two steps inside it."""
    base, count = _cell(low, shift), _cell(high, shift) - _cell(low, shift) + 1
    inside: dict[int, list[tuple[int, int]]] = {}
    start = {0: first}
    for place, value in steps:
        cell = _cell(place, shift) - base
        if _cell(place - 1, shift) - base < cell:
            start[cell] = value
            continue
        inside.setdefault(cell, []).append((place, value))
        if len(inside[cell]) > 1:
            return None
    thresholds, values = [], []
    current = first
    for cell in range(count):
        current = start.get(cell, current)
        place, value = inside.get(cell, [(high, current)])[0]
        if cell not in inside and place == high:
            value = current
        thresholds.append(place)
        values.append((current, value))
        current = value
    return base, tuple(thresholds), tuple(values)
