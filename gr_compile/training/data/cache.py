"""The cache folder of fetched and prepared data, and the check of what lies in it."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gr_compile.training.data.errors import DataError


def cache_dir() -> Path:
    """`GR_COMPILE_CACHE`, else `XDG_CACHE_HOME`/gr_compile, else ~/.cache/gr_compile."""
    override = os.environ.get("GR_COMPILE_CACHE")
    if override:
        return Path(override)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gr_compile"


def sha256_of(path: Path) -> str:
    """The file's sha256 as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while piece := handle.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def require_sha256(path: Path, expected: str) -> None:
    """Raises DataError unless the file has the expected content."""
    found = sha256_of(path)
    if found != expected:
        raise DataError(
            f"sha256 is {found[:16]}... instead of {expected[:16]}...; delete it to fetch again", path
        )


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A scratch folder that becomes `target` when the block succeeds and vanishes when it does not."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise DataError(f"the cache folder cannot be written: {error}", target.parent) from error
    try:
        yield scratch
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was first, with the same content
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
