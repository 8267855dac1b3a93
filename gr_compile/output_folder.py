"""A folder that is written whole or not at all, and is told from folders of other people.

    .out-x1y2/running       locked while its process lives
    .out-x1y2/part/         what is being written; takes the place of out/ when it is whole
    .out-x1y2/before/       what was in out/, for the moment in which the two change places

A process that was killed leaves such a folder behind; the next one puts back what was in out/ and removes the rest.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

_LOCK, _PART, _BEFORE = "running", "part", "before"


class FolderError(RuntimeError):
    """A folder that cannot be written, or that holds what is not ours; the message says what to do."""


@contextmanager
def written_whole(out: Path, report: str, keys: Set[str]) -> Iterator[Path]:
    """A scratch folder beside `out` that takes its place when the block succeeds and vanishes when it does not,
    with the folders that were made to hold it.

    Args:
        report, keys: a JSON file, and keys in it, that tell a whole folder of ours, which is replaced.

    Raises:
        FolderError: `out` cannot be written, or holds something else. Errors of the block are its own: see `writing`.
    """
    out = out.absolute()
    with ExitStack() as held:
        with writing(out):
            _recover(out)
            _check_place(out, report, keys)
            held.callback(_remove_empty, [folder for folder in out.parents if not folder.exists()])
            out.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
            held.callback(shutil.rmtree, scratch, ignore_errors=True)
            fcntl.flock(held.enter_context((scratch / _LOCK).open("w")), fcntl.LOCK_EX)
            (scratch / _PART).mkdir()
        yield scratch / _PART
        with writing(out):
            _check_place(out, report, keys)
            if out.exists():
                out.rename(scratch / _BEFORE)
            (scratch / _PART).rename(out)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """What the operating system refuses inside is a FolderError of `out`."""
    try:
        yield
    except OSError as error:
        raise FolderError(f"out={str(out)!r} cannot be written: {error}") from error


def _remove_empty(folders: Sequence[Path]) -> None:
    """Folders that were made for `out`, the innermost first, where it did not come to stand in them."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _recover(out: Path) -> None:
    """Undo what a process that was killed has left; what one that runs has, stays."""
    for left in sorted(out.parent.glob(f".{out.name}-*")) if out.parent.is_dir() else ():
        if not (left / _LOCK).is_file():
            continue
        with (left / _LOCK).open("r+") as running:
            if not _locked(running):
                continue
            if (left / _BEFORE).is_dir() and not out.exists():
                (left / _BEFORE).rename(out)
            shutil.rmtree(left)


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _check_place(out: Path, report: str, keys: Set[str]) -> None:
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise FolderError(f"out={str(out)!r} is no folder")
    if not any(out.iterdir()) or _is_ours(out / report, keys):
        return
    raise FolderError(
        f"out={str(out)!r} holds files, and no whole {report} of gr_compile.lower among them: remove the folder, or "
        "name another"
    )


def _is_ours(report: Path, keys: Set[str]) -> bool:
    try:
        found = json.loads(report.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and keys <= found.keys()
