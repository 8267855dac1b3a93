"""Norms over features in a graph: torch's own, and RMSNorm written out; with weight, bias and gate that follow.

    x * rsqrt(mean(x², -1, keepdim) + eps) [-> half] [* w] [+ b] [* u]     a chain: each value is read by the next alone
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx as fx

from gr_compile.graph_pass import Miss
from gr_compile.passes.fuse_token_operators.spellings import (
    MULTIPLY,
    cast_source,
    given,
    inverse_root,
    item_of,
    last_dim,
    pairs,
    root,
    squared,
    value_of,
)
from gr_compile.sizes import same_sizes

aten = torch.ops.aten
_ADD = (aten.add.Tensor,)
_OWN: dict[Any, bool] = {  # -> is the mean taken away?
    aten.layer_norm.default: True,
    aten.native_layer_norm.default: True,
    aten.rms_norm.default: False,
    aten._fused_rms_norm.default: False,
}
_SEVERAL = (aten.native_layer_norm.default, aten._fused_rms_norm.default)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Norm:
    """A norm over the last dimension.

    Attributes:
        node: its value.
        gate: what multiplies it in `node`, of its shape.
    """

    node: fx.Node
    x: fx.Node
    weight: fx.Node | None
    bias: fx.Node | None
    eps: float
    centered: bool
    gate: fx.Node | None = None


def norm_at(node: fx.Node) -> Norm | Miss | None:
    """The norm whose value the node is, without what follows it; a Miss for what looks like one; None for no norm."""
    if node.target in _OWN and node.target not in _SEVERAL:
        return _own(node, node)
    if item_of(node, 0) and isinstance(call := node.args[0], fx.Node) and call.target in _SEVERAL:
        others = [user for user in call.users if user is not node]
        return Miss("the norm's mean or scale is read, too", others[0]) if others else _own(call, node)
    return _written_out(node)


def _own(call: fx.Node, node: fx.Node) -> Norm | Miss | None:
    x, eps = given(call, "input"), given(call, "eps")
    if len(given(call, "normalized_shape")) != 1:
        return Miss("the norm is over several dimensions, not over the features alone", call)
    if eps is None and x.meta["val"].dtype is torch.float32:
        eps = torch.finfo(torch.float32).eps
    if not isinstance(eps, (int, float)):
        return Miss("the norm's eps is not a number of the model", call, hint="give the norm an eps")
    bias = given(call, "bias") if _OWN[call.target] else None
    return Norm(node, x, given(call, "weight"), bias, float(eps), _OWN[call.target])


def _written_out(node: fx.Node) -> Norm | Miss | None:
    """x * rsqrt(mean(x²) + eps), or x / sqrt(mean(x²) + eps)."""
    for x, scale in pairs(node, MULTIPLY):
        if (inner := inverse_root(scale)) is not None and (found := _of_squares(node, x, scale, inner)) is not None:
            return found
    if node.target is aten.div.Tensor and (inner := root(node.args[1])) is not None:
        return _of_squares(node, node.args[0], node.args[1], inner)  # type: ignore[arg-type]
    return None


def _of_squares(node: fx.Node, x: fx.Node, scale: fx.Node, inner: fx.Node) -> Norm | Miss | None:
    """The norm if `inner` is mean(x²) + eps; None where it is a scale of another kind."""
    if inner.target not in (aten.add.Tensor, aten.add.Scalar) or inner.kwargs:
        return None
    mean, eps = inner.args[:2]
    if isinstance(eps, fx.Node) and not isinstance(mean, fx.Node):
        mean, eps = eps, mean
    if isinstance(eps, fx.Node) and eps.target is aten.mean.dim:
        mean, eps = eps, mean
    if not isinstance(mean, fx.Node) or mean.target is not aten.mean.dim or given(mean, "dtype") is not None:
        return None
    square = mean.args[0]
    if (of := squared(square)) is None or not _same_values(of, x):
        return None
    if isinstance(eps, fx.Node):
        return Miss("eps is a tensor, not a number of the model", inner, hint="write eps as a number")
    dims = given(mean, "dim")
    if not isinstance(dims, (list, tuple)) or len(dims) != 1 or not last_dim(of, dims[0]) or not given(mean, "keepdim"):
        return Miss("the mean of squares is not over the last dimension alone, keeping it", mean)
    for value, reader in ((square, mean), (mean, inner), (inner, scale), (scale, node)):
        others = [user for user in value.users if user is not reader]  # type: ignore[union-attr]
        if others and not _root_behind(value, others):  # type: ignore[arg-type]
            return Miss("a value inside the norm is read elsewhere, too", others[0])
    return Norm(node, x, None, None, float(eps), False)  # type: ignore[arg-type]


def _root_behind(value: fx.Node, others: list[fx.Node]) -> bool:
    """reciprocal(sqrt(s)) has a root between the sum and the scale, which only it reads."""
    return all(root(other) is value and len(other.users) == 1 for other in others) and len(value.users) == 1


def _same_values(a: fx.Node, b: fx.Node) -> bool:
    """One node, or two casts of one."""
    if a is b:
        return True
    source = cast_source(a)
    return source is not None and source is cast_source(b) and a.meta["val"].dtype == b.meta["val"].dtype


# ------------------------------------------------------------------------------------------ what follows
def follow(norm: Norm) -> Norm:
    """The norm with the weight, the bias, the cast and the gate that its value goes through."""
    while norm.gate is None and len(norm.node.users) == 1:
        (user,) = norm.node.users
        longer = _uncast(norm, user) or _with_parameter(norm, user) or _gated(norm, user)
        if longer is None:
            break
        norm = longer
    return norm


def _uncast(norm: Norm, user: fx.Node) -> Norm | None:
    """x was made wide for the norm, which is narrow again: the operator computes in float32 by itself."""
    source = cast_source(norm.x)
    if source is None or norm.weight is not None or norm.bias is not None or cast_source(user) is not norm.node:
        return None
    fits = user.meta["val"].dtype == source.meta["val"].dtype and norm.x.meta["val"].dtype is torch.float32
    return replace(norm, node=user, x=source) if fits else None


def _with_parameter(norm: Norm, user: fx.Node) -> Norm | None:
    """A weight or a bias of one number a feature."""
    for value, other in pairs(user, MULTIPLY):
        if value is norm.node and norm.weight is None and norm.bias is None and _is_column(other, norm):
            return replace(norm, node=user, weight=other)
    for value, other in pairs(user, _ADD):
        if value is norm.node and norm.bias is None and not user.kwargs and _is_column(other, norm):
            return replace(norm, node=user, bias=other)
    return None


def _is_column(other: fx.Node, norm: Norm) -> bool:
    value, x = other.meta["val"], norm.node.meta["val"]
    return value.dtype == x.dtype and x.dim() > 1 and same_sizes(value.shape, x.shape[-1:])


def _gated(norm: Norm, user: fx.Node) -> Norm | None:
    for value, other in pairs(user, MULTIPLY):
        if value is norm.node and other is not norm.node:
            gate, x = other.meta["val"], norm.node.meta["val"]
            if gate.dtype == x.dtype and same_sizes(gate.shape, x.shape):
                return replace(norm, node=user, gate=other)
    return None


def blocked(norm: Norm) -> Miss | None:
    """Why the operators cannot take the norm's operands."""
    x = norm.x.meta["val"]
    if x.dtype not in DTYPES:
        return Miss(f"the norm is of {x.dtype}, for which no kernel is made", norm.node)
    others = [value.meta["val"] for value in (norm.node, norm.weight, norm.bias, norm.gate) if value is not None]
    if any(other.dtype != x.dtype for other in others):
        return Miss("the norm's operands have several dtypes", norm.node, hint="cast the weights to the dtype of x")
    return None


def gates_beside(norm: Norm) -> Miss | None:
    """A gate that cannot be fused, since the value that it multiplies is read elsewhere, too."""
    others = list(norm.node.users)
    if norm.gate is not None or len(others) < 2:
        return None
    gating = [user for user in others if _gated(norm, user) is not None]
    if not gating:
        return None
    reader = next((user for user in others if user is not gating[0]), gating[0])
    return Miss("the normalised value is read elsewhere, too", reader)


def value_is_tensor(node: fx.Node) -> bool:
    """A call whose value is one tensor, or several."""
    return node.op == "call_function" and (value_of(node) is not None or item_of(node, 0))
