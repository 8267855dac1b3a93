"""What of Ascend's software is on this host: found by folders and variables, without importing any of it here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from gr_compile.autoload import AUTOLOAD, torch_npu_version
from gr_compile.lowering.ascendc.operators import VENDOR

TOOLKITS = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
USUAL = Path("/usr/local/Ascend")
DEVICES = Path("/dev")
_SECONDS = 120


def cann_folder(environment: Mapping[str, str] = os.environ, usual: Path = USUAL) -> Path | None:
    """Where CANN is: a folder that its set_env.sh names, or the usual one."""
    named = [Path(environment[key]) for key in TOOLKITS if environment.get(key)]
    candidates = (*named, usual / "ascend-toolkit" / "latest", usual / "latest")
    return next((folder for folder in candidates if folder.is_dir()), None)


def operator_packages(environment: Mapping[str, str], cann: Path | None) -> list[Path]:
    """Folders that hold implementations of AscendC operators, each once."""
    folders = [Path(part) for part in environment.get("ASCEND_CUSTOM_OPP_PATH", "").split(os.pathsep) if part]
    named = environment.get("ASCEND_OPP_PATH")
    vendors = (Path(named) if named else cann / "opp" if cann is not None else Path()) / "vendors"
    if (named or cann is not None) and vendors.is_dir():
        folders += sorted(path for path in vendors.iterdir() if path.is_dir())
    found = {folder.resolve(): folder for folder in reversed(folders) if (folder / "op_impl").is_dir()}
    return list(reversed(found.values()))


def devices(folder: Path = DEVICES) -> list[str]:
    """Names of Ascend devices, such as davinci0."""
    return sorted(path.name for path in folder.glob("davinci[0-9]*"))


def failure(statement: str, environment: Mapping[str, str]) -> str | None:
    """What a process of its own that runs this statement says when it fails; None where it does not."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", statement], env=dict(environment), capture_output=True, text=True, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return None if done.returncode == 0 else done.stderr


def torch_npu_works() -> bool:
    """Whether torch_npu is here, or can be imported: that is tried in a process of its own."""
    if "torch_npu" in sys.modules:
        return True
    return torch_npu_version() is not None and failure("import torch, torch_npu", {**os.environ, AUTOLOAD: "0"}) is None


def lacking(
    environment: Mapping[str, str] = os.environ,
    usual: Path = USUAL,
    folder: Path = DEVICES,
    torch_npu: Callable[[], bool] = torch_npu_works,
) -> list[str]:
    """What running on an NPU needs and this host has not. `torch_npu`: whether it can be imported."""
    cann = cann_folder(environment, usual)
    packages = operator_packages(environment, cann)
    found = {
        "a torch_npu that can be imported": torch_npu(),
        "CANN": cann is not None,
        f"an operator package with the gr:: operators (vendors/{VENDOR})": any(p.name == VENDOR for p in packages),
        f"an Ascend device ({folder}/davinci*)": bool(devices(folder)),
    }
    return [name for name, here in found.items() if not here]
