"""`gr::stored_rows` on the CPU: named rows are marked, then converted in the table's order."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from gr_compile.lowering.cpu.call import whole_rows
from gr_compile.lowering.cpu.kernels import enabled, entry
from gr_compile.lowering.cpu.lanes import ELEMENT
from gr_compile.lowering.cpu.source import registered, runtime
from gr_compile.lowering.cpu.zeroed import zero_rows
from gr_compile.ops.registry import LIBRARY
from gr_compile.ops.stored_rows import check_operands, raise_bad_id, raise_large_value, stored_rows_reference

_FIELDS = ("threads", "places", "rows", "features", "table_row", "scaled", "table", "ids", "stored", "scale", "bad")
_SCALED = {"none": 0, "per-token": 1, "per-table": 2}
_NO_MEMORY, _BAD_ID, _TOO_LARGE = 1, 3, 5


class Arguments(ctypes.Structure):
    """`StoredArgs` of runtime/stored_rows.h: 64-bit integers and pointers, in its order."""

    _fields_ = [(name, ctypes.c_int64) for name in _FIELDS]


def source(table: torch.dtype, ids: torch.dtype, stored: torch.dtype) -> str:
    """The translation unit for a table, ids and stored rows of given dtypes."""
    types = f"typedef {ELEMENT[table]} TT;\ntypedef {ELEMENT[ids]} IT;\ntypedef {ELEMENT[stored]} ST;"
    return registered([runtime("vector.h"), types, runtime("memory.h"), runtime("stored_rows.h")], "gr_stored_rows")


@functools.lru_cache(maxsize=16)
def kernel(
    table: torch.dtype, ids: torch.dtype, stored: torch.dtype
) -> ctypes._CFuncPtr | None:  # type: ignore[name-defined]
    """The entry of a kernel; None where the reference has to do."""
    return entry(lambda: source(table, ids, stored), "gr_stored_rows")


def stored_rows(table: Tensor, ids: Tensor, dtype: torch.dtype, scale: str) -> tuple[Tensor, Tensor]:
    """The CPU's `gr::stored_rows`."""
    check_operands(table, ids, dtype, scale)
    of_kernels = table.dtype in (torch.float32, torch.bfloat16, torch.float16) and table.numel() and ids.numel()
    found = kernel(table.dtype, ids.dtype, dtype) if enabled() and of_kernels else None
    if found is None:
        return stored_rows_reference(table, ids, dtype, scale)
    rows, places = whole_rows(table), ids.contiguous()
    stored = zero_rows(table.shape[0], table.shape[1], dtype)
    made = torch.ones({"none": 0, "per-table": 1, "per-token": table.shape[0]}[scale])
    arguments = Arguments(
        torch.get_num_threads(), ids.numel(), *table.shape, rows.stride(0), _SCALED[scale],
        rows.data_ptr(), places.data_ptr(), stored.data_ptr(), made.data_ptr(),
    )  # fmt: skip
    status = found(ctypes.byref(arguments))
    if status == _NO_MEMORY:
        raise MemoryError("gr::stored_rows: there is no memory to mark the rows that are looked up")
    if status == _BAD_ID:
        raise_bad_id(ids, arguments.bad, table.shape[0])
    if status == _TOO_LARGE:
        row, feature = divmod(arguments.bad, table.shape[1])
        raise_large_value(table, row, feature, dtype)
    return stored, made


LIBRARY.impl("stored_rows", stored_rows, "CPU")
