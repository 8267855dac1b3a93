"""Reads at the true places of a mask, written by `nonzero`, whose count can leave the graph.

    x[mask]                     i, j = nonzero(mask).unbind(1)
    masked_select(x, mask)      x[i, j]

Equal masks share one `nonzero` where the graph holds their counts for one number.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx

from gr_compile.editor import GraphEditor
from gr_compile.lowering.torchair.replay import unbacked
from gr_compile.sizes import size_expr

aten = torch.ops.aten


class MaskedReads:
    """Rewrites the masked reads of one graph."""

    def __init__(self, editor: GraphEditor) -> None:
        self.editor = editor
        self._columns: dict[Any, list[fx.Node]] = {}
        self._formulas: dict[fx.Node, Any] = {}

    def rewrite(self) -> None:
        """Every `index` with a mask, and every `masked_select`."""
        for node in list(self.editor.graph.nodes):
            if node.target is aten.index.Tensor and any(map(_is_mask, node.args[1])):
                self._index(node)
            elif node.target is aten.masked_select.default:
                self._masked_select(node)

    def _index(self, node: fx.Node) -> None:
        source: Any
        given: Any
        source, given = node.args
        with self.editor.at(before=node, like=node):
            places: list[Any] = []
            for index in given:
                places += self._places(index, node) if _is_mask(index) else [index]
            self._replace(node, source, places)

    def _masked_select(self, node: fx.Node) -> None:
        source: Any
        mask: Any
        source, mask = node.args
        with self.editor.at(before=node, like=node):
            shapes = [operand.meta["val"].shape for operand in (source, mask)]
            shape = list(torch.broadcast_shapes(*shapes))  # type: ignore[no-untyped-call]
            source, mask = (self.editor.call(aten.expand.default, operand, shape) for operand in (source, mask))
            self._replace(node, source, self._places(mask, node))

    def _replace(self, node: fx.Node, source: Any, places: list[Any]) -> None:
        made = self.editor.call(aten.index.Tensor, source, places)
        self.editor.same_count(made, node)
        self.editor.replace(node, made)

    def _places(self, mask: fx.Node, node: fx.Node) -> list[fx.Node]:
        """The coordinates of the true places; those that an earlier read of the same mask and count has."""
        count = next((size_expr(size) for size in node.meta["val"].shape if unbacked(size)), None)
        key = self._formula(mask), count
        found = self._columns.get(key)
        if found is None:
            columns = self.editor.call(aten.nonzero.default, mask)
            rank = mask.meta["val"].dim()
            found = [self.editor.call(aten.select.int, columns, 1, dimension) for dimension in range(rank)]
            self._columns[key] = found
        return found

    def _formula(self, value: Any) -> Any:
        """The same for two nodes that compute the same of the same values."""
        if isinstance(value, (list, tuple)):
            return tuple(map(self._formula, value))
        if not isinstance(value, fx.Node):
            return type(value), str(value) if isinstance(value, torch.SymInt) else value
        if value not in self._formulas:
            tags = getattr(value.target, "tags", ())
            drawn = value.op != "call_function" or torch.Tag.nondeterministic_seeded in tags
            named = tuple(sorted((name, self._formula(x)) for name, x in value.kwargs.items()))
            self._formulas[value] = value if drawn else (value.target, self._formula(value.args), named)
        return self._formulas[value]


def _is_mask(index: Any) -> bool:
    return isinstance(index, fx.Node) and index.meta["val"].dtype == torch.bool
