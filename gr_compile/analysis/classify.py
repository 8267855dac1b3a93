"""Constants by content: scalars, all-equal, arange, triangular and banded tensors as closed forms of their indices."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gr_compile.analysis.expr import TRUE, Expr, Ranges, add, and_, cast, const, ge0, scale, sub, where

_DTYPE = {torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16", torch.bool: "b"}


def closed_form(tensor: torch.Tensor, indices: Sequence[Expr], ranges: Ranges) -> Expr | None:
    """`tensor[indices]` as an expression without loads, or None where its content has no form known here."""
    if tensor.numel() == 0:
        return None
    dtype = _DTYPE.get(tensor.dtype, "i")
    first = tensor.reshape(-1)[0]
    if bool((tensor == first).all()):
        return _constant(first.item(), dtype)
    squeezed = [d for d in range(tensor.dim()) if tensor.shape[d] != 1]
    plain = tensor.squeeze()
    where_to = [indices[d] for d in squeezed]
    if plain.dim() == 1 and dtype == "i":
        return _arange(plain, where_to[0])
    if plain.dim() == 2:
        return _band(plain, where_to[0], where_to[1], dtype, ranges)
    return None


def _constant(value: bool | int | float, dtype: str) -> Expr:
    return cast(const(value), dtype) if dtype in ("b", "i") else const(float(value), dtype)


def _arange(values: torch.Tensor, place: Expr) -> Expr | None:
    start, step = int(values[0]), int(values[1]) - int(values[0])
    steps = torch.arange(len(values), device=values.device, dtype=values.dtype)
    if not bool((values == start + step * steps).all()):
        return None
    return add(const(start), scale(place, step))


def _band(values: torch.Tensor, row: Expr, column: Expr, dtype: str, ranges: Ranges) -> Expr | None:
    """Two values, one of which fills a band low <= column - row <= high exactly."""
    kinds = torch.unique(values)
    if len(kinds) != 2:
        return None
    rows, columns = values.shape
    offset = torch.arange(columns)[None] - torch.arange(rows)[:, None]
    for inside, outside in ((kinds[1], kinds[0]), (kinds[0], kinds[1])):
        on = values.cpu() == inside.cpu()
        low, high = int(offset[on].min()), int(offset[on].max())
        if bool((on == ((offset >= low) & (offset <= high))).all()):
            shift = sub(column, row)
            bounds = []
            if low > 1 - rows:
                bounds.append(_ge0(sub(shift, const(low)), ranges))
            if high < columns - 1:
                bounds.append(_ge0(sub(const(high), shift), ranges))
            return where(and_(*bounds), _constant(inside.item(), dtype), _constant(outside.item(), dtype), dtype)
    return None


def _ge0(value: Expr, ranges: Ranges) -> Expr:
    return TRUE if ranges.ge0(value) else ge0(value)
