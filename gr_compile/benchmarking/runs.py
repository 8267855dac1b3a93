"""Contenders side by side: starts their processes, lets them take turns, and collects what they measured."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from gr_compile.benchmarking.child import PEAK, Footprint, Job, WarmedUp, serve
from gr_compile.benchmarking.contenders import LABELS

Status = Literal["measured", "out of memory", "failed", "wrong"]
# Relative difference from the reference beyond which a contender computes something else.
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.1}


class Listener(Protocol):
    """Hears how far a benchmark is."""

    def update(self, stage: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` pieces of `stage` are finished."""

    def message(self, text: str) -> None:
        """A line that stays."""


@dataclass(frozen=True)
class ContenderRun:
    """What one contender gave for one fill and mode. Seconds are of single steps, all of them.

    first_seconds: the first step, compilation included. compile_seconds: that beyond a later step. cold:
    nothing that this contender compiled before lay in a cache. deviation: largest relative difference of
    output and gradients from the reference (eager, else torch.compile; of a table in a file: that in memory);
    None where there is none.
    """

    contender: str
    fill: float
    mode: str
    status: Status = "measured"
    reason: str | None = None
    samples: dict[str, list[float]] = field(default_factory=dict)
    first_seconds: float | None = None
    compile_seconds: float | None = None
    cold: bool = False
    footprint: Footprint | None = None
    checks: dict[str, float] = field(default_factory=dict)
    deviation: float | None = None

    def median(self, part: str = "step") -> float | None:
        """Median seconds of `step`, `forward` or `backward`; None where nothing was measured."""
        if self.status not in ("measured", "wrong") or part not in self.samples:
            return None
        return statistics.median(self.samples[part])


