"""Parts: a list of tensors that is one tensor taken apart along a dimension, in order, nothing left out.

`torch.cat(torch.split(q, head_dim, dim=2), dim=0)` is how many recommenders fold heads into the batch. As a reshape
and a permutation the analyses follow it; as a concatenation of things of their own they do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.sizes import size_expr


@dataclass(frozen=True)
class Parts:
    """`count` equal parts of `source` along `dim`; without it under `drop`, else 1/count of it."""

    source: fx.Node
    dim: int
    count: int
    drop: bool


def parts_of(nodes: Sequence[fx.Node]) -> Parts | None:
    """What the nodes are parts of, or None."""
    first = _part(nodes[0], 0) if nodes else None
    if first is None:
        return None
    source, dim, drop, _ = first
    found = [_part(node, position) for position, node in enumerate(nodes)]
    if any(part is None or part[:3] != (source, dim, drop) for part in found):
        return None
    extent = size_expr(source.meta["val"].shape[dim])
    if drop:
        whole = extent == len(nodes)
    else:
        size = size_expr(nodes[0].meta["val"].shape[dim])
        starts = [part[3](size) for part in found if part is not None]
        whole = size_expr(size * len(nodes)) == extent and all(starts)
        whole = whole and all(size_expr(node.meta["val"].shape[dim]) == size for node in nodes)
    return Parts(source, dim, len(nodes), drop) if whole else None


def _part(node: fx.Node, position: int) -> tuple[fx.Node, int, bool, Callable[[Any], bool]] | None:
    """(source, dim, whether the dim is dropped, does part `position` of a given size begin where this one does?)"""
    kind = ops.kind_of(node)
    if isinstance(kind, ops.Item) and isinstance(several := ops.kind_of(kind.source), ops.Items):
        return several.source, several.dim, several.drop, lambda size: kind.position == position
    if isinstance(kind, ops.Select):
        at = node.args[2]
        return (kind.source, kind.dim, True, lambda size: True) if at == position else None
    if isinstance(kind, ops.Slice) and ops.argument(node, 4, "step", 1) == 1:
        start = _size_of(ops.argument(node, 2, "start") or 0)
        return kind.source, kind.dim, False, lambda size: bool(start == size_expr(size * position))
    return None


def _size_of(value: Any) -> Any:
    return size_expr(value.meta["val"] if isinstance(value, fx.Node) else value)
