"""Tilings: what is chosen fits, and what cannot fit says where and by how much."""

from __future__ import annotations

import dataclasses

import pytest

from gr_compile.lowering.ascendc.attention.instructions import Work
from gr_compile.lowering.ascendc.machine import machine, machines
from gr_compile.lowering.ascendc.tiling import Demand, DoesNotFit, machine_share, solve

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
