"""Kernels that are not ours: the sources in the wheel fbgemm-ascend 1.5.0, fetched into the cache, never committed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from gr_compile.lowering.cpu.build import cache_folder

_REQUIREMENT = "fbgemm-ascend==1.5.0 --hash=sha256:da25e57997f97c23b940e83e63845701504ef43caf0b6b3f0a2c6ea930224b9f\n"
_WHEEL = "fbgemm_ascend-1.5.0-cp311-cp311-manylinux_2_34_x86_64.whl"
_PLATFORM = ("--python-version", "3.11", "--implementation", "cp", "--platform", "manylinux_2_34_x86_64")


def kernel_source(name: str) -> Path:
    """The .cpp of a kernel, beside its own headers. Skips the test where the wheel cannot be fetched."""
    folder = cache_folder().parent / "fbgemm-ascend-1.5.0"
    dynamic = f"fbgemm_ascend/opp/A2/vendors/{name}/op_impl/ai_core/tbe/{name}_impl/dynamic"
    source = folder / dynamic / f"{name}.cpp"
    if not source.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(_wheel(folder)) as wheel:
            for member in wheel.namelist():
                if member.startswith(f"{dynamic}/") and member.endswith((".h", ".cpp")):
                    wheel.extract(member, folder)
    return source


def _wheel(folder: Path) -> Path:
    wheel = folder / _WHEEL
    if not wheel.exists():
        with tempfile.TemporaryDirectory(dir=folder) as work:
            (Path(work) / "requirements.txt").write_text(_REQUIREMENT)
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"]
            command += [*_PLATFORM, "-d", work, "-r", str(Path(work) / "requirements.txt")]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if "HASHES" in done.stderr:
                raise AssertionError(done.stderr)
            if done.returncode:
                pytest.skip(f"the wheel cannot be fetched: {done.stderr[-300:]}")
            os.replace(Path(work) / _WHEEL, wheel)
    return wheel
