"""What is known of a tensor that is the mapping of a file: the file, the buffers, and what is still to be added to it.

It hangs on the tensor's memory (its storage), so that parameters, views and what autograd saves of them lead to it, and
copies, which are ordinary memory, do not.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gr_compile.offload.buffers import SegmentBuffers
from gr_compile.offload.segments import Pages, Segments
from gr_compile.offload.table_file import PAGE, TableFile, Traffic

_NAME = "_gr_compile_stored"
_DENSE = 0.5  # of the pages of a segment: then the next step needs most of it, too
_SEGMENTS = 8  # of a table that no compiled graph has read yet


@dataclass(frozen=True)
class Rule:
    """What an optimizer does to a row with the gradient g.

    Without sums (SGD): row -= lr * g. With sums [rows] float32 (row-wise Adagrad, as FBGEMM has it):
    sums[row] += mean(g * g); row -= lr * g / (sqrt(sums[row]) + eps).
    """

    lr: float
    eps: float = 0.0
    sums: Tensor | None = None


class Recorded(Protocol):
    """Lookups of one backward and the gradients of their products: what the table's gradient is made of."""

    def pages(self, segments: Segments) -> Pages:
        """The pages of the file that hold rows with a gradient."""

    def update(self, all_recorded: Sequence[Any], rows: range, address: int, rule: Rule) -> None:
        """Apply a rule to rows of the table, the first at `address`, with the sum of all gradients."""


@dataclass
class _Pending:
    """An update that the file has not seen but for the segments that are done."""

    recorded: list[Recorded]
    rule: Rule
    done: set[int] = field(default_factory=set)