class ChildFailure(Exception):
    """A contender's process could not go on."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Contestant:
    """The parent's end of a contender's process."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self.job = job
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(job, theirs), name=f"gr-compile {job.contender}")
        self.process.start()
        theirs.close()

    def ask(self, request: str) -> Any:
        """The answer to a request; raises ChildFailure where there is none."""
        try:
            self.pipe.send(request)
            status, content = self.pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            raise self._ended() from error
        if status != "ok":
            raise ChildFailure(status, content)
        return content

    def close(self) -> None:
        """Ends the process, which has finished or is not wanted any more."""
        self.pipe.close()
        self.process.join(timeout=5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def _ended(self) -> ChildFailure:
        with contextlib.suppress(EOFError, OSError):  # it may have said why before it ended
            status, content = self.pipe.recv()
            return ChildFailure(status, content)
        self.process.join()
        code = self.process.exitcode
        if code == -9:
            return ChildFailure("out of memory", "the system killed the process")
        return ChildFailure("failed", f"the process ended with exit code {code}")


def compare(
    jobs: Sequence[Job], listener: Listener, known: frozenset[str] = frozenset(), together: bool = True
) -> list[ContenderRun]:
    """Runs the jobs of one fill and mode. `known` are the contenders whose caches are warm.

    `together`: all are alive at once and take turns, so that other work on the machine hits all alike.
    Otherwise one after the other: none takes memory from another.
    """
    if together:
        runs = _side_by_side(jobs, listener, known)
    else:
        runs = [run for job in jobs for run in _side_by_side([job], listener, known)]
    return with_deviations(runs, TOLERANCE[jobs[0].settings.dtype]) if jobs else []


def _side_by_side(
    jobs: Sequence[Job], listener: Listener, known: frozenset[str]
) -> list[ContenderRun]:
    contestants: dict[str, Contestant] = {}
    runs: dict[str, ContenderRun] = {}
    try:
        for job in jobs:
            listener.update(f"{stage_of(job)}: warming up", len(runs), len(jobs), LABELS[job.contender])
            run = ContenderRun(job.contender, job.fill, job.mode, cold=job.contender not in known)
            contestants[job.contender] = Contestant(job)
            runs[job.contender] = _warmed_up(contestants[job.contender], run)
            tell_warm_up(listener, job, runs[job.contender])
        repeats = jobs[0].settings.repeats if jobs else 0
        for turn in range(repeats):
            listener.update(stage_of(jobs[0]), turn, repeats)
            for name, contestant in contestants.items():
                runs[name] = _with_round(contestant, runs[name])
        for name, contestant in contestants.items():
            runs[name] = _finished(contestant, runs[name])
    finally:
        for contestant in contestants.values():
            contestant.close()
    return list(runs.values())


def stage_of(job: Job) -> str:
    """How a fill and a mode are called in progress."""
    return f"{job.mode}, fill {job.fill:.0%}, N {job.settings.max_seq_len}"


def tell_warm_up(listener: Listener, job: Job, run: ContenderRun) -> None:
    """One line: how long the first step took, or why there is no second."""
    said = f"{run.status}: {run.reason}" if run.reason else f"first step {run.first_seconds or 0:.1f} s"
    listener.message(f"{stage_of(job)}: {LABELS[job.contender]}: {said}")


def _warmed_up(contestant: Contestant, run: ContenderRun) -> ContenderRun:
    try:
        warm: WarmedUp = contestant.ask("warm_up")
    except ChildFailure as failure:
        return replace(run, status=failure.status, reason=failure.reason)
    compile_seconds = max(0.0, warm.first_seconds - warm.second_seconds)
    return replace(
        run, first_seconds=warm.first_seconds, compile_seconds=compile_seconds, checks=warm.checks
    )


def _with_round(contestant: Contestant, run: ContenderRun) -> ContenderRun:
    if run.status != "measured":
        return run
    try:
        found: list[dict[str, float]] = contestant.ask("round")
    except ChildFailure as failure:
        return replace(run, status=failure.status, reason=failure.reason)
    samples = {part: list(seconds) for part, seconds in run.samples.items()}
    for step in found:
        for part, seconds in step.items():
            samples.setdefault(part, []).append(seconds)
    return replace(run, samples=samples)


def _finished(contestant: Contestant, run: ContenderRun) -> ContenderRun:
    if run.status != "measured":
        return run
    try:
        return replace(run, footprint=contestant.ask("finish"))
    except ChildFailure as failure:
        return replace(run, status=failure.status, reason=failure.reason)


def with_deviations(runs: Sequence[ContenderRun], tolerance: float) -> list[ContenderRun]:
    """Compares each run's numbers with the reference's; one beyond the tolerance is marked `wrong`."""
    checked = {run.contender: run for run in runs if run.checks}
    reference = checked.get("eager") or checked.get("torch_compile")
    if reference is None and "offloaded" in checked:
        reference = checked.get("gr_compile")
    return [_compared(run, reference, tolerance) if reference else run for run in runs]


def _compared(run: ContenderRun, reference: ContenderRun, tolerance: float) -> ContenderRun:
    if not run.checks or run is reference or run.status != "measured":
        return run
    differences = [
        abs(run.checks.get(name, 0.0) - value) / max(abs(value), 1e-30)
        for name, value in reference.checks.items()
    ]
    if all(difference <= tolerance for difference in differences):
        return replace(run, deviation=max(differences))
    finite = all(map(math.isfinite, differences))
    deviation = max(differences) if finite else None
    said = f"{deviation:.1e}" if deviation is not None else "more than any number"
    reason = f"differs from {LABELS[reference.contender]} by {said}"
    return replace(run, status="wrong", reason=reason, deviation=deviation)


class PeakMeter:
    """A process of its own that measures the peak of matrix products whenever asked; the highest median
    counts, for other work on the machine only lowers it."""

    def __init__(self, job: Job) -> None:
        self.contestant = Contestant(replace(job, contender=PEAK))
        self.flops = 0.0

    def measure(self) -> float:
        """FLOPs a second: the highest so far."""
        for found in self.contestant.ask("round"):
            self.flops = max(self.flops, found["flops"])
        return self.flops

    def close(self) -> None:
        """Ends its process."""
        self.contestant.close()
