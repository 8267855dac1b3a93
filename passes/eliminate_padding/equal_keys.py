"""Padded keys that are equal become one key (gr_compile/analysis/equal_keys.py), with the log of their number.

    before   w = softmax(q kᵀ + causal)                         keys and values at padded places are one row
    after    w = softmax(where(valid or first, q kᵀ + causal + where(first, log(count), 0), -inf))

`count` is how many padded keys the query sees. With dropout each of them would be drawn by itself: the weight of the
one that stands for all is multiplied by the share of them that survives instead (gr::dropout_share).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.dims import Dim
from gr_compile.analysis.equal_keys import EqualKeys
from gr_compile.analysis.expr import not_, or_
from gr_compile.analysis.layout import TokenLayout
from gr_compile.analysis.region import SDPA
from gr_compile.editor import GraphEditor
from gr_compile.passes.eliminate_padding.masks import PlaceMasks
from gr_compile.passes.seeds import new_seed
from gr_compile.pipeline import PassContext

aten = torch.ops.aten
_SOFTMAX = (aten.softmax.int, aten._safe_softmax.default)
_HALF = (torch.float16, torch.bfloat16)


def is_fused_later(context: PassContext) -> bool:
    """Whether a later pass makes attention one operator, which the target has."""
    return context.fuses_later("fuse-jagged-attention", "gr::jagged_attention")


def spelling_of(equal: EqualKeys, layout: TokenLayout, context: PassContext) -> Spelling | None:
    """How the weights are spelled, while the graph is as it was; None where they cannot be rewritten: others read
    them, the target has no operator for their dropout, or scaled_dot_product_attention would have to be written out
    and no pass fuses it again."""
    spelled = _spelled(equal, layout)
    if spelled is None or not spelled.possible or (spelled.written_out and not is_fused_later(context)):
        return None
    return spelled if not spelled.dropout_rate or context.supports("gr::dropout_share") else None


def _spelled(equal: EqualKeys, layout: TokenLayout) -> Spelling | None:
    node = equal.region.node
    if node.target is SDPA:
        query: Any = node.args[0]
        return Spelling(equal, layout, None, None, (*layout.dims.of(query)[:-1], (layout.sequence,)))
    path = _path(equal)
    return Spelling(equal, layout, *path, layout.dims.of(path[0])) if path is not None else None


def _path(equal: EqualKeys) -> tuple[fx.Node, fx.Node | None] | None:
    """The softmax, and the dropout behind it, from which the product with the values takes its weights alone."""
    kind = ops.kind_of(equal.region.node)
    assert isinstance(kind, ops.Contract)
    node = kind.left if kind.right is equal.region.value.node else kind.right
    dropout: fx.Node | None = None
    while node.target not in _SOFTMAX:
        step = ops.kind_of(node)
        views = isinstance(step, (ops.Reshape, ops.Expand, ops.Permute))
        alone = isinstance(step, ops.Pointwise) and len(ops.tensor_operands(node)) == 1
        if len(node.users) != 1 or not (views or alone) or (views and dropout is not None):
            return None
        if node.target is aten.dropout.default and node.args[2] and node.args[1] != 0:
            if dropout is not None:
                return None
            dropout = node
        node = ops.tensor_operands(node)[0]
    rank = ops.rank(node)
    last = int(node.args[1]) % rank == rank - 1  # type: ignore[arg-type]
    return (node, dropout) if len(node.users) == 1 and last else None


class Spelling:
    """The weights of one region.

    Attributes:
        node: the product with the values.
        dims: what the logits' dimensions run over, keys last and, behind a causal mask, queries before them.
        batch_dim, folded: which of these holds the batch, with what else: batch and heads may be one dimension.
        possible: there is one such dimension, among the leading ones.
    """

    def __init__(
        self, equal: EqualKeys, layout: TokenLayout, softmax: fx.Node | None, dropout: fx.Node | None,
        dims: tuple[Dim, ...],
    ) -> None:  # fmt: skip
        self.equal, self.layout, self.softmax, self.dropout, self.dims = equal, layout, softmax, dropout, dims
        self.node = equal.region.node
        lead = [position for position, dim in enumerate(dims[:-2]) if layout.batch in dim]
        ordered = not equal.causal or dims[-2:] == ((layout.sequence,), (layout.sequence,))
        self.batch_dim = lead[0] if lead else 0
        self.folded = dims[self.batch_dim]
        self.possible = ordered and len(lead) == 1

    @property
    def opened(self) -> tuple[int, int]:
        """Which of the logits' dimensions is the batch, and how many there are, once `folded` is taken apart."""
        return self.batch_dim + self.folded.index(self.layout.batch), len(self.dims) + len(self.folded) - 1

    @property
    def dropout_rate(self) -> float:
        """The probability with which weights are dropped."""
        if self.node.target is SDPA:
            return float(ops.argument(self.node, 4, "dropout_p", 0.0))
        return float(self.dropout.args[1]) if self.dropout is not None else 0.0  # type: ignore[arg-type]

    @property
    def written_out(self) -> bool:
        """Whether a call of scaled_dot_product_attention cannot take the merged keys as a mask."""
        half = self.node.meta["val"].dtype in _HALF
        return self.node.target is SDPA and (self.dropout_rate > 0 or half or len(self.folded) > 1)

    def rewrite(self, editor: GraphEditor, masks: PlaceMasks) -> fx.Node:
        """Merge the keys at the insertion point; returns the node that makes O now."""
        with editor.at(like=self.node):
            return self._rewrite(editor, masks)

    def _rewrite(self, editor: GraphEditor, masks: PlaceMasks) -> fx.Node:
        keys = _Keys(editor, masks, self)
        node = self.node
        if self.softmax is not None:
            self._replaced(editor, keys, self.softmax)
            return node
        if self.written_out:
            made = _written_out(editor, keys, node, self.dropout_rate)
        else:
            mask = keys.masked(_given_mask(editor, node), like=node)
            made = editor.again(node, attn_mask=mask, is_causal=False)
        editor.replace(node, made)
        return made

    def _replaced(self, editor: GraphEditor, keys: _Keys, softmax: fx.Node) -> None:
        logits: Any = softmax.args[0]
        editor.replace(softmax, keys.softmax(softmax.target, logits, softmax.meta["val"].dtype))
        if self.dropout is not None:
            weights: Any = self.dropout.args[0]
            editor.replace(self.dropout, keys.dropped(weights, self.dropout_rate))


