"""Numbers written at the places of a mask are a choice, which is token-wise; a write by an index is not.

before   y = index_put(x, [mask], 0)             x: [B, N, D], mask: [B, N]; x[mask] = 0 in the model
after    y = where(mask[..., None], 0, x)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis.operators import argument, rank
from gr_compile.graph_pass import Match
from gr_compile.pipeline import PassContext

aten = torch.ops.aten


def spell_masked_writes_as_choices(graph_module: fx.GraphModule, context: PassContext) -> list[Match]:
    """Rewrite every write of one number at the places of a mask; one Match for each."""
    matches = []
    for node in graph_module.graph.find_nodes(op="call_function", target=aten.index_put.default):
        what = f"write at the places of a mask {node.name}"
        if _writes_one_number(node) and context.allow(what, node):
            matches.append(Match(what, node))
            context.editor.replace(node, _choice(node, context))
            context.editor.erase(node)
    return matches


def _writes_one_number(node: fx.Node) -> bool:
    """Of a tensor's own dtype: then nothing is promoted."""
    source: Any = node.args[0]
    value: Any = node.args[2]
    masks: Any = node.args[1]
    if (
        len(masks) != 1
        or masks[0] is None
        or masks[0].meta["val"].dtype != torch.bool
        or argument(node, 3, "accumulate")
    ):
        return False
    written = value.meta["val"]
    return all(isinstance(size, int) and size == 1 for size in written.shape) and bool(
        written.dtype == source.meta["val"].dtype
    )


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
