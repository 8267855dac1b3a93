"""Where torchair's Python files are: a folder that the user names, or a cache filled from torch_npu's wheel.

torch_npu itself is never imported, and its files are never put where Python finds them by itself: without CANN that
breaks `import torch`. Only `torch_npu/dynamo` is taken out of the wheel, without its libraries.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

VERSION = "2.13.0"
OVERRIDE = "GR_COMPILE_TORCHAIR"
_PINS = Path(__file__).with_name("wheels.txt")
_SECONDS = 900
_HINT = f"run `gr-compile doctor --fetch-torchair`, or set {OVERRIDE} to the torch_npu/dynamo folder of {VERSION}"


class TorchairMissing(Exception):
    """torchair's files cannot be used here; the message says why and what to do."""


@dataclass(frozen=True)
class TorchairFiles:
    """Usable files of torchair.

    Attributes:
        paths: what a process that imports torchair puts in front of `sys.path`.
        version: torch_npu's, or "unknown" where the folder does not say.
        origin: who named the folder, for people.
    """

    paths: tuple[Path, ...]
    version: str
    origin: str


def find() -> TorchairFiles:
    """The files that are here.

    Raises:
        TorchairMissing: there are none, or they are of another version.
    """
    named = os.environ.get(OVERRIDE)
    if named:
        return _checked(_dynamo_folder(Path(named).expanduser()), OVERRIDE)
    folder = _cache()
    if not (folder / "torch_npu" / "dynamo").is_dir():
        raise TorchairMissing(f"torchair's files are not in the cache ({folder}): {_HINT}")
    return _checked(folder / "torch_npu" / "dynamo", "the cache")


def fetch() -> TorchairFiles:
    """The files, downloaded into the cache the first time (about 45 MB, pinned by hash); never installed.

    Raises:
        TorchairMissing: pip cannot fetch them: no network, no wheel for this Python or machine, another content.
    """
    if os.environ.get(OVERRIDE):
        return find()
    folder = _cache()
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as scratch:
                _fill(Path(scratch), folder)
        except OSError as error:
            raise TorchairMissing(f"the cache {folder.parent} cannot be written: {error}") from error
    return find()


def _fill(scratch: Path, folder: Path) -> None:
    wheels, part = scratch / "wheels", scratch / "part"
    _download(wheels)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            if wheel.name.startswith("protobuf"):
                archive.extractall(
                    part / "protobuf"
                )  # a folder of its own: torch_npu's must not be importable beside it
            else:
                archive.extractall(part, [name for name in archive.namelist() if _is_wanted(name)])
    try:
        part.replace(folder)
    except OSError:
        if not folder.is_dir():  # another process was first
            raise


def _is_wanted(name: str) -> bool:
    return (name.startswith("torch_npu/dynamo/") and not name.endswith(".so")) or name == "torch_npu/version.py"


def _download(target: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--require-hashes", "--dest", str(target), "-r", str(_PINS)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TorchairMissing(f"pip cannot fetch torch_npu {VERSION}: {error}") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip said nothing"]
        raise TorchairMissing(f"pip cannot fetch torch_npu {VERSION}: {said[0]}")


def _cache() -> Path:
    """One folder for each content and Python: another pin is another folder, never a mixture."""
    named = os.environ.get("GR_COMPILE_CACHE")
    base = Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gr_compile"
    key = hashlib.sha256(_PINS.read_bytes() + sys.version.encode()).hexdigest()[:16]
    return base / "torchair" / key


def _dynamo_folder(named: Path) -> Path:
    for folder in (named, named / "torch_npu" / "dynamo", named / "dynamo"):
        if (folder / "torchair" / "__init__.py").is_file():
            return folder.resolve()
    raise TorchairMissing(f"{OVERRIDE}={named}: no torchair/__init__.py there; it is the torch_npu/dynamo folder")


def _checked(dynamo: Path, origin: str) -> TorchairFiles:
    version = _version_of(dynamo)
    if version not in (VERSION, "unknown"):
        raise TorchairMissing(f"{origin}: {dynamo} is of torch_npu {version}; torch 2.13 needs {VERSION}")
    return TorchairFiles((dynamo, *_protobuf()), version, origin)


def _version_of(dynamo: Path) -> str:
    """`__version__` of torch_npu/version.py beside the folder, without what a build adds behind the numbers."""
    try:
        text = (dynamo.parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    found = re.search(r"__version__\s*=\s*['\"](\d+\.\d+\.\d+)", text)
    return found[1] if found else "unknown"


def _protobuf() -> tuple[Path, ...]:
    """Where protobuf is, if it is not installed."""
    try:
        metadata.version("protobuf")
        return ()
    except metadata.PackageNotFoundError:
        pass
    folder = _cache() / "protobuf"
    if folder.is_dir():
        return (folder,)
    raise TorchairMissing(f"torchair needs protobuf, which is not installed: pip install protobuf, or {_HINT}")
