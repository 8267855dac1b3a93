"""Tilings of jagged attention: what fits a machine's buffers, and which of them costs least on paper.

A tile is `rows` queries by `columns` keys: scores of a tile are made by the cube core, `s_step` keys at a time, each of
its two vector cores turns half of the rows into weights, `vector_rows` by `vector_columns` at a time, and the cube
core multiplies them with V. Legal tilings are enumerated; every buffer is checked against the machine description. The
cost is that of the slowest of the units that run side by side, by the element:

    cube      (D + Dv) / (16 * 16 * inner)     inner: 16 of two bytes, 4 of four (inferred: a quarter of the rate)
    vector    passes / 64 / 2                  two cores, 64 elements a cycle; passes of the printed instructions
    scalar    pairs / 2                        where it goes over pairs one by one: a cycle each, which is the least
    memory    bytes / L2's bandwidth           traffic.py; a cube core and its vector cores have an equal part of L2's
    starts    what an instruction, a copy and a hand-over cost beside their elements, by assumption

The vector and the scalar unit of a core are taken to work one after the other, all others side by side. Tiles that
masks cut run other instructions than tiles that pass them; a hull's ends cut a part of a row's tiles. None of these is
measured: the choice is a ranking, and `Tiling.reason` says what bounds it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from gr_compile.lowering.ascendc.attention.instructions import NO_WORK, Work
from gr_compile.lowering.ascendc.machine import Machine
from gr_compile.lowering.ascendc.traffic import first_visits, traffic

SELECT_WORKSPACE = 8192  # of the unified buffer: Select's modes 1 and 2 keep it to themselves
_LANES = 64  # elements of float32 that the vector unit computes in a cycle
_START = 20  # cycles until an instruction of the vector unit works (assumed)
_HAND_OVER = 1000  # cycles of a cross-core flag and of the copies' latency, a tile (assumed)
_ROWS = (256, 192, 160, 128, 96, 64, 32, 16)
_COLUMNS = (512, 256, 128, 64)
_PARTS = (128, 64, 32, 16)
_STEPS = (256, 128, 64, 32, 16)
_VECTOR_ROWS = (96, 80, 64, 48, 40, 32, 24, 16, 8)


class DoesNotFit(ValueError):
    """No tiling of a kernel fits a machine; the message names the buffer that the smallest one overflows."""


@dataclass(frozen=True)
class Demand:
    """What a kernel needs.

    Attributes:
        d, dv: widths of q and of v; d is 0 where there is no product.
        qk_bytes, v_bytes: of an element.
        tiles, bits, rows, columns: slots of the vector code's registers; rows and columns: of a tile.
        kept_rows, kept_columns: one-sided values that lie in the unified buffer.
        tables: bytes of lookup tables there.
        edge, whole: what a tile costs a vector core, all phases together, where masks cut it and where none does.
        share, shared, heads, query_rows: what values cost that all heads share, how many there are, and how many heads
            of how many rows share them.
        keys: how many a row reads on average.
        bounds: whether the hull of a row's keys has a lower and an upper end.
        phases: how often a tile is gone over: 2 under a softmax. Scores are made once.
        slopes: how often gradients of weights are read, in the backward.
        score_bytes, gradient_bytes: of scores and of gradients of weights in the workspace.
        collected: sums over heads that a backward keeps there; `scatter`: what a tile costs where they reach tables,
            `strips`: whether the unified buffer holds strips of diagonals for that.
    """

    d: int
    dv: int
    qk_bytes: int
    v_bytes: int
    tiles: int
    bits: int
    rows: int
    columns: int
    kept_rows: int
    kept_columns: int
    tables: int
    edge: Work
    whole: Work
    share: Work
    shared: int
    heads: int
    query_rows: int
    keys: float
    bounds: tuple[bool, bool]
    phases: int
    backward: bool = False
    slopes: int = 0
    score_bytes: int = 4
    gradient_bytes: int = 4
    collected: int = 0
    scatter: Work = NO_WORK
    strips: bool = False

    @property
    def made(self) -> tuple[int, int]:
        """Products of a tile over D and over Dv."""
        return (3, 2) if self.backward else (1, 1)


@dataclass(frozen=True)
class Tiling:
    """A legal tiling.

    Attributes:
        d_step, c_step: how much of the inner size of Q K^T and P V lies in L0A and L0B at once.
        s_step, vector_columns: keys whose scores lie in L0C, and that the vector code takes, at once; 0: all of a tile.
        cube_cycles, vector_cycles, scalar_cycles, memory_cycles: of a tile; the scalar ones are among the vector ones.
        products: of the cube's cycles those that multiply.
        needed: the part of the pairs that lie in their row's hull; a tile's other pairs are work as well.
    """

    rows: int
    columns: int
    vector_rows: int
    d_step: int
    c_step: int
    buffers: Mapping[str, int]
    cube_cycles: float
    vector_cycles: float
    reason: str = ""
    scalar_cycles: float = 0.0
    memory_cycles: float = 0.0
    s_step: int = 0
    vector_columns: int = 0
    products: float = 0.0
    needed: float = 1.0

    @property
    def cycles(self) -> float:
        """Of the slowest unit, a tile."""
        return max(self.cube_cycles, self.vector_cycles, self.memory_cycles)

    @property
    def bound(self) -> str:
        """The unit that is slowest."""
        if self.cycles == self.memory_cycles:
            return "memory"
        if self.cycles == self.cube_cycles:
            return "the cube"
        return "the scalar unit" if 2 * self.scalar_cycles > self.vector_cycles else "the vector unit"

    @property
    def utilisation(self) -> float:
        """The part of the time that the cube multiplies, in the steady state of the pipeline."""
        return self.products / self.cycles


def up(x: int, to: int) -> int:
    return -(-x // to) * to


def scratch(demand: Demand, x: Tiling) -> int:
    """Bytes of the unified buffer beside the queues: what `Program::layout` takes, in its order."""
    columns = x.vector_columns or x.columns
    tile = x.vector_rows * columns
    wide = up(max(demand.d, demand.dv), 8)
    parts = [
        demand.tiles * tile * 4,
        demand.bits * up(tile // 8, 32),
        demand.rows * x.vector_rows * 4,
        demand.columns * columns * 4,
        demand.kept_rows * up(x.rows // 2, 8) * 4,
        demand.kept_columns * x.columns * 4,
        x.vector_rows * 32,
        demand.tables,
        8 * up(x.vector_rows + columns, 8) * 4 if demand.strips else 0,
        64 * wide + 256 if 4 in (demand.v_bytes, demand.qk_bytes) else 0,
    ]
    return sum(up(x, 32) for x in parts)


def solve(demand: Demand, machine: Machine) -> Tiling:
    """The legal tiling that costs least by the element.

    Raises:
        DoesNotFit: there is none.
    """
    found = [x for x in _candidates(demand, machine) if not _overflow(x, machine)]
    if not found:
        smallest = min(_candidates(demand, machine), key=lambda x: sum(x.buffers.values()))
        name, beyond = max(_overflow(smallest, machine).items(), key=lambda x: x[1])
        raise DoesNotFit(
            f"{machine.name}: {name} overflows by {beyond} bytes at the smallest tile, "
            f"{smallest.rows} x {smallest.columns}, {smallest.vector_rows} x {smallest.vector_columns} at a time"
        )
    best = min(found, key=lambda x: (x.cycles / (x.rows * x.columns * x.needed), -x.rows, -x.columns))
    full = max(machine_share(best, machine).items(), key=lambda x: x[1])
    busy = {"cube": best.products, "vector": best.vector_cycles - best.scalar_cycles,
            "scalar": best.scalar_cycles, "memory": best.memory_cycles}  # fmt: skip
    reason = (
        f"{best.rows} x {best.columns}, {best.vector_rows} x {best.vector_columns} at a time, is the cheapest "
        f"of {len(found)} tilings that fit {machine.name}: bound by {best.bound}; of the time "
        f"{', '.join(f'{unit} {cycles / best.cycles:.0%}' for unit, cycles in busy.items() if cycles)}; "
        f"fullest buffer {full[0]}, {full[1]:.0%}"
    )
    return replace(best, reason=reason)


def machine_share(tiling: Tiling, machine: Machine) -> dict[str, float]:
    """How full every buffer is."""
    return {name: size / _capacity(machine)[name] for name, size in tiling.buffers.items()}


def _capacity(machine: Machine) -> dict[str, int]:
    return {
        "UB": machine.unified_buffer - SELECT_WORKSPACE, "L1": machine.l1, "L0A": machine.l0a, "L0B": machine.l0b,
        "L0C": machine.l0c,
    }  # fmt: skip


def _overflow(tiling: Tiling, machine: Machine) -> dict[str, int]:
    capacity = _capacity(machine)
    return {name: size - capacity[name] for name, size in tiling.buffers.items() if size > capacity[name]}


def _candidates(demand: Demand, machine: Machine) -> Iterator[Tiling]:
    capacity = _capacity(machine)
    for rows, columns, part in itertools.product(_ROWS, _COLUMNS, _PARTS):
        if part > columns:
            continue
        for step in _STEPS:  # the longest that L0A and L0B hold
            d_step, c_step = min(step, up(max(demand.d, 16), 16)), min(step, columns)
            shape = Tiling(rows, columns, 8, d_step, c_step, {}, 0.0, 0.0, s_step=part, vector_columns=columns)
            buffers = _buffers(demand, shape)
            if all(buffers[x] <= capacity[x] for x in ("L0A", "L0B")):
                break
        yield from _costed(shape, demand, machine)


def _costed(shape: Tiling, demand: Demand, machine: Machine) -> Iterator[Tiling]:
    """Tilings of a shape with their buffers and costs, one for each number of rows that the vector code takes."""
    rows, columns, cores = shape.rows, shape.columns, machine.cube_cores
    first = first_visits(demand, rows, cores)
    share = _edges(demand, rows, columns)
    again = share * demand.edge.scalars + (1 - share) * demand.whole.scalars
    scalar = (again + (demand.share + demand.scatter).scalars * first) * rows / 2 * columns
    bandwidth = machine.l2_bandwidth / cores / (machine.megahertz * 1e6)
    memory = traffic(demand, rows, columns, cores) / bandwidth
    products, starts = _cube_cycles(demand, shape)
    for some, wide in itertools.product(_VECTOR_ROWS, _COLUMNS):
        if some > max(rows // 2, 8) or wide > columns:
            continue
        tiling = replace(shape, vector_rows=some, vector_columns=wide)
        edge, whole = (_vector_cycles(x, tiling) for x in (demand.edge, demand.whole))
        vector = share * edge + (1 - share) * whole + demand.phases * _HAND_OVER / 2
        vector += _vector_cycles(demand.share + demand.scatter, tiling) * first
        yield replace(
            tiling, buffers=_buffers(demand, tiling), cube_cycles=products + starts, vector_cycles=vector,
            scalar_cycles=scalar, memory_cycles=memory, products=products, needed=_needed(demand, rows, columns),
        )  # fmt: skip


def _cube_cycles(demand: Demand, shape: Tiling) -> tuple[float, float]:
    """Of a tile's products, and until copies into L0A and L0B and products start."""
    inner = {2: 16, 4: 4}
    of_d, of_dv = demand.made
    each = of_d * demand.d / inner[demand.qk_bytes] + of_dv * demand.dv / inner[demand.v_bytes]
    parts = shape.columns / (shape.s_step or shape.columns)
    loads = of_d * up(max(demand.d, 1), shape.d_step) / shape.d_step * parts
    loads += of_dv * max(shape.columns / shape.c_step, parts if demand.backward else 1)
    return shape.rows * shape.columns * each / 256, loads * _START


