"""Put a program of distinct rows where it ran at every place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.kinds import Pick
from gr_compile.analysis.layout import Layout
from gr_compile.editor import GraphEditor
from gr_compile.passes.dedupe_lookups.profit import Cut
from gr_compile.passes.dedupe_lookups.regions import Region
from gr_compile.passes.eliminate_padding.packed import RowForms
from gr_compile.passes.fuse_sampled_logits.emit import from_the_start
from gr_compile.sizes import same_sizes

aten, gr = torch.ops.aten, torch.ops.gr


class DistinctRows:
    """Emits into one graph."""

    def __init__(self, editor: GraphEditor) -> None:
        self._editor = editor

    def replace(self, cuts: Sequence[Cut]) -> None:
        """What reads a value that is spread reads the rows of the distinct ids of all cuts instead."""
        editor, first = self._editor, cuts[0]
        output = next(iter(editor.graph.find_nodes(op="output")))
        before = set(editor.graph.nodes)
        with editor.at(before=output, like=first.inside[0]):
            ids = [self._ids(cut.region) for cut in cuts]
            rows = editor.symbol_of(first.region.rows)
            distinct = self._distinct(ids, rows)
            for cut, numbers in zip(cuts, ids):
                numbered = editor.call(gr.numbered.default, numbers, distinct, rows)
                forms = _Rows(editor, cut, distinct)
                for node in cut.spread:
                    editor.replace(node, self._spread(node, cut.region, forms, numbered), only=_outside(cut))
        self._once([node for node in editor.graph.nodes if node not in before])
        editor.sort()

    def _ids(self, region: Region) -> fx.Node:
        """The numbers of rows, counted from the start."""
        if not region.from_the_end:
            return region.ids
        return from_the_start(self._editor, region.ids, self._editor.symbol_of(region.rows))

    def _distinct(self, ids: Sequence[fx.Node], rows: fx.Node | int) -> fx.Node:
        """int64 [U]: the distinct ids, ascending."""
        editor, every = self._editor, ids[0]
        if len(ids) > 1:
            flat = [editor.call(aten.reshape.default, x, [-1]) for x in ids]
            if len({x.meta["val"].dtype for x in flat}) > 1:
                flat = [editor.call(aten.to.dtype, x, torch.int64) for x in flat]
            every = editor.call(aten.cat.default, flat)
        occurring = editor.call(gr.occurring.default, every, rows)
        count = editor.call(gr.count_true.default, occurring)
        made: fx.Node = editor.call(gr.true_places.default, occurring, count)
        return made

    def _spread(self, node: fx.Node, region: Region, forms: RowForms, numbered: fx.Node) -> fx.Node:
        """The value at every place, as the graph has it: a lookup of rows, whose gradients are summed by row."""
        editor, layout = self._editor, region.layout
        rows = forms.packed(node)
        with editor.at(like=node):
            rest: list[Any] = list(rows.meta["val"].shape[1:])
            flat = rows
            if len(rest) != 1:
                flat = editor.call(aten.reshape.default, rows, [rows.meta["val"].shape[0], _product(rest)])
            spread = editor.call(aten.embedding.default, flat, numbered)
            places, rank = layout.dims.of(region.ids), ops.rank(region.ids)
            if layout.dims.of(node)[:rank] == places and all(places):
                made = spread
                if not same_sizes(spread.meta["val"].shape, node.meta["val"].shape):
                    made = editor.call(aten.reshape.default, spread, list(node.meta["val"].shape))
                return made
            first = list(layout.places)
            dense = editor.call(aten.reshape.default, spread, [*(forms.extent(a) for a in first), *rest])
            made = forms.arrange_back(dense, node, first)
            if not same_sizes(made.meta["val"].shape, node.meta["val"].shape):
                made = editor.call(aten.reshape.default, made, list(node.meta["val"].shape))
            return made

    def _once(self, made: Sequence[fx.Node]) -> None:
        """Equal calls become one: ids of several regions go through the same program."""
        known: dict[Any, fx.Node] = {}
        for node in made:
            key = node.target, repr(node.args), repr(node.kwargs)
            first = known.setdefault(key, node)
            if first is not node and not node.meta.get("unbacked_bindings"):
                self._editor.replace(node, first)
                self._editor.erase(node)


class _Rows(RowForms):
    """Values of a region with a row for every distinct id."""

    def __init__(self, editor: GraphEditor, cut: Cut, distinct: fx.Node) -> None:
        super().__init__(editor, cut.region.layout)
        self._packed[cut.region.ids] = distinct

    def _pick(self, node: fx.Node, kind: Pick) -> fx.Node:
        if kind.index is not None and self.layout.of(kind.index) is Layout.TOKENS:
            return self.editor.again(node, index=self.packed(kind.index))
        return super()._pick(node, kind)


def _outside(cut: Cut) -> Any:
    inside = set(cut.inside)
    return lambda user: user not in inside


def _product(sizes: Sequence[Any]) -> Any:
    product: Any = 1
    for size in sizes:
        product = product * size
    return product
