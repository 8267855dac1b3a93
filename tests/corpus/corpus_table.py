"""docs/models.md: what became of each published model. The long corpus test writes a row when it has measured a model."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
_HEAD = """# Published models

Written by `pytest -m slow tests/corpus`, which runs each model as its package has it, unmodified. Do not edit.

{size}; 2 threads, float32; fill {fill:.0%} and, in the last two columns, 100 %. Places: of the padded batch, computed after
the passes, valid. Speed: torch.compile's median time over ours, inference and training step. "Declared" rows declare the
padding.

"""
_COLUMNS = (
    "model", "packed", "attentions fused", "left dense, and why", "places, computed, valid", "inference", "training",
    "inference, full", "training, full", "measured",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One model: matches of the two passes, operators over padded places, reasons of Misses, places, speed-ups in
    the order of the columns."""

    name: str
    packed: int
    fused: int
    dense: Sequence[str]
    reasons: Sequence[str]
    places: int
    computed: int
    valid: int
    speeds: Sequence[float]

    def text(self) -> str:
        """A line of the table."""
        why = "; ".join(map(_short, self.reasons))
        if not why and self.computed == self.places:
            why = "the model reads every place, padded ones as well"
        dense = f"{', '.join(self.dense)}: {why}" if self.dense else "–"
        cells = (
            self.name, "yes" if self.packed else "no", self.fused, dense, f"{self.places}, {self.computed}, {self.valid}",
            *(f"{speed:.1f}×" for speed in self.speeds), datetime.date.today(),
        )  # fmt: skip
        return f"| {' | '.join(map(str, cells))} |"


def _short(reason: str) -> str:
    """A reason in a cell, without paths of the machine that wrote it."""
    return re.sub(r" in file `[^`]*`", "", reason).replace("|", "/").replace("\n", " ")[:160]


def write_row(row: Row, order: Sequence[str], batch: int, n: int, fill: float) -> None:
    """The document with this row in its place; the other models keep theirs."""
    lines = DOCUMENT.read_text().splitlines() if DOCUMENT.exists() else []
    known = {name: line for line in lines for name in order if line.startswith(f"| {name} |")} | {row.name: row.text()}
    head = _HEAD.format(size=f"B = {batch}, N = {n}", fill=fill)
    columns = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    DOCUMENT.write_text(head + "\n".join([*columns, *(known[name] for name in order if name in known)]) + "\n")
