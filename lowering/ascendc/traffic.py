"""Bytes that a tile of jagged attention moves between the cores and L2: scores and weights, rows and keys.

A cube core and its vector cores meet in global memory alone: a tile of scores is written and read, and so is one of
weights. K and V pass once for every block of rows. What all cores work on at a time is taken to lie in L2: their slots
of the workspace, the keys of a few sequences, and what heads share. Atomic additions are counted as writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gr_compile.lowering.ascendc.tiling import Demand


def traffic(demand: Demand, rows: int, columns: int, cores: int) -> float:
    """Bytes of a tile, both ways."""
    pairs, first = rows * columns, first_visits(demand, rows, cores)
    scores = bool(demand.d) * (1 + demand.phases) * demand.score_bytes
    if demand.backward:
        scores += (1 + demand.slopes) * demand.gradient_bytes
    shared = 4 * demand.shared * (1 + first) + 4 * demand.collected * (1 + first)
    keys = columns * (demand.d * demand.qk_bytes + demand.dv * demand.v_bytes + demand.phases * 8 * demand.kept_columns)
    if demand.backward:
        keys += columns * (4 * (demand.d + demand.dv) + (demand.phases > 1) * demand.d * demand.qk_bytes)
    tiles = max(demand.keys / columns, 1)  # of a block of rows: what is of rows is moved once for all of them
    return pairs * (scores + _weights(demand) + shared) + keys + rows * _of_rows(demand) / tiles


def _weights(demand: Demand) -> int:
    """Bytes of a pair's weight, and in the backward of its gradient: written and read, in float32 transposed, too."""
    q, v = demand.qk_bytes, demand.v_bytes
    if not demand.backward:
        return 2 * v
    slopes = 0 if not demand.d else 16 if q == 4 else 2 * q
    return slopes + (12 if v == 4 else 2 * v)


def _of_rows(demand: Demand) -> int:
    """Bytes of a row: q and O, or q, dO and dQ; one-sided values are few beside them."""
    return demand.d * (demand.qk_bytes + 4 * demand.backward) + demand.dv * demand.v_bytes


def first_visits(demand: Demand, rows: int, cores: int) -> float:
    """The part of all visits of a block of rows, one a head, at which shared values are made: the first one of a block,
    and one more where two cores share its heads.
    """
    blocks = max(demand.query_rows / rows, 1)
    return min(1.0, (blocks + cores) / (blocks * demand.heads))
