"""Convolutions of kernel 1 are linear layers over places: SASRec's authors write their feed-forward networks so.

    before   y: [B, D, N] = conv1d(x, weight [D, C, 1], bias)
    after    y = linear(x.transpose(1, 2), weight.squeeze(2), bias).transpose(1, 2)
"""

from __future__ import annotations

import torch
import torch.fx as fx

from gr_compile.analysis.operators import argument
from gr_compile.graph_pass import Match
from gr_compile.pipeline import PassContext

aten = torch.ops.aten
_CONVOLUTIONS = (aten.conv1d.default, aten.conv1d.padding)


def spell_convolutions_as_linear(graph_module: fx.GraphModule, context: PassContext) -> list[Match]:
    """Rewrite every convolution that reads one place at a time; one Match for each."""
    matches = []
    for node in list(graph_module.graph.nodes):
        what = f"convolution of kernel 1 {node.name}"
        if node.target in _CONVOLUTIONS and _reads_one_place(node) and context.allow(what, node):
            matches.append(Match(what, node))
            context.editor.replace(node, _linear(node, context))
            context.editor.erase(node)
    return matches


def _reads_one_place(node: fx.Node) -> bool:
    value, weight = (node.args[k].meta["val"] for k in range(2))  # type: ignore[union-attr]
    ones = {"stride": 3, "groups": 6}
    plain = all(_all_are(argument(node, position, name, 1), 1) for name, position in ones.items())
    padding = argument(node, 4, "padding", 0)
    unpadded = isinstance(padding, str) or _all_are(padding, 0)  # "same" and "valid" add nothing to kernel 1
    return bool(value.dim() == 3 and weight.shape[2] == 1 and plain and unpadded)


def _all_are(value: object, number: int) -> bool:
    return all(v == number for v in value) if isinstance(value, (list, tuple)) else value == number


def _linear(node: fx.Node, context: PassContext) -> fx.Node:
    editor = context.editor
    with editor.at(before=node, like=node):
        rows = editor.call(aten.transpose.int, node.args[0], 1, 2)
        weight = editor.call(aten.squeeze.dim, node.args[1], 2)
        made = editor.call(aten.linear.default, rows, weight, argument(node, 2, "bias"))
        result: fx.Node = editor.call(aten.transpose.int, made, 1, 2)
    return result
