"""What of Ascend's software is on this host: found by folders and variables, without importing any of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

TOOLKITS = ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")
USUAL = Path("/usr/local/Ascend")


def cann_folder(environment: Mapping[str, str] = os.environ, usual: Path = USUAL) -> Path | None:
    """Where CANN is: a folder that its set_env.sh names, or the usual one."""
    named = [Path(environment[key]) for key in TOOLKITS if environment.get(key)]
    candidates = (*named, usual / "ascend-toolkit" / "latest", usual / "latest")
    return next((folder for folder in candidates if folder.is_dir()), None)


def operator_packages(environment: Mapping[str, str], cann: Path | None) -> list[Path]:
    """Folders that hold implementations of AscendC operators."""
    folders = [Path(part) for part in environment.get("ASCEND_CUSTOM_OPP_PATH", "").split(os.pathsep) if part]
    named = environment.get("ASCEND_OPP_PATH")
    vendors = (Path(named) if named else cann / "opp" if cann is not None else Path()) / "vendors"
    if (named or cann is not None) and vendors.is_dir():
        folders += sorted(path for path in vendors.iterdir() if path.is_dir())
    return [folder for folder in folders if (folder / "op_impl").is_dir()]


def lacking(environment: Mapping[str, str] = os.environ, usual: Path = USUAL) -> list[str]:
    """What running on an NPU needs and this host has not."""
    cann = cann_folder(environment, usual)
    found = {
        "torch_npu": find_spec("torch_npu") is not None,
        "CANN": cann is not None,
        "an operator package with the gr:: operators": any(
            path.name == "gr_compile" for path in operator_packages(environment, cann)
        ),
    }
    return [name for name, here in found.items() if not here]
