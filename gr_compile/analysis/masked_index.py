"""Rows chosen by a boolean mask, however the index is spelled; rows that an index of flattened places names."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis.operators import Lookup, Pick, Reshape, argument, kind_of

aten = torch.ops.aten


@dataclass(frozen=True)
class MaskedIndex:
    """Rows chosen by a boolean mask. `coordinates`: where the places of the mask are spelled out, one tensor for each
    dimension of the mask, as in `x[torch.where(mask)]`."""

    mask: fx.Node
    coordinates: tuple[fx.Node, ...] = ()


def masked_index(user: fx.Node) -> MaskedIndex | None:
    """`x[mask]`, `x[torch.where(mask)]`, `x[mask.nonzero().unbind(1)]`, `x.index_select(0, flat.nonzero())`."""
    if user.target is aten.index_select.default and user.args[1] == 0:
        given = [user.args[2]]
    elif user.target is aten.index.Tensor:
        given = list(user.args[1])  # type: ignore[arg-type]
    else:
        return None
    parts = [part for part in given if isinstance(part, fx.Node)]
    if len(parts) != len(given):
        return None
    if len(parts) == 1 and parts[0].meta["val"].dtype == torch.bool:
        return MaskedIndex(parts[0])
    masks = {_mask_of_coordinate(part, position) for position, part in enumerate(parts)}
    mask = masks.pop() if len(masks) == 1 else None
    if mask is None or mask.meta["val"].dtype != torch.bool or mask.meta["val"].dim() != len(parts):
        return None
    return MaskedIndex(mask, tuple(parts))


def _mask_of_coordinate(node: fx.Node, position: int) -> fx.Node | None:
    """The mask whose true places' coordinate `position` the node holds."""
    source: Any = node.args[0] if node.args else None
    if node.target is operator.getitem and node.args[1] == position:
        if source.target in (aten.where.default, aten.nonzero_numpy.default):
            return source.args[0]  # type: ignore[no-any-return]
        columns = source.target is aten.unbind.int and argument(source, 1, "dim", 0) in (1, -1)
        return _mask_of_nonzero(source.args[0]) if columns else None
    if node.target is aten.select.int and node.args[1] in (1, -1) and node.args[2] == position:
        return _mask_of_nonzero(source)
    kind = kind_of(node)
    return _mask_of_nonzero(kind.source) if isinstance(kind, Reshape) and len(node.meta["val"].shape) == 1 else None


def _mask_of_nonzero(node: Any) -> fx.Node | None:
    return node.args[0] if node.target is aten.nonzero.default else None


def row_numbers(user: fx.Node) -> fx.Node | None:
    """The numbers by which `x[numbers]` or `x.index_select(0, numbers)` reads the first dimension of x."""
    kind = kind_of(user)
    if isinstance(kind, Lookup):
        return kind.index if user.target is aten.index.Tensor else None
    return kind.index if isinstance(kind, Pick) and kind.dim == 0 else None
