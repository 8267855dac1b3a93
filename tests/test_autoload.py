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


@pytest.fixture
def environment(tmp_path):
    """Of a process beside an installed torch_npu that cannot be loaded."""
    (tmp_path / "torch_npu").mkdir()
    (tmp_path / "torch_npu" / "__init__.py").write_text("raise ImportError('libhccl.so: cannot open shared object')")
    info = tmp_path / "torch_npu-2.13.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torch_npu\nVersion: 2.13.0\n")
    (info / "entry_points.txt").write_text("[torch.backends]\ntorch_npu = torch_npu:_autoload\n")
    root = Path(autoload.__file__).parents[1]
    return {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}", "TORCH_DEVICE_BACKEND_AUTOLOAD": "1"}


def run(environment, *words):
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("off", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_importing_gr_compile_beside_a_broken_torch_npu(environment, off):
    environment["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0" if off else "1"
    done = run(environment, "-c", "from gr_compile.autoload import import_torch; import_torch()")
    assert (done.returncode == 0) == off
    assert off or "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in done.stderr.splitlines()[-1]


@pytest.fixture
def script(tmp_path):
    """What pip writes for the command."""
    path = tmp_path / "gr-compile"
    path.write_text("import sys\nfrom gr_compile.cli.__main__ import main\nsys.exit(main())\n")
    return str(path)


def test_doctor_runs_beside_a_broken_torch_npu_and_says_the_way_out(environment, script):
    done = run(environment, script, "doctor")
    assert done.returncode == 0, done.stderr
    assert "broken" in done.stdout and "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in done.stdout


def test_another_command_is_one_line(environment, script):
    done = run(environment, script, "passes")
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "TORCH_DEVICE_BACKEND_AUTOLOAD=0" in done.stderr
    assert "Traceback" in run(environment, script, "--debug", "passes").stderr


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        (["python", "/usr/bin/gr-compile", "--debug", "doctor"], ["--debug", "doctor"]),
        (["python", "-X", "dev", "-m", "gr_compile.cli", "doctor"], ["doctor"]),
        (["python", r"C:\gr-compile.exe", "doctor"] if os.name == "nt" else ["gr-compile.exe", "doctor"], ["doctor"]),
        (["python", "-c", "import gr_compile", "gr-compile", "doctor"], None),
        (["python", "-m", "pytest", "doctor"], None),
        (["python", "train.py"], None),
        (["python"], None),
    ],
)
def test_what_is_a_command_of_gr_compile(words, arguments):
    assert autoload.command_line(words) == arguments
