"""`gr::sampled_logits` and its backward on the CPU: rows are read where they lie, no [T, R, D] is made.

Rows may lie in a copy of the table in another dtype. The table's gradient is zeros whose pages come as rows are
written; where the table has one already, and nobody can tell the difference, rows are added to that
(gr_compile.lowering.cpu.accumulated).
"""

from __future__ import annotations

import ctypes
import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from gr_compile.lowering.cpu.accumulated import take_gradient
from gr_compile.lowering.cpu.call import whole_rows
from gr_compile.lowering.cpu.kernels import enabled, entry
from gr_compile.lowering.cpu.lanes import ELEMENT
from gr_compile.lowering.cpu.source import registered, runtime
from gr_compile.lowering.cpu.zeroed import zero_rows
from gr_compile.ops.registry import LIBRARY
from gr_compile.ops.sampled_logits import (
    check_gradient,
    check_operands,
    raise_bad_group,
    raise_bad_id,
    sampled_logits_backward_reference,
    sampled_logits_reference,
)

_SIZES = ("threads", "tokens", "groups", "samples", "rows", "features", "width", "query_row", "table_row", "grad_row")
_POINTERS = ("query", "grad", "table", "scale", "ids", "group", "logits", "grad_query", "grad_table")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_WIDTH = 16  # rows of queries are whole vectors of any machine
MOST_PLACES = 2**32 - 1  # lookups, which the kernel counts in 32 bits
NO_MEMORY, BAD_ID, BAD_GROUP = 1, 3, 4


