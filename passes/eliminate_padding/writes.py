"""Writes that are token-wise: numbers at the places of a mask are a choice, a write of everything is what is written.

    before   y = index_put(x, [mask], 0)             x: [B, N, D], mask: [B, N]; x[mask] = 0 in the model
    after    y = where(mask[..., None], 0, x)

    before   y = slice_scatter(x, source, 0)         x[:, :, columns] = values has one for each colon
    after    y = source
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis.operators import argument, rank
from gr_compile.graph_pass import Match
from gr_compile.pipeline import PassContext
from gr_compile.verify import same_shape

aten = torch.ops.aten


def spell_writes_by_place(graph_module: fx.GraphModule, context: PassContext) -> list[Match]:
    """Rewrite every such write; one Match for each."""
    matches = []
    for node in list(graph_module.graph.nodes):
        what = f"write {node.name}"
        if not (_writes_one_number(node) or _writes_everything(node)) or not context.allow(what, node):
            continue
        matches.append(Match(what, node))
        source: Any = node.args[1]
        context.editor.replace(node, _choice(node, context) if _writes_one_number(node) else source)
        context.editor.erase(node)
    return matches


def _writes_everything(node: fx.Node) -> bool:
    """As large as what it writes to, place by place."""
    if node.target is not aten.slice_scatter.default or argument(node, 5, "step", 1) != 1:
        return False
    before, source = (node.args[k].meta["val"] for k in range(2))  # type: ignore[union-attr]
    return bool(same_shape(before, source) and before.dtype == source.dtype and before.device == source.device)


def _writes_one_number(node: fx.Node) -> bool:
    """Of the tensor's own dtype: then nothing is promoted."""
    if node.target is not aten.index_put.default or argument(node, 3, "accumulate"):
        return False
    source: Any = node.args[0]
    masks: Any = node.args[1]
    value: Any = node.args[2]
    if len(masks) != 1 or masks[0] is None or masks[0].meta["val"].dtype != torch.bool:
        return False
    written = value.meta["val"]
    one = all(isinstance(size, int) and size == 1 for size in written.shape)
    return one and bool(written.dtype == source.meta["val"].dtype)


def _choice(node: fx.Node, context: PassContext) -> fx.Node:
    editor = context.editor
    source: Any = node.args[0]
    mask: Any = node.args[1][0]  # type: ignore[index]
    with editor.at(before=node, like=node):
        for _ in range(rank(source) - rank(mask)):
            mask = editor.call(aten.unsqueeze.default, mask, -1)
        value = editor.call(aten.reshape.default, node.args[2], [])
        made: fx.Node = editor.call(aten.where.self, mask, value, source)
    return made
