"""Put the logits of other tokens behind those of each token."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import torch
import torch.fx as fx

from gr_compile.editor import GraphEditor
from gr_compile.passes.seeds import new_seed
from gr_compile.passes.share_logits.items import OTHERS, ItemFinder, Logits
from gr_compile.passes.share_logits.losses import Weight
from gr_compile.sizes import same_sizes

aten = torch.ops.aten


class Sharing:
    """Emits one loss's further logits; `softmax` reads `logits` [T, 1 + R], tokens of no `weights` lend none."""

    def __init__(
        self, editor: GraphEditor, items: ItemFinder, softmax: fx.Node, logits: fx.Node, known: Logits,
        weights: Sequence[Weight],
    ) -> None:  # fmt: skip
        self.editor, self.items, self.softmax, self.logits = editor, items, softmax, logits
        self.known, self.weights = known, weights

    def rewrite(self, expansion: int) -> None:
        """The softmax reads [T, 1 + expansion R]; what read its result reads as many columns as before."""
        editor, softmax = self.editor, self.softmax
        with editor.at(before=softmax, like=softmax):
            together = editor.call(aten.cat.default, [self.logits, *self._shared(expansion - 1)], 1)
            if softmax.target is not aten.log_softmax.int:
                editor.set_argument(softmax, self.logits, together)
            else:
                wide = editor.again(softmax, lambda x: together if x is self.logits else x)
                columns = editor.size(self.logits, 1)
                editor.replace(softmax, editor.call(aten.slice.Tensor, wide, 1, 0, columns))
                editor.erase(softmax)
        editor.sort()

    def _shared(self, count: int) -> list[fx.Node]:
        """`count` times [T, R]."""
        editor, tokens, device = self.editor, self.editor.size(self.logits, 0), self.logits.meta["val"].device
        ids = self.items.ids(editor, self.logits, {})
        target, negatives = self._columns(ids, 0, 1), self._columns(ids, 1, sys.maxsize)
        logits = self._columns(self.logits, 1, sys.maxsize)
        others = editor.call(OTHERS, new_seed(editor, device), tokens, count)
        numbers = editor.call(aten.arange.default, tokens, dtype=torch.int64, device=device)
        idle = [self._idle(weight, tokens) for weight in self.weights]
        shared = []
        for row in range(count):
            lenders = editor.call(aten.select.int, others, 0, row)
            lost = editor.call(aten.eq.Tensor, lenders, numbers)
            for tokens_idle in idle:
                lost = editor.call(aten.logical_or.default, lost, self._of(tokens_idle, lenders))
            if self.known.group is not None:
                same = editor.call(aten.eq.Tensor, self._of(self.known.group, lenders), self.known.group)
                lost = editor.call(aten.logical_or.default, lost, same)
            hits = editor.call(aten.eq.Tensor, self._of(negatives, lenders), target)
            lost = editor.call(aten.logical_or.default, hits, editor.call(aten.unsqueeze.default, lost, 1))
            shared.append(editor.call(aten.where.ScalarSelf, lost, -math.inf, self._of(logits, lenders)))
        return shared

    def _columns(self, value: fx.Node, begin: int, end: int) -> fx.Node:
        return self.editor.call(aten.slice.Tensor, value, 1, begin, end)

    def _of(self, rows: fx.Node, lenders: fx.Node) -> fx.Node:
        return self.editor.call(aten.index_select.default, rows, 0, lenders)

    def _idle(self, weight: Weight, tokens: fx.Node | int) -> fx.Node:
        """bool [T]: the tokens to which the loss gives no weight."""
        editor, by = self.editor, weight.by
        if weight.picks:
            every = editor.call(aten.full.default, [tokens], True, dtype=torch.bool, device=by.meta["val"].device)
            return editor.call(aten.index_fill.int_Scalar, every, 0, by, False)
        if weight.ignored is not None:
            return editor.call(aten.eq.Scalar, by, weight.ignored)
        over = weight.over.meta["val"].shape
        if not same_sizes(by.meta["val"].shape, over):
            by = editor.call(aten.expand.default, by, list(over))
        if len(over) != 1:
            by = editor.call(aten.reshape.default, by, [tokens])
        return editor.call((aten.ne if weight.zero else aten.eq).Scalar, by, 0)
