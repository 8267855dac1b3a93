"""A memory limit of the system on this process, where it may set one: a cgroup of its own.

What the process allocates from then on, page cache of its files included, is counted; what it held before is not.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_VERSIONS = (("memory", _ROOT / "memory", "memory.limit_in_bytes"), ("", _ROOT, "memory.max"))


@dataclass
class MemoryCgroup:
    """A limit that holds. `leave` it, or the empty group stays."""

    folder: Path
    parent: Path

    def leave(self) -> None:
        """Back to where the process was; the group goes."""
        with contextlib.suppress(OSError):
            (self.parent / "cgroup.procs").write_text(str(os.getpid()))
            self.folder.rmdir()


def limited_to(size: int) -> MemoryCgroup | None:
    """A limit of `size` bytes for this process; None where the system lets it set none."""
    for controller, mount, file in _VERSIONS:
        parent = _own_group(controller, mount)
        if parent is None:
            continue
        folder = parent / f"gr-compile-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / file).write_text(str(size))
            (folder / "cgroup.procs").write_text(str(os.getpid()))
            return MemoryCgroup(folder, parent)
        except OSError:
            folder.rmdir()
    return None


def _own_group(controller: str, mount: Path) -> Path | None:
    """The folder of the group that this process is in."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return next((x for x in (mount / path.lstrip("/"), mount) if (x / "cgroup.procs").exists()), None)
    return None
