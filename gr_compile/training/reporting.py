"""What a training run tells while it runs; the command line and the demo's processes each have their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class EpochRecord:
    """One epoch. `loss` is the mean over the epoch's targets; hit_rate and ndcg are of the validation split
    (at settings.top_k), None where the epoch was not evaluated; `seconds` covers training alone."""

    epoch: int
    loss: float
    hit_rate: float | None
    ndcg: float | None
    seconds: float


class Reporter(Protocol):
    """Told of every batch and of every epoch."""

    def batch(self, stage: str, done: int, total: int, loss: float | None) -> None:
        """`stage` is "epoch 3", "validation", "test"; `done` of `total` batches are finished."""

    def epoch(self, record: EpochRecord) -> None:
        """An epoch is finished and, where asked for, evaluated."""


class SilentReporter:
    """Tells nobody."""

    def batch(self, stage: str, done: int, total: int, loss: float | None) -> None:
        return

    def epoch(self, record: EpochRecord) -> None:
        return