def _vector_cycles(work: Work, x: Tiling) -> float:
    """Of one of the two vector cores, a tile."""
    half, strips = x.rows / 2, x.vector_columns / _LANES
    parts = -(-half // x.vector_rows) * x.columns / x.vector_columns
    starts = parts * (work.issues + work.strips * strips + work.lines * x.vector_rows)
    return half * x.columns / _LANES * work.passes + starts * _START + half * x.columns * work.scalars


def _needed(demand: Demand, rows: int, columns: int) -> float:
    """The part of the pairs of a block's tiles that lie in the hull: tiles begin anywhere and end with their block."""
    low, high = demand.bounds
    beyond = (low * (rows + columns) + high * rows) / 2
    return demand.keys / (demand.keys + beyond)


def _edges(demand: Demand, rows: int, columns: int) -> float:
    """The part of all tiles that the ends of the hull cut: an end crosses a block of rows slantwise. Tiles begin where
    sequences begin, as causal masks do; a window's lower end is taken to lie anywhere.
    """
    low, high = demand.bounds
    if not low and not high:
        return 1.0
    tiles = max((demand.keys + rows * (1 if low and high else 0.5)) / columns, 1)
    across = max(rows / columns, 1)
    return min(1.0, (high * across + low * (across + 1)) / tiles)


def _buffers(demand: Demand, shape: Tiling) -> dict[str, int]:
    return (_backward_buffers if demand.backward else _forward_buffers)(demand, shape)


def _forward_buffers(demand: Demand, x: Tiling) -> dict[str, int]:
    """Bytes of runtime/vector.h and cube.h."""
    d, dv, q, v = up(demand.d, 16), up(demand.dv, 16), demand.qk_bytes, demand.v_bytes
    has, tile = demand.d > 0, x.vector_rows * x.vector_columns
    queues = 2 * tile * (demand.score_bytes * has + 4 * demand.shared) + 2 * up(tile * v, 32)
    return {
        "UB": scratch(demand, x) + queues,
        "L1": 2 * (has * (x.rows + x.s_step) * d * q + (dv + x.rows) * x.c_step * v),
        "L0A": 2 * max(has * x.rows * x.d_step * q, x.rows * x.c_step * v),
        "L0B": 2 * max(has * x.s_step * x.d_step * q, dv * x.c_step * v),
        "L0C": 2 * x.rows * x.s_step * 4 * has + x.rows * dv * 4,
    }


def _backward_buffers(demand: Demand, x: Tiling) -> dict[str, int]:
    """Bytes of runtime/gradients.h and backward_cube.h."""
    d, dv, q, v = up(demand.d, 16), up(demand.dv, 16), demand.qk_bytes, demand.v_bytes
    has, most, wide = demand.d > 0, max(q, v), max(d, dv)
    tile, turned = x.vector_rows * x.vector_columns, max(x.rows, x.s_step) * wide * 4
    held = has * (x.rows + x.columns) * d * q + x.rows * dv * v
    queues = 2 * (has * demand.score_bytes + demand.gradient_bytes + 4 * demand.shared) + 4 + 4 * demand.collected
    return {
        "UB": scratch(demand, x) + queues * tile,
        "L1": 3 * held + 2 * x.s_step * (dv * v + x.rows * most) + (turned if most == 4 else 0),
        "L0A": 2 * max(x.rows * x.d_step, max(x.rows, x.s_step) * x.c_step) * most,
        "L0B": 2 * max(x.s_step * x.d_step, wide * x.c_step) * most,
        "L0C": x.rows * x.s_step * 4 + x.s_step * wide * 4 + has * x.rows * d * 4,
    }
