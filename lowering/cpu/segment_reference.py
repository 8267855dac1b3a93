"""Lookups by segments of their table in plain torch: where there is no kernel, a table in a file is read so, too.

A segment's rows and one more, of zeros, stand for the table; what looks up another row looks that one up.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gr_compile.offload.segments import Pages, Segments
from gr_compile.offload.stored import Rule
from gr_compile.offload.table_file import PAGE
from gr_compile.ops.sampled_logits import sampled_logits_backward_reference, sampled_logits_reference


@dataclass(eq=False)
class ReferenceLookups:
    """One call's lookups, ids in range, of a table of `dtype`; `grad` [T, R] of the logits in a backward."""

    query: Tensor
    dtype: torch.dtype
    ids: Tensor
    group: Tensor | None
    eps: float | None
    padding: int
    grad: Tensor | None = None

    def pages(self, segments: Segments) -> Pages:
        """The pages of the table's file that lookups touch."""
        found = np.zeros(-(-segments.rows * segments.row_bytes // PAGE), np.bool_)
        first = torch.unique(self.ids).long().numpy() * segments.row_bytes
        last = first + segments.row_bytes - 1
        for k in range(-(-segments.row_bytes // PAGE) + 1):
            found[np.minimum(first // PAGE + k, last // PAGE)] = True
        return found

    def logits(self, out: Tensor, rows: range, address: int) -> None:
        """Write the logits of a segment's rows, the first of which lies at `address`, into `out` [T, R]."""
        here, local = self._local(rows)
        made = sampled_logits_reference(self.query, self._rows(rows, address), local, self.group, self.eps, -1)
        mask = here if self.group is None else here[self.group]
        out.copy_(torch.where(mask, made, out))

    def grad_query(self, out: Tensor, rows: range, address: int) -> None:
        """Add what a segment's rows give to the query's gradient, `out` [T, D]."""
        out += self._gradients(rows, address, True)[0].to(out.dtype)

    def grad_table(self, out: Tensor, rows: range, address: int) -> None:
        """Add the gradients of a segment's rows into `out` [V, D]."""
        out[rows.start : rows.stop] += self._gradients(rows, address, False)[1][:-1]

    def update(self, all_recorded: Sequence[ReferenceLookups], rows: range, address: int, rule: Rule) -> None:
        """Apply a rule to a segment's rows with the sum of the gradients of `all_recorded`."""
        grad = torch.stack([one._gradients(rows, address, False)[1][:-1].double() for one in all_recorded]).sum(0)
        looked_up = torch.unique(torch.cat([one.ids.flatten().long() for one in all_recorded]))
        local = looked_up[(looked_up >= rows.start) & (looked_up < rows.stop)] - rows.start
        rate = torch.full((len(local), 1), rule.lr, dtype=torch.float64)
        if rule.sums is not None:
            rule.sums[local + rows.start] += grad[local].square().mean(-1).float()
            rate /= rule.sums[local + rows.start].double().sqrt().unsqueeze(-1) + rule.eps
        table = self._segment(rows, address)
        table[local] = (table[local].double() - rate * grad[local]).to(table.dtype)

    # ----------------------------------------------------------------------------------------------- a segment
    def _segment(self, rows: range, address: int) -> Tensor:
        """The rows, where they lie."""
        width, dtype = self.query.shape[1], self.dtype
        memory = (ctypes.c_char * (len(rows) * width * dtype.itemsize)).from_address(address)
        return torch.frombuffer(memory, dtype=dtype).view(len(rows), width)

    def _rows(self, rows: range, address: int) -> Tensor:
        """A copy, and a row of zeros; pages that were not read hold anything, rows that nobody looks up."""
        found = self._segment(rows, address)
        return torch.cat([found, found.new_zeros(1, found.shape[1])])

    def _local(self, rows: range) -> tuple[Tensor, Tensor]:
        """Which lookups are of the segment, and their numbers in it; those of others are of the last row."""
        here = (self.ids >= rows.start) & (self.ids < rows.stop)
        return here, torch.where(here, self.ids - rows.start, len(rows))

    def _gradients(self, rows: range, address: int, query: bool) -> tuple[Tensor, Tensor]:
        here, local = self._local(rows)
        if not query:
            local = torch.where(self.ids == self.padding, len(rows), local)
        else:
            here = here if self.group is None else here[self.group]
        assert self.grad is not None
        grad = torch.where(here, self.grad, 0) if query else self.grad
        operands = (self.query, self._rows(rows, address), local, self.group, self.eps)
        return sampled_logits_backward_reference(grad, *operands, len(rows), False, query, not query)