class Arguments(ctypes.Structure):
    """`SampledArgs` of runtime/sampled_logits.h, in its order."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in (*_SIZES, "padding", "normalized", "adds", "scale_step")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_int64) for name in (*_POINTERS, "bad")),
    ]


def source(rows: torch.dtype, table: torch.dtype, ids: torch.dtype, backward: bool) -> str:
    """The translation unit for rows that are read, the table that takes their gradient, and ids of given dtypes."""
    types = f"typedef {ELEMENT[rows]} TT;\ntypedef {ELEMENT[table]} GT;\ntypedef {ELEMENT[ids]} IT;"
    tail = runtime(f"sampled_logits_{'backward' if backward else 'forward'}.h")
    parts = [runtime("vector.h"), types, runtime("memory.h"), runtime("sampled_logits.h"), tail]
    return registered(parts, _entry_name(backward))


def _entry_name(backward: bool) -> str:
    return "gr_sampled_logits_backward" if backward else "gr_sampled_logits"


@functools.lru_cache(maxsize=16)
def kernel(
    rows: torch.dtype, table: torch.dtype, ids: torch.dtype, backward: bool
) -> ctypes._CFuncPtr | None:  # type: ignore[name-defined]
    """The entry of a kernel; None where the reference has to do."""
    return entry(lambda: source(rows, table, ids, backward), _entry_name(backward))


class SampledCall:
    """One call's arguments; the object keeps alive what they point to."""

    def __init__(
        self, query: Tensor, table: Tensor, ids: Tensor, group: Tensor | None, eps: float | None, padding: int,
        stored: Tensor | None = None, scale: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.query, self.whole = _float_rows(query), table
        self.table, self.ids = whole_rows(table if stored is None else stored), ids.contiguous()
        self.scale = None if scale is None else scale.contiguous()
        self.group = None if group is None else group.to(torch.int64).contiguous()
        self.kept: list[Tensor] = []
        a = self.arguments = Arguments()
        a.threads, a.padding = torch.get_num_threads(), padding
        a.tokens, a.width = self.query.shape
        a.groups, a.samples = ids.shape
        a.rows, a.features = table.shape
        a.query_row, a.table_row = self.query.stride(0), self.table.stride(0)
        a.normalized, a.eps = eps is not None, eps or 0.0
        a.scale_step = scale is not None and scale.shape[0] > 1
        for name in ("query", "table", "scale", "ids", "group"):
            self.point(name, getattr(self, name))

    def point(self, name: str, to: Tensor | None) -> None:
        """Let an argument point to a tensor."""
        if to is not None:
            self.kept.append(to)
            setattr(self.arguments, name, to.data_ptr())

    def forget_table(self) -> None:
        """Hold the table's memory no longer."""
        self.kept = [x for x in self.kept if x is not self.table]
        self.table = self.whole = self.table.new_empty(0)

    def made(self, name: str, columns: int) -> Tensor:
        """A float32 result [T, columns]."""
        made = self.query.new_empty((self.query.shape[0], columns))
        self.point(name, made)
        return made

    def gradient(self, grad: Tensor) -> None:
        """Take the gradient of the result, [T, R]."""
        made = whole_rows(grad.float())
        self.point("grad", made)
        self.arguments.grad_row = made.stride(0)

    def table_gradient(self, into_leaf: bool) -> Tensor:
        """What the gradient of the table is written to: what it has accumulated, or zeros."""
        table = self.whole
        taken = take_gradient(table) if into_leaf else None
        made = zero_rows(table.shape[0], table.shape[1], table.dtype) if taken is None else taken
        self.arguments.adds = taken is not None
        self.point("grad_table", made)
        return made

    def give_back(self, grad_table: Tensor) -> None:
        """Undo `table_gradient` where nothing was written."""
        if self.arguments.adds:
            self.whole.grad = grad_table

    def run(self, function: ctypes._CFuncPtr) -> None:  # type: ignore[name-defined]
        """Write the results. MemoryError, IndexError: nothing is written."""
        status = function(ctypes.byref(self.arguments))
        if status == NO_MEMORY:
            raise MemoryError("gr::sampled_logits: there is no memory for the kernel's buffers")
        if status == BAD_ID:
            raise_bad_id(self.ids, self.arguments.bad, self.table.shape[0])
        if status == BAD_GROUP and self.group is not None:
            raise_bad_group(self.group, self.arguments.bad, self.ids.shape[0])


def _float_rows(x: Tensor) -> Tensor:
    """[T, D] as float32 rows of whole vectors, filled up with zeros."""
    missing = -x.shape[1] % _WIDTH
    return whole_rows(F.pad(x.float(), (0, missing)) if missing else x.float())


def _found(
    query: Tensor, table: Tensor, ids: Tensor, stored: Tensor | None, backward: bool
) -> ctypes._CFuncPtr | None:  # type: ignore[name-defined]
    rows = table if stored is None else stored
    dtypes = all(x.dtype in DTYPES for x in (query, table, rows))
    sizes = query.numel() and table.numel() and 0 < ids.numel() <= MOST_PLACES
    return kernel(rows.dtype, table.dtype, ids.dtype, backward) if enabled() and dtypes and sizes else None


def sampled_logits(
    query: Tensor, table: Tensor, ids: Tensor, group: Tensor | None, eps: float | None, padding: int,
    stored: Tensor | None = None, scale: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """The CPU's `gr::sampled_logits`."""
    operands = (query, table, ids, group, eps, padding, stored, scale)
    check_operands(*operands)
    found = _found(query, table, ids, stored, backward=False)
    if found is None:
        return sampled_logits_reference(*operands)
    call = SampledCall(*operands)
    logits = call.made("logits", ids.shape[1])
    call.run(found)
    return logits.to(query.dtype)


def sampled_logits_backward(
    grad: Tensor, query: Tensor, table: Tensor, ids: Tensor, group: Tensor | None, eps: float | None, padding: int,
    into_leaf: bool, need_query: bool, need_table: bool, stored: Tensor | None = None, scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The CPU's `gr::sampled_logits_backward`."""
    operands, copies = (query, table, ids, group, eps, padding), (stored, scale)
    check_operands(*operands, *copies)
    check_gradient(grad, query, ids)
    found = _found(query, table, ids, stored, backward=True)
    if found is None:
        return sampled_logits_backward_reference(grad, *operands, into_leaf, need_query, need_table, *copies)
    call = SampledCall(*operands, *copies)
    call.gradient(grad)
    grad_query = call.made("grad_query", call.query.shape[1]) if need_query else query.new_empty(0)
    grad_table = call.table_gradient(into_leaf) if need_table else table.new_empty(0)
    try:
        call.run(found)
    except (IndexError, MemoryError):
        call.give_back(grad_table)
        raise
    features = slice(query.shape[1]) if need_query else slice(None)
    return grad_query[..., features].to(query.dtype).contiguous(), grad_table


LIBRARY.impl("sampled_logits", sampled_logits, "CPU")
LIBRARY.impl("sampled_logits_backward", sampled_logits_backward, "CPU")
