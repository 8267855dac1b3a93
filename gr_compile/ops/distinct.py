"""The distinct ids of a batch: which rows of a table are looked up at all, and the number of each id among them.

    gr::occurring     ids, int V          -> bool [V]   is the row looked up?
    gr::numbered      ids, distinct, V    -> like ids   k where ids == distinct[k]

With `gr::count_true` and `gr::true_places` between them: distinct = true_places(occurring, count_true(occurring)),
ascending, and distinct[numbered] == ids. No id is sorted: both take time for the ids and, the first one, for a bit of
each row. Both are functional and deterministic; `occurring` reads the least and the greatest id where that is free.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gr_compile.ops.registry import define_operator, require

_IDS = (torch.int64, torch.int32)


def _check_ids(name: str, ids: Tensor, rows: int) -> None:
    require(ids.dtype in _IDS, lambda: f"gr::{name}: ids must be int64 or int32, not {ids.dtype}")
    require(rows >= 0, lambda: f"gr::{name}: a table has 0 rows or more, not {rows}")


def _occurring_fake(ids: Tensor, rows: int) -> Tensor:
    _check_ids("occurring", ids, rows)
    return ids.new_empty((rows,), dtype=torch.bool)


def occurring_reference(ids: Tensor, rows: int) -> Tensor:
    """For each of `rows` rows of a table whether it is among `ids` (int64 or int32, any shape) -> bool [rows].

    Raises:
        IndexError: on the CPU, an id outside of [0, rows), with its place; other devices assert it themselves.
    """
    out = _occurring_fake(ids, rows)
    if ids.device.type == "cpu" and ids.numel():
        _check_range(ids, rows)
    return out.fill_(False).index_fill_(0, ids.reshape(-1).to(torch.int64), True)


def _check_range(ids: Tensor, rows: int) -> None:
    low, high = (int(bound) for bound in ids.aminmax())
    if low >= 0 and high < rows:
        return
    wrong = low if low < 0 else high
    place = (ids == wrong).nonzero()[0].tolist()
    raise IndexError(f"index out of range: id {wrong} at place {place} of the ids; the table has {rows} rows")


def _numbered_fake(ids: Tensor, distinct: Tensor, rows: int) -> Tensor:
    _check_ids("numbered", ids, rows)
    require(
        distinct.dtype == torch.int64 and distinct.dim() == 1,
        lambda: f"gr::numbered: distinct must be int64 [U], not {distinct.dtype} with {distinct.dim()} dimensions",
    )
    return ids.new_empty(ids.shape, dtype=torch.int64)


def numbered_reference(ids: Tensor, distinct: Tensor, rows: int) -> Tensor:
    """The k for which distinct[k] is the id, for each id (any shape) -> int64 of the same shape.

    `distinct` (int64 [U]) holds each of the ids once, all in [0, rows). Nothing checks that, for it would read them on
    the host: of an id that is not among them the number is any.
    """
    out = _numbered_fake(ids, distinct, rows)
    places = torch.arange(distinct.shape[0], device=ids.device)
    number = out.new_empty((rows,)).index_copy_(0, distinct, places)
    return number.index_select(0, ids.reshape(-1)).view(ids.shape)


occurring = define_operator("occurring(Tensor ids, SymInt rows) -> Tensor", occurring_reference, _occurring_fake)
numbered = define_operator(
    "numbered(Tensor ids, Tensor distinct, SymInt rows) -> Tensor", numbered_reference, _numbered_fake
)
