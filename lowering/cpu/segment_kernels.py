"""Lookups by segments of their table, by the kernels of runtime/segmented_logits.h."""

from __future__ import annotations

import ctypes
import functools
import weakref
from collections.abc import Sequence

import numpy as np
import torch

from gr_compile.lowering.cpu.kernels import entry
from gr_compile.lowering.cpu.lanes import ELEMENT
from gr_compile.lowering.cpu.sampled_logits import BAD_GROUP, BAD_ID, NO_MEMORY, SampledCall
from gr_compile.lowering.cpu.source import runtime
from gr_compile.offload.segments import Pages, Segments
from gr_compile.offload.stored import Rule
from gr_compile.offload.table_file import PAGE
from gr_compile.ops.sampled_logits import raise_bad_group, raise_bad_id

_PARTS = ("memory.h", "sampled_logits.h", "sampled_logits_backward.h", "segmented_logits.h")
_ENTRIES = ("open", "close", "logits", "grad_query", "grad_table", "update")


class _Rule(ctypes.Structure):
    """`Rule` of runtime/segmented_logits.h, in its order."""

    _fields_ = [("lr", ctypes.c_double), ("eps", ctypes.c_double), ("sums", ctypes.c_int64)]


Entries = dict[str, ctypes._CFuncPtr]  # type: ignore[name-defined]


def source(table: torch.dtype, ids: torch.dtype) -> str:
    """The translation unit for a table and ids of given dtypes."""
    types = f"typedef {ELEMENT[table]} TT;\ntypedef TT GT;\ntypedef {ELEMENT[ids]} IT;"
    return "\n".join([runtime("vector.h"), types, *map(runtime, _PARTS)]) + "\n"


@functools.lru_cache(maxsize=16)
def entries(table: torch.dtype, ids: torch.dtype) -> Entries | None:
    """The functions of a translation unit by name; None where the reference has to do."""
    found = {name: entry(lambda: source(table, ids), f"gr_segments_{name}") for name in _ENTRIES}
    return None if None in found.values() else found


class KernelLookups:
    """One call's lookups in the order of segments. `grad`: of the logits, in a backward.

    Raises:
        IndexError: an id or a group is out of range.
        MemoryError: no memory for the kernel's lists.
    """

    def __init__(self, call: SampledCall, segments: Segments, functions: Entries, sorts: bool) -> None:
        self._call, self.segments, self._functions = call, segments, functions
        self._rows, self._row_bytes = call.table.shape[0], call.table.stride(0) * call.table.element_size()
        self._pages = np.zeros(-(-segments.rows * segments.row_bytes // PAGE), np.bool_)
        made = ctypes.c_void_p()
        marks = self._pages.ctypes.data_as(ctypes.c_void_p)
        sizes = (ctypes.c_int64(x) for x in (segments.segment_rows, sorts, PAGE))
        status = functions["open"](ctypes.byref(call.arguments), *sizes, marks, ctypes.byref(made))
        self._check(status)
        self.handle = made
        weakref.finalize(self, functions["close"], made)

    def pages(self, segments: Segments) -> Pages:
        """The pages of the table's file that lookups touch."""
        return self._pages

    def logits(self, rows: range, address: int) -> None:
        """The logits of a segment's rows, the first of which lies at `address`."""
        self._run("logits", rows, address, rows.start // self.segments.segment_rows)

    def grad_query(self, rows: range, address: int) -> None:
        """Add what a segment's rows give to the query's gradient."""
        self._run("grad_query", rows, address, rows.start // self.segments.segment_rows)

    def grad_table(self, rows: range, address: int) -> None:
        """The gradients of a segment's rows."""
        self._run("grad_table", rows, address, rows.start, rows.stop)

    def _run(self, name: str, rows: range, address: int, *numbers: int) -> None:
        status = self._functions[name](
            self.handle, self._first_row(rows, address), *(ctypes.c_int64(x) for x in numbers)
        )
        self._check(status)

    def _first_row(self, rows: range, address: int) -> ctypes.c_void_p:
        """Where row 0 of the table would be."""
        return ctypes.c_void_p((address - rows.start * self._row_bytes) % 2**64)

    def without_table(self) -> KernelLookups:
        """The same, to be kept by what hangs on the table's memory: it does not hold that memory."""
        self._call.forget_table()
        return self

    def update(self, all_recorded: Sequence[KernelLookups], rows: range, address: int, rule: Rule) -> None:
        """Apply a rule to a segment's rows with the sum of the gradients of `all_recorded`."""
        sums = 0 if rule.sums is None else rule.sums.data_ptr()
        handles = (ctypes.c_void_p * len(all_recorded))(*(one.handle for one in all_recorded))
        begin, end = ctypes.c_int64(rows.start), ctypes.c_int64(rows.stop)
        made, count = _Rule(rule.lr, rule.eps, sums), ctypes.c_int64(len(all_recorded))
        table = self._first_row(rows, address)
        self._check(self._functions["update"](handles, count, table, begin, end, ctypes.byref(made)))

    def _check(self, status: int) -> None:
        call = self._call
        if status == NO_MEMORY:
            raise MemoryError("gr::segmented_logits: there is no memory for the kernel's buffers")
        if status == BAD_ID:
            raise_bad_id(call.ids, call.arguments.bad, self._rows)
        if status == BAD_GROUP and call.group is not None:
            raise_bad_group(call.group, call.arguments.bad, call.ids.shape[0])
