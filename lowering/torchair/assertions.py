"""Assertions leave the graph: no node of a GE graph stops a run.

    _assert_scalar(n <= N)          is erased
    one_hot(ids, classes)           ids[..., None] == arange(classes): without its check that ids are classes
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx

from gr_compile.editor import GraphEditor

aten = torch.ops.aten
_ASSERTIONS = {
    aten._assert_scalar.default, aten._assert_async.default, aten._assert_async.msg, aten._functional_assert_async.msg,
    aten._functional_assert_scalar.default,
}  # fmt: skip


def leave_out(editor: GraphEditor) -> int:
    """Rewrite the graph, and say how many assertions of the model it no longer makes."""
    count = 0
    for node in list(editor.graph.nodes):
        if node.target in _ASSERTIONS and not node.users:
            editor.erase(node)
            count += 1
        elif node.target is aten.one_hot.default and _classes(node) > 0:
            _write_out(node, editor)
            count += 1
    return count


def _classes(node: fx.Node) -> int:
    """Where this is -1 the data tell how many there are."""
    given: Any = {**dict(zip(("self", "num_classes"), node.args)), **node.kwargs}.get("num_classes", -1)
    return given if isinstance(given, int) else 0


def _write_out(node: fx.Node, editor: GraphEditor) -> None:
    with editor.at(before=node, like=node):
        ids: Any = node.args[0]
        numbers = editor.call(aten.arange.default, _classes(node), device=ids.meta["val"].device)
        same = editor.call(aten.eq.Tensor, editor.call(aten.unsqueeze.default, ids, -1), numbers)
        editor.replace(node, editor.call(aten.to.dtype, same, torch.int64))
