"""Training steps of a sampled softmax: the table in memory, and the table in a file of which memory holds a part.

Both take SGD's step, the table in memory by torch.optim.SGD, its gradient made anew in each step. That in a file is
updated where the next forward reads it (deferred). In a memory cgroup, where one can be made, there is room for
the buffers and for `_STEP` bytes that a step needs beside the table.
"""

from __future__ import annotations

import itertools
import resource
import tempfile
import time
from pathlib import Path

import torch

import gr_compile
from gr_compile import offload
from gr_compile.benchmarking.losses import SampledSoftmax
from gr_compile.benchmarking.memory_cgroup import MemoryCgroup, limited_to
from gr_compile.benchmarking.settings import BenchSettings
from gr_compile.benchmarking.workload import Workload
from gr_compile.offload.stored import StoredTable, stored_table

_MEBIBYTE = 2**20
_STEP = 256 * _MEBIBYTE
_RATE = 0.01


class InMemoryTrial:
    """The fused loss, and torch.optim.SGD over the states and the whole table."""

    def __init__(self, workload: Workload, passes: str) -> None:
        self.workload, self.loss = workload, torch.empty(0)
        self.call = gr_compile.optimize(workload.module, passes=passes)
        self.optimizers: list[torch.optim.Optimizer] = [torch.optim.SGD(workload.module.parameters(), _RATE)]

    def run(self) -> dict[str, float]:
        """Seconds of one step and of its parts."""
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        times = [time.perf_counter()]
        loss = self.call(*self.workload.arguments)
        times.append(time.perf_counter())
        loss.backward()
        times.append(time.perf_counter())
        for optimizer in self.optimizers:
            optimizer.step()
        times.append(time.perf_counter())
        self.loss = loss.detach()
        parts = dict(zip(("forward", "backward", "update"), (b - a for a, b in itertools.pairwise(times))))
        return {"step": times[-1] - times[0], **parts}

    def checks(self) -> dict[str, float]:
        """The last loss, and the size of the states' gradient, after as many steps."""
        states = self.workload.module.get_parameter("states")
        assert states.grad is not None
        return {"output": float(self.loss), "gradients": float(states.grad.double().norm())}


class OffloadedTrial(InMemoryTrial):
    """The same with the table in a file, which has no name: it goes when the process does."""

    def __init__(self, workload: Workload, settings: BenchSettings) -> None:
        module = workload.module
        assert isinstance(module, SampledSoftmax)
        with tempfile.TemporaryDirectory(prefix="gr-compile-bench-", dir=settings.folder) as folder:
            offload.move(module.table, Path(folder) / "table")
        passes = f"{settings.passes},offload-negatives{{segments={settings.segments}}}"
        super().__init__(workload, passes)
        stored = stored_table(module.table.weight)
        assert stored is not None
        self.stored: StoredTable = stored
        rows = offload.SGD(module.table, _RATE, deferred=True)
        self.optimizers = [rows, torch.optim.SGD([module.states], _RATE)]
        cut = stored.segments(settings.segments)
        self.buffers = min(2, cut.count) * cut.segment_rows * cut.row_bytes
        self.group: MemoryCgroup | None = None
        self.steps = 0

    def run(self) -> dict[str, float]:
        """Also seconds that it waited, MB that went to and from the file, and major page faults, of this step."""
        if self.steps == 1:  # compiled: what follows is a step's own
            self.stored.release()
            self.group = limited_to(self.buffers + _STEP)
        self.steps += 1
        waited, faults, before = self.stored.waited, _major_faults(), _storage()
        found = super().run()
        after = _storage()
        found["waited"] = self.stored.waited - waited
        found["major_faults"] = float(_major_faults() - faults)
        found["read_mb"], found["written_mb"] = ((b - a) / _MEBIBYTE for a, b in zip(before, after))
        found["buffers_mb"] = self.buffers / _MEBIBYTE
        found["limit_mb"] = 0.0 if self.group is None else (self.buffers + _STEP) / _MEBIBYTE
        found["direct"] = float(self.stored.file.is_direct)
        return found

    def __del__(self) -> None:
        if hasattr(self, "stored"):
            self.stored.flush()
        if getattr(self, "group", None) is not None:
            self.group.leave()  # type: ignore[union-attr]


def _major_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def _storage() -> tuple[int, int]:
    """Bytes that this process had the storage read and write; (0, 0) where the system does not tell."""
    try:
        lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    except OSError:
        return 0, 0
    return int(lines["read_bytes"]), int(lines["write_bytes"])
