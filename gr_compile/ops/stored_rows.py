"""The rows of a table that a batch looks up, in 16 bits: read once from the table, then from the copy.

    stored, scale = gr::stored_rows(table, ids, torch.float16, "per-token")
    logits = gr::sampled_logits(query, table, ids, ..., stored, scale)

R negatives of T tokens are T R rows of 4 D bytes, forward and backward. Of the copy they are half of that, and the U
distinct rows are read once more, to be converted: U 4 D + 2 T R 2 D bytes in place of 2 T R 4 D. The copy is made anew
in every forward, from what the table holds then: the table, which the optimizer moves, is the master.
"""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor

from gr_compile.ops.quantize import check_overflow, check_request, raise_overflow, rounded, scale_of
from gr_compile.ops.registry import define_operator, require

_NAME = "gr::stored_rows"


def check_operands(table: Tensor, ids: Tensor, dtype: torch.dtype, scale: str) -> None:
    """ValueError where shapes, dtypes or the scale do not fit."""
    check_request(_NAME, table, dtype, scale)
    require(table.dim() == 2, lambda: f"{_NAME}: table must be [V, D], not of {table.dim()} dimensions")
    whole = ids.dtype in (torch.int64, torch.int32)
    require(whole, lambda: f"{_NAME}: ids must be int64 or int32, not {ids.dtype}")


def raise_bad_id(ids: Tensor, place: int, rows: int) -> NoReturn:
    """IndexError: the id at `place` of the flattened ids is no row of a table of `rows`."""
    at = [int(k) for k in torch.unravel_index(torch.tensor(place), ids.shape)]
    raise IndexError(f"{_NAME}: ids{at} is {int(ids.flatten()[place])}, which is no row of a table of {rows}")


def raise_large_value(table: Tensor, row: int, feature: int, dtype: torch.dtype) -> NoReturn:
    """OverflowError: a value of the table is finite, and none in 16 bits."""
    raise_overflow(_NAME, f"table[{row}, {feature}]", float(table[row, feature]), dtype)


def _fake(table: Tensor, ids: Tensor, dtype: torch.dtype, scale: str) -> tuple[Tensor, Tensor]:
    check_operands(table, ids, dtype, scale)
    scales = {"none": 0, "per-table": 1, "per-token": table.shape[0]}[scale]
    return table.new_empty(table.shape, dtype=dtype), table.new_empty(scales, dtype=torch.float32)


def stored_rows_reference(table: Tensor, ids: Tensor, dtype: torch.dtype, scale: str) -> tuple[Tensor, Tensor]:
    """([V, D] of `dtype`: the rows of `table` [V, D] that `ids` name, divided by their scale; the scale, float32).

    Rows that no id names are zeros, whatever the table holds there. Scales are powers of two (gr_compile.ops.quantize):
    [V] with "per-token", one for each row; [1] with "per-table", for all rows that are named; no elements with "none".
    `ids` are int64 or int32, of any shape. It has no derivative: what reads the copy hands the table its gradient.

    Raises:
        ValueError: shapes, dtypes or the scale do not fit.
        IndexError: an id is outside 0..V-1; it names the first and its place.
        OverflowError: a finite value of a named row would be stored as an infinity; the first is named.
    """
    stored, scales = _fake(table, ids, dtype, scale)
    bad = ((ids < 0) | (ids >= table.shape[0])).flatten().nonzero()
    if bad.numel():
        raise_bad_id(ids, int(bad[0]), table.shape[0])
    distinct = torch.unique(ids)
    rows = table[distinct]
    factor = scale_of(rows, scale)
    made = rounded(rows, factor, dtype)
    check_overflow(rows, made, lambda at: raise_large_value(table, int(distinct[at[0]]), at[1], dtype))
    stored.zero_()[distinct] = made
    if scale == "per-token":
        scales.fill_(1)[distinct] = factor[:, 0]
    else:
        scales.copy_(factor)
    return stored, scales


stored_rows = define_operator(
    "stored_rows(Tensor table, Tensor ids, ScalarType dtype, str scale) -> (Tensor stored, Tensor scale)",
    stored_rows_reference,
    _fake,
)
