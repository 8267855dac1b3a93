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
from gr_compile.analysis.expr import Expr, Ranges, add, const, divmod_, index, mul
from gr_compile.analysis.region import Operand, Region
from gr_compile.editor import GraphEditor
from gr_compile.passes.eliminate_padding.emit import PlaceEmitter

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
    """The earliest value of which an operand is only a view, and what each of its dimensions is read at.

    `sizes`: of the dimensions, where those of the node are split first (B * H into B and H); else None.
    `unit`: the dimension of size 1 that stands for the only sequence there is, if one does.
    """

    node: fx.Node
    indices: Indices
    sizes: tuple[Expr, ...] | None
    unit: int | None = None


def base_of(operand: Operand, region: Region, place: str, pull: Elements) -> Base:
    """Walk back through views, repeats and expansions to the smallest value with one index a dimension.

    Raises:
        Blocked: not even the operand itself is read at separate indices for sequence, place, heads and feature.
    """
    ranges = _ranges_of(operand, region, pull)
    best: Base | None = None
    node: Any = operand.node
    indices: Indices | None = operand.indices
    while indices is not None:
        found = _separated(node, indices, operand.feature, place, region.extents["b"] is const(1), ranges, pull)
        if found is not None and (best is None or _rank(found) <= _rank(best)):
            best = found
        source = _source(node)
        if source is None:
            break
        node = source
        indices = _read_of(node, region, operand.feature, place)
    if best is None:
        raise Blocked("an operand whose heads and features cannot be told apart", operand.node)
    return best


def _rank(base: Base) -> tuple[bool, float]:
    return base.sizes is not None, _numel(base.node)


def _ranges_of(operand: Operand, region: Region, pull: Elements) -> Ranges:
    ranges = Ranges()
    for name, extent in region.extents.items():
        ranges.bound(name, extent)
    last = pull.ranges.upper(operand.feature)
    if last is not None:
        ranges.bound(operand.feature.args[0], add(last, const(1)))
    return ranges


def _separated(
    node: fx.Node, indices: Indices, feature: Expr, place: str, one_sequence: bool, ranges: Ranges, pull: Elements
) -> Base | None:
    """The node read at one index a dimension, its dimensions split where several indices share one."""
    names = {"b", place, feature.args[0]}
    split: list[Expr] = []
    sizes: list[Expr] = []
    for at, size in zip(indices, pull.shape(node)):
        digits = _digits(at, size, ranges) if at.op != "index" and at.free & names else [(at, size)]
        if digits is None:
            return None
        split += [digit for digit, _ in digits]
        sizes += [extent for _, extent in digits]
    unit = None
    if one_sequence:
        unit = next((d for d, at in enumerate(split) if at.op == "const" and sizes[d] is const(1)), None)
    base = Base(node, tuple(split), tuple(sizes) if len(split) > len(indices) else None, unit)
    return base if _separable(base, feature, place) else None


def _digits(at: Expr, size: Expr, ranges: Ranges) -> list[tuple[Expr, Expr]] | None:
    """4 * b + h, for h < 4, as the digits b and h with their extents, outermost first."""
    digits: list[tuple[Expr, Expr]] = []
    product: Expr = const(1)
    while at.op != "index":
        for name in sorted(at.free):
            extent = _extent(name, ranges)
            quotient, rest = divmod_(at, extent, ranges) if extent is not None else (at, at)
            if extent is not None and rest is index(name):
                digits.insert(0, (rest, extent))
                at, product = quotient, mul(product, extent)
                break
        else:
            return None
    outermost = _extent(at.args[0], ranges)
    if outermost is None or mul(product, outermost) is not size:
        return None
    return [(at, outermost), *digits]


def _extent(name: str, ranges: Ranges) -> Expr | None:
    last = ranges.upper(index(name))
    return add(last, const(1)) if last is not None else None


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


def _separable(base: Base, feature: Expr, place: str) -> bool:
    """One dimension each for the place, the feature and the sequence. No dimension stands for the sequence where all
    share the operand (learned queries), or where there is one sequence."""
    special, indices = [index("b"), index(place), feature], base.indices
    if sum(i is feature for i in indices) != 1 or sum(i is index(place) for i in indices) != 1:
        return False
    if sum(i is index("b") for i in indices) != 1 and any("b" in i.free for i in indices):
        return False
    names = {"b", place, feature.args[0]}
    return all(any(i is s for s in special) or not i.free & names for i in indices)


def _numel(node: fx.Node) -> float:
    return math.prod(float(s) if isinstance(s, int) else 1024.0 for s in node.meta["val"].shape)


def size_node(extent: Expr, editor: GraphEditor, pull: Elements) -> Any:
    """A size as a node or a number."""
    return PlaceEmitter(editor, pull, {}, torch.device("cpu"))(extent)


class OperandBuilder:
    """Makes [T, heads, features] operands at the editor's insertion point."""

    def __init__(self, editor: GraphEditor, pull: Elements) -> None:
        self.editor, self.pull = editor, pull

    def build(self, base: Base, place: str, feature: Expr, side: Side) -> tuple[fx.Node, Expr]:
        """(the operand, its head as an expression over the region's head indices)."""
        node, indices = base.node, base.indices
        sizes = base.sizes or self.pull.shape(node)
        batch_dim = next((d for d, i in enumerate(indices) if i is index("b")), base.unit)
        place_dim = next(d for d, i in enumerate(indices) if i is index(place))
        feature_dim = next(d for d, i in enumerate(indices) if i is feature)
        heads = [d for d in range(len(indices)) if d not in (batch_dim, place_dim, feature_dim)]
        head, count = const(0), const(1)
        for d in heads:
            head, count = add(mul(head, sizes[d]), indices[d]), mul(count, sizes[d])
        extents = [size_node(size, self.editor, self.pull) for size in sizes]
        order = [place_dim, *heads, feature_dim]
        if batch_dim is None:
            values = self._shared_rows(base, extents, order, side)
        else:
            values = self._rows(base, extents, [batch_dim, *order], side)
        shape = [-1, self._product([extents[d] for d in heads]), extents[feature_dim]]
        made: fx.Node = self.editor.call(aten.reshape.default, values, shape)
        return made, head

    def _shared_rows(self, base: Base, extents: list[Any], order: list[int], side: Side) -> fx.Node:
        """[T, *heads, features] of an operand that all sequences share: its row at each position."""
        dense = self._ordered(base, extents, order)
        made: fx.Node = self.editor.call(aten.index_select.default, dense, 0, side.positions)
        return made

    def _ordered(self, base: Base, extents: list[Any], order: list[int]) -> fx.Node:
        """The base, its dimensions split where they are shared, in the given order."""
        dense = base.node if base.sizes is None else self.editor.call(aten.reshape.default, base.node, extents)
        return dense if order == list(range(len(order))) else self.editor.call(aten.permute.default, dense, order)

    def _rows(self, base: Base, extents: list[Any], order: list[int], side: Side) -> fx.Node:
        """[T, *heads, features]: the packed values themselves where the base is their unpacking."""
        node = base.node
        unpacked = node.target is UNPACK and side.flat is not None and node.args[1] is side.flat
        if unpacked and order[:2] == [0, 1] and base.indices[0] is index("b"):
            values: Any = node.args[0]
            if base.sizes is not None:
                values = self.editor.call(aten.reshape.default, values, [-1, *extents[2:]])
            inner = [0] + [d - 1 for d in order[2:]]
            if inner == list(range(len(inner))):
                return values  # type: ignore[no-any-return]
            moved: fx.Node = self.editor.call(aten.permute.default, values, inner)
            return moved
        dense = self._ordered(base, extents, order)
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
