"""Peak memory of this process over a stretch of work."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")


class PeakMemory:
    """Measures from `start` to `read`; on a GPU torch's allocator is asked, else the kernel.

    `baseline_bytes` is what was resident at `start`, garbage collected and the allocator's free pages given
    back, so `read() - baseline_bytes` is what the work itself needed. `resettable` is False where the kernel
    keeps one high-water mark for the process's life (no /proc); then the mark may predate `start`.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.resettable = True
        self.baseline_bytes = 0

    def start(self) -> None:
        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(self.device)
            self.baseline_bytes = torch.cuda.memory_allocated(self.device)
            return
        _return_free_pages()
        try:
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS (proc(5))
        except OSError:
            self.resettable = False
        self.baseline_bytes = _status_bytes("VmRSS") or _peak_of_life()

    def read(self) -> int:
        """The peak in bytes since `start`."""
        if self.device.startswith("cuda"):
            return int(torch.cuda.max_memory_allocated(self.device))
        return _status_bytes("VmHWM") or _peak_of_life()


def _status_bytes(field: str) -> int:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    for line in lines:
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    return 0


def _peak_of_life() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _return_free_pages() -> None:
    """Lets glibc give freed pages back, where there is a glibc."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return
