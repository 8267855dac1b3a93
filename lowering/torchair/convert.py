"""GE graphs of captured graphs: written for another process, converted there, read back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import gr_compile
from gr_compile.lowering.torchair.files import TorchairFiles
from gr_compile.lowering.torchair.request import Converted, Request

_SECONDS = 1800


class ConversionFailed(RuntimeError):
    """The process that converts did not come to its end; the message is what it said last."""


def convert(requests: Sequence[Request], files: TorchairFiles, folder: Path) -> list[Converted]:
    """Convert graphs in one process; each has its folder below `folder`, with its .pbtxt files.

    Raises:
        ConversionFailed: the process ended before all graphs were looked at.
    """
    folders = [request.write(folder) for request in requests]
    if not folders:
        return []
    command = [sys.executable, "-m", "gr_compile.lowering.torchair.child", *(str(f.resolve()) for f in folders)]
    try:
        done = subprocess.run(
            command, env=_environment(files), cwd=folder, capture_output=True, text=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise ConversionFailed(f"torchair's converter did not end within {_SECONDS} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ConversionFailed(f"torchair's converter failed: {lines[-1] if lines else 'it said nothing'}")
    return [Converted.read(own) for own in folders]


def _environment(files: TorchairFiles) -> dict[str, str]:
    """torchair's folders in front; torch does not look for back ends; our package is the one that runs here."""
    own = str(Path(gr_compile.__file__).parents[1])
    paths = [*(str(path) for path in files.paths), own, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
