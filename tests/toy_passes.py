"""Passes as a third party would write them: one that is right, and one for each way of being wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.fx as fx

from gr_compile import Match, Miss, Pass, PassContext, PassResult

aten = torch.ops.aten


def silus(graph_module: fx.GraphModule) -> list[fx.Node]:
    return list(graph_module.graph.find_nodes(op="call_function", target=aten.silu.default))


@dataclass(frozen=True)
class DropOnes(Pass):
    """x * ones -> x, where a constant is all ones: wrong as soon as the constant changes."""

    name: ClassVar[str] = "drop-ones"

    def run(self, graph_module: fx.GraphModule, context: PassContext) -> PassResult:
        matches = []
        for node in graph_module.graph.find_nodes(op="call_function", target=aten.mul.Tensor):
            content = context.constants.content(node.args[1])
            if content is not None and bool((content == 1).all()):
                matches.append(Match("times one", node))
                context.editor.replace(node, node.args[0])
        return PassResult(bool(matches), tuple(matches))


@dataclass(frozen=True)
class ExpandSilu(Pass):
    """silu(x) -> x * sigmoid(x); `factor` plants an error, `keep` leaves candidates alone."""

    name: ClassVar[str] = "expand-silu"
    factor: float = 1.0
    keep: bool = False
    label: str = "x"

    def run(self, graph_module: fx.GraphModule, context: PassContext) -> PassResult:
        if self.keep:
            misses = [Miss("kept", node, hint="set keep=false") for node in silus(graph_module)]
            return PassResult(False, misses=tuple(misses))
        matches = []
        for node in silus(graph_module):
            with context.editor.at(before=node, like=node):
                x: Any = node.args[0]
                made = context.editor.call(aten.mul.Tensor, x, context.editor.call(aten.sigmoid.default, x))
                if self.factor != 1.0:
                    made = context.editor.call(aten.mul.Tensor, made, self.factor)
            matches.append(Match("silu", node))
            context.editor.replace(node, made)
        return PassResult(bool(matches), tuple(matches))


@dataclass(frozen=True)
class Wrong(Pass):
    """Wrong in the way that `how` says."""

    name: ClassVar[str] = "wrong"
    how: str = "raises"

    def run(self, graph_module: fx.GraphModule, context: PassContext) -> PassResult:
        node, editor = silus(graph_module)[0], context.editor
        if self.how == "raises":
            raise KeyError("no such table")
        if self.how == "returns nothing":
            return None  # type: ignore[return-value]
        if self.how == "returns nonsense":
            return "changed"  # type: ignore[return-value]
        if self.how == "says changed":
            return PassResult(True)
        with editor.at(after=node, like=node):
            if self.how == "says unchanged":
                editor.replace(node, editor.call(aten.neg.default, node))
                return PassResult(False)
            if self.how == "breaks shapes":
                editor.replace(node, editor.call(aten.sum.default, node))
            if self.how == "breaks dtypes":
                editor.replace(node, editor.call(aten.to.dtype, node, torch.float64))
            if self.how == "bypasses the editor":
                made = graph_module.graph.call_function(aten.neg.default, (node,))
                node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
            if self.how == "breaks the order":
                node.args = (graph_module.graph.call_function(aten.relu.default, node.args),)
                graph_module.graph.output_node().prepend(node.args[0])  # type: ignore[arg-type]
        return PassResult(True)
