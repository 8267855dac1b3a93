"""Streams integer columns out of large delimited text files in bounded memory.

A block of bytes is cut at its last line end, checked for its number of fields, and parsed by numpy. Only when
a block is wrong is it read line by line, to name the first wrong line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from gr_compile.training.data.errors import DataError

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TextFormat:
    """A delimited file: its delimiter and its columns; `header` says whether line 1 names them."""

    delimiter: bytes
    columns: tuple[str, ...]
    header: bool


@dataclass(frozen=True)
class _Block:
    """Whole lines of a file; `first_line` counts from 1."""

    lines: list[bytes]
    first_line: int


def stream_columns(
    path: Path, text_format: TextFormat, wanted: Sequence[str], block_bytes: int = 1 << 24
) -> Iterator[Int64Array]:
    """Yields [rows, len(wanted)] int64 arrays, in file order; blank lines are passed over.

    Raises DataError for a missing file, an empty file, another header, a line with too few or too many
    fields, a field that is no integer, or a negative value.
    """
    rows = 0
    with _open(path) as handle:
        columns, first_line = _columns(handle, path, text_format)
        absent = [name for name in wanted if name not in columns]
        if absent:
            raise DataError(f"no column {absent[0]!r}; the file has {', '.join(columns)}", path, 1)
        use = tuple(columns.index(name) for name in wanted)
        for block in _blocks(handle, path, first_line, block_bytes):
            values = _parse(block, path, text_format.delimiter, len(columns), use)
            rows += len(values)
            yield values
    if rows == 0:
        raise DataError("holds no interactions", path)


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path) from error


def _columns(handle: BinaryIO, path: Path, text_format: TextFormat) -> tuple[tuple[str, ...], int]:
    """The file's own column names (types after a colon cut off) and the number of the first data line."""
    if not text_format.header:
        return text_format.columns, 1
    line = handle.readline().rstrip(b"\r\n").decode("utf-8", "replace").lstrip("\ufeff")
    names = line.split(text_format.delimiter.decode())
    found = tuple(name.split(":")[0].strip().strip('"') for name in names)
    absent = [name for name in text_format.columns if name not in found]
    if absent:
        raise DataError(f"the header lacks {', '.join(absent)}; it reads {line[:120]!r}", path, 1)
    return found, 2


def _blocks(handle: BinaryIO, path: Path, first_line: int, block_bytes: int) -> Iterator[_Block]:
    rest = b""
    while True:
        try:
            read = handle.read(block_bytes)
        except OSError as error:
            raise DataError(f"cannot be read: {error}", path, first_line) from error
        text = rest + read
        cut = text.rfind(b"\n") + 1 if read else len(text)
        rest = text[cut:]
        if cut:
            lines = text[:cut].splitlines()
            yield _Block(lines, first_line)
            first_line += len(lines)
        if not read:
            return


def _parse(block: _Block, path: Path, delimiter: bytes, num_fields: int, use: tuple[int, ...]) -> Int64Array:
    lines = [line for line in block.lines if line.strip()]
    if not lines:
        return np.empty((0, len(use)), dtype=np.int64)
    separator = b"\t" if len(delimiter) > 1 else delimiter
    separators = num_fields - 1
    if any(line.count(delimiter) != separators for line in lines):
        raise _first_error(block, path, delimiter, num_fields, use)
    texts = [line.replace(delimiter, separator) for line in lines] if separator != delimiter else lines
    try:
        values = np.loadtxt(
            [text.decode("ascii", "replace") for text in texts],
            dtype=np.int64,
            delimiter=separator.decode(),
            usecols=use,
            ndmin=2,
            comments=None,
        )
    except (ValueError, OverflowError) as error:
        raise _first_error(block, path, delimiter, num_fields, use) from error
    if len(values) != len(lines) or bool((values < 0).any()):
        raise _first_error(block, path, delimiter, num_fields, use)
    return values


def _first_error(
    block: _Block, path: Path, delimiter: bytes, num_fields: int, use: tuple[int, ...]
) -> DataError:
    """The error of the first line of the block that is wrong."""
    for number, line in enumerate(block.lines, start=block.first_line):
        if not line.strip():
            continue
        fields = line.split(delimiter)
        shown = line[:80].decode("utf-8", "replace")
        if len(fields) != num_fields:
            return DataError(f"{len(fields)} fields instead of {num_fields}: {shown!r}", path, number)
        for index in use:
            text = fields[index].strip()
            if not text.isdigit() or len(text) > 18:
                return DataError(f"field {index + 1} is not a whole number: {shown!r}", path, number)
    return DataError("cannot be parsed", path, block.first_line)
