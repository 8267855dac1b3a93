"""Step times and what follows from them: tokens a second, MFU, the time that warming up took."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace

import torch

from gr_compile.benchmarking.flops import ModelCost, step_flops, utilisation
from gr_compile.training.data.batches import Batch


@dataclass(frozen=True)
class Speed:
    """Medians over the steps of a run, so that the few steps that compiled do not count.

    step_seconds: one optimizer step. tokens_per_second: valid tokens. useful_flops_per_second: formula in
    benchmarking/flops.py. mfu: that over `peak_flops` (0 when the peak was not measured). warm_up_seconds:
    what the slow steps (more than 3 times the median; compilation) took beyond the median.
    """

    steps: int
    step_seconds: float
    tokens_per_second: float
    useful_flops_per_second: float
    peak_flops: float
    mfu: float
    warm_up_seconds: float

    def against(self, peak_flops: float) -> Speed:
        """The same with another peak: runs that are compared share one."""
        mfu = utilisation(self.useful_flops_per_second, 1.0, peak_flops)
        return replace(self, peak_flops=peak_flops, mfu=mfu)


class StepClock:
    """Collects one entry a step."""

    def __init__(self, cost: ModelCost) -> None:
        self.cost = cost
        self.seconds: list[float] = []
        self.tokens: list[int] = []
        self.flops: list[int] = []

    def add(self, seconds: float, batches: list[Batch]) -> None:
        lengths = torch.cat([batch.lengths for batch in batches])
        places = sum(int((batch.targets != 0).sum()) for batch in batches)
        self.seconds.append(seconds)
        self.tokens.append(int(lengths.sum()))
        self.flops.append(step_flops(self.cost, lengths, places))

    def speed(self, peak_flops: float) -> Speed:
        """The medians; all zero when no step was taken (a run resumed at its end)."""
        if not self.seconds:
            return Speed(0, 0.0, 0.0, 0.0, peak_flops, 0.0, 0.0)
        median = statistics.median(self.seconds)
        flops = statistics.median(f / s for f, s in zip(self.flops, self.seconds))
        return Speed(
            steps=len(self.seconds),
            step_seconds=median,
            tokens_per_second=statistics.median(t / s for t, s in zip(self.tokens, self.seconds)),
            useful_flops_per_second=flops,
            peak_flops=peak_flops,
            mfu=utilisation(flops, 1.0, peak_flops),
            warm_up_seconds=sum(s - median for s in self.seconds if s > 3 * median),
        )
