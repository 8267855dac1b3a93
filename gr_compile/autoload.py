"""`import torch`, and what to do where torch_npu without CANN breaks it.

torch loads installed device back ends when it is imported. torch_npu needs CANN's libraries; without them its loading
fails, and `import torch` with it. `gr-compile doctor` must run there, since it says what is wrong: it runs without back
ends, and tries them in processes of their own. Other commands end with one line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import PurePath

AUTOLOAD = "TORCH_DEVICE_BACKEND_AUTOLOAD"  # "0": torch loads no back end
WAY_OUT = (
    "torch_npu is installed and cannot be loaded (it needs Huawei's CANN toolkit), so that `import torch` fails: set "
    f"{AUTOLOAD}=0 (then `gr-compile doctor` says more), or uninstall torch_npu; gr_compile lowers "
    "to Ascend without it"
)


def import_torch() -> None:
    """Import torch. In a process that is `gr-compile doctor`, without back ends.

    Raises:
        ImportError: torch_npu stops it; the message says what to do.
        SystemExit: the same, in a process that is another command of gr-compile.
    """
    command = command_line(sys.orig_argv)
    if command is not None and next((word for word in command if not word.startswith("-")), "") == "doctor":
        os.environ[AUTOLOAD] = "0"
    try:
        import torch  # noqa: F401
    except Exception as error:
        if not is_trap(str(error)):
            raise
        said = f"{WAY_OUT} ({type(error).__name__}: {str(error).splitlines()[0]})"
        if command is not None and "--debug" not in command:
            sys.exit(f"error: {said}")
        raise ImportError(said) from error


def command_line(words: Sequence[str]) -> list[str] | None:
    """The arguments of gr-compile where this is how the process was started; None: it is another program.

    Args:
        words: such as ["python", "/usr/bin/gr-compile", "doctor"] or ["python", "-m", "gr_compile.cli", "doctor"].
    """
    for at, word in enumerate(words, 1):
        if word == "-c":
            return None
        if word == "-m":
            return [*words[at + 1 :]] if words[at:] and words[at] == "gr_compile.cli" else None
        if PurePath(word).stem == "gr-compile":
            return [*words[at:]]
    return None


def is_trap(message: str) -> bool:
    """Does this failure of `import torch` come from loading torch_npu?"""
    return "torch_npu" in message and torch_npu_version() is not None


def torch_npu_version() -> str | None:
    """The installed torch_npu's version, without importing it."""
    try:
        return metadata.version("torch_npu")
    except metadata.PackageNotFoundError:
        return None
