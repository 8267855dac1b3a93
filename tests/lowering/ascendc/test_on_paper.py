"""The documents' table is what the cost model gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from gr_compile.lowering.ascendc.machine import machine
from gr_compile.lowering.ascendc.on_paper import rows, table, tilings

DOCUMENT = Path(__file__).parents[3] / "docs" / "ascend.md"


def test_the_table_of_the_documents() -> None:
    assert table(machine("910b1")) in DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.parametrize("row", rows(), ids=[f"{x.name}, {x.heads}" for x in rows()])
def test_no_more_than_the_whole_time(row) -> None:
    for tiling in tilings(row, machine("910b1")):
        assert 0 < tiling.utilisation <= tiling.products / tiling.memory_cycles and tiling.utilisation < 1
