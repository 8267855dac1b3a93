"""Tilings: what is chosen fits, and what cannot fit says where and by how much."""

from __future__ import annotations

import dataclasses

import pytest

from gr_compile.lowering.ascendc.attention.instructions import Work
from gr_compile.lowering.ascendc.machine import machine, machines
from gr_compile.lowering.ascendc.tiling import Demand, DoesNotFit, machine_share, solve
from gr_compile.lowering.ascendc.traffic import traffic

PLAIN = Demand(
    d=128, dv=128, qk_bytes=2, v_bytes=2, tiles=3, bits=1, rows=0, columns=0, kept_rows=2, kept_columns=2, tables=0,
    edge=Work(passes=12, issues=12), whole=Work(passes=6, issues=6), share=Work(),
    shared=0, heads=4, query_rows=4096, keys=512, bounds=(False, True), phases=1,
)  # fmt: skip


@pytest.mark.parametrize("name", machines())
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("d", "bytes_"), [(16, 2), (128, 2), (128, 4), (256, 2), (256, 4)])
def test_what_is_chosen_fits(name: str, backward: bool, d: int, bytes_: int) -> None:
    demand = dataclasses.replace(PLAIN, d=d, dv=d, qk_bytes=bytes_, v_bytes=bytes_, backward=backward)
    chosen = solve(demand, machine(name))
    assert max(machine_share(chosen, machine(name)).values()) <= 1
    assert machine(name).name in chosen.reason and "bound by" in chosen.reason


@pytest.mark.parametrize(
    ("work", "bandwidth", "bound"),
    [
        (Work(passes=6, issues=6), 1e12, "memory"), (Work(passes=1, issues=1), 1e15, "the cube"),
        (Work(passes=100, issues=100), 1e15, "the vector unit"), (Work(passes=6, scalars=3), 1e15, "the scalar unit"),
    ],
)  # fmt: skip
def test_what_bounds_is_said(work: Work, bandwidth: float, bound: str) -> None:
    found = solve(
        dataclasses.replace(PLAIN, edge=work, whole=work), dataclasses.replace(machine("910b1"), l2_bandwidth=bandwidth)
    )
    assert found.bound == bound and f"bound by {bound}" in found.reason


def test_slower_memory_gives_taller_tiles() -> None:
    slow, fast = (dataclasses.replace(machine("910b1"), l2_bandwidth=x) for x in (1e12, 1e15))
    assert solve(PLAIN, slow).rows > 64 and solve(PLAIN, slow).utilisation < solve(PLAIN, fast).utilisation


def test_traffic_of_a_tile() -> None:
    """Scores are written and read in float32, weights in two bytes; K, V, and a part of Q and O."""
    pairs, keys, rows = 128 * 256, 256 * (2 * 128 * 2 + 8 * 2), 128 * 2 * 128 * 2 / (512 / 256)
    assert traffic(PLAIN, 128, 256, 24) == pairs * (8 + 4) + keys + rows
    half = dataclasses.replace(PLAIN, score_bytes=2, phases=2)
    assert traffic(half, 128, 256, 24) == pairs * (6 + 4) + keys + 256 * 8 * 2 + rows


def test_a_smaller_buffer_gives_a_smaller_tile() -> None:
    whole = machine("910b1")
    less = dataclasses.replace(whole, l0c=whole.l0c // 8)
    assert solve(PLAIN, less).buffers["L0C"] <= less.l0c < solve(PLAIN, whole).buffers["L0C"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"tables": 200_000}, r"UB overflows by \d+ bytes"), ({"dv": 8192}, r"(L1|L0B|L0C|UB) overflows by \d+ bytes")],
)
def test_what_cannot_fit_names_the_buffer(change: dict[str, int], reason: str) -> None:
    with pytest.raises(DoesNotFit, match=reason):
        solve(dataclasses.replace(PLAIN, **change), machine("910b1"))
