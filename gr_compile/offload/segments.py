"""How a table is cut into segments of rows, and which pages of a segment go to or from its file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gr_compile.offload.table_file import PAGE

_GAP = 48  # pages that nobody needs, read along: a disk takes about as long to leap over them

Pages = NDArray[np.bool_]


@dataclass(frozen=True)
class Segments:
    """Rows 0..rows-1 in `count` ranges of `segment_rows`, of which the last may be shorter; whole pages each."""

    rows: int
    row_bytes: int
    segment_rows: int

    @classmethod
    def of(cls, rows: int, row_bytes: int, segments: int) -> Segments:
        """At most `segments`, and fewer where pages are too large for so many."""
        step = PAGE // math.gcd(PAGE, row_bytes)  # rows that fill whole pages
        return cls(rows, row_bytes, max(step, -(-rows // segments // step) * step))

    @property
    def count(self) -> int:
        return -(-self.rows // self.segment_rows)

    @property
    def pages(self) -> int:
        """Of a whole segment."""
        return self.segment_rows * self.row_bytes // PAGE

    def rows_of(self, segment: int) -> range:
        """The segment's rows."""
        first = segment * self.segment_rows
        return range(first, min(first + self.segment_rows, self.rows))

    def pages_of(self, segment: int) -> slice:
        """The segment's pages, among those of the file."""
        last = -(-self.rows * self.row_bytes // PAGE)
        return slice(segment * self.pages, min((segment + 1) * self.pages, last))


def extents_to_read(needed: Pages, valid: Pages) -> Iterator[tuple[int, int]]:
    """Runs (begin, end) of pages that are needed and not there, small gaps included."""
    missing = np.flatnonzero(needed & ~valid)
    yield from _runs(missing, np.diff(missing) > _GAP)


def extents_to_write(changed: Pages, valid: Pages) -> Iterator[tuple[int, int]]:
    """Runs of pages that have changed; a gap between two is written along where its pages are there."""
    pages = np.flatnonzero(changed)
    absent = np.cumsum(~valid)[pages]
    yield from _runs(pages, (np.diff(pages) > _GAP) | (np.diff(absent) > 0))


def _runs(pages: NDArray[np.intp], parted: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    if len(pages):
        ends = np.flatnonzero(parted)
        begins = [0, *(ends + 1)]
        for begin, end in zip(begins, [*ends, len(pages) - 1]):
            yield int(pages[begin]), int(pages[end]) + 1
