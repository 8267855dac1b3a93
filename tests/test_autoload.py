"""An installed torch_npu without CANN breaks `import torch`; gr_compile says so, and what to do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gr_compile import autoload


def test_another_failure_of_torch_is_not_the_trap(monkeypatch):
    monkeypatch.setattr(autoload, "torch_npu_version", lambda: "2.13.0")
    assert autoload.is_trap("Failed to load the backend extension: torch_npu.")
    assert not autoload.is_trap("libtorch_cpu.so: cannot open shared object file")
    monkeypatch.setattr(autoload, "torch_npu_version", lambda: None)
    assert not autoload.is_trap("Failed to load the backend extension: torch_npu.")


@pytest.mark.parametrize("off", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_importing_gr_compile_beside_a_broken_torch_npu(tmp_path, off):
    (tmp_path / "torch_npu").mkdir()
    (tmp_path / "torch_npu" / "__init__.py").write_text("raise ImportError('libhccl.so: cannot open shared object')")
    info = tmp_path / "torch_npu-2.13.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch_npu\nVersion: 2.13.0\n")
    (info / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")
    root = Path(autoload.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    environment["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0" if off else "1"
    program = "from gr_compile.autoload import import_torch; import_torch()"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert (done.returncode == 0) == off
    assert off or "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in done.stderr.splitlines()[-1]
