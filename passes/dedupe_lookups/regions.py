"""Regions: what a graph computes of an id alone, place by place.

A value belongs to the region of `ids` [*places] if its element at a place depends on the id at that place, and on
values that are the same for all places: weights, scalars, constants. It is found operator by operator (`PlaceLayout`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.dims import DimensionProvenance
from gr_compile.analysis.element import Blocked, Elements
from gr_compile.analysis.expr import index, walk
from gr_compile.analysis.kinds import Contract, Item
from gr_compile.analysis.layout import Layout, PlaceLayout
from gr_compile.analysis.looked_up import rows_and_numbers, sums_its_gradient
from gr_compile.analysis.reads import SHAPE_ONLY
from gr_compile.sizes import size_expr

aten = torch.ops.aten
NUMBERED, TRUE_PLACES = torch.ops.gr.numbered.default, torch.ops.gr.true_places.default
_IDS = (torch.int64, torch.int32)


@dataclass(frozen=True, eq=False)
class Region:
    """The values of one tensor of ids.

    Attributes:
        ids: int64 or int32, of any shape.
        layout: places are the index spaces of `ids`.
        members: the values, in the graph's order; `ids` is none of them.
        lookups: the members that are rows of a table, which `ids` number.
        rows: the size of the smallest of these tables.
        from_the_end: negative ids count from the end, as x[ids] reads them.
        ends: a node that reads a member and is none, and why; in the graph's order.
    """

    ids: fx.Node
    layout: PlaceLayout
    members: tuple[fx.Node, ...]
    lookups: tuple[fx.Node, ...]
    rows: Any
    from_the_end: bool
    ends: tuple[tuple[fx.Node, str], ...]

    @property
    def tables(self) -> frozenset[fx.Node]:
        """What `ids` number rows of."""
        return frozenset(table_of(x) for x in self.lookups)


class RegionFinder:
    """The regions of one graph. `left`: lookups that are left to others."""

    def __init__(
        self, graph_module: fx.GraphModule, dims: DimensionProvenance, pull: Elements, left: frozenset[fx.Node]
    ) -> None:
        self._graph, self._dims, self._pull, self._left = graph_module.graph, dims, pull, left
        self._order = {node: k for k, node in enumerate(graph_module.graph.nodes)}

    def regions(self) -> list[Region]:
        """One for each tensor of ids that looks rows of floats up, in the order of the first lookups."""
        readers: dict[fx.Node, list[fx.Node]] = {}
        for node in self._graph.nodes:
            found = rows_and_numbers(node)
            if found is not None and node not in self._left:
                readers.setdefault(found[1], []).append(node)
        regions = (self._region(ids, lookups) for ids, lookups in readers.items())
        return [x for x in regions if x is not None]

    def _region(self, ids: fx.Node, lookups: Sequence[fx.Node]) -> Region | None:
        if ids.target in (NUMBERED, TRUE_PLACES) or ids.meta["val"].dtype not in _IDS:
            return None
        atoms = [atom for dim in self._dims.of(ids) for atom in dim]
        if not atoms or len(set(atoms)) != len(atoms):
            return None
        layout = PlaceLayout(self._dims, tuple(atoms))
        lookups = [x for x in lookups if layout.of(table_of(x)) is Layout.DENSE]
        wrapping = [x for x in lookups if x.target is aten.index.Tensor]
        from_the_end = bool(lookups) and len(wrapping) == len(lookups)
        members, ends = self._grown(ids, layout, from_the_end)
        inside = [x for x in lookups if x in members]
        sizes = {size_expr(table_of(x).meta["val"].shape[0]): table_of(x).meta["val"].shape[0] for x in inside}
        if not any(is_table(table_of(x)) for x in members if rows_and_numbers(x) is not None):
            return None
        if (from_the_end and len(sizes) > 1) or (not all(s.is_Integer for s in sizes) and len(sizes) > 1):
            return None  # -1 is another row in each; the smallest is not known
        rows = sizes[min(sizes, key=lambda s: int(s) if s.is_Integer else 0)]
        return Region(ids, layout, tuple(members), tuple(inside), rows, from_the_end, tuple(ends))

    def _grown(
        self, ids: fx.Node, layout: PlaceLayout, from_the_end: bool
    ) -> tuple[dict[fx.Node, None], list[tuple[fx.Node, str]]]:
        """Members as the keys of a dict, in order, and what ends the region."""
        members: dict[fx.Node, None] = {}
        ends: list[tuple[fx.Node, str]] = []
        waiting = set(ids.users)
        while waiting:
            node = min(waiting, key=self._order.__getitem__)
            waiting.discard(node)
            if node.target in SHAPE_ONLY or node in self._left:
                continue
            reason = self._ends_at(node, ids, layout, members, from_the_end)
            if reason is None:
                members[node] = None
                waiting |= set(node.users)
            elif reason and any(x in members for x in operands(node)):
                ends.append((node, reason))
            elif not reason:
                waiting |= set(node.users)  # a list of parts: its items are looked at
        return members, ends

    def _ends_at(
        self, node: fx.Node, ids: fx.Node, layout: PlaceLayout, members: dict[fx.Node, None], from_the_end: bool
    ) -> str | None:
        """Why the value depends on more than the id; None where it does not, "" for a list, whose items are values."""
        if node.op != "call_function":
            return "it is an output" if node.op == "output" else f"{node.op} reads it"
        if isinstance(node.meta.get("val"), (tuple, list)) and ops.kind_of(node) is not None:
            return ""
        found = rows_and_numbers(node)
        if found is not None and (found[1] is ids or found[1] in members):
            if layout.of(found[0]) is not Layout.DENSE:
                return f"{node.target} looks up in a table that is another one at every place"
            if not sums_its_gradient(node):
                return "the table's gradient is sparse, or scaled by how often an id occurs"
            return None
        if from_the_end and ids in operands(node):
            return f"{node.target} reads ids that may count from the end"
        if is_random(node):
            return f"{node.target} draws other numbers at every place"
        for operand in operands(node):
            if operand is not ids and operand not in members and not _same_everywhere(operand, node, layout):
                return f"{node.target} reads {operand.name}, too, which is no value of the id alone"
        if not layout.is_local(node):
            kind = ops.kind_of(node)
            return f"{node.target} " + ("has no rule: it may read any place" if kind is None else "mixes places")
        return None

    def is_data(self, ids: fx.Node) -> bool:
        """Whether the ids come from the inputs; index arithmetic names other places every time."""
        self._pull.forget()
        places = []
        for position, extent in enumerate(self._pull.shape(ids)):
            self._pull.bind(f"p{position}", extent)
            places.append(index(f"p{position}"))
        try:
            element = self._pull.element(ids, places)
        except Blocked:
            return True
        return any(part.op == "load" for part in walk(element))


def table_of(lookup: fx.Node) -> fx.Node:
    """What a lookup reads rows of."""
    found = rows_and_numbers(lookup)
    assert found is not None
    return found[0]


def is_table(table: fx.Node) -> bool:
    """Rows [V, ...] of floats."""
    value = table.meta["val"]
    return bool(value.is_floating_point() and value.dim() >= 2)


def operands(node: fx.Node) -> list[fx.Node]:
    """The tensors that a value is computed of; of an item those of its list."""
    kind = ops.kind_of(node)
    if isinstance(kind, Item) and not ops.tensor_operands(node):
        return ops.tensor_operands(kind.source)
    return ops.tensor_operands(node)


def is_random(node: fx.Node) -> bool:
    """Its numbers are drawn; a dropout that is switched off draws none."""
    drawn = node
    kind = ops.kind_of(node)
    if isinstance(kind, Item):
        drawn = kind.source
    seeded = isinstance(drawn.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in drawn.target.tags
    return bool(seeded and not (drawn.target is aten.dropout.default and drawn.args[2] is False))


def _same_everywhere(operand: fx.Node, node: fx.Node, layout: PlaceLayout) -> bool:
    """Has an operand that is no member one value for all places of the result?"""
    if layout.of(operand) is not Layout.DENSE:
        return False
    kind, sizes = ops.kind_of(node), operand.meta["val"].shape
    if isinstance(kind, Contract):
        places = {c for c, dim in zip(kind.out_labels, layout.dims.of(node)) if layout.has_place(dim)}
        sides = ((kind.left, kind.left_labels), (kind.right, kind.right_labels))
        labelled = [c for x, labels in sides if x is operand for c, size in zip(labels, sizes) if size_expr(size) != 1]
        return not places & set(labelled) and (operand is not kind.bias or _broadcasts(operand, node, layout))
    return not isinstance(kind, (ops.Pointwise, ops.Put)) or _broadcasts(operand, node, layout)


def _broadcasts(operand: fx.Node, node: fx.Node, layout: PlaceLayout) -> bool:
    """Every dimension of the operand that stands at a place has size 1."""
    skip, dims = ops.rank(node) - ops.rank(operand), layout.dims.of(node)
    sizes = enumerate(operand.meta["val"].shape)
    return all(size_expr(size) == 1 or not layout.has_place(dims[skip + k]) for k, size in sizes)
