"""The documents' table is what the cost model gives, and its tilings run: they fit, and their kernels are right."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from running import backward, distance, exact, forward
from torch import Tensor

from gr_compile.lowering.ascendc.machine import machine
from gr_compile.lowering.ascendc.on_paper import BATCH, LENGTH, WIDTH, Row, call, rows, table, tilings
from gr_compile.ops.attention_backward import attention_backward
from gr_compile.ops.attention_blocks import Inputs
from gr_compile.ops.attention_reference import attention
from gr_compile.ops.jagged_attention import inputs_of

DOCUMENT = Path(__file__).parents[4] / "docs" / "ascend.md"
MACHINE = machine("910b1")
ROWS = [pytest.param(x, id=f"{x.name}, {x.heads}") for x in rows()]
LENGTHS = [*([0] * (BATCH - 3)), 5, 530, 1]  # of the batch that the leaves are for; several tiles of any width


def test_the_table_of_the_documents() -> None:
    assert table(MACHINE) in DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize("row", ROWS)
def test_no_more_than_the_whole_time(row: Row) -> None:
    for tiling in tilings(row, MACHINE):
        assert 0 < tiling.utilisation <= tiling.products / tiling.memory_cycles and tiling.utilisation < 1


def _inputs(row: Row) -> Inputs:
    """Few tokens and two heads for the row's program; its leaves are as long as the table's."""
    torch.manual_seed(1)
    counts = torch.tensor(LENGTHS)
    offsets, places = torch.cat([counts.new_zeros(1), counts.cumsum(0)]), torch.cat([torch.arange(x) for x in LENGTHS])
    q, k, v = torch.randn(3, places.numel(), 2, WIDTH).half()
    times = 1_700_000_000 + torch.randint(0, 10**6, (BATCH, LENGTH)).sort(1).values
    of = {"position": torch.randn(2 * LENGTH - 1), "time": torch.randn(64), "times": times}
    leaves = [of[x] for x in row.program.leaves]
    assert tuple(tuple(x.shape) for x in leaves) == call(row).extents
    return inputs_of(q, k, v, leaves, offsets, places, offsets, places, 2, [LENGTH], None, row.program.text())


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_its_tilings_run(row: Row) -> None:
    found = _inputs(row)
    of_forward, of_backward = tilings(row, MACHINE)
    out = attention(exact(found))
    assert distance(forward(found, of_forward), out) < 5e-3
    grad = torch.randn(out.shape).half()
    needs = [True, True, True, *(x.is_floating_point() for x in found.leaves.values())]
    wanted: list[Tensor] = attention_backward(exact(found), grad.double(), needs)
    for got, want in zip(backward(found, grad, of_backward), [x for x, need in zip(wanted, needs) if need], strict=True):
        assert distance(got, want) < 5e-3
