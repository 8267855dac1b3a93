"""Zeros whose pages come when they are written."""

from __future__ import annotations

import copy

import pytest
import torch

from gr_compile.benchmarking.memory import PeakMemory
from gr_compile.lowering.cpu.zeroed import zero_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 50_000])
def test_they_are_torchs(dtype: torch.dtype, rows: int) -> None:
    made = zero_rows(rows, 24, dtype)
    assert torch.equal(made, torch.zeros(rows, 24, dtype=dtype)) and made.dtype == dtype
    assert made.is_contiguous() and not made._is_view() and not made.is_shared()


def test_they_can_be_written_copied_and_outlive_what_made_them() -> None:
    made = zero_rows(20_000, 32, torch.float32)
    made[7] += 1
    other = copy.deepcopy(made)
    made.mul_(2)
    assert float(made.sum()) == 64 and float(other.sum()) == 32


def test_pages_come_when_they_are_written() -> None:
    memory = PeakMemory()
    memory.start()
    made = zero_rows(1_000_000, 64, torch.float32)
    made[500_000] = 1
    if not memory.resettable:
        pytest.skip("the kernel does not tell the peak")
    assert memory.read() - memory.baseline_bytes < made.nbytes / 4


def test_what_the_system_does_not_give_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="bytes"):
        zero_rows(1 << 46, 1 << 10, torch.float32)
