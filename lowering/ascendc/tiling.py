"""Tilings of jagged attention: what fits a machine's buffers, and which of them costs least on paper.

A tile is `rows` queries by `columns` keys: scores of a tile are made by the cube core, each of its two vector cores
turns half of the rows into weights, `vector_rows` at a time, and the cube core multiplies them with V. Legal tilings
are enumerated; every buffer is checked against the machine description. The cost is that of the slowest of the units
that run side by side, by the element:

    cube      (D + Dv) / (16 * 16 * inner)     inner: 16 of two bytes, 4 of four (inferred: a quarter of the rate)
    vector    passes / 64 / 2                  two cores, 64 elements a cycle; passes of the printed instructions
    scalar    pairs / 2                        where it goes over pairs one by one: a cycle each, which is the least
    starts    what an instruction, a copy and a hand-over cost beside their elements, by assumption

Tiles that masks cut run other instructions than tiles that pass them; a hull's ends cut a part of a row's tiles. None
of these is measured: the choice is a ranking, and `Tiling.reason` says what bounds it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gr_compile.lowering.ascendc.attention.instructions import Work
from gr_compile.lowering.ascendc.machine import Machine

SELECT_WORKSPACE = 8192  # of the unified buffer: Select's modes 1 and 2 keep it to themselves
_LANES = 64  # elements of float32 that the vector unit computes in a cycle
_START = 20  # cycles until an instruction of the vector unit works (assumed)
_HAND_OVER = 1000  # cycles of a cross-core flag and of the copies' latency, a tile (assumed)
_SIZES = (256, 128, 64, 32, 16)


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
        phases: how often scores are made: 2 under a softmax.
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


@dataclass(frozen=True)
class Tiling:
    """A legal tiling; `d_step`, `c_step`: how much of the inner size of Q K^T and P V lies in L0A and L0B at once."""

    rows: int
    columns: int
    vector_rows: int
    d_step: int
    c_step: int
    buffers: Mapping[str, int]
    cube_cycles: float
    vector_cycles: float
    reason: str = ""
    scalar_cycles: float = 0.0  # of the vector cycles

    @property
    def cycles(self) -> float:
        """Of the slower unit, a tile."""
        return max(self.cube_cycles, self.vector_cycles)

    @property
    def utilisation(self) -> float:
        """The part of the time that the cube works, in the steady state of the pipeline."""
        return self.cube_cycles / self.cycles


def up(x: int, to: int) -> int:
    return -(-x // to) * to


def scratch(demand: Demand, rows: int, columns: int, vector_rows: int) -> int:
    """Bytes of the unified buffer beside the queues: what `Program::layout` takes, in its order."""
    tile = vector_rows * columns
    wide = up(max(demand.d, demand.dv), 8)
    parts = [
        demand.tiles * tile * 4,
        demand.bits * up(tile // 8, 32),
        demand.rows * vector_rows * 4,
        demand.columns * columns * 4,
        demand.kept_rows * up(rows // 2, 8) * 4,
        demand.kept_columns * columns * 4,
        vector_rows * 32,
        demand.tables,
        64 * wide + 256 if 4 in (demand.v_bytes, demand.qk_bytes) else 0,
    ]
    return sum(up(x, 32) for x in parts)


def solve(demand: Demand, machine: Machine) -> Tiling:
    """The legal tiling that costs least by the element.

    Raises:
        DoesNotFit: there is none.
    """
    found = [x for x in _candidates(demand, machine.cube_cores) if not _overflow(x, machine)]
    if not found:
        smallest = min(_candidates(demand, machine.cube_cores), key=lambda x: sum(x.buffers.values()))
        name, beyond = max(_overflow(smallest, machine).items(), key=lambda x: x[1])
        raise DoesNotFit(
            f"{machine.name}: {name} overflows by {beyond} bytes at the smallest tile, "
            f"{smallest.rows} x {smallest.columns}, {smallest.vector_rows} rows at a time"
        )
    best = min(found, key=lambda x: (x.cycles / (x.rows * x.columns), -x.rows, -x.columns))
    full = max(machine_share(best, machine).items(), key=lambda x: x[1])
    bound = "the cube" if best.cube_cycles >= best.vector_cycles else "the vector unit"
    if best.vector_cycles > max(best.cube_cycles, 2 * (best.vector_cycles - best.scalar_cycles)):
        bound = "the scalar unit"
    reason = (
        f"{best.rows} x {best.columns}, {best.vector_rows} rows at a time, is the cheapest of {len(found)} tilings "
        f"that fit {machine.name}: bound by {bound}, cube at {best.utilisation:.0%}; "
        f"fullest buffer {full[0]}, {full[1]:.0%}"
    )
    return Tiling(**{**best.__dict__, "reason": reason})


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


def _candidates(demand: Demand, cores: int) -> Iterator[Tiling]:
    columns = [x for x in _SIZES if x >= 64]
    for rows, wide, vector_rows in itertools.product(_SIZES, columns, (64, 32, 16, 8)):
        if vector_rows > max(rows // 2, 8):
            continue
        for step in (256, 128, 64, 32, 16):
            d_step, c_step = min(step, up(max(demand.d, 16), 16)), min(step, wide)
            yield _tiling(demand, cores, rows, wide, vector_rows, d_step, c_step)


def _tiling(
    demand: Demand, cores: int, rows: int, columns: int, vector_rows: int, d_step: int, c_step: int
) -> Tiling:
    q, v = demand.qk_bytes, demand.v_bytes
    buffers_of = _backward_buffers if demand.backward else _forward_buffers
    buffers = buffers_of(demand, rows, columns, vector_rows, d_step, c_step)
    inner = {2: 16, 4: 4}
    products = (demand.phases, 1) if not demand.backward else (demand.phases + 2, demand.phases + 1)
    cube = rows * columns * (products[0] * demand.d / inner[q] + products[1] * demand.dv / inner[v]) / 256
    share = _edges(demand, rows, columns)
    edge, whole = (_vector_cycles(x, rows, columns, vector_rows) for x in (demand.edge, demand.whole))
    vector = share * edge + (1 - share) * whole + demand.phases * _HAND_OVER / 2
    vector += _vector_cycles(demand.share, rows, columns, vector_rows) * _first_visits(demand, rows, cores)
    again = share * demand.edge.scalars + (1 - share) * demand.whole.scalars
    scalar = (again + demand.share.scalars * _first_visits(demand, rows, cores)) * rows / 2 * columns
    loads = (up(max(demand.d, 1), d_step) // d_step + columns // c_step) * _START
    return Tiling(
        rows, columns, vector_rows, d_step, c_step, buffers, cube + loads, vector, scalar_cycles=scalar
    )


def _vector_cycles(work: Work, rows: int, columns: int, vector_rows: int) -> float:
    """Of one of the two vector cores, a tile."""
    half, wide = rows / 2, columns / _LANES
    starts = half / vector_rows * (work.issues + work.strips * wide + work.lines * vector_rows)
    return half * wide * work.passes + starts * _START + half * columns * work.scalars


def _first_visits(demand: Demand, rows: int, cores: int) -> float:
    """The part of all visits of a block of rows, one a head, at which shared values are made: the first one of a block,
    and one more where two cores share its heads.
    """
    blocks = max(demand.query_rows / rows, 1)
    return min(1.0, (blocks + cores) / (blocks * demand.heads))


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


def _forward_buffers(
    demand: Demand, rows: int, columns: int, vector_rows: int, d_step: int, c_step: int
) -> dict[str, int]:
    """Bytes of runtime/vector.h and cube.h."""
    d, dv, q, v = up(demand.d, 16), up(demand.dv, 16), demand.qk_bytes, demand.v_bytes
    has, tile = demand.d > 0, vector_rows * columns
    return {
        "UB": scratch(demand, rows, columns, vector_rows) + 2 * tile * 4 * (has + demand.shared) + 2 * up(tile * v, 32),
        "L1": 2 * (has * (rows + columns) * d * q + (columns * dv + rows * columns) * v),
        "L0A": 2 * max(has * rows * d_step * q, rows * c_step * v),
        "L0B": 2 * max(has * columns * d_step * q, dv * c_step * v),
        "L0C": rows * columns * 4 * has + rows * dv * 4,
    }


def _backward_buffers(
    demand: Demand, rows: int, columns: int, vector_rows: int, d_step: int, c_step: int
) -> dict[str, int]:
    """Bytes of runtime/gradients.h and backward_cube.h."""
    d, dv, q, v = up(demand.d, 16), up(demand.dv, 16), demand.qk_bytes, demand.v_bytes
    has, most, wide = demand.d > 0, max(q, v), max(d, dv)
    return {
        "UB": scratch(demand, rows, columns, vector_rows)
        + (2 + has + 2 * demand.shared) * vector_rows * columns * 4,
        "L1": has * (rows + columns) * d * q + (rows + columns) * dv * v
        + (rows * columns + max(rows, columns) * wide) * most,
        "L0A": 2 * max(rows * d_step, max(rows, columns) * c_step) * most,
        "L0B": 2 * max(columns * d_step, wide * c_step) * most,
        "L0C": rows * columns * 4 + columns * wide * 4 + has * rows * d * 4,
    }