def _given_mask(editor: GraphEditor, node: fx.Node) -> fx.Node | None:
    """attn_mask of a call, or the triangle that is_causal stands for."""
    if not ops.argument(node, 5, "is_causal", False):
        return ops.argument(node, 3, "attn_mask")  # type: ignore[no-any-return]
    query, key = (editor.size(operand, -2) for operand in node.args[:2])  # type: ignore[arg-type]
    ones = editor.call(aten.ones.default, [query, key], dtype=torch.bool, device=node.meta["val"].device)
    made: fx.Node = editor.call(aten.tril.default, ones)
    return made


def _written_out(editor: GraphEditor, keys: _Keys, node: fx.Node, probability: float) -> fx.Node:
    """scaled_dot_product_attention by its formula, with merged keys."""
    query, key, value = node.args[:3]
    if ops.argument(node, 7, "enable_gqa", False):
        groups = query.meta["val"].shape[-3] // key.meta["val"].shape[-3]  # type: ignore[union-attr]
        key, value = (editor.call(aten.repeat_interleave.self_int, x, groups, -3) for x in (key, value))
    scale = ops.argument(node, 6, "scale")
    factor = float(scale) if scale is not None else float(query.meta["val"].shape[-1]) ** -0.5  # type: ignore[union-attr]
    turned = editor.call(aten.transpose.int, key, -2, -1)
    logits = editor.call(aten.mul.Tensor, editor.call(aten.matmul.default, query, turned), factor)
    mask = _given_mask(editor, node)
    if mask is not None and mask.meta["val"].dtype is torch.bool:
        logits = editor.call(aten.where.ScalarOther, mask, logits, -math.inf)
    elif mask is not None:
        logits = editor.call(aten.add.Tensor, logits, mask)
    weights = keys.softmax(aten._safe_softmax.default, logits, node.meta["val"].dtype)
    if probability:
        weights = keys.dropped(weights, probability)
    made: fx.Node = editor.call(aten.matmul.default, weights, value)
    return made


