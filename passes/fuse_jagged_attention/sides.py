"""Operands of a fused region: from whatever view the model made to [T, heads, features] and a head map."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.element import Blocked, Elements, Indices
from gr_compile.analysis.expr import Expr, add, const, index, mul
from gr_compile.analysis.region import Operand, Region
from gr_compile.editor import GraphEditor

aten = torch.ops.aten
UNPACK = torch.ops.gr.unpack.default
_SEEN_THROUGH = (aten.repeat_interleave.self_int, aten.repeat.default, aten.clone.default, aten.contiguous.default)


@dataclass(frozen=True)
class Side:
    """Which rows of an operand the operator reads: offsets and padded positions, as nodes.

    `flat` is the packed index of a jagged side, None for a dense one.
    """

    offsets: fx.Node
    positions: fx.Node
    flat: fx.Node | None


@dataclass(frozen=True)
class Base:
    """The earliest value of which an operand is only a view, and what each of its dimensions is read at."""

    node: fx.Node
    indices: Indices


def base_of(operand: Operand, region: Region, place: str) -> Base:
    """Walk back through views, repeats and expansions to the smallest value with one index a dimension.

    Raises:
        Blocked: not even the operand itself is read at separate indices for sequence, place, heads and feature.
    """
    best: Base | None = None
    node: Any = operand.node
    indices: Indices | None = operand.indices
    while indices is not None:
        whole = _separable(node, indices, operand.feature, place, region.extents["b"] is const(1))
        if whole and (best is None or _numel(node) <= _numel(best.node)):
            best = Base(node, indices)
        source = _source(node)
        if source is None:
            break
        node = source
        indices = _read_of(node, region, operand.feature, place)
    if best is None:
        raise Blocked("an operand whose heads and features cannot be told apart", operand.node)
    return best


def _source(node: fx.Node) -> fx.Node | None:
    kind = ops.kind_of(node)
    if isinstance(kind, (ops.Reshape, ops.Permute, ops.Expand)) or (isinstance(kind, ops.Slice) and kind.whole):
        return kind.source
    return node.args[0] if node.target in _SEEN_THROUGH else None  # type: ignore[return-value]


def _read_of(node: fx.Node, region: Region, feature: Expr, place: str) -> Indices | None:
    wanted = {feature.args[0], place}
    for indices in region.reads.get(node, ()):
        free: frozenset[str] = frozenset().union(*(i.free for i in indices))
        if wanted <= free:
            return indices
    return None


def _separable(node: fx.Node, indices: Indices, feature: Expr, place: str, one_sequence: bool) -> bool:
    """One dimension each for the sequence, the place and the feature; a size of 1 may stand for the sequence."""
    special = [index("b"), index(place), feature]
    shape = node.meta["val"].shape
    if sum(i is feature for i in indices) != 1 or sum(i is index(place) for i in indices) != 1:
        return False
    unit = one_sequence and any(_is_one(shape[d]) and i.op == "const" for d, i in enumerate(indices))
    if sum(i is index("b") for i in indices) != 1 and not unit:
        return False
    names = {"b", place, feature.args[0]}
    return all(any(i is s for s in special) or not i.free & names for i in indices)


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def _numel(node: fx.Node) -> float:
    return math.prod(float(s) if isinstance(s, int) else 1024.0 for s in node.meta["val"].shape)


class OperandBuilder:
    """Makes [T, heads, features] operands at the editor's insertion point."""

    def __init__(self, editor: GraphEditor, pull: Elements) -> None:
        self.editor, self.pull = editor, pull

    def build(self, base: Base, place: str, feature: Expr, side: Side) -> tuple[fx.Node, Expr]:
        """(the operand, its head as an expression over the region's head indices)."""
        node, indices = base.node, base.indices
        batch_dim = next((d for d, i in enumerate(indices) if i is index("b")), None)
        place_dim = next(d for d, i in enumerate(indices) if i is index(place))
        feature_dim = next(d for d, i in enumerate(indices) if i is feature)
        if batch_dim is None:
            batch_dim = next(d for d, i in enumerate(indices) if i.op == "const" and _is_one(node.meta["val"].shape[d]))
        heads = [d for d in range(len(indices)) if d not in (batch_dim, place_dim, feature_dim)]
        head, count = const(0), const(1)
        for d in heads:
            extent = self.pull.extent(node.meta["val"].shape[d])
            head, count = add(mul(head, extent), indices[d]), mul(count, extent)
        sizes = [self.editor.symbol_of(node.meta["val"].shape[d]) for d in heads]
        width = self.editor.symbol_of(node.meta["val"].shape[feature_dim])
        values = self._rows(node, [batch_dim, place_dim, *heads, feature_dim], side)
        shape = [-1, self._product(sizes), width]
        made: fx.Node = self.editor.call(aten.reshape.default, values, shape)
        return made, head

    def _rows(self, node: fx.Node, order: list[int], side: Side) -> fx.Node:
        """[T, *heads, features]: the packed values themselves where `node` is their unpacking."""
        if node.target is UNPACK and side.flat is not None and node.args[1] is side.flat and order[:2] == [0, 1]:
            values: Any = node.args[0]
            inner = [0] + [d - 1 for d in order[2:]]
            if inner == list(range(len(inner))):
                return values  # type: ignore[no-any-return]
            moved: fx.Node = self.editor.call(aten.permute.default, values, inner)
            return moved
        dense = node
        if order != list(range(len(order))):
            dense = self.editor.call(aten.permute.default, node, order)
        if side.flat is not None:
            packed: fx.Node = self.editor.call(torch.ops.gr.pack.default, dense, side.flat)
            return packed
        flat: fx.Node = self.editor.call(aten.flatten.using_ints, dense, 0, 1)
        return flat

    def _product(self, sizes: list[Any]) -> Any:
        product: Any = 1
        for size in sizes:
            product = product * size if not isinstance(size, fx.Node) else self.editor.call(operator.mul, product, size)
        return product
