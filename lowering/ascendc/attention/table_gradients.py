"""Gradients of what pairs look up, once for all heads: `scatter`, the function of a tile that holds their sum.

    table[j - i + n]               strips along diagonals: a vector addition a row (runtime/collect.h)
    table[bucket(|t_i - t_j|)]     masked sums, one for each step that the tile's extremes let its pairs be on
    any other index                the scalar unit, pair by pair
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from gr_compile.analysis.expr import Expr
from gr_compile.lowering.ascendc.attention.instructions import Instruction, Register, Work
from gr_compile.lowering.ascendc.attention.lookups import Steps, sides
from gr_compile.lowering.ascendc.attention.masks import Extremes, inside
from gr_compile.lowering.ascendc.attention.scalar import literal, place
from gr_compile.lowering.ascendc.attention.tables import size_of
from gr_compile.lowering.ascendc.attention.values import Context
from gr_compile.lowering.ascendc.attention.vector import Function
from gr_compile.ops.evaluate import side_groups

Way = Literal["diagonals", "steps", "pairs"]
PAIRS = "for (int32_t y = 0; y < rows; y++) for (int32_t x = 0; x < columns; x++)"
_TILE = 128  # rows and columns of a tile that the number of steps is estimated for


def way(load: Expr, context: Context) -> Way:
    """How the gradient of a load of pairs reaches its leaf."""
    if sides(load, context.lanes) is not None:
        return "diagonals"
    return "steps" if len(load.args[1]) == 1 and load.args[1][0] in context.steps else "pairs"


def scatter_pairs(f: Function, load: Expr, tile: Register) -> None:
    """The scalar unit adds every pair's gradient where its load read."""
    at = f.context.leaves.index(load.args[0])
    values = [f.value(x) for x in load.args[1]]
    registers = tuple(dict.fromkeys((tile, *(x.register for x in values if x.register is not None))))
    spelled = [
        x.text if x.register is None else f"at_{x.shape}({{{registers.index(x.register)}:i}}, y, x)" for x in values
    ]
    text = f"{PAIRS} add_to_leaf{at}({place(at, spelled)}, {{0:f}}.GetValue(y * width + x));"
    f.instructions.append(Instruction(text, None, registers, work=Work(scalars=1)))


@dataclass
class Scatter:
    """What the functions that add gradients to tables ask of a kernel.

    Attributes:
        keys: how many keys a sequence has, for the estimate of costs.
        extremes: one-sided values whose least and greatest number is asked for.
        rows, columns: one-sided values of which is asked by how much they step.
        sums: sums in the unified buffer, by name: the leaf, and the places and the values of steps.
    """

    context: Context
    keys: float
    extremes: Extremes
    rows: list[int] = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    sums: dict[str, tuple[int, Steps]] = field(default_factory=dict)

    def function(self, gradients: Iterable[tuple[Expr, Register]]) -> list[Instruction]:
        """The function that adds each tile of gradients to the leaf of its load."""
        f = Function(self.context)
        rules = {"diagonals": self._diagonals, "steps": self._steps, "pairs": scatter_pairs}
        for load, tile in gradients:
            rules[way(load, self.context)](f, load, tile)
        return f.instructions

    def _diagonals(self, f: Function, load: Expr, tile: Register) -> None:
        both = sides(load, self.context.lanes)
        assert both is not None
        row, key = (f.value(x).register for x in both)
        assert row is not None and key is not None and row.fixed is not None and key.fixed is not None
        at = self.context.leaves.index(load.args[0])
        steps = f"rows_step({_place(self.rows, row.fixed)}, -4) && keys_step({_place(self.columns, key.fixed)}, 4)"
        condition = f"{steps} && {inside({load: both}, f, self.extremes)}"
        fast = f"add_diagonals({{0:f}}, {{1:i}}, {{2:i}}, strips(), o.sums[o.leaf{at}_first]);"
        where = place(at, ["(at_row({1:i}, y, x) + at_column({2:i}, y, x)) / 4"])
        slow = f"{PAIRS} add_to_leaf{at}({where}, {{0:f}}.GetValue(y * width + x));"
        cost = Work(passes=1, issues=10, lines=1)
        f.instructions.append(Instruction(f"if ({condition}) {fast} else {slow}", None, (tile, row, key), work=cost))

    def _steps(self, f: Function, load: Expr, tile: Register) -> None:
        node = load.args[1][0]
        at, steps = self.context.buckets[node][0], self.context.steps[node]
        f.value(steps.argument)
        number, work = size_of(f, steps), f.emit("", "tile")
        bits = [f.emit("", "bits") for _ in range(3)]
        edges = [f"edges{at}().SetValue({x}, {literal(edge)});" for x, edge in enumerate(steps.edges)]
        table = self.context.use(f"edges{at}", "float", max(len(edges), 1), edges)
        name = f"steps{at}_{self.context.leaves.index(load.args[0])}"
        self.sums[name] = (self.context.leaves.index(load.args[0]), steps)
        text = (
            f"add_steps({{0:f}}, {{1:f}}, {{2:f}}, {{3:w}}, {{4:w}}, {{5:w}}, {table}, {len(edges)}, {name}(), "
            f"{', '.join(self._range(f, steps))});"
        )
        several = touched(steps, self.keys) - 1
        cost = Work(passes=2 + 3 * several, issues=4 + 7 * several)  # of add_steps
        f.instructions.append(Instruction(text, None, (tile, number, work, *bits), work=cost))

    def _range(self, f: Function, steps: Steps) -> tuple[str, str]:
        """Bounds of a tile's numbers, in C++."""
        groups = side_groups(steps.argument) if steps.argument.op == "poly" else ()
        if not groups or any("h" in x.free or not f.given(x) for x in groups):
            return "0", "INT32_MAX"
        ends = [self.extremes.of(f.value(x)) for x in groups]
        low, high = (" + ".join(x) for x in zip(*ends))
        return (f"least_size({low}, {high})", f"most_size({low}, {high})") if steps.absolute else (low, high)


def _place(found: list[int], at: int) -> int:
    if at not in found:
        found.append(at)
    return found.index(at)


def touched(steps: Steps, keys: float) -> float:
    """How many steps a tile's extremes let its pairs be on, on average over the tiles of a causal mask.

    The numbers of a sequence are taken to lie evenly between 0 and the last step.
    """
    if not steps.edges:
        return 1.0
    tiles = max(int(keys) // _TILE, 1)
    unit = steps.edges[-1] / max(keys, 1)
    total, count = 0.0, 0
    for apart in range(tiles):
        low, high = max(apart - 1, 0) * _TILE * unit, (apart + 1) * _TILE * unit
        number = bisect.bisect_right(steps.edges, high) - bisect.bisect_right(steps.edges, low) + 1
        total, count = total + number * (tiles - apart), count + tiles - apart
    return total / count