class _Keys:
    """The merged keys of one region as masks over its logits."""

    def __init__(self, editor: GraphEditor, masks: PlaceMasks, spelling: Spelling) -> None:
        self.editor, self.spelling = editor, spelling
        equal = spelling.equal
        self.stays = self._shaped(masks.of(or_(equal.support, equal.first)), -1)
        self.first = self._shaped(masks.of(equal.first), -1)
        count = masks.count(not_(equal.support), up_to=equal.causal)
        self.count = self._shaped(editor.call(aten.clamp_min.default, count, 1), -2)

    def masked(self, mask: fx.Node | None, like: fx.Node) -> fx.Node:
        """An additive mask: the given one, log(count) at the first padded key, and -inf at the others."""
        editor, dtype = self.editor, like.meta["val"].dtype
        added: fx.Node = editor.call(aten.where.ScalarOther, self.first, self._log_count(dtype), 0.0)
        stays = self.stays
        if mask is not None and mask.meta["val"].dtype is torch.bool:
            stays = editor.call(aten.logical_and.default, mask, stays)
        elif mask is not None:
            added = editor.call(aten.add.Tensor, mask, added)
        made: fx.Node = editor.call(aten.where.ScalarOther, stays, added, -math.inf)
        return made

    def softmax(self, target: Any, logits: fx.Node, dtype: torch.dtype) -> fx.Node:
        """Weights of merged keys in the given dtype; half precision goes through float32, for the logarithm."""
        editor, own = self.editor, logits.meta["val"].dtype
        wide = torch.promote_types(torch.promote_types(own, dtype), torch.float32)
        logits = self._open(logits if wide is own else editor.call(aten.to.dtype, logits, wide))
        larger = editor.call(aten.add.Tensor, logits, self._log_count(wide))
        merged = editor.call(aten.where.self, self.first, larger, logits)
        masked = editor.call(aten.where.ScalarOther, self.stays, merged, -math.inf)
        weights: fx.Node = editor.call(target, self._close(masked), -1)
        return weights if dtype is wide else editor.call(aten.to.dtype, weights, dtype)

    def dropped(self, weights: fx.Node, probability: float) -> fx.Node:
        """Dropout of the weights, of each merged one by itself."""
        editor, weights = self.editor, self._open(weights)
        value = weights.meta["val"]
        rows = [editor.size(weights, dim) for dim in range(value.dim() - 1)]
        count = editor.call(aten.expand.default, self.count, [*rows, 1])
        share = editor.call(torch.ops.gr.dropout_share.default, count, probability, new_seed(editor, value.device))
        factor = editor.call(aten.to.dtype, share, value.dtype)
        one = editor.call(aten.mul.Tensor, weights, factor)
        others = editor.call(aten.dropout.default, weights, probability, True)
        return self._close(editor.call(aten.where.self, self.first, one, others))

    def _log_count(self, dtype: torch.dtype) -> fx.Node:
        made: fx.Node = self.editor.call(aten.log.default, self.editor.call(aten.to.dtype, self.count, dtype))
        return made

    def _shaped(self, values: fx.Node, place: int) -> fx.Node:
        """[B, N] in the opened dimensions: B where it is, N at the last (-1) or the one before (-2)."""
        editor, (batch, rank) = self.editor, self.spelling.opened
        for _ in range(batch):
            values = editor.call(aten.unsqueeze.default, values, 0)
        for _ in range(rank - batch - (2 if place == -1 else 3)):
            values = editor.call(aten.unsqueeze.default, values, batch + 1)
        return values if place == -1 else editor.call(aten.unsqueeze.default, values, -1)

    def _open(self, values: fx.Node) -> fx.Node:
        """Values over the logits' dimensions, the batch a dimension of its own: [B * H, ..] as [B, H, ..]."""
        inner = self.spelling.folded
        if len(inner) == 1:
            return values
        sizes = [self.editor.symbol_of(atom.size) for atom in inner]
        made: fx.Node = self.editor.call(aten.unflatten.int, values, self.spelling.batch_dim, sizes)
        return made

    def _close(self, values: fx.Node) -> fx.Node:
        """The inverse of `_open`."""
        inner, first = self.spelling.folded, self.spelling.batch_dim
        if len(inner) == 1:
            return values
        made: fx.Node = self.editor.call(aten.flatten.using_ints, values, first, first + len(inner) - 1)
        return made
