"""Tame operators: finite numbers in, finite numbers and derivatives out, whatever the numbers are.

A packed value whose content at padded places nobody reads is unpacked with a constant there. What attention makes of
that constant is multiplied by 0 in every gradient; it must be a number. A threshold or a denominator that is not what
the model computes there can mask all keys of a padded query or divide by 0: then 0 * nan reaches real gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops

aten = torch.ops.aten
_POINTWISE = {
    aten.__and__, aten.__or__, aten.__xor__, aten._to_copy, aten.abs, aten.add, aten.bitwise_and, aten.bitwise_not,
    aten.bitwise_or, aten.bitwise_xor, aten.clamp_max, aten.clone, aten.cos, aten.detach, aten.dropout, aten.elu,
    aten.eq, aten.erf, aten.exp, aten.expand, aten.expand_as, aten.ge, aten.gelu, aten.gt, aten.hardtanh, aten.le,
    aten.leaky_relu, aten.log_sigmoid, aten.logical_and, aten.logical_not, aten.logical_or, aten.logical_xor, aten.lt,
    aten.maximum, aten.minimum, aten.mul, aten.nan_to_num, aten.native_dropout, aten.ne, aten.neg, aten.relu,
    aten.relu6, aten.rsub, aten.sigmoid, aten.silu, aten.sin, aten.softplus, aten.square, aten.sub, aten.tanh, aten.to,
}  # fmt: skip
_FLOORED = {aten.clamp, aten.clamp_min}
_CHOICES = {aten.where, aten.masked_fill}
_SOFTMAX = {aten.softmax, aten._softmax, aten._safe_softmax}
_REDUCTIONS = {aten.all, aten.amax, aten.amin, aten.any, aten.max, aten.mean, aten.min, aten.sum}
_SINGULAR_AT_ZERO = {aten.div, aten.log, aten.log2, aten.reciprocal, aten.rsqrt, aten.sqrt, aten.true_divide}
_MOVES = (
    ops.Reshape, ops.Permute, ops.Expand, ops.Concatenate, ops.Stack, ops.Slice, ops.Select, ops.Item, ops.Contract,
    ops.Pick,
)  # fmt: skip


def untamed(node: fx.Node, inside: Callable[[fx.Node], bool], end: fx.Node) -> fx.Node | None:
    """The first operator between `node` and `end`, among those that are `inside`, that may make inf or nan of `node`'s
    padded places if they hold a constant that the model does not compute there; None if every one is tame."""
    changed = {node}
    for user in _between(node, inside, end):
        operands = [operand for operand in user.all_input_nodes if operand in changed]
        if operands and not _is_tame(user, changed):
            return user
        if operands:
            changed.add(user)
    return None


def only_multiplied(node: fx.Node, reads: Callable[[fx.Node], bool]) -> bool:
    """Whether, among users that `reads` holds for, products are all that reads `node`, through views: there a 0 gives
    scores of 0, which are harmless."""
    for user in filter(reads, node.users):
        kind = ops.kind_of(user)
        if isinstance(kind, ops.Contract) or user.target is aten.scaled_dot_product_attention.default:
            continue
        if not isinstance(kind, (ops.Reshape, ops.Permute, ops.Expand)) or not only_multiplied(user, reads):
            return False
    return True


def _between(node: fx.Node, inside: Callable[[fx.Node], bool], end: fx.Node) -> list[fx.Node]:
    found = []
    following = node.next
    while following.op != "root":
        if inside(following) or following is end:
            found.append(following)
        if following is end:
            break
        following = following.next
    return found


def _is_tame(user: fx.Node, changed: set[fx.Node]) -> bool:
    if user.target is aten.scaled_dot_product_attention.default:
        mask = ops.argument(user, 3, "attn_mask")
        return mask not in changed or mask.meta["val"].dtype != torch.bool
    kind = ops.kind_of(user)
    if isinstance(kind, _MOVES):
        return True
    packet = getattr(user.target, "overloadpacket", None)
    if packet in _CHOICES:
        return _chooses_finite(user, changed)
    if packet in _SINGULAR_AT_ZERO:
        singular = user.args[1] if len(user.args) > 1 and packet in (aten.div, aten.true_divide) else user.args[0]
        return singular not in changed or _is_above_zero(singular)
    if any(isinstance(a, float) and not math.isfinite(a) for a in user.args):
        return False
    if isinstance(kind, ops.Reduce):
        return packet in _REDUCTIONS
    if isinstance(kind, ops.Along):
        return packet in _SOFTMAX
    return packet in _POINTWISE or packet in _FLOORED


def _chooses_finite(user: fx.Node, changed: set[fx.Node]) -> bool:
    """A choice that depends on the constant must not bring in an infinity."""
    condition = user.args[0] if user.target.overloadpacket is aten.where else user.args[1]  # type: ignore[union-attr]
    if condition not in changed:
        return True
    return not any(_holds_infinity(operand) for operand in user.args if operand is not condition)


def _holds_infinity(operand: Any) -> bool:
    """Whether an infinite constant is part of what `operand` is computed from, up to products."""
    stack, seen = [operand], set()
    while stack:
        part = stack.pop()
        if isinstance(part, (int, float)) and not math.isfinite(part):
            return True
        if not isinstance(part, fx.Node) or part in seen:
            continue
        seen.add(part)
        if part.op == "get_attr" or part.meta.get("val") is None:
            return True
        if not isinstance(ops.kind_of(part), (ops.Contract, ops.Lookup)):
            stack += [*part.args, *part.kwargs.values()]
    return False


def _is_above_zero(node: Any) -> bool:
    """Kept from 0 by a positive constant or a positive function: `x + eps`, `clamp(min=eps)`, softplus, exp."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet in _FLOORED:
        return _is_positive(ops.argument(node, 1, "min"))
    if packet is aten.add:
        return any(_is_positive(operand) for operand in node.args)
    if isinstance(ops.kind_of(node), (ops.Reshape, ops.Permute, ops.Expand)):
        return _is_above_zero(node.args[0])
    return packet in (aten.exp, aten.softplus)


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and value > 0
