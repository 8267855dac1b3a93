"""Which C type holds a node of a score program: the width of integers by their range, lanes or one value.

A kernel is built *narrow* first: 64-bit integers that a side of the program loads are assumed to lie in
[-1, 2^31 - 2^16 - 2], which timestamps and ids do, so that differences of two fit in 32 bits. The kernel checks every
column that it stores, and answers TOO_WIDE where that is wrong; the wide kernel assumes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch

from gr_compile.analysis.expr import Expr, walk
from gr_compile.lowering.cpu.reals import bounds
from gr_compile.ops.evaluate import SPECIAL, reads_block

Interval: TypeAlias = tuple[int, int]
INT32: Interval = (-(1 << 31), (1 << 31) - 1)
INT64: Interval = (-(1 << 63), (1 << 63) - 1)
_ASSUMED: Interval = (-1, (1 << 31) - (1 << 16) - 2)  # what is added to a difference of two, such as 1, fits, too
_ROUNDED = 1e-4  # of a float32, over all operations that it is computed by
_PLACE: Interval = (0, (1 << 30) - 1)  # an index or a size; kernels.py checks
_STORED: dict[torch.dtype, Interval] = {
    torch.int32: INT32,
    torch.int16: (-(1 << 15), (1 << 15) - 1),
    torch.int8: (-128, 127),
    torch.uint8: (0, 255),
}
ELEMENT = {
    torch.float32: "float",
    torch.float64: "double",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "int32_t",
    torch.int16: "int16_t",
    torch.int8: "int8_t",
    torch.uint8: "uint8_t",
    torch.bool: "bool",
}
HALF = frozenset({"f16", "bf16"})
SCALAR_TYPE = {"f16": "float", "bf16": "float", "f32": "float", "f64": "double", "i": "i64", "b": "bool"}


class Unsupported(Exception):
    """The reference computes this program; the message says what there is no code for."""


@dataclass
class Lanes:
    """Types for one kernel: `leaves` are the dtypes of the leaf operands, `ranges` those of replaced nodes."""

    leaves: Mapping[str, torch.dtype]
    narrow: bool
    ranges: dict[Expr, Interval] = field(default_factory=dict)
    _known: dict[Expr, Interval] = field(default_factory=dict)

    def is_vector(self, node: Expr) -> bool:
        """Whether a value between pairs differs from key to key."""
        return "j" in node.free or node.op in SPECIAL or reads_block(node)

    def vector_type(self, node: Expr) -> str:
        """vf, vd, vi, vl, or vm (a mask)."""
        if node.dtype == "b":
            return "vm"
        if node.dtype != "i":
            return "vd" if node.dtype == "f64" else "vf"
        return "vi" if fits(self.interval(node), INT32) else "vl"

    def interval(self, node: Expr) -> Interval:
        """Bounds of an integer."""
        found = self._known.get(node)
        if found is None:
            found = self._known[node] = self.ranges.get(node) or self._interval(node)
        return found

    def _interval(self, node: Expr) -> Interval:
        if node.op == "const":
            return node.args[0], node.args[0]
        if node.op in ("index", "size"):
            return _PLACE if self.narrow or node.op == "index" else INT64
        if node.op == "load":
            stored = _STORED.get(self.leaves[node.args[0]], INT64)
            assumed = stored == INT64 and self.narrow and not reads_block(node)
            return _ASSUMED if assumed else stored
        if node.op == "cast":
            return (0, 1) if node.args[0].dtype == "b" else _cut(self, node.args[0])
        rule = _RULES.get(node.op)
        if rule is None:
            return INT64
        return _within(rule(self, node))


def fits(inner: Interval, outer: Interval) -> bool:
    """Whether every integer of `inner` is one of `outer`."""
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def _within(found: Interval) -> Interval:
    return found if fits(found, INT64) else INT64


def _cut(lanes: Lanes, real: Expr) -> Interval:
    """Of a float of whole numbers alone that is cut to one; a score or a float that is loaded may be NaN."""
    if any(x.op in SPECIAL or (x.op == "load" and x.dtype != "i") for x in walk(real)):
        return INT64
    low, high = bounds(real, lanes)
    room = 1 + _ROUNDED * max(abs(low), abs(high))  # of all roundings on the way
    return _within((math.floor(low - room), math.ceil(high + room))) if math.isfinite(room) else INT64


def _product(a: Interval, b: Interval) -> Interval:
    corners = [x * y for x in a for y in b]
    return min(corners), max(corners)


def _poly(lanes: Lanes, node: Expr) -> Interval:
    low = high = 0
    for monomial, coefficient in node.args:
        part: Interval = (coefficient, coefficient)
        for atom in monomial:
            part = _product(part, lanes.interval(atom))
        low, high = low + part[0], high + part[1]
    return low, high


def _abs(lanes: Lanes, node: Expr) -> Interval:
    low, high = lanes.interval(node.args[0])
    return (0 if low <= 0 <= high else min(abs(low), abs(high))), max(abs(low), abs(high))


def _maximum(lanes: Lanes, node: Expr) -> Interval:
    a, b = map(lanes.interval, node.args)
    return max(a[0], b[0]), max(a[1], b[1])


def _minimum(lanes: Lanes, node: Expr) -> Interval:
    a, b = map(lanes.interval, node.args)
    return min(a[0], b[0]), min(a[1], b[1])


def _where(lanes: Lanes, node: Expr) -> Interval:
    a, b = map(lanes.interval, node.args[1:])
    return min(a[0], b[0]), max(a[1], b[1])


def _quotient(lanes: Lanes, node: Expr) -> Interval:
    most = max(map(abs, lanes.interval(node.args[0])))
    return -most - 1, most


def _remainder(lanes: Lanes, node: Expr) -> Interval:
    low, high = lanes.interval(node.args[1])
    return min(low + 1, 0), max(high - 1, 0)


_RULES: dict[str, Callable[[Lanes, Expr], Interval]] = {
    "poly": _poly,
    "abs": _abs,
    "maximum": _maximum,
    "minimum": _minimum,
    "where": _where,
    "floordiv": _quotient,
    "truncdiv": _quotient,
    "mod": _remainder,
}
