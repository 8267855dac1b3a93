"""How the reference of `gr::jagged_attention` walks: columns once, then blocks of rows of one sequence.

What a program needs of one side only (the query's timestamp, the key's bucket, j + N - 1) is computed once
for all packed rows: a *column*. A *block* is some rows of one sequence against the keys of that sequence that
its hull [key_low, key_high) admits. Forward and backward walk the same blocks, so that dropout repeats.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gr_compile.analysis.expr import Expr, index
from gr_compile.ops.evaluate import Evaluator, Schedule, Value, operands, reads_block, schedule
from gr_compile.ops.noise import kept, row_noise
from gr_compile.ops.score_program import HEAD, ScoreProgram

BLOCK_ELEMENTS = 1 << 18  # of one [H, I, J] tensor: the temporaries of a block stay in the cache
MOST_ROWS = 128  # so that a hull skips keys
_FAR = 1 << 40  # beyond any place in a sequence
SEQUENCE, QUERY, KEY = index("b"), index("i"), index("j")
INDICES = frozenset({SEQUENCE, HEAD, QUERY, KEY})


@dataclass(frozen=True)
class Inputs:
    """The operands of one call, checked."""

    program: ScoreProgram
    q: Tensor | None
    k: Tensor | None
    v: Tensor
    leaves: dict[str, Tensor]
    query_offsets: Tensor
    query_positions: Tensor
    key_offsets: Tensor
    key_positions: Tensor
    heads: int
    sizes: dict[str, int]
    seed: Tensor | None

    @property
    def device(self) -> torch.device:
        return self.v.device

    def evaluator(self) -> Evaluator:
        return Evaluator(self.leaves, self.sizes, self.device)


@dataclass(frozen=True)
class Block:
    """Rows [r0, r1) against keys [k0, k1) of sequence b, all counted in packed rows."""

    b: int
    r0: int
    r1: int
    k0: int
    k1: int


# ------------------------------------------------------------------------------------------------- blocks


def blocks(inputs: Inputs) -> list[Block]:
    """The blocks of a call, in order. Rows behind the last sequence (a bucket's filling) are in none."""
    query_offsets, key_offsets = inputs.query_offsets.tolist(), inputs.key_offsets.tolist()
    low, high = _hull(inputs)
    found = []
    for b, (start, end) in enumerate(itertools.pairwise(query_offsets)):
        first, last = key_offsets[b], key_offsets[b + 1]
        rows = _rows_of_block(inputs.heads, last - first)
        for r0 in range(start, end, rows):
            r1 = min(r0 + rows, end)
            k0 = first if low is None else max(first, min(low[r0:r1]))
            k1 = last if high is None else min(last, max(high[r0:r1]))
            found.append(Block(b, r0, r1, k0, max(k0, k1)))
    return found


def _rows_of_block(heads: int, keys: int) -> int:
    return max(1, min(MOST_ROWS, BLOCK_ELEMENTS // max(1, heads * keys)))


def _hull(inputs: Inputs) -> tuple[list[int] | None, list[int] | None]:
    """For every query row the packed key rows at which its hull begins and ends."""
    program = inputs.program
    bounds = [x for x in (program.key_low, program.key_high) if x is not None]
    if not bounds:
        return None, None
    columns = Columns(inputs, bounds)
    total = int(inputs.key_offsets[-1])
    owner = sequence_of_row(inputs.key_offsets, total)
    keys = owner * _FAR + inputs.key_positions[:total]
    rows = inputs.query_positions.shape[0]

    def place(bound: Expr | None) -> list[int] | None:
        if bound is None:
            return None
        wanted = columns.whole(bound, rows).clamp(0, _FAR - 1)
        found: list[int] = torch.searchsorted(keys, columns.query_owner * _FAR + wanted).tolist()
        return found

    return place(program.key_low), place(program.key_high)


def sequence_of_row(offsets: Tensor, total: int) -> Tensor:
    """The sequence of each of `total` packed rows, int64 [total]; the last one for rows behind it."""
    rows = torch.arange(total, device=offsets.device)
    owner = torch.searchsorted(offsets[1:].contiguous(), rows, right=True)
    return owner.clamp(max=max(offsets.shape[0] - 2, 0))


# ------------------------------------------------------------------------------------------------ columns


def side_of(node: Expr) -> str:
    """Which column holds a one-sided node: "query", "key" or "sequence"."""
    return "query" if "i" in node.free else "key" if "j" in node.free else "sequence"


@functools.lru_cache(maxsize=2048)
def hoisted(roots: tuple[Expr, ...]) -> tuple[Expr, ...]:
    """The largest one-sided parts of `roots`: everything that a block does not have to compute."""
    found: dict[Expr, None] = {}
    seen: set[Expr] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node in seen or node.op in ("const", "index", "size", "s", "sm"):
            continue
        seen.add(node)
        if not reads_block(node):
            found[node] = None
        else:
            stack.extend(operands(node))
    return tuple(found)


@functools.lru_cache(maxsize=2048)
def _column_schedule(nodes: tuple[Expr, ...]) -> Schedule:
    return schedule(nodes, INDICES)


@dataclass
class Columns:
    """The one-sided parts of `roots`, over all packed rows, keys and sequences.

    A query column broadcasts to [H, Tq, 1], a key column to [H, 1, Tk], a sequence column to [H, B, 1].
    """

    inputs: Inputs
    roots: Iterable[Expr]
    values: dict[str, dict[Expr, Value]] = field(init=False)
    nodes: tuple[Expr, ...] = field(init=False)

    def __post_init__(self) -> None:
        inputs, device = self.inputs, self.inputs.device
        self.nodes = hoisted(tuple(self.roots))
        heads = torch.arange(inputs.heads, device=device).view(-1, 1, 1)
        batch = inputs.query_offsets.shape[0] - 1
        self.query_owner = sequence_of_row(inputs.query_offsets, inputs.query_positions.shape[0])
        key_owner = sequence_of_row(inputs.key_offsets, inputs.key_positions.shape[0])
        self.values = {
            "query": {
                SEQUENCE: self.query_owner.view(1, -1, 1),
                QUERY: inputs.query_positions.view(1, -1, 1),
                HEAD: heads,
            },
            "key": {
                SEQUENCE: key_owner.view(1, 1, -1),
                KEY: inputs.key_positions.view(1, 1, -1),
                HEAD: heads,
            },
            "sequence": {SEQUENCE: torch.arange(batch, device=device).view(1, -1, 1), HEAD: heads},
        }
        evaluator = inputs.evaluator()
        for side, values in self.values.items():
            wanted = tuple(node for node in self.nodes if side_of(node) == side)
            evaluator.run(_column_schedule(wanted), values)

    def evaluate(self, node: Expr, side: str) -> Value:
        """A node over all rows of `side`."""
        values = self.values[side]
        if node not in values:
            self.inputs.evaluator().run(schedule((node,), values), values)
        return values[node]

    def whole(self, node: Expr, rows: int) -> Tensor:
        """A one-sided node over b and i as a tensor [rows]."""
        value = self.inputs.evaluator().tensor(self.evaluate(node, "query"), node.dtype)
        return value.reshape(-1).expand(rows)

    def of_block(self, block: Block) -> dict[Expr, Value]:
        """What a block's schedule is given: its slices of the columns, and the indices."""
        known: dict[Expr, Value] = {SEQUENCE: block.b, HEAD: self.values["sequence"][HEAD]}
        known[QUERY] = self.values["query"][QUERY][:, block.r0 : block.r1]
        known[KEY] = self.values["key"][KEY][:, :, block.k0 : block.k1]
        for node in self.nodes:
            side = side_of(node)
            value = self.values[side][node]
            if isinstance(value, Tensor) and value.dim() == 3:
                if side == "query":
                    value = value[:, block.r0 : block.r1]
                elif side == "key":
                    value = value[:, :, block.k0 : block.k1]
                elif "b" in node.free:
                    value = value[:, block.b : block.b + 1]
            known[node] = value
        return known


# ---------------------------------------------------------------------------------------------- operands


def head_map(expr: Expr, inputs: Inputs) -> list[int]:
    """The operand head that each output head reads."""
    values: dict[Expr, Value] = {HEAD: torch.arange(inputs.heads)}
    evaluator = Evaluator({}, inputs.sizes, torch.device("cpu"))
    evaluator.run(schedule((expr,), values), values)
    heads: list[int] = evaluator.tensor(values[expr], "i").expand(inputs.heads).tolist()
    return heads


def by_head(rows: Tensor, heads: Sequence[int]) -> Tensor:
    """[rows, H', d] -> [len(heads), rows, d], a view where the map is the identity."""
    if list(heads) == list(range(rows.shape[1])):
        return rows.transpose(0, 1)
    if len(set(heads)) == 1:
        return rows[:, heads[0]].unsqueeze(0).expand(len(heads), -1, -1)
    return rows.transpose(0, 1)[torch.tensor(heads, device=rows.device)]


def add_by_head(total: Tensor, part: Tensor, heads: Sequence[int]) -> None:
    """Add `part` [H, rows, d] into `total` [rows, H', d], each head where `heads` says."""
    if list(heads) == list(range(total.shape[1])):
        total += part.transpose(0, 1)
    else:
        total.index_add_(1, torch.tensor(heads, device=total.device), part.transpose(0, 1).to(total.dtype))


def block_evaluator(inputs: Inputs, block: Block) -> Evaluator:
    """An evaluator whose dropout is that of the places: see gr_compile.ops.noise."""
    evaluator = inputs.evaluator()
    if inputs.seed is None or not inputs.program.has_dropout:
        return evaluator
    device = inputs.device
    sequence = torch.full((), block.b, dtype=torch.int64, device=device)
    heads = torch.arange(inputs.heads, device=device).view(-1, 1, 1)
    queries = inputs.query_positions[block.r0 : block.r1].view(1, -1, 1)
    row = row_noise(inputs.seed, sequence, heads, queries)
    keys = inputs.key_positions[block.k0 : block.k1].view(1, 1, -1)

    @functools.cache
    def noise(p: float, dtype: torch.dtype) -> Tensor:
        return kept(row, keys, p).to(dtype).mul_(1 / (1 - p) if p < 1 else 0.0)

    evaluator.noise = noise
    return evaluator
