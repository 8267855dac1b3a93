"""Verification after a pass: the graph is well formed and every value has the shape its operator gives it."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree

from gr_compile.editor import GraphEditor
from gr_compile.sizes import size_expr


class VerificationError(RuntimeError):
    """The graph after a pass is not well formed; the message names the node."""


def verify_shapes(graph_module: fx.GraphModule, editor: GraphEditor, touched: set[fx.Node] | None) -> None:
    """Lint, then recompute the fake values of `touched` nodes and of everything downstream until values agree.

    Args:
        touched: the nodes to begin with; None recomputes the whole graph.

    Raises:
        VerificationError: lint failed, an operator rejects its operands, or a value's shape or dtype is not
            what the node's metadata says.
    """
    try:
        graph_module.graph.lint()
    except RuntimeError as error:
        raise VerificationError(str(error)) from error
    dirty = set(touched) if touched is not None else None
    for node in graph_module.graph.nodes:
        if node.op != "call_function" or _has_no_result(node):
            continue
        _value(node)
        if dirty is not None and node not in dirty:
            continue
        if node.meta.get("unbacked_bindings") or _sized_by_data(node):
            continue
        if not _recompute(node, editor) and dirty is not None:
            dirty.update(node.users)


def _has_no_result(node: fx.Node) -> bool:
    """Assertions about data-dependent sizes return nothing."""
    return isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.returns


def _sized_by_data(node: fx.Node) -> bool:
    """Computing it again would invent another unbacked size."""
    data_dependent = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
    return isinstance(node.target, torch._ops.OpOverload) and (
        bool(data_dependent & set(node.target.tags)) or node.target is torch.ops.aten.index.Tensor
    )


def _recompute(node: fx.Node, editor: GraphEditor) -> bool:
    """True when the node's recorded value agrees with its operator's answer."""
    args, kwargs = pytree.tree_map_only(fx.Node, _value, (node.args, node.kwargs))
    try:
        value = editor.evaluate(node.target, *args, **kwargs)  # type: ignore[arg-type]
    except Exception as error:
        raise VerificationError(f"{node.format_node()} rejects its operands: {error}") from error
    recorded = node.meta["val"]
    if same_shape(value, recorded):
        return True
    if node.meta.get("gr_made_by") or not isinstance(recorded, torch.Tensor):
        raise VerificationError(
            f"{node.format_node()} gives {describe(value)}, but {describe(recorded)} is recorded"
        )
    raise VerificationError(f"{node.format_node()} now gives {describe(value)}; it gave {describe(recorded)}")


def _value(node: fx.Node) -> Any:
    if "val" not in node.meta:
        raise VerificationError(f"{node.format_node()} has no value: it was not made by the GraphEditor")
    return node.meta["val"]


def same_shape(value: Any, recorded: Any) -> bool:
    """Equal shapes (as expressions) and dtypes, through nested lists and tuples."""
    if isinstance(value, torch.Tensor):
        return (
            isinstance(recorded, torch.Tensor)
            and value.dtype == recorded.dtype
            and value.dim() == recorded.dim()
            and all(size_expr(a) == size_expr(b) for a, b in zip(value.shape, recorded.shape))
        )
    if isinstance(value, (tuple, list)):
        return len(value) == len(recorded) and all(same_shape(a, b) for a, b in zip(value, recorded))
    return type(value) is type(recorded) or not isinstance(recorded, torch.Tensor)


def describe(value: Any) -> str:
    """A value in words: dtype and shape."""
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}[{', '.join(map(str, value.shape))}]"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(describe, value)) + ")"
    return str(value)
