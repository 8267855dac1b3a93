"""A whole benchmark: every case with every contender that can express it, in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from gr_compile.benchmarking.child import Job
from gr_compile.benchmarking.contenders import absence
from gr_compile.benchmarking.runs import ContenderRun, Listener, PeakMeter, compare
from gr_compile.benchmarking.settings import BenchSettings, Mode


@dataclass(frozen=True)
class Case:
    """One fill and one mode."""

    settings: BenchSettings
    fill: float
    mode: Mode


@dataclass(frozen=True)
class Absence:
    """A contender that has no run in a mode, and why."""

    contender: str
    mode: Mode
    reason: str


@dataclass(frozen=True)
class Measured:
    """`runs[k]` are those of `cases[k]`, in the contenders' order. peak_flops: 0 where it was not measured."""

    cases: list[Case]
    runs: list[list[ContenderRun]]
    absent: list[Absence]
    peak_flops: float


def cases_of(settings: BenchSettings) -> list[Case]:
    """Every fill in every mode."""
    return [Case(settings, fill, mode) for mode in settings.modes for fill in settings.fills]


def measure(
    cases: Sequence[Case], listener: Listener, peers: Path, together: bool = True, with_peak: bool = True
) -> Measured:
    """Runs everything. Caches of compilers are empty at first and gone afterwards, so that the first case of
    a mode compiles cold; the peak of matrix products is measured before each case and at the end."""
    runs: list[list[ContenderRun]] = []
    absent: dict[tuple[str, Mode], Absence] = {}
    compiled: set[tuple[str, Mode]] = set()
    with ExitStack() as stack:
        caches = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gr-compile-bench-")))
        meter = None
        if with_peak and cases:
            meter = PeakMeter(_jobs(cases[0], [""], peers, caches)[0])
            stack.callback(meter.close)
        for case in cases:
            if meter is not None:
                meter.measure()
            names = []
            for name in case.settings.contenders:
                reason = absence(name, case.settings, case.mode, peers)
                if reason is None:
                    names.append(name)
                else:
                    absent[name, case.mode] = Absence(name, case.mode, reason)
            warm = frozenset(name for name, mode in compiled if mode == case.mode)
            runs.append(compare(_jobs(case, names, peers, caches), listener, warm, together))
            compiled |= {(name, case.mode) for name in names}
        peak = meter.measure() if meter is not None else 0.0
    return Measured(list(cases), runs, list(absent.values()), peak)


def _jobs(case: Case, names: Sequence[str], peers: Path, caches: Path) -> list[Job]:
    environment = {
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "GR_COMPILE_CACHE": str(caches / "gr_compile"),
    }
    return [Job(name, case.settings, case.fill, case.mode, peers, environment) for name in names]
