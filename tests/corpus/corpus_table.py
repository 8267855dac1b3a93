"""docs/models.md: what became of each published model, written by the long corpus test."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
_HEAD = """# Published models

Written by `pytest -m slow tests/corpus`, which runs each model as its package has it, unmodified. Do not edit.

{date}; {size}; 2 threads, float32; fill {fill:.0%}. Places: of the padded batch, computed after the passes, valid.
Speed: torch.compile's median time over ours, inference and training step. "Declared" rows declare the padding.

| model | packed | attentions fused | left dense, and why | places, computed, valid | inference | training |
|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """One model: matches of the two passes, operators over padded places, reasons of Misses, places, speed-ups."""

    name: str
    packed: int
    fused: int
    dense: Sequence[str]
    reasons: Sequence[str]
    places: int
    computed: int
    valid: int
    inference: float
    training: float

    def text(self) -> str:
        """A line of the table."""
        why = "; ".join(reason.replace("|", "/").replace("\n", " ")[:160] for reason in self.reasons)
        dense = f"{', '.join(self.dense)}: {why}" if self.dense else "–"
        cells = (
            self.name, "yes" if self.packed else "no", self.fused, dense,
            f"{self.places}, {self.computed}, {self.valid}", f"{self.inference:.1f}×", f"{self.training:.1f}×",
        )  # fmt: skip
        return f"| {' | '.join(map(str, cells))} |"


def write_table(rows: Sequence[Row], batch: int, n: int, fill: float) -> None:
    """The whole document."""
    head = _HEAD.format(date=datetime.date.today(), size=f"B = {batch}, N = {n}", fill=fill)
    DOCUMENT.write_text(head + "\n".join(row.text() for row in rows) + "\n")
