"""What attention with a score program has to do: pairs inside the key intervals, and nothing outside.

Cube FLOPs of a pair and a head: 2 dqk for the scores, where the program reads q . k, and 2 dv for P v; the backward
computes the scores again (2 dqk), and has 2 dv each for dP and dV and 2 dqk each for dQ and dK. Vector operations are
the nodes of the score program, and of its derivatives, that a pair needs; those in which no head differs are done once
for all heads. Seconds are those of the tiling that lowering/ascendc chooses, with its costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis.expr import Expr, index
from gr_compile.lowering.ascendc.attention.printed import AttentionCall, call_of
from gr_compile.lowering.ascendc.machine import Machine
from gr_compile.lowering.ascendc.tiling import DoesNotFit, Tiling, solve
from gr_compile.lowering.cpu.lanes import Unsupported
from gr_compile.lowering.cpu.stages import stages, wanted_leaves
from gr_compile.ops.attention_blocks import INDICES
from gr_compile.ops.evaluate import evaluate, reads_block, schedule
from gr_compile.ops.score_program import ScoreProgram

_FORWARD = torch.ops.gr.jagged_attention.default


@dataclass(frozen=True)
class Tiled:
    """What the cheapest tiling gives by tiling.py's costs: seconds, and the unit that they are spent on."""

    seconds: float
    bound: str


@dataclass(frozen=True)
class Attention:
    """A forward or a backward: cube FLOPs and vector operations, and `tiled`, where there is a kernel that fits."""

    label: str
    flops: float
    vector: float
    tiled: Tiled | None


class AttentionWork:
    """Attention over sequences of given lengths, by kernels for a machine; each program is looked at once."""

    def __init__(self, lengths: list[int], machine: Machine) -> None:
        self.lengths, self.machine = lengths, machine
        self._pairs: dict[tuple[Expr | None, Expr | None], int] = {}
        self._tilings: dict[AttentionCall, Tiling | None] = {}

    def of(self, node: fx.Node) -> Attention:
        """What a call has to do."""
        backward = node.target is not _FORWARD
        operands: list[Any] = list(node.args[1:] if backward else node.args)
        q, v, leaves, heads = operands[0], operands[2], operands[3], int(operands[8])
        program = ScoreProgram.parse(operands[11])
        needs = node.args[13] if backward else []
        names = ["q", "k", "v", *program.leaves]
        wanted = wanted_leaves(program, dict(zip(names, needs))) if backward else None  # type: ignore[arg-type]
        pairs = self.pairs(program)
        scores = q.meta["val"].shape[-1] if program.product is not None else 0
        values = v.meta["val"].shape[-1]
        width = self._width(scores, values, backward, bool(wanted))
        shared, by_head = vector_operations(program, wanted)
        label = ("scores, " if scores else "no scores, ") + f"{len(leaves)} leaves"
        operations = float(pairs * (shared + heads * by_head))
        tiling = self._tiling(call_of(node, {}))
        if tiling is None:
            return Attention(label, 2.0 * pairs * heads * width, operations, None)
        label += f", {tiling.rows} x {tiling.columns}"
        return Attention(label, 2.0 * pairs * heads * width, operations, self._tiled(tiling, pairs * heads))

    def _tiling(self, call: AttentionCall) -> Tiling | None:
        """The cheapest one; None where there is no kernel, or it does not fit."""
        if call not in self._tilings:
            try:
                self._tilings[call] = solve(call.printer().demand(), self.machine)
            except (Unsupported, DoesNotFit):
                self._tilings[call] = None
        return self._tilings[call]

    def _tiled(self, tiling: Tiling, pairs: int) -> Tiled:
        """Of pairs of all heads inside the key intervals; cube cores go over tiles side by side."""
        tiles = pairs / (tiling.rows * tiling.columns * tiling.needed)
        seconds = tiles * tiling.cycles / (self.machine.cube_cores * self.machine.megahertz * 1e6)
        return Tiled(seconds, tiling.bound.removeprefix("the ").removesuffix(" unit"))

    @staticmethod
    def _width(scores: int, values: int, backward: bool, slopes: bool) -> int:
        """Multiply-adds of one pair and one head."""
        return scores + values if not backward else 3 * scores + values * (2 if slopes else 1)

    def pairs(self, program: ScoreProgram) -> int:
        """Pairs (query, key) inside the key intervals, of all sequences."""
        key = (program.key_low, program.key_high)
        if key not in self._pairs:
            self._pairs[key] = sum(_pairs(*key, length) for length in self.lengths)
        return self._pairs[key]


def _pairs(low: Expr | None, high: Expr | None, length: int) -> int:
    place = torch.arange(length).view(1, -1, 1)
    first = _bound(low, place, 0).clamp(0, length)
    behind = _bound(high, place, length).clamp(0, length)
    return int((behind - first).clamp(min=0).expand(1, length, 1).sum())


def _bound(bound: Expr | None, place: torch.Tensor, otherwise: int) -> torch.Tensor:
    """An interval's end for every query; one that reads data is taken as the sequence's."""
    if bound is None or bound.free - {"i"} or any(x.op in ("load", "size") for x in _nodes(bound)):
        return torch.full_like(place, otherwise)
    return evaluate(bound, {index("i"): place}).long()


def _nodes(expr: Expr) -> tuple[Expr, ...]:
    return schedule((expr,), ()).nodes


def vector_operations(program: ScoreProgram, wanted: tuple[Expr, ...] | None) -> tuple[int, int]:
    """Operations of one pair: (once for all heads, for each head); constants and what one side needs are free."""
    found = stages(program, wanted)
    given = INDICES | {x for side in found.columns.values() for x in side}
    given |= {x for x in (program.product, program.softmax) if x is not None}
    pair = [x for x in schedule(found.plan.roots, given).nodes if x.op not in ("const", "size") and reads_block(x)]
    common = schedule(found.shared, given).nodes
    alike = {x for x in common if x in set(pair)}
    return len(alike), len(pair) - len(alike)
