"""GE graphs of captured graphs: written for another process, converted there, read back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gr_compile
from gr_compile.lowering.torchair.files import TorchairFiles
from gr_compile.lowering.torchair.request import Converted, Request

_SECONDS = 1800


class ConversionFailed(RuntimeError):
    """The process that converts did not come to its end; the message is what it said last."""


@dataclass(frozen=True)
class Converter:
    """A process that has imported torchair, or is about to, and converts one list of graphs.

    Attributes:
        folder: where the graphs' files lie, those of each in a folder of its own.
    """

    process: subprocess.Popen[str]
    folder: Path

    def convert(self, requests: Sequence[Request]) -> list[Converted]:
        """Convert graphs; each has its folder below `folder`, with its .pbtxt files. Only once.

        Raises:
            ConversionFailed: the process ended before all graphs were looked at.
        """
        folders = [request.write(self.folder) for request in requests]
        if not folders:
            return []
        try:
            _, said = self.process.communicate("".join(f"{own.resolve()}\n" for own in folders), timeout=_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ConversionFailed(f"torchair's converter did not end within {_SECONDS} s") from error
        if self.process.returncode:
            lines = [line for line in said.splitlines() if line.strip()]
            raise ConversionFailed(f"torchair's converter failed: {lines[-1] if lines else 'it said nothing'}")
        return [Converted.read(own) for own in folders]


@contextmanager
def converter(files: TorchairFiles, folder: Path) -> Iterator[Converter]:
    """A process that converts. It starts at once: its imports take seconds, in which the caller has other work."""
    command = [sys.executable, "-m", "gr_compile.lowering.torchair.child"]
    pipe, nowhere = subprocess.PIPE, subprocess.DEVNULL
    process = subprocess.Popen(
        command, env=_environment(files), cwd=folder, stdin=pipe, stdout=nowhere, stderr=pipe, text=True
    )
    try:
        yield Converter(process, folder)
    finally:
        process.kill()  # it may still wait for graphs that never come; one that has ended does not mind
        process.communicate()


def _environment(files: TorchairFiles) -> dict[str, str]:
    """torchair's folders in front; torch does not look for back ends; our package is the one that runs here."""
    own = str(Path(gr_compile.__file__).parents[1])
    paths = [*(str(path) for path in files.paths), own, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
