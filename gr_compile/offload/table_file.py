"""A table of rows in a file, read and written by position: a file that was cut short is an error, and no signal.

The rows lie one after the other, as torch keeps a contiguous tensor, and zeros fill up the last page. Pages go past the
system's page cache where the file system allows that (O_DIRECT): a table that is larger than memory would only
push other things out of it. Where it does not, what was read or written is dropped from the cache at once.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

PAGE = 4096  # bytes: the unit in which a file is read and written
_ONCE = 256 << 20  # bytes of one call: the system takes less than 2 GiB


class TableFileError(OSError):
    """The file of a table is missing, short, or cannot be written. What is in memory is as it was."""


@dataclass
class Traffic:
    """What went between the file and memory: bytes, and the seconds that the calls took."""

    bytes_read: int = 0
    bytes_written: int = 0
    seconds: float = 0.0


class TableFile:
    """The file of a table [rows, width] of `dtype`.

    Raises:
        TableFileError: there is no such file, it is not as large as the table, or cannot be opened.
    """

    def __init__(self, path: Path, rows: int, width: int, dtype: torch.dtype, writable: bool = True) -> None:
        self.path, self.rows, self.width, self.dtype, self.writable = path.absolute(), rows, width, dtype, writable
        self.row_bytes = width * dtype.itemsize
        self.size = size_of(rows, width, dtype)
        self.traffic = Traffic()
        mode = os.O_RDWR if writable else os.O_RDONLY
        self._cached = _opened(self.path, mode)
        self._direct = _opened_direct(self.path, mode)
        try:
            self.check()
        except TableFileError:
            self.close()
            raise

    def check(self) -> None:
        """TableFileError where the file is not as large as the table: its mapping must not be touched then."""
        found = os.fstat(self._cached).st_size
        if found != self.size:
            raise self.resized(found)

    def resized(self, found: int) -> TableFileError:
        """The error of a file whose size has changed."""
        return TableFileError(
            errno.EIO,
            f"the file of a table [{self.rows}, {self.width}] of {self.dtype} has {found} bytes and must have "
            f"{self.size}: it was changed while it was used, or holds another table. Parameters in memory and "
            "checkpoints are as they were. Put a copy of the file in its place (offload.load reads one), and start "
            "again from the checkpoint that belongs to it",
            str(self.path),
        )

    def read(self, into: memoryview, offset: int) -> None:
        """Fill whole pages of memory from `offset`, a multiple of PAGE, on."""
        self._whole(os.preadv, into, offset)
        self.traffic.bytes_read += len(into)

    def write(self, pages: memoryview, offset: int) -> None:
        """Write whole pages of memory from `offset` on. TableFileError: some may be written."""
        self.check()  # a write behind the end would make a short file whole again, but for its rows
        self._whole(os.pwritev, pages, offset)
        self.traffic.bytes_written += len(pages)

    def _whole(self, call: Callable[[int, list[memoryview], int], int], memory: memoryview, offset: int) -> None:
        start = time.perf_counter()
        try:
            done = 0
            while done < len(memory):
                moved = self._moved(call, memory[done : done + _ONCE], offset + done)
                if not moved:
                    raise self.resized(os.fstat(self._cached).st_size)
                done += moved
        except OSError as error:
            if isinstance(error, TableFileError):
                raise
            raise TableFileError(error.errno, error.strerror, str(self.path)) from error
        finally:
            self.traffic.seconds += time.perf_counter() - start

    def _moved(self, call: Callable[[int, list[memoryview], int], int], memory: memoryview, offset: int) -> int:
        """How many bytes one call has moved, whole pages of them."""
        if self._direct is not None:
            try:
                return call(self._direct, [memory], offset) // PAGE * PAGE
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                os.close(self._direct)  # a file system that opens a file so, and does not read it
                self._direct = None
        moved = call(self._cached, [memory], offset)
        if call is os.pwritev:
            os.fdatasync(self._cached)  # pages that wait to be written are not dropped
        drop_cached(self._cached, offset, moved)
        return moved // PAGE * PAGE

    def make_whole(self) -> None:
        """Give the file its size again. TableFileError: there is no room."""
        try:
            os.ftruncate(self._cached, self.size)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._cached, 0, self.size)
        except OSError as error:
            raise TableFileError(error.errno, error.strerror, str(self.path)) from error

    def synchronize(self) -> None:
        """What was written is on the disk when this returns."""
        if self.writable:
            os.fsync(self._cached)

    @property
    def is_direct(self) -> bool:
        """Whether pages go past the page cache."""
        return self._direct is not None

    def close(self) -> None:
        """The file is not read any more."""
        for handle in (self._cached, self._direct):
            if handle is not None:
                os.close(handle)


def size_of(rows: int, width: int, dtype: torch.dtype) -> int:
    """Bytes of a table's file: whole pages."""
    return -(-rows * width * dtype.itemsize // PAGE) * PAGE


def drop_cached(handle: int, offset: int = 0, size: int = 0) -> None:
    """Drop clean pages of a file (size 0: all behind `offset`) from the page cache, where the system can."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle, offset, size, os.POSIX_FADV_DONTNEED)


def make_room(path: Path, size: int) -> None:
    """A file of zeros whose pages the disk has set aside; an existing one is replaced.

    Raises:
        TableFileError: the disk has no room; there is no file then.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            if hasattr(os, "posix_fallocate") and size:
                os.posix_fallocate(handle, 0, size)
            os.ftruncate(handle, size)
        finally:
            os.close(handle)
    except OSError as error:
        path.unlink(missing_ok=True)
        what = f"there is no room for {size} bytes ({error.strerror}); name a folder on another disk"
        raise TableFileError(error.errno, what, str(path)) from error


def _opened(path: Path, mode: int) -> int:
    try:
        return os.open(path, mode)
    except FileNotFoundError as error:
        what = "there is no such file of a table; offload.move writes one"
        raise TableFileError(error.errno, what, str(path)) from error
    except OSError as error:
        hint = "; writable=False opens a table that is only read" if error.errno in (errno.EACCES, errno.EROFS) else ""
        raise TableFileError(error.errno, f"{error.strerror}{hint}", str(path)) from error


def _opened_direct(path: Path, mode: int) -> int | None:
    if not hasattr(os, "O_DIRECT"):
        return None
    try:
        return os.open(path, mode | os.O_DIRECT)
    except OSError:  # tmpfs and network file systems have no such way
        return None
