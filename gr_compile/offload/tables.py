"""Tables of a model into files and back: nn.Embedding modules whose weight is the mapping of a file."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gr_compile.offload.stored import StoredTable, mapped, stored_table
from gr_compile.offload.table_file import TableFile, TableFileError, make_room, size_of

_ONCE = 16 << 20  # bytes that are copied at a time
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def create(path: str | os.PathLike[str], rows: int, width: int, dtype: torch.dtype = torch.float32) -> None:
    """A table's file of zeros, its pages set aside on the disk; an existing file is replaced.

    Raises:
        TableFileError: the disk has no room, or nothing can be written there.
    """
    _check_dtype(dtype)
    if rows < 1 or width < 1:
        raise ValueError(f"a table has at least one row and one feature, not [{rows}, {width}]")
    make_room(Path(path), size_of(rows, width, dtype))


def move(table: nn.Embedding, path: str | os.PathLike[str]) -> nn.Embedding:
    """Write a table's weight to a new file, and make its mapping the weight. `table` itself, for chaining.

    Raises:
        TableFileError: as `create`; the table is as it was.
    """
    weight = table.weight.detach()
    rows, width = weight.shape
    create(path, rows, width, weight.dtype)
    file = TableFile(Path(path), rows, width, weight.dtype)
    try:
        _write(file, weight.contiguous())
    finally:
        file.close()
    return attach(table, path)


def attach(table: nn.Embedding, path: str | os.PathLike[str], writable: bool = True) -> nn.Embedding:
    """Make the mapping of a file the weight of a table, whose own weight is dropped (it may be on "meta").

    `writable=False`: the file is not changed, neither by an optimizer nor by what writes to the weight in memory.

    Raises:
        TableFileError: there is no such file, it has another size, or it cannot be opened.
    """
    weight = table.weight
    _check_dtype(weight.dtype)
    made = mapped(Path(path), weight.shape[0], weight.shape[1], weight.dtype, writable)
    table.weight = nn.Parameter(made, requires_grad=weight.requires_grad and writable)
    return table


def flush(table: nn.Embedding) -> None:
    """The file holds all that the table is, on the disk, when this returns.

    Raises:
        TableFileError: it cannot be written.
    """
    stored = _stored(table)
    stored.file.check()
    stored.flush()
    if stored.file.writable:
        _synchronize_mapping(table.weight)
        stored.file.synchronize()


def save(table: nn.Embedding, path: str | os.PathLike[str]) -> None:
    """Copy a table's file: a checkpoint of it. `path` holds the old copy or the new one, at any time.

    Raises:
        TableFileError: the table's file is short, or the copy cannot be written.
    """
    flush(table)
    source = _stored(table).file
    scratch = Path(path).with_name(Path(path).name + ".part")
    make_room(scratch, source.size)
    try:
        copy = TableFile(scratch, source.rows, source.width, source.dtype)
        try:
            _copy(source, copy)
            copy.synchronize()
        finally:
            copy.close()
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def load(table: nn.Embedding, path: str | os.PathLike[str]) -> None:
    """Read back what `save` has written, into the table's own file, which may have become short.

    Raises:
        TableFileError: the copy is missing or has another size (nothing has changed), or the disk has no room.
    """
    stored = _stored(table)
    source = TableFile(Path(path), stored.file.rows, stored.file.width, stored.file.dtype, writable=False)
    try:
        stored.replace(lambda: _copy(source, stored.file))
        torch.autograd.graph.increment_version(table.weight)
    finally:
        source.close()


def dense_state(model: nn.Module) -> dict[str, Any]:
    """The model's state_dict without weights that lie in files: what a checkpoint holds beside `save`d tables."""
    return {
        name: value for name, value in model.state_dict().items()
        if not isinstance(value, Tensor) or value.device.type != "cpu" or stored_table(value) is None
    }  # fmt: skip


def _stored(table: nn.Embedding) -> StoredTable:
    found = stored_table(table.weight)
    if found is None:
        raise ValueError("the table lies in no file: offload.move or offload.attach makes it so")
    return found


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in _DTYPES:
        raise ValueError(f"a table in a file is of {', '.join(map(str, _DTYPES))}, not {dtype}")


def _buffer() -> tuple[memoryview, int]:
    memory = mmap.mmap(-1, _ONCE)
    return memoryview(memory), ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _steps(size: int) -> Iterator[tuple[int, int]]:
    for offset in range(0, size, _ONCE):
        yield offset, min(_ONCE, size - offset)


def _write(file: TableFile, weight: Tensor) -> None:
    memory, address = _buffer()
    left = weight.numel() * weight.element_size()
    for offset, size in _steps(file.size):
        ctypes.memset(address, 0, size)
        ctypes.memmove(address, weight.data_ptr() + offset, min(size, left - offset))
        file.write(memory[:size], offset)


def _copy(source: TableFile, target: TableFile) -> None:
    memory, _ = _buffer()
    for offset, size in _steps(source.size):
        source.read(memory[:size], offset)
        target.write(memory[:size], offset)


def _synchronize_mapping(weight: Tensor) -> None:
    """What was written to the mapping in memory goes to the file."""
    size = weight.numel() * weight.element_size()
    if ctypes.CDLL(None, use_errno=True).msync(ctypes.c_void_p(weight.data_ptr()), ctypes.c_size_t(size), 4):
        number = ctypes.get_errno()
        raise TableFileError(number, f"the mapping of a table cannot be written: {os.strerror(number)}")
