"""Element rules of softmax and of nan_to_num of one; the maximum that a softmax may subtract."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.element import Blocked, Elements, Indices, Rule
from gr_compile.analysis.expr import FLOAT_DTYPES, Expr, cast, make, walk

aten = torch.ops.aten


def is_maximum(node: Any, source: fx.Node, dim: int) -> bool:
    """Is it the maximum of `source` along `dim`, which it keeps? Detached or not: a row's shift has no gradient."""
    node = _undetached(node)
    if node.target is operator.getitem and node.args[1] == 0 and node.args[0].target is aten.max.dim:
        node = node.args[0]
        dims: Any = [node.args[1]]
    elif node.target is aten.amax.default:
        dims = ops.argument(node, 1, "dim", ())
    else:
        return False
    rank = ops.rank(source)
    along = [d % rank for d in dims or ()] == [dim % rank] and bool(ops.argument(node, 2, "keepdim", False))
    return along and _undetached(node.args[0]) is source


def difference(node: Any) -> tuple[Any, Any]:
    """(x, c) of a node that is x - c, both tensors; (None, None) of any other."""
    if node.target is not aten.sub.Tensor or node.kwargs.get("alpha", 1) != 1:
        return None, None
    return node.args if all(isinstance(arg, fx.Node) for arg in node.args) else (None, None)


def _undetached(value: Any) -> Any:
    return value.args[0] if isinstance(value, fx.Node) and value.target is aten.detach.default else value


def _softmax(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    dim = int(node.args[1]) % len(indices)  # type: ignore[arg-type]
    if indices[dim].op != "index":
        raise Blocked("a softmax over a dimension that is read at a computed place", node)
    last = pull.ranges.upper(indices[dim])
    if last is not None and last is not pull.last(pull.shape(node)[dim]):
        raise Blocked("a softmax of which a part is read: its other weights are part of the sum", node)
    logits = cast(pull.element(node.args[0], indices), pull.dtype(node))
    safe = node.target is aten._safe_softmax.default
    return make("safe_softmax" if safe else "softmax", (logits, indices[dim]), pull.dtype(node))


def _nan_to_num(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    """Of a softmax: its rows without a key, all -inf, are NaN, and 0 is what a safe softmax gives there.

    Not where logits may be NaN, -inf less a computed number that is -inf as well: a safe softmax of those is NaN.
    """
    weights = pull.broadcast(node.args[0], node, indices)
    if weights.op != "softmax" or ops.argument(node, 1, "nan", None) not in (None, 0):
        raise Blocked("nan_to_num of anything but a softmax", node)
    logits, key = weights.args
    if any(_adds_computed(pull, part, key) for part in walk(logits)):
        raise Blocked("nan_to_num of a softmax whose logits a computed number is added to, which may be infinite", node)
    return make("safe_softmax", weights.args, weights.dtype)


def _adds_computed(pull: Elements, part: Expr, key: Expr) -> bool:
    if part.op not in ("add", "sub") or part.dtype not in FLOAT_DTYPES or not key.free <= part.free:
        return False
    shared = [side for side in part.args if isinstance(side, Expr) and not key.free & side.free]
    loads = [load for side in shared for load in walk(side) if load.op == "load" and load.dtype in FLOAT_DTYPES]
    return any(pull.nodes[load.args[0]].op == "call_function" for load in loads)


SOFTMAX_RULES: dict[Any, Rule] = {
    aten.softmax.int: _softmax,
    aten._softmax.default: _softmax,
    aten._safe_softmax.default: _softmax,
    aten.nan_to_num.default: _nan_to_num,
}
