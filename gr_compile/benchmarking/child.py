"""A contender's process: builds its workload, warms up, and does rounds of steps when told to.

One process for every contender, fill and mode, so that memory and compiler caches are its own. The processes
of one comparison live side by side and take turns; the parent tells whose turn it is.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from gr_compile.benchmarking.contenders import Trial, make_trial
from gr_compile.benchmarking.flops import peak_flops
from gr_compile.benchmarking.memory import PeakMemory
from gr_compile.benchmarking.settings import BenchSettings, Mode

ROUND_SECONDS = 0.3  # a contender repeats a short step within its turn
ROUND_STEPS = 10
PEAK = "gemm"  # the contender that measures the peak of matrix products


@dataclass(frozen=True)
class Job:
    """What one process does. `environment` is set before anything is compiled: folders of caches. `peers`
    is where fetched packages lie."""

    contender: str
    settings: BenchSettings
    fill: float
    mode: Mode
    peers: Path = Path()
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class WarmedUp:
    """Seconds of the first step, compilation included, and of the second; numbers to compare."""

    first_seconds: float
    second_seconds: float
    checks: dict[str, float]


@dataclass(frozen=True)
class Footprint:
    """Bytes above what the process held at its start, libraries loaded and nothing built.

    peak: over the whole life of the process, compilation included. steady_peak: over the steps after warm-up.
    step: what those add to what was resident before them.
    """

    peak: int
    steady_peak: int
    step: int = 0


def serve(job: Job, pipe: Connection) -> None:
    """The process: answers "warm-up", "round" and "finish", each with ("ok", what) or a failure."""
    os.environ.update(job.environment)
    try:
        offer_to_die_first()
        limit_memory(job.settings.memory_limit)
        torch.set_num_threads(job.settings.threads)
        contestant = _Contestant(job)
        while True:
            request = pipe.recv()
            pipe.send(("ok", getattr(contestant, request)()))
            if request == "finish":
                return
    except EOFError:  # the parent has gone
        return
    except Exception as error:
        kind = "out of memory" if is_out_of_memory(error) else "failed"
        pipe.send((kind, in_one_line(error)))


class _Contestant:
    def __init__(self, job: Job) -> None:
        load_libraries()
        self.job = job
        self.memory = PeakMemory()
        self.steady = PeakMemory()
        self.warm_peak = 0
        self.memory.start()
        self.trial: Trial | None = None if job.contender == PEAK else _trial(job)

    def warm_up(self) -> WarmedUp:
        trial = self.trial
        assert trial is not None
        start = time.perf_counter()
        trial.run()
        first = time.perf_counter() - start
        second = trial.run()["step"]
        checks = trial.checks()
        self.warm_peak = self.memory.read()
        self.steady.start()
        return WarmedUp(first, second, checks)

    def round(self) -> list[dict[str, float]]:
        """A step, or some where steps are short."""
        if self.trial is None:
            return [{"flops": peak_flops(dtype=self.job.settings.torch_dtype)}]
        found: list[dict[str, float]] = []
        start = time.perf_counter()
        while not found or (len(found) < ROUND_STEPS and time.perf_counter() - start < ROUND_SECONDS):
            found.append(self.trial.run())
        return found

    def finish(self) -> Footprint:
        steady = self.steady.read()
        peak = max(steady, self.warm_peak)
        base = self.memory.baseline_bytes
        return Footprint(peak - base, max(0, steady - base), max(0, steady - self.steady.baseline_bytes))


def _trial(job: Job) -> Trial:
    return make_trial(job.contender, job.settings, job.fill, job.mode, job.peers)


def load_libraries() -> None:
    """What every contender may import, so that no process counts it as memory of its own."""
    import torch._dynamo
    import torch._inductor.compile_fx  # noqa: F401

    import gr_compile
    import gr_compile.lowering.inductor

    gr_compile.list_passes()


def in_one_line(error: Exception, longest: int = 300) -> str:
    """What failed; a compiler's message may go on for pages."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= longest else text[: longest - 4] + " ..."


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, by torch's or by Python's words."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def offer_to_die_first() -> None:
    """Where memory runs out, Linux ends this process and not the one that waits for it."""
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        return


def limit_memory(gibibytes: float | None) -> None:
    """Allocations beyond the limit fail, instead of driving the machine into swap or another process out.

    None takes what the system says is available now; where it does not say, there is no limit.
    """
    try:
        import resource

        limit = int(gibibytes * 2**30) if gibibytes is not None else available_bytes()
        if limit:
            limit += _resident_data_bytes()
            _, hard = resource.getrlimit(resource.RLIMIT_DATA)
            allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))
    except (ImportError, OSError, ValueError):
        return


def available_bytes() -> int:
    """Memory that the system could give without swapping (MemAvailable); 0 where it does not say."""
    return _proc_bytes(Path("/proc/meminfo"), "MemAvailable")


def _resident_data_bytes() -> int:
    return _proc_bytes(Path("/proc/self/status"), "VmData")


def _proc_bytes(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), 0)


