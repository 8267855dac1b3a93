"""Cost of token-wise work, in element accesses a place: a model that never looks at data."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.layout import PlaceLayout

_FLOPS_PER_ACCESS = 16.0  # multiply-adds a core does while it moves one element to or from memory
_VIEWS = (ops.Reshape, ops.Permute, ops.Expand, ops.Slice, ops.Select, ops.Items, ops.Item)


def elements_per_place(node: fx.Node, layout: PlaceLayout) -> float:
    """Elements of a value at one place; symbolic sizes other than places count as 64."""
    sizes = [atom.size for _, atoms in layout.rest(node) for atom in atoms]
    return math.prod(float(s) if s.is_number else 64.0 for s in sizes)


def work_per_place(node: fx.Node, layout: PlaceLayout) -> float:
    """What computing a value costs at one place: its elements, and the multiply-adds of a contraction."""
    kind = ops.kind_of(node)
    if node.target in ops.CLASS_LOSSES:
        return elements_per_place(node.args[0], layout)  # type: ignore[arg-type]
    if isinstance(kind, _VIEWS) or kind is None:
        return 0.0
    out = elements_per_place(kind.logits if isinstance(kind, ops.RowLoss) else node, layout)
    if not isinstance(kind, ops.Contract):
        return out
    summed = 1.0
    for label, size in zip(kind.left_labels, kind.left.meta["val"].shape):
        if label not in kind.out_labels:
            summed *= float(size) if isinstance(size, int) else 64.0
    return out * (1.0 + 2.0 * summed / _FLOPS_PER_ACCESS)


def saving(
    packed: Iterable[fx.Node], entries: Iterable[fx.Node], exits: Iterable[fx.Node], layout: PlaceLayout, fill: float
) -> tuple[float, float]:
    """(work saved at a fill, total work), a place: the padded share of the packed work, less packing and unpacking."""
    total = sum(work_per_place(node, layout) for node in packed)
    moved = sum(2.0 * elements_per_place(node, layout) for node in (*entries, *exits))
    return (1.0 - fill) * total - fill * moved, total
