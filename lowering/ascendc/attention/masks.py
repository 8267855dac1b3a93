"""Masks that a whole tile passes: which ones, and the condition under which a tile is proved to.

    where(i - j >= 0, x, 0)    ->    if (least i of the rows - greatest j of the keys >= 0) x, without a mask

A comparison of whole numbers of a row with those of a key holds for all pairs of a tile if it holds for the extremes
of both sides, and a mask of a row or of a key alone if it holds for every one. The kernel keeps the extremes of every
block of rows and of every tile of keys; tiles of which nothing is proved run the masks. What is substituted is proved
for the values at hand: nothing is assumed of positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gr_compile.analysis.expr import Expr, cast, walk
from gr_compile.lowering.ascendc.attention.lookups import Sides
from gr_compile.lowering.ascendc.attention.values import PROVED, REFUTED, Value
from gr_compile.lowering.ascendc.attention.vector import Function
from gr_compile.ops.evaluate import operands

_MOST = 12  # extremes that a block has room for


@dataclass
class Extremes:
    """One-sided values whose least and greatest number a proof reads, by their place among the columns."""

    rows: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)

    def of(self, value: Value) -> tuple[str, str]:
        """The least and the greatest number of a value of a tile, in C++."""
        if value.register is None:
            return f"(int64_t)({value.text})", f"(int64_t)({value.text})"
        assert value.register.fixed is not None
        is_row = value.register.shape == "row"
        side, name = (self.rows, "row") if is_row else (self.columns, "key")
        if value.register.fixed not in side:
            side.append(value.register.fixed)
        at = side.index(value.register.fixed)
        return f"{name}_least({at})", f"{name}_most({at})"


def provable(roots: Iterable[Expr], function: Function) -> dict[Expr, Value]:
    """Parts of conditions, and of masks that are multiplied with, that extremes may decide, and how they let a score
    pass: `PROVED` or `REFUTED`. Where both branches compute something none is meant.
    """
    found: dict[Expr, Value] = {}
    for node in walk(*roots):
        stack = []
        if node.op == "cast" and node.args[0].dtype == "b":
            stack = [(node.args[0], True)]
        elif node.op == "where" and "const" in (node.args[1].op, node.args[2].op):
            stack = [(node.args[0], node.args[1].op != "const")]
        while stack:
            condition, wanted = stack.pop()
            if _is_one_sided(condition, function):
                found.setdefault(condition, PROVED if wanted else REFUTED)
            elif condition.op == "not":
                stack.append((condition.args[0], not wanted))
            elif condition.op == "and" and wanted:
                stack.extend((x, True) for x in condition.args)
            elif {"i", "j"} <= condition.free and _is_decidable(condition, function):
                found.setdefault(condition, PROVED if wanted else REFUTED)
    return found


def _is_one_sided(node: Expr, function: Function) -> bool:
    return node.free & {"i", "j", "h"} in ({"i"}, {"j"}) and function.given(node)


def _is_decidable(node: Expr, function: Function) -> bool:
    if _is_one_sided(node, function):
        return True
    if node.op in ("and", "not"):
        return all(_is_decidable(x, function) for x in node.args)
    return node.op in ("ge0", "eq0") and all(
        x.dtype == "i" and "h" not in x.free and function.given(x) for x in operands(node)
    )


def proof(masks: Mapping[Expr, Value], function: Function, extremes: Extremes) -> str:
    """A C++ condition that all pairs of a tile pass `masks`, "false" where there are none; it reads `extremes`."""
    return _all((_holds(mask, wanted == PROVED, function, extremes) for mask, wanted in masks.items()), extremes)


def inside(loads: Mapping[Expr, Sides], function: Function, extremes: Extremes) -> str:
    """A C++ condition that all pairs of a tile, and what fills its last columns, read `loads` inside their tables."""
    parts = []
    for node, (row, key) in loads.items():
        (low, high), (least, most) = (extremes.of(function.value(x)) for x in (row, key))
        limit = f"4 * (o.extent{function.context.leaves.index(node.args[0])}_0 - 1)"
        parts.append(f"{low} + padded_least({least}) >= 0 && {high} + padded_most({most}) <= {limit}")
    return _all(parts, extremes)


def _all(parts: Iterable[str], extremes: Extremes) -> str:
    """All of some conditions; "false" where there are none, or too many extremes, which are forgotten then."""
    before = len(extremes.rows), len(extremes.columns)
    found = list(parts)
    if max(len(extremes.rows), len(extremes.columns)) > _MOST:
        del extremes.rows[before[0] :], extremes.columns[before[1] :]
        return "false"
    return " && ".join(found) or "false"


def _holds(node: Expr, wanted: bool, function: Function, extremes: Extremes) -> str:
    """That `node` is `wanted` for every pair; false where that is not known."""
    if _is_one_sided(node, function):  # as a number, 1 where it holds
        least, most = extremes.of(function.value(cast(node, "i")))
        return f"{least} >= 1" if wanted else f"{most} <= 0"
    if node.op == "not":
        return _holds(node.args[0], not wanted, function, extremes)
    if node.op == "and":
        sign = " && " if wanted else " || "
        return f"({sign.join(_holds(x, wanted, function, extremes) for x in node.args)})"
    bounds = [extremes.of(function.value(x)) for x in operands(node)]
    (low, high), (other_low, other_high) = bounds if len(bounds) == 2 else (bounds[0], ("0", "0"))
    if node.op == "ge0":
        return f"{low} >= {other_high}" if wanted else f"{high} < {other_low}"
    if wanted:
        return f"({low} == {other_high} && {high} == {other_low})"
    return f"({low} > {other_high} || {high} < {other_low})"
