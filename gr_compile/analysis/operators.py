"""What an ATen operator does to dimensions: one table from operators to kinds (`kinds.py`).

The analyses reason about kinds, never about spellings. An operator without a kind is opaque: it may read anything.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis.kinds import (
    Along,
    Complex,
    Concatenate,
    Contract,
    Expand,
    Gather,
    Item,
    Items,
    Kind,
    Lookup,
    Permute,
    Pick,
    Pointwise,
    Put,
    Reduce,
    Reshape,
    RowLoss,
    Select,
    Slice,
    Stack,
)
from gr_compile.sizes import size_expr

aten = torch.ops.aten
__all__ = [
    "CLASS_LOSSES",
    "Along",
    "Complex",
    "Concatenate",
    "Contract",
    "Expand",
    "Gather",
    "Item",
    "Items",
    "Kind",
    "Lookup",
    "Permute",
    "Pick",
    "Pointwise",
    "Put",
    "Reduce",
    "Reshape",
    "RowLoss",
    "Select",
    "Slice",
    "Stack",
    "argument",
    "is_pointwise",
    "kind_of",
    "rank",
    "tensor_operands",
]  # fmt: skip


_EXTRA_POINTWISE = {
    aten.to.dtype, aten.to.device, aten.to.other, aten.to.dtype_layout, aten._to_copy.default, aten.type_as.default,
    aten.detach.default, aten.alias.default, aten.contiguous.default, aten.clone.default, aten.lift_fresh_copy.default,
    aten.dropout.default, aten.native_dropout.default, aten.zeros_like.default, aten.ones_like.default,
    aten.full_like.default, aten.rand_like.default, aten.randn_like.default, aten.bernoulli.p, aten.bernoulli.default,
    aten.log_sigmoid.default, aten.alpha_dropout.default, aten.relu6.default, aten.selu.default,
    aten.masked_fill.Tensor,
    aten.where.Scalar, aten.where.ScalarOther, aten.where.ScalarSelf, aten.__and__.Tensor, aten.__and__.Scalar,
    aten.__or__.Tensor, aten.__or__.Scalar, aten.__xor__.Tensor, aten.__xor__.Scalar,
}  # fmt: skip
_NOT_POINTWISE = {aten.fill.Tensor}
CLASS_LOSSES = frozenset({aten.cross_entropy_loss.default, aten.nll_loss_nd.default})
"""(logits, target, weight, reduction, ignore_index): rows whose target is ignore_index are not read."""
_REDUCTION_AT = {
    aten.binary_cross_entropy_with_logits.default: 4, aten.binary_cross_entropy.default: 3, aten.mse_loss.default: 2,
    aten.l1_loss.default: 2, aten.smooth_l1_loss.default: 2, aten.huber_loss.default: 2,
    aten.soft_margin_loss.default: 2,
}  # fmt: skip
_VIEWS = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints, aten.unflatten.int,
    aten.view_as.default, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims,
    aten.reshape_as.default,
}  # fmt: skip
_TRANSPOSES = {aten.transpose.int, aten.t.default, aten.mT.default, aten.numpy_T.default, aten.permute.default}
_REDUCTIONS = {
    aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default, aten.prod.dim_int, aten.any.dim,
    aten.all.dim, aten.logsumexp.default, aten.argmax.default, aten.argmin.default, aten.linalg_vector_norm.default,
    aten.norm.ScalarOpt_dim, aten.max.dim, aten.min.dim, aten.var.correction, aten.std.correction, aten.var.dim,
    aten.std.dim, aten.sum.default, aten.mean.default, aten.any.default, aten.all.default, aten.max.default,
    aten.min.default, aten.median.dim, aten.count_nonzero.dim_IntList, aten.any.dims, aten.all.dims,
}  # fmt: skip
_ALONG = {
    aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten._log_softmax.default, aten.cumsum.default,
    aten.cumprod.default, aten.sort.default, aten.sort.stable, aten.flip.default, aten.roll.default,
    aten._safe_softmax.default, aten.topk.default, aten.glu.default, aten.cummax.default, aten.logcumsumexp.default,
}  # fmt: skip


def kind_of(node: fx.Node) -> Kind | None:
    """The kind of a call, or None where the operator is opaque."""
    if node.op != "call_function":
        return None
    if node.target is operator.getitem:
        return Item(node.args[0], node.args[1]) if isinstance(node.args[0], fx.Node) else None  # type: ignore[arg-type]
    rule = _RULES.get(node.target)
    if rule is not None:
        return rule(node)
    if isinstance(node.target, torch._ops.OpOverload) and is_pointwise(node.target):
        return Pointwise()
    return None


def is_pointwise(target: Any) -> bool:
    """True where torch itself tags the operator pointwise (or it is one of those that it forgets)."""
    if target in _EXTRA_POINTWISE:
        return True
    return (
        isinstance(target, torch._ops.OpOverload)
        and torch.Tag.pointwise in target.tags
        and target not in _NOT_POINTWISE
    )


def tensor_operands(node: fx.Node) -> list[fx.Node]:
    """The operands that are tensors, in order, without repetition."""
    return [a for a in node.all_input_nodes if isinstance(a.meta.get("val"), torch.Tensor)]


def rank(node: fx.Node) -> int:
    """Number of dimensions of a tensor node."""
    return int(node.meta["val"].dim())


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument by position or keyword."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


# ------------------------------------------------------------------------------------------------- rules
def _permute(node: fx.Node) -> Kind:
    source: Any = node.args[0]
    order = list(range(rank(source)))
    if node.target is aten.permute.default:
        order = [int(d) % len(order) for d in node.args[1]]  # type: ignore[union-attr,arg-type]
    elif len(order) >= 2:
        a, b = (node.args[1], node.args[2]) if node.target is aten.transpose.int else (-1, -2)
        a, b = int(a) % len(order), int(b) % len(order)  # type: ignore[arg-type]
        order[a], order[b] = order[b], order[a]
    return Permute(source, tuple(order))


def _reduce(node: fx.Node) -> Kind:
    source: Any = node.args[0]
    position, name = (
        (2, "dim") if node.target in (aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim) else (1, "dim")
    )
    schema = {a.name: k for k, a in enumerate(node.target._schema.arguments)}  # type: ignore[union-attr]
    dims = argument(node, schema.get("dim", position), name) if "dim" in schema else None
    if dims is None or dims == []:
        dims = list(range(rank(source)))
    dims = [dims] if isinstance(dims, int) else dims
    keepdim = bool(argument(node, schema["keepdim"], "keepdim", False)) if "keepdim" in schema else False
    return Reduce(source, tuple(sorted(int(d) % max(rank(source), 1) for d in dims)), keepdim)


def _along(node: fx.Node) -> Kind:
    source: Any = node.args[0]
    schema = {a.name: (k, a.default_value) for k, a in enumerate(node.target._schema.arguments)}  # type: ignore[union-attr]
    key = "dim" if "dim" in schema else "dims"
    dims = argument(node, schema[key][0], key, schema[key][1])
    dims = [dims] if isinstance(dims, int) else list(dims or range(rank(source)))
    return Along(source, tuple(d % rank(source) for d in dims))


def _norm(node: fx.Node) -> Kind:
    source: Any = node.args[0]
    count = len(node.args[1])  # type: ignore[arg-type]
    return Along(source, tuple(range(rank(source) - count, rank(source))))


def _linear(node: fx.Node) -> Kind | None:
    left, right = node.args[0], node.args[1]
    bias = argument(node, 2, "bias")
    if rank(right) != 2:  # type: ignore[arg-type]
        return None
    batch = "zyxwvu"[: rank(left) - 1]  # type: ignore[arg-type]
    return Contract(left, right, batch + "k", "nk", batch + "n", bias)  # type: ignore[arg-type]


def _matmul(node: fx.Node) -> Kind | None:
    left: Any = node.args[0]
    right: Any = node.args[1]
    ra, rb = rank(left), rank(right)
    if ra < 1 or rb < 1 or (ra < 2 and rb < 2):
        return None
    batch = "zyxwvu"[: max(ra, rb) - 2]
    la = "k" if ra == 1 else batch[len(batch) - (ra - 2) :] + "mk"
    lb = "k" if rb == 1 else batch[len(batch) - (rb - 2) :] + "kn"
    return Contract(left, right, la, lb, batch + ("m" if ra > 1 else "") + ("n" if rb > 1 else ""))


def _addmm(node: fx.Node) -> Kind | None:
    if argument(node, 3, "beta", 1) != 1 or argument(node, 4, "alpha", 1) != 1:
        return None
    bias, left, right = node.args[:3]
    if node.target is aten.baddbmm.default:
        return Contract(left, right, "zmk", "zkn", "zmn", bias)  # type: ignore[arg-type]
    return Contract(left, right, "mk", "kn", "mn", bias)  # type: ignore[arg-type]


def _einsum(node: fx.Node) -> Kind | None:
    equation, operands = str(node.args[0]).replace(" ", ""), node.args[1]
    if len(operands) != 2 or "." in equation:  # type: ignore[arg-type]
        return None
    inputs, _, out = equation.partition("->")
    left, right = inputs.split(",")
    if "->" not in equation:
        both = left + right
        out = "".join(sorted(c for c in set(both) if both.count(c) == 1))
    if len(set(left)) != len(left) or len(set(right)) != len(right):
        return None
    return Contract(operands[0], operands[1], left, right, out)  # type: ignore[index,arg-type]


def _slice(node: fx.Node) -> Kind:
    source: Any = node.args[0]
    dim = int(argument(node, 1, "dim", 0)) % rank(source)
    whole = _same(node.meta["val"].shape[dim], source.meta["val"].shape[dim])
    return Slice(source, dim, whole)


def _same(a: Any, b: Any) -> bool:
    """Equal sizes, as expressions: no guard is made."""
    return bool(size_expr(a) == size_expr(b))


def _loss(node: fx.Node) -> Kind | None:
    """A loss of elements is pointwise where nothing sums it up."""
    position = _REDUCTION_AT[node.target]  # type: ignore[index]
    return Pointwise() if argument(node, position, "reduction", 1) == 0 else None


def _concatenate(node: fx.Node) -> Kind:
    sources = tuple(node.args[0])  # type: ignore[arg-type]
    return Concatenate(sources, int(argument(node, 1, "dim", 0)) % rank(node))


def _stack(node: fx.Node) -> Kind:
    return Stack(tuple(node.args[0]), int(argument(node, 1, "dim", 0)) % rank(node))  # type: ignore[arg-type]


def _items(node: fx.Node) -> Kind:
    source: Any = node.args[0]
    position = 1 if node.target is aten.unbind.int else 2
    return Items(source, int(argument(node, position, "dim", 0)) % rank(source), node.target is aten.unbind.int)


def _index(node: fx.Node) -> Kind | None:
    source: Any = node.args[0]
    indices: Any = node.args[1]
    if len(indices) == 1 and isinstance(indices[0], fx.Node) and indices[0].meta["val"].dtype != torch.bool:
        return Lookup(source, indices[0])
    given = _one_index(indices)
    return Pick(source, *given) if given is not None else None


def _one_index(indices: Any) -> tuple[int, fx.Node] | None:
    """The dimension and the numbers of an index along one dimension alone, `x[:, :, numbers]`."""
    given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if len(given) != 1 or given[0][1].meta["val"].dtype == torch.bool or rank(given[0][1]) != 1:
        return None
    return given[0]


def _index_select(node: fx.Node) -> Kind | None:
    source, dim, index = node.args
    return Pick(source, int(dim) % max(rank(source), 1), index) if rank(index) == 1 else None  # type: ignore[arg-type]


def _repeat_interleave(node: fx.Node) -> Kind | None:
    source: Any = node.args[0]
    dim = argument(node, 2, "dim")
    return Pick(source, int(dim) % rank(source)) if dim is not None else None


def _index_put(node: fx.Node) -> Kind | None:
    source: Any = node.args[0]
    values: Any = node.args[2]
    given = _one_index(node.args[1])
    return Put(source, *given, values) if given is not None and rank(values) <= rank(source) else None


def _row_loss(node: fx.Node) -> Kind | None:
    logits: Any = node.args[0]
    target: Any = node.args[1]
    if argument(node, 3, "reduction", 1) != 0 or rank(logits) != rank(target) + 1:
        return None
    return RowLoss(logits, target)


def _gather(node: fx.Node) -> Kind:
    source: Any = node.args[0]
    dim: Any = node.args[1]
    index: Any = node.args[2]
    return Gather(source, int(dim) % max(rank(source), 1), index)


def _source(kind: Callable[..., Kind], *positions: int) -> Callable[[fx.Node], Kind]:
    return lambda node: kind(*(node.args[p] for p in positions))


_RULES: dict[Any, Callable[[fx.Node], Kind | None]] = {
    **{op: _source(Reshape, 0) for op in _VIEWS},
    **dict.fromkeys(_TRANSPOSES, _permute),
    **{op: _source(Expand, 0) for op in (aten.expand.default, aten.expand_as.default, aten.broadcast_to.default)},
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(_ALONG, _along),
    aten.layer_norm.default: _norm,
    aten.rms_norm.default: _norm,
    aten.native_layer_norm.default: _norm,
    aten._fused_rms_norm.default: _norm,
    aten.linear.default: _linear,
    aten.matmul.default: _matmul,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.mv.default: _matmul,
    aten.addmm.default: _addmm,
    aten.baddbmm.default: _addmm,
    aten.einsum.default: _einsum,
    aten.view_as_complex.default: _source(Complex, 0),
    aten.view_as_real.default: _source(Complex, 0),
    aten.embedding.default: _source(Lookup, 0, 1),
    aten.index.Tensor: _index,
    aten.index_select.default: _index_select,
    aten.repeat_interleave.self_int: _repeat_interleave,
    aten.index_put.default: _index_put,
    aten.gather.default: _gather,
    **dict.fromkeys(CLASS_LOSSES, _row_loss),
    **dict.fromkeys(_REDUCTION_AT, _loss),
    aten.cat.default: _concatenate,
    aten.concat.default: _concatenate,
    aten.stack.default: _stack,
    aten.slice.Tensor: _slice,
    aten.prelu.default: lambda node: Pointwise() if node.args[1].meta["val"].numel() == 1 else None,  # type: ignore[union-attr]
    aten.select.int: lambda node: Select(node.args[0], int(node.args[1]) % rank(node.args[0])),  # type: ignore[arg-type]
    aten.split.Tensor: _items,
    aten.split_with_sizes.default: _items,
    aten.chunk.default: _items,
    aten.tensor_split.sections: _items,
    aten.unbind.int: _items,
}