class StoredTable:
    """A table [rows, width] in a file, of which memory holds two segments.

    Attributes:
        collects: whether backwards record what they have for it, for an optimizer.
        recorded: what they have recorded since the last step, and how many `backwards` there were, empty ones too.
        lock: held while segments are read or written.
    """

    def __init__(self, file: TableFile) -> None:
        self.file, self.collects, self.lock = file, False, threading.RLock()
        self.recorded: list[Recorded] = []
        self.backwards = 0
        self._buffers: SegmentBuffers | None = None
        self._pending: _Pending | None = None
        self._version = -1

    # ----------------------------------------------------------------------------------------------- reading
    def segments(self, count: int) -> Segments:
        """The table's cut into about `count` segments."""
        return Segments.of(self.file.rows, self.file.row_bytes, count)

    def sweep(self, segments: Segments, needed: Pages, backward: bool = False) -> Iterator[tuple[range, int]]:
        """(rows, address of the first) of the segments with pages that are needed; in reverse for a backward.

        What an optimizer has left to do is done on the way.
        """
        with self.lock:
            buffers, pending = self._ready(segments), self._pending
            if pending is not None:
                needed = needed | self._pages(pending, segments)
            order = range(segments.count)
            for segment, address in buffers.sweep(order[::-1] if backward else order, needed, pending is not None):
                rows = segments.rows_of(segment)
                if pending is not None and segment not in pending.done:
                    pending.recorded[0].update(pending.recorded, rows, address, pending.rule)
                    pending.done.add(segment)
                yield rows, address
            self._pending = None

    def notice(self, table: Tensor) -> None:
        """Forget what the buffers hold where somebody has written to the mapping since; writes by .data are not seen.

        Raises:
            RuntimeError: a deferred step waits, which came before what was written.
        """
        version = -1 if table.is_inference() else table._version
        if version != self._version:
            if self._pending is not None:
                raise RuntimeError(
                    f"the weight in {self.file.path} was written while a deferred step waits: call offload.flush "
                    "before, and now offload.load to start from a copy"
                )
            self._version = version
            if self._buffers is not None:
                self._buffers.settle()
                self._buffers.forget()

    def _cut(self) -> Segments:
        """That of the buffers, where there are some."""
        return self.segments(_SEGMENTS) if self._buffers is None else self._buffers.segments

    def _ready(self, segments: Segments) -> SegmentBuffers:
        if self._buffers is None or self._buffers.segments != segments:
            self.release()
            self._buffers = SegmentBuffers(self.file, segments)
        return self._buffers

    # ----------------------------------------------------------------------------------------------- writing
    def update(self, table: Tensor, rule: Rule, deferred: bool) -> None:
        """Apply a rule with all that is recorded: now, or where the next forward comes by."""
        with self.lock:
            self.flush()
            self._pending = _Pending(self.recorded, rule)
            self.forget_recorded()
            torch.autograd.graph.increment_version(table)  # a backward of an older forward would read new rows
            self._version = table._version
            if not deferred:
                touched = self._pages(self._pending, self._cut())
                self.flush()
                if self._buffers is not None and touched[self._cut().pages_of(0)].mean() > _DENSE:
                    self._buffers.prefetch()

    def flush(self) -> None:
        """The file holds all that the table is when this returns."""
        with self.lock:
            buffers = self._buffers
            if self._pending is not None:
                segments = self._cut()
                self._buffers = buffers = buffers or SegmentBuffers(self.file, segments)
                for _ in self.sweep(segments, np.zeros(self.file.size // PAGE, np.bool_)):
                    pass
            if buffers is not None:
                buffers.settle()

    def forget_recorded(self) -> None:
        """No backward has been, as far as the next step is concerned."""
        self.recorded, self.backwards = [], 0

    def replace(self, content: Callable[[], None]) -> None:
        """Let `content` write the whole file; what was to be written to the old one is dropped."""
        with self.lock:
            self._pending = None
            self.forget_recorded()
            if self._buffers is not None:
                self._buffers.forget()
            self.file.make_whole()
            content()

    def release(self) -> None:
        """Give the memory of the buffers back; the next sweep takes it again."""
        with self.lock:
            self.flush()
            if self._buffers is not None:
                self._buffers.close()
            self._buffers = None

    def _pages(self, pending: _Pending, segments: Segments) -> Pages:
        found = np.logical_or.reduce([one.pages(segments) for one in pending.recorded])
        for segment in pending.done:
            found[segments.pages_of(segment)] = False
        return found  # type: ignore[no-any-return]

    # ------------------------------------------------------------------------------------------- measurement
    @property
    def traffic(self) -> Traffic:
        """Bytes and seconds of the file."""
        return self.file.traffic

    @property
    def waited(self) -> float:
        """Seconds for which computation has waited for the file, with the buffers that there are."""
        return 0.0 if self._buffers is None else self._buffers.waited

    def __del__(self) -> None:
        if self._pending is not None:
            warnings.warn(f"the last step of an optimizer is not in {self.file.path}: call flush()", stacklevel=1)
        if self._buffers is not None:
            self._buffers.close()
        self.file.close()


def mapped(path: Path, rows: int, width: int, dtype: torch.dtype, writable: bool) -> Tensor:
    """[rows, width]: the mapping of a table's file, with what is known of it.

    Raises:
        TableFileError: see TableFile.
    """
    file = TableFile(path, rows, width, dtype, writable)
    made = torch.from_file(str(file.path), shared=writable, size=rows * width, dtype=dtype)
    setattr(made.untyped_storage(), _NAME, StoredTable(file))
    return made.view(rows, width)


def stored_table(tensor: Tensor) -> StoredTable | None:
    """What is known of a tensor that is the whole of a file's table; None of others."""
    found: StoredTable | None = getattr(tensor.untyped_storage(), _NAME, None)
    if found is None or tensor.dtype != found.file.dtype or tensor.dim() != 2 or not tensor.is_contiguous():
        return None
    whole = tensor.storage_offset() == 0 and tuple(tensor.shape) == (found.file.rows, found.file.width)
    return found if whole else None


def check_file(tensor: Tensor) -> None:
    """TableFileError where a tensor is a part of a file's table, and the file has become short."""
    found: StoredTable | None = getattr(tensor.untyped_storage(), _NAME, None)
    if found is not None:
        found.file.check()
