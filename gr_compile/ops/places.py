"""The places where a mask is true, in two steps: how many there are, and which.

    gr::count_true    bool tensor   -> int              how many elements are true
    gr::true_places   bool, int T   -> [T]              the flat places of the true elements, ascending

`torch.nonzero` answers both at once, with a result whose size depends on data. Here only the count depends on
data, and it is a number: whoever knows it beforehand runs the rest without reading the device's memory.
Both are functional; `true_places` does not synchronise with the device, `count_true` does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gr_compile.ops.registry import define_operator, require


def _check_mask(name: str, mask: Tensor) -> None:
    require(mask.dtype == torch.bool, lambda: f"gr::{name}: mask must be bool, not {mask.dtype}")


def _count_true_fake(mask: Tensor) -> torch.SymInt:
    _check_mask("count_true", mask)
    count: torch.SymInt = torch.library.get_ctx().new_dynamic_size(min=0)
    return count


def count_true_reference(mask: Tensor) -> int:
    """The number of true elements of `mask` (bool, any shape): waits for the device."""
    _check_mask("count_true", mask)
    return int(mask.sum())


def _true_places_fake(mask: Tensor, count: int) -> Tensor:
    _check_mask("true_places", mask)
    require(count >= 0, lambda: f"gr::true_places: count must not be negative, it is {count}")
    return mask.new_empty((count,), dtype=torch.int64)


def true_places_reference(mask: Tensor, count: int) -> Tensor:
    """The flat (row-major) places of the true elements of `mask` (bool, any shape), ascending -> int64 [count].

    `count` is the number of true elements. Nothing checks that, for it would read the mask on the host: the places
    after the first `count` are left out, and the entries that no true element fills are 0.
    """
    out = _true_places_fake(mask, count)
    flat = mask.reshape(-1)
    rank = flat.cumsum(0) - 1
    slot = torch.where(flat, rank.clamp(max=count), count)  # the last slot takes what is left out
    places = torch.arange(flat.shape[0], device=mask.device)
    return out.new_zeros(count + 1).scatter_(0, slot, places)[:count].clone()


count_true = define_operator(
    "count_true(Tensor mask) -> SymInt",
    count_true_reference,
    _count_true_fake,
    tags=(torch.Tag.data_dependent_output,),
)
true_places = define_operator(
    "true_places(Tensor mask, SymInt count) -> Tensor", true_places_reference, _true_places_fake
)
