"""`gr::segmented_logits` and its backward on the CPU: a table in memory or in a file, a segment of its rows at a time.

A table in a file (gr_compile.offload) is read by position; its mapping is not touched. Its gradient, where autograd
wants one, lies in a file, too; where an optimizer of gr_compile.offload has the table, the backward leaves it what the
gradient is made of, and there is no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gr_compile.lowering.cpu.kernels import enabled
from gr_compile.lowering.cpu.sampled_logits import DTYPES, MOST_PLACES, SampledCall
from gr_compile.lowering.cpu.segment_kernels import Entries, KernelLookups, entries
from gr_compile.lowering.cpu.segment_reference import ReferenceLookups
from gr_compile.offload.gradient_file import rows_in_a_file
from gr_compile.offload.segments import Pages, Segments
from gr_compile.offload.stored import StoredTable, check_file, stored_table
from gr_compile.ops.registry import LIBRARY
from gr_compile.ops.sampled_logits import check_gradient, check_operands, check_places
from gr_compile.ops.segmented_logits import (
    check_segments,
    segmented_logits_backward_reference,
    segmented_logits_reference,
)


def _functions(query: Tensor, table: Tensor, ids: Tensor) -> Entries | None:
    dtypes = query.dtype in DTYPES and table.dtype in DTYPES
    return entries(table.dtype, ids.dtype) if enabled() and dtypes and ids.numel() <= MOST_PLACES else None


def _pieces(
    table: Tensor, stored: StoredTable | None, segments: Segments, pages: Pages, backward: bool
) -> Iterator[tuple[range, int]]:
    """(rows, address of the first) of one segment after the other; the last first in a backward."""
    if stored is not None:
        yield from stored.sweep(segments, pages, backward)
        return
    order = range(segments.count)
    for segment in order[::-1] if backward else order:
        rows = segments.rows_of(segment)
        yield rows, table.data_ptr() + rows.start * table.stride(0) * table.element_size()


def _cut(table: Tensor, stored: StoredTable | None, count: int) -> Segments:
    if stored is not None:
        return stored.segments(count)
    return Segments(table.shape[0], table.shape[1] * table.element_size(), -(-table.shape[0] // count))


def _known(table: Tensor) -> StoredTable | None:
    """What is known of a table in a file, whose size is checked."""
    stored = stored_table(table)
    if stored is None:
        check_file(table)
    else:
        stored.file.check()
        stored.notice(table)
    return stored


def segmented_logits(
    query: Tensor, table: Tensor, ids: Tensor, group: Tensor | None, eps: float | None, padding: int, segments: int
) -> Tensor:
    """The CPU's `gr::segmented_logits`."""
    check_operands(query, table, ids, group, eps, padding)
    check_segments(segments)
    stored, operands = _known(table), (query, table, ids, group, eps, padding)
    functions, some = _functions(query, table, ids), query.numel() and table.numel() and ids.numel()
    if not some or (functions is None and stored is None):
        return segmented_logits_reference(*operands, segments)
    cut = _cut(table, stored, segments)
    if functions is None:
        return _by_reference(operands, stored, cut)
    call = SampledCall(*operands)
    logits = call.made("logits", ids.shape[1])
    lookups = KernelLookups(call, cut, functions, sorts=False)
    for rows, address in _pieces(call.table, stored, cut, lookups.pages(cut), backward=False):
        lookups.logits(rows, address)
    return logits.to(query.dtype)


Operands = tuple[Tensor, Tensor, Tensor, Tensor | None, float | None, int]


def _by_reference(operands: Operands, stored: StoredTable | None, cut: Segments) -> Tensor:
    query, table, ids, group, _, _ = operands
    check_places(ids, group, table.shape[0])
    lookups, logits = _reference(operands, None), query.new_zeros((query.shape[0], ids.shape[1]))
    for rows, address in _pieces(table, stored, cut, lookups.pages(cut), backward=False):
        lookups.logits(logits, rows, address)
    return logits


def _reference(operands: Operands, grad: Tensor | None) -> ReferenceLookups:
    query, table, ids, group, eps, padding = operands
    return ReferenceLookups(query, table.dtype, ids, group, eps, padding, grad)


