"""Masks of places as graph nodes: bool [B, N] from expressions over b and n, and from the masks that those name."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis.closure import KeptPlaces
from gr_compile.analysis.element import Elements
from gr_compile.analysis.expr import Expr, walk
from gr_compile.analysis.layout import TokenLayout
from gr_compile.editor import GraphEditor
from gr_compile.passes.eliminate_padding.emit import PlaceEmitter

aten = torch.ops.aten


class PlaceMasks:
    """Makes masks of one layout at the editor's insertion point, each once; `kept`: what derived masks stand for."""

    def __init__(
        self, editor: GraphEditor, pull: Elements, layout: TokenLayout, kept: KeptPlaces, device: torch.device
    ) -> None:
        self.editor, self.pull, self.layout, self.kept, self.device = editor, pull, layout, kept, device
        self._made: dict[Expr, fx.Node] = {}
        self._derived: dict[str, fx.Node] = {}
        self._counts: dict[tuple[Expr, bool], fx.Node] = {}

    def of(self, places: Expr) -> fx.Node:
        """bool [B, N]: where `places` holds."""
        if places not in self._made:
            batch_size, length = self.sizes()
            emit = PlaceEmitter(self.editor, self.pull, {"b": (batch_size, 0), "n": (length, 1)}, self.device)
            for name in dict.fromkeys(part.args[0] for part in walk(places) if part.op == "load"):
                if name in self.kept.closures:
                    emit.given[name] = self._closure(name)
            self._made[places] = self.editor.call(aten.expand.default, emit.tensor(places), [batch_size, length])
        return self._made[places]

    def count(self, places: Expr, up_to: bool) -> fx.Node:
        """int64: how many of `places` a sequence has, [B, 1], or has at or before each of its own, [B, N]."""
        key = places, up_to
        if key not in self._counts:
            mask, editor = self.of(places), self.editor
            self._counts[key] = (
                editor.call(aten.cumsum.default, mask, 1) if up_to
                else editor.call(aten.sum.dim_IntList, mask, [1], True)
            )  # fmt: skip
        return self._counts[key]

    def sizes(self) -> tuple[Any, Any]:
        """B and N, as nodes or numbers."""
        return self.editor.symbol_of(self.layout.batch.size), self.editor.symbol_of(self.layout.sequence.size)

    def _closure(self, name: str) -> fx.Node:
        if name not in self._derived:
            kind, places = self.kept.closures[name]
            self._derived[name] = self._named(places) if kind == "named" else self._closed(kind, self.of(places))
        return self._derived[name]

    def _closed(self, kind: str, mask: fx.Node) -> fx.Node:
        editor = self.editor
        if kind == "suffix":
            return editor.call(torch.ops.gr.suffix_any.default, mask)
        if kind == "first":
            absent = editor.call(aten.logical_not.default, mask)
            rank = editor.call(aten.cumsum.default, absent, 1)
            return editor.call(aten.logical_and.default, absent, editor.call(aten.eq.Scalar, rank, 1))
        some = editor.call(aten.any.dim, mask, 1, True)
        return some if kind == "rows" else editor.call(aten.logical_not.default, some)

    def _named(self, numbers: Expr) -> fx.Node:
        """bool [B, N]: true at the places b * N + n that a tensor of numbers names."""
        editor, device = self.editor, self.device
        count = editor.symbol_of(self.layout.batch.size * self.layout.sequence.size)
        nowhere = editor.call(aten.full.default, [count], False, dtype=torch.bool, device=device)
        here = editor.call(aten.full.default, [], True, dtype=torch.bool, device=device)
        flat = editor.call(aten.index_put.default, nowhere, [self.pull.nodes[numbers.args[0]]], here)
        made: fx.Node = editor.call(aten.reshape.default, flat, list(self.sizes()))
        return made

    def filled(self, mask: fx.Node, multiple: int) -> fx.Node:
        """`mask` with as many more places, the first that it lacks, as round their number up to `multiple`."""
        editor = self.editor
        flat = editor.call(aten.reshape.default, mask, [-1])
        count = editor.call(aten.sum.default, flat)
        lacking = editor.call(aten.remainder.Scalar, editor.call(aten.neg.default, count), multiple)
        absent = editor.call(aten.logical_not.default, flat)
        rank = editor.call(aten.cumsum.default, absent, 0)
        extra = editor.call(aten.logical_and.default, absent, editor.call(aten.le.Tensor, rank, lacking))
        either = editor.call(aten.logical_or.default, flat, extra)
        filled: fx.Node = editor.call(aten.reshape.default, either, list(self.sizes()))
        return filled
