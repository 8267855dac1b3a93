"""Instructions that look numbers of pairs up in tables of the unified buffer: see lookups.py."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from gr_compile.analysis.expr import Expr
from gr_compile.lowering.ascendc.attention.instructions import Register
from gr_compile.lowering.ascendc.attention.lookups import Steps, runs
from gr_compile.lowering.ascendc.attention.scalar import literal
from gr_compile.lowering.cpu.buckets import Bucket

if TYPE_CHECKING:
    from gr_compile.lowering.ascendc.attention.vector import Function


def bucket_by_cells(f: Function, at: int, table: Bucket) -> Register:
    """Leading bits of float(a | 1) are a cell of the table; see gr_compile.lowering.cpu.buckets."""
    cells = len(table.values)
    limits = [f"limits{at}().SetValue({x}, {limit});" for x, limit in enumerate(table.thresholds)]
    flat = [value for pair in table.values for value in pair]
    values = [f"values{at}().SetValue({x}, {value});" for x, value in enumerate(flat)]
    limits_ = f.context.use(f"limits{at}", "int32_t", cells, limits)
    values_ = f.context.use(f"values{at}", "int32_t", 2 * cells, values)
    x = f.known[table.argument].register
    assert x is not None, "a bucket of a number is given"
    odd = f.scalar("Adds", f.scalar("ShiftLeft", f.scalar("ShiftRight", x, "1", "i"), "1", "i"), "1", "i")
    real = f.emit("Cast({d:f}, {0:i}, RoundMode::CAST_RINT, #);", x.shape, odd)
    cell = f.scalar("Adds", f.scalar("ShiftRight", real, str(table.shift), "i"), str(-table.base), "i")
    cell = f.spread(f.scalar("Mins", f.scalar("Maxs", cell, "0", "i"), str(cells - 1), "i"), "i")
    limit = f.gather(limits_, f.scalar("Muls", cell, "4", "i"))
    below = f.below(f.binary("Sub", f.spread(x, "i"), limit, "i"))
    behind = f.scalar("Adds", f.scalar("Muls", cell, "2", "i"), "1", "i")
    return f.gather(values_, f.scalar("Muls", f.binary("Add", behind, below, "i"), "4", "i"))


def bucket_by_steps(f: Function, node: Expr) -> Register:
    """The value of a step function, a whole number."""
    at, steps = f.context.buckets[node][0], f.context.steps[node]
    table = f.context.use(f"values{at}", "int32_t", len(steps.values), _fill(f"values{at}", steps.values))
    return f.gather(table, _place(f, at, steps))


def composed_load(f: Function, node: Expr, at: int, steps: Steps) -> Register:
    """An element of a leaf at the value of a step function: one table for both."""
    leaf = f.context.leaves.index(node.args[0])
    name, kind = f"composed{at}_{leaf}", "int32_t" if node.dtype == "i" else "float"
    read = f"leaf{leaf}.GetValue(within({{}}, o.extent{leaf}_0))"
    read = f"ToFloat({read})" if node.dtype == "bf16" else f"({kind}){read}"
    fill = _fill(name, steps.values, lambda value: read.format(f"{value}LL"))
    return f.gather(f.context.use(name, kind, len(steps.values), fill), _place(f, at, steps))


def size_of(f: Function, steps: Steps) -> Register:
    """The number that steps are of, in float32."""
    x = f.known[steps.argument].register
    assert x is not None, "a bucket of a number is given"
    real = f.emit("Cast({d:f}, {0:i}, RoundMode::CAST_RINT, n);", "tile", f.spread(x, "i"))
    return f.unary("Abs", real) if steps.absolute else real


def _place(f: Function, at: int, steps: Steps) -> Register:
    """Byte offsets into a table of a step function's values."""
    limits = [f"for (int32_t x = 0; x < {len(steps.limits)}; x++) limits{at}().SetValue(x, {literal(math.inf)});"]
    limits += [f"limits{at}().SetValue({x}, {literal(y)});" for x, y in enumerate(steps.limits) if y < math.inf]
    table = f.context.use(f"limits{at}", "float", len(steps.limits), limits)
    if steps in f.places:
        return f.places[steps]
    real = size_of(f, steps)
    cell = f.scalar("ShiftRight", real, str(steps.shift), "i")
    if not steps.absolute:  # where times are wider than assumed, and wrap, it may be negative
        cell = f.scalar("Mins", f.scalar("Maxs", cell, "0", "i"), str(len(steps.limits) - 1), "i")
    cell = f.scalar("ShiftLeft", cell, "2", "i")
    limit = f.gather(table, cell)
    beyond = f.emit("Compare({d:b}, {0:f}, {1:f}, CMPMODE::GE, n);", "bits", real, limit)
    f.places[steps] = f.choose(beyond, f.scalar("Adds", cell, "4", "i"), cell)
    return f.places[steps]


def _fill(name: str, values: tuple[int, ...], text: Callable[[int], str] = str) -> list[str]:
    return [
        f"for (int32_t x = {first}; x < {last}; x++) {name}().SetValue(x, {text(int(value))});"
        for first, last, value in runs(values)
    ]
