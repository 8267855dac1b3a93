"""Two buffers for the segments of a table in a file: one is computed on while a thread reads or writes the other.

    forward    0  1  2  3      reads 0 and 1; 2 while 1 is computed on; ...
    backward   3  2  1  0      3 and 2 are in the buffers still: only 1 and 0 are read
    forward    0  1  2  3      so are 0 and 1

Only the pages that lookups touch are read, runs of them at a time. What a buffer holds is remembered page by page.
"""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from gr_compile.offload.segments import Pages, Segments, extents_to_read, extents_to_write
from gr_compile.offload.table_file import PAGE, TableFile

_BUFFERS = 2


@dataclass(eq=False)
class _Buffer:
    memory: mmap.mmap
    address: int
    segment: int = -1
    valid: Pages = field(default_factory=lambda: np.zeros(0, np.bool_))
    work: list[Future[None]] = field(default_factory=list)


class SegmentBuffers:
    """The buffers of one table. One sweep at a time.

    Attributes:
        waited: seconds that sweeps have waited for the file.
    """

    def __init__(self, file: TableFile, segments: Segments) -> None:
        self.file, self.segments, self.waited = file, segments, 0.0
        self._buffers = [_buffer(segments.pages * PAGE) for _ in range(min(_BUFFERS, segments.count))]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gr_compile-offload")

    def sweep(self, order: Sequence[int], needed: Pages, changes: bool = False) -> Iterator[tuple[int, int]]:
        """(segment, address of its first row) in the given order, its `needed` pages ([pages of the file]) there.

        `changes`: those pages are written back behind the caller, who has changed them.

        Raises:
            TableFileError: the file is short, or there is an error of the disk; the buffers are empty then.
        """
        self.file.check()
        touched = [segment for segment in order if needed[self.segments.pages_of(segment)].any()]
        try:
            ready = self._request(touched[0], needed, busy=None) if touched else None
            for position, segment in enumerate(touched):
                assert ready is not None
                buffer = ready
                following = touched[position + 1 : position + 2]
                ready = self._request(following[0], needed, busy=buffer) if following else None
                self._wait(buffer)
                try:
                    yield segment, buffer.address
                finally:
                    if changes:
                        self._submit(buffer, self._write, needed[self.segments.pages_of(segment)])
        except BaseException:
            self.forget()
            raise

    def prefetch(self) -> None:
        """Begin to read the segments with which the next forward begins, whole: their lookups are not known yet."""
        everything = np.ones(self.segments.pages_of(self.segments.count - 1).stop, np.bool_)
        busy: _Buffer | None = None
        for segment in range(len(self._buffers)):
            busy = self._request(segment, everything, busy)

    def settle(self) -> None:
        """Wait until what was changed is written. TableFileError: it is not."""
        try:
            for buffer in self._buffers:
                self._wait(buffer)
        except BaseException:
            self.forget()
            raise

    def forget(self) -> None:
        """What the buffers hold is read anew: the file was changed by others, or something failed."""
        for buffer in self._buffers:
            for work in buffer.work:
                work.exception()  # waits for it; whoever forgets has an error already
            buffer.work.clear()
            buffer.segment = -1

    def close(self) -> None:
        """No sweep follows."""
        self._thread.shutdown()

    # --------------------------------------------------------------------------------------------- requests
    def _request(self, segment: int, needed: Pages, busy: _Buffer | None) -> _Buffer:
        """The buffer that will hold a segment: the one that does, or the one that is not `busy`."""
        free = [buffer for buffer in self._buffers if buffer is not busy]
        buffer = next((buffer for buffer in free if buffer.segment == segment), free[0])
        wanted = needed[self.segments.pages_of(segment)]
        if buffer.segment != segment:
            buffer.segment = segment
            self._submit(buffer, self._empty, wanted)
        self._submit(buffer, self._read, wanted)
        return buffer

    def _submit(self, buffer: _Buffer, work: object, pages: Pages) -> None:
        buffer.work.append(self._thread.submit(work, buffer, buffer.segment, pages))  # type: ignore[arg-type]

    def _wait(self, buffer: _Buffer) -> None:
        start = time.perf_counter()
        try:
            while buffer.work:
                buffer.work[0].result()
                buffer.work.pop(0)
        finally:
            self.waited += time.perf_counter() - start

    # ----------------------------------------------------------------------------------- in the other thread
    def _empty(self, buffer: _Buffer, segment: int, wanted: Pages) -> None:
        buffer.valid = np.zeros(len(wanted), np.bool_)

    def _read(self, buffer: _Buffer, segment: int, wanted: Pages) -> None:
        first = self.segments.pages_of(segment).start
        for begin, end in list(extents_to_read(wanted, buffer.valid)):
            self.file.read(_view(buffer, begin, end), (first + begin) * PAGE)
            buffer.valid[begin:end] = True

    def _write(self, buffer: _Buffer, segment: int, changed: Pages) -> None:
        first = self.segments.pages_of(segment).start
        for begin, end in extents_to_write(changed, buffer.valid):
            self.file.write(_view(buffer, begin, end), (first + begin) * PAGE)


def _buffer(size: int) -> _Buffer:
    """Memory that begins with a page. MemoryError: there is not so much."""
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"there is no memory for a segment of {size} bytes: take more segments") from error
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return _Buffer(memory, ctypes.addressof(ctypes.c_char.from_buffer(memory)))


def _view(buffer: _Buffer, begin: int, end: int) -> memoryview:
    return memoryview(buffer.memory)[begin * PAGE : end * PAGE]