def _copied(operands: Operands, grad: Tensor) -> tuple[Operands, Tensor]:
    """Operands that outlive a backward, whose memory is used again; all but the table."""
    query, table, ids, group, eps, padding = operands
    return (query.clone(), table, ids.clone(), None if group is None else group.clone(), eps, padding), grad.clone()


def segmented_logits_backward(
    grad: Tensor, query: Tensor, table: Tensor, ids: Tensor, group: Tensor | None, eps: float | None, padding: int,
    segments: int, into_leaf: bool, need_query: bool, need_table: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The CPU's `gr::segmented_logits_backward`."""
    operands = (query, table, ids, group, eps, padding)
    check_operands(*operands)
    check_segments(segments)
    check_gradient(grad, query, ids)
    stored = _known(table)
    functions, some = _functions(query, table, ids), query.numel() and table.numel() and ids.numel()
    if stored is not None and stored.collects and not need_table:
        stored.backwards += 1
    if not some or (functions is None and stored is None):
        return segmented_logits_backward_reference(grad, *operands, segments, into_leaf, need_query, need_table)
    cut = _cut(table, stored, segments)
    needs = (need_query, need_table)
    if functions is None:
        assert stored is not None
        return _backward_by_reference(grad, operands, stored, cut, needs)
    return _backward_by_kernels(grad, operands, stored, cut, functions, into_leaf, needs)


def _backward_by_kernels(
    grad: Tensor, operands: Operands, stored: StoredTable | None, cut: Segments, functions: Entries, into_leaf: bool,
    needs: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    query, table, *_ = operands
    need_query, need_table = needs
    records = stored is not None and stored.collects and not need_table
    operands, grad = _copied(operands, grad) if records else (operands, grad)
    call = SampledCall(*operands)
    call.gradient(grad)
    grad_query = call.made("grad_query", call.query.shape[1]).zero_() if need_query else query.new_empty(0)
    grad_table = table.new_empty(0)
    if need_table:
        grad_table = call.table_gradient(into_leaf) if stored is None else _gradient(call, stored, into_leaf)
    try:
        lookups = KernelLookups(call, cut, functions, sorts=need_table or records)
        reads = need_query or (need_table and call.arguments.normalized)
        if reads or need_table:
            pages = lookups.pages(cut)
            for rows, address in _pieces(call.table, stored if reads else None, cut, pages, backward=True):
                if need_query:
                    lookups.grad_query(rows, address)
                if need_table:
                    lookups.grad_table(rows, address)
    except (IndexError, MemoryError, OSError):
        call.give_back(grad_table)
        raise
    if records and stored is not None:
        stored.recorded.append(lookups.without_table())
    features = slice(query.shape[1]) if need_query else slice(None)
    return grad_query[..., features].to(query.dtype).contiguous(), grad_table


def _gradient(call: SampledCall, stored: StoredTable, into_leaf: bool) -> Tensor:
    """What the gradient of a table in a file is written to: what it has accumulated, or zeros in a file."""
    taken = call.table_gradient(into_leaf) if into_leaf and call.table.grad is not None else None
    if taken is not None and call.arguments.adds:
        return taken
    made = rows_in_a_file(stored.file.path.parent, call.table.shape[0], call.table.shape[1], call.table.dtype)
    call.point("grad_table", made)
    return made


def _backward_by_reference(
    grad: Tensor, operands: Operands, stored: StoredTable, cut: Segments, needs: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    query, table, ids, group, _, _ = operands
    need_query, need_table = needs
    check_places(ids, group, table.shape[0])
    lookups = _reference(operands, grad)
    wide = torch.promote_types(query.dtype, torch.float32)
    grad_query = query.new_zeros(query.shape if need_query else 0, dtype=wide)
    grad_table = table.new_empty(0)
    if need_table:
        grad_table = rows_in_a_file(stored.file.path.parent, table.shape[0], table.shape[1], table.dtype)
    for rows, address in _pieces(table, stored, cut, lookups.pages(cut), backward=True):
        if need_query:
            lookups.grad_query(grad_query, rows, address)
        if need_table:
            lookups.grad_table(grad_table, rows, address)
    if stored.collects and not need_table:
        stored.recorded.append(_reference(*_copied(operands, grad)))
    return grad_query.to(query.dtype), grad_table


LIBRARY.impl("segmented_logits", segmented_logits, "CPU")
LIBRARY.impl("segmented_logits_backward", segmented_logits_backward, "CPU")
