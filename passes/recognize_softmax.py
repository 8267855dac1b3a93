"""recognize-softmax: weights that are divided by their sum are the softmax that they are.

    before   e = exp(x - amax(x, -1, keepdim=True)); w = e / (e.sum(-1, keepdim=True) + 1e-9)
    after    w = softmax(x, -1)

    before   e = where(mask, exp(x), 0); w = e / e.sum(-1, keepdim=True)
    after    w = softmax(where(mask, x, -inf), -1)

e^x_j / sum_k e^x_k does not change when all x of a row change by the same number, so what was subtracted from a row
goes; a weight of 0 is that of a logit of -inf. The weights may also be a softmax themselves (masked, and divided by
what is left). What is added to the sum, or bounds it from below, goes where it vanishes beside a row's largest weight,
which is 1: the row's maximum was subtracted, and what masks hide of the weights was hidden from the maximum as well. A
row without a weight is then 0 / eps, 0, as in a safe softmax. Else it is 0 / 0, NaN, in both; rows whose weights
overflow, or vanish, in the program's own exp are NaN there and numbers here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.softmax_rules import difference, is_maximum
from gr_compile.editor import GraphEditor
from gr_compile.graph_pass import Match, Miss, Numerics, Pass, PassResult
from gr_compile.pipeline import PassContext
from gr_compile.verify import same_shape

aten = torch.ops.aten
_SOFTMAX = (aten.softmax.int, aten._softmax.default)
_NOT = (aten.logical_not.default, aten.bitwise_not.default)
_CASTS = (aten.to.dtype, aten._to_copy.default, aten.type_as.default, aten.to.other)
_SMALL = -1e4  # docs/concepts.md: -1e4 and less hides a logit
_ADDED = "a number is added to the sum of the weights, which changes them where the largest are masked or small"
_MASK_LOGITS = "mask the logits (masked_fill with -inf) before the maximum is subtracted"


@dataclass(frozen=True)
class RecognizeSoftmax(Pass):
    """Rewrite weights that are divided by their sum as a softmax."""

    name: ClassVar[str] = "recognize-softmax"
    after: ClassVar[frozenset[str]] = frozenset({"canonicalize"})
    numerics: ClassVar[Numerics] = "reassociates"

    def run(self, graph_module: fx.GraphModule, context: PassContext) -> PassResult:
        """A candidate is a quotient of a tensor and its own sum, or the exponential of a logarithm of a softmax."""
        matches: list[Match] = []
        misses: list[Miss] = []
        for node in list(graph_module.graph.nodes):
            try:
                found = _normalised(node)
            except _Refused as refused:
                misses.append(Miss(str(refused), node, refused.hint))
                continue
            if found is None or not context.allow(f"softmax {node.name}", node):
                continue
            with context.editor.at(before=node, like=node):
                logits = _masked(found.weights, context.editor)
                target = aten._safe_softmax.default if found.safe else aten.softmax.int
                softmax = context.editor.call(target, logits, found.dim)
            matches.append(Match("weights over their sum", node, "masked" if found.weights.masks else ""))
            context.editor.replace(node, softmax)
            context.editor.erase(node)
        return PassResult(bool(matches), tuple(matches), tuple(misses))


class _Refused(Exception):
    """A candidate that is no softmax, or not provably."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


@dataclass(frozen=True)
class _Weights:
    """e^logits where every mask is true, and 0 elsewhere.

    Attributes:
        masks: (a 0-or-1 tensor, whether it is true where the weight is 0).
        has_one: before the masks, the largest weight of a row is 1.
    """

    logits: fx.Node
    masks: tuple[tuple[fx.Node, bool], ...] = ()
    has_one: bool = False

    def but(self, mask: fx.Node, hides: bool) -> _Weights:
        """The same behind one mask more."""
        return _Weights(self.logits, (*self.masks, (mask, hides)), self.has_one)


@dataclass(frozen=True)
class _Normalised:
    weights: _Weights
    dim: int
    safe: bool = False


def _normalised(node: fx.Node) -> _Normalised | None:
    if node.target is aten.exp.default:
        return _of_logarithm(node)
    if node.target is not aten.div.Tensor or not all(isinstance(arg, fx.Node) for arg in node.args):
        return None
    numerator: Any = node.args[0]
    total = _total(node.args[1], numerator)
    if total is None or not same_shape(numerator.meta["val"], node.meta["val"]):
        return None
    dim, added, floor = total
    weights = _weights_of(numerator, dim)
    if weights is None:
        return None
    if added == floor == 0:
        return _Normalised(weights, dim)
    fill = _hidden_from_maximum(weights)
    if not weights.has_one or fill is None or not _vanishes(added, numerator) or floor > 1:
        raise _Refused(_ADDED, _MASK_LOGITS)
    return _Normalised(weights, dim, safe=bool(weights.masks) and math.isfinite(fill))


def _of_logarithm(node: fx.Node) -> _Normalised | None:
    """exp(log_softmax(x)) or exp(x - logsumexp(x)); a logarithm that others read as well stays."""
    logarithm: Any = node.args[0]
    if len(logarithm.users) != 1:
        return None
    if logarithm.target is aten.log_softmax.int and ops.argument(logarithm, 2, "dtype", None) is None:
        source = logarithm.args[0]
        return _Normalised(_Weights(source), logarithm.args[1] % ops.rank(source) - ops.rank(source))
    source, shift = difference(logarithm)
    if source is None or shift.target is not aten.logsumexp.default or shift.args[0] is not source:
        return None
    dims, rank = shift.args[1], ops.rank(source)
    whole = len(dims) == 1 and bool(ops.argument(shift, 2, "keepdim", False))
    return _Normalised(_Weights(source), dims[0] % rank - rank) if whole else None


# ------------------------------------------------------------------------------------------------ the sum
def _total(node: Any, weights: fx.Node) -> tuple[int, float, float] | None:
    """The dimension, counted from the end, over which `node` sums the weights; what is added to the sum, and what it is
    at least."""
    added, floor, unsqueezed = 0.0, 0.0, None
    while node.target is not aten.sum.dim_IntList and node.target is not aten.linalg_vector_norm.default:
        if node.target is aten.add.Tensor and isinstance(node.args[1], (int, float)) and not node.kwargs:
            added += abs(float(node.args[1]))
        elif node.target in (aten.clamp.default, aten.clamp_min.default):
            least = ops.argument(node, 1, "min", None)
            if not isinstance(least, (int, float)) or ops.argument(node, 2, "max", None) is not None:
                return None
            floor = max(floor, float(least))
        elif node.target is aten.unsqueeze.default and unsqueezed is None:
            unsqueezed = node.args[1] % ops.rank(node)
        elif node.target is not aten.expand.default:
            return None
        node = node.args[0]
        if not isinstance(node, fx.Node):
            return None
    first = node.target is aten.sum.dim_IntList or node.args[1] == 1  # the norm of order 1 of what is not negative
    place = 1 if node.target is aten.sum.dim_IntList else 2
    dims, keepdim = ops.argument(node, place, "dim", None), bool(ops.argument(node, place + 1, "keepdim", False))
    if node.args[0] is not weights or not first or node.kwargs.get("dtype") is not None or not dims or len(dims) != 1:
        return None
    rank = ops.rank(weights)
    kept = keepdim if unsqueezed is None else not keepdim and unsqueezed == dims[0] % rank
    return (dims[0] % rank - rank, added, floor) if kept else None


def _hidden_from_maximum(weights: _Weights) -> float | None:
    """What stands in the logits where masks hide the weights, too small for a maximum; None if that is not known."""
    if not weights.masks:
        return -math.inf
    for mask, hides, fill, _ in _chosen(weights.logits):
        if fill <= _SMALL and all((_plain(m), h) == (_plain(mask), hides) for m, h in weights.masks):
            return fill
    return None


def _vanishes(added: float, node: fx.Node) -> bool:
    """1 + added is 1 in the node's dtype."""
    return added < torch.finfo(node.meta["val"].dtype).eps / 4


# ------------------------------------------------------------------------------------------- the weights
def _weights_of(node: Any, dim: int) -> _Weights | None:
    """What the weights are, if an exponential is among their factors.

    Raises:
        _Refused: a factor may not be 0 or 1, or hides what may be infinite.
    """
    if node.target is aten.exp.default:
        return _exponential(node, dim)
    if node.target in _SOFTMAX:
        source = node.args[0]
        same = node.args[1] % ops.rank(node) - ops.rank(node) == dim and _same_dtype(source, node)
        return _Weights(source) if same else None
    if node.target is aten.mul.Tensor and all(isinstance(arg, fx.Node) for arg in node.args):
        return _multiplied(node, dim)
    for mask, hides, fill, source in _chosen(node):
        inner = _weights_of(source, dim) if fill == 0 else None
        if inner is not None:
            return inner.but(mask, hides)
    return None


def _exponential(node: fx.Node, dim: int) -> _Weights | None:
    logits: Any = node.args[0]
    source, shift = difference(logits)
    if source is not None and same_shape(source.meta["val"], logits.meta["val"]):
        if is_maximum(shift, source, dim):
            return _Weights(source, has_one=True)
        if shift.target is aten.max.default and shift.args[0] is source:
            return _Weights(source)
    return _Weights(logits) if _same_dtype(logits, node) else None


def _multiplied(node: fx.Node, dim: int) -> _Weights | None:
    factors: Any = node.args
    for source, mask in (factors, factors[::-1]):
        inner = _weights_of(source, dim)
        if inner is None:
            continue
        if not _is_mask(mask):
            raise _Refused("weights over their sum are multiplied by what is not known to be 0 or 1")
        return inner.but(mask, False) if _same_dtype(source, node) else None
    return None


def _chosen(node: fx.Node) -> Iterator[tuple[fx.Node, bool, float, Any]]:
    """(mask, whether it is true where the fill stands, fill, what is kept) of where and masked_fill with a number."""
    args: Any = node.args
    if node.target is aten.where.ScalarOther and isinstance(args[1], fx.Node):
        yield args[0], False, args[2], args[1]
    elif node.target is aten.where.ScalarSelf and isinstance(args[2], fx.Node):
        yield args[0], True, args[1], args[2]
    elif node.target is aten.masked_fill.Scalar:
        yield args[1], True, args[2], args[0]
    elif node.target is aten.where.self and args[2].target is aten.full.default:
        fill = args[2].args[1]
        if isinstance(fill, (int, float)) and same_shape(args[1].meta["val"], node.meta["val"]):
            yield args[0], False, fill, args[1]


def _same_dtype(one: fx.Node, other: fx.Node) -> bool:
    return bool(one.meta["val"].dtype == other.meta["val"].dtype)


# --------------------------------------------------------------------------------------------- the masks
def _is_mask(node: Any) -> bool:
    """0 or 1 everywhere: a bool, a cast or another shape of one, or a product of such."""
    if node.meta["val"].dtype is torch.bool:
        return True
    if node.target is aten.mul.Tensor:
        return all(isinstance(arg, fx.Node) and _is_mask(arg) for arg in node.args)
    return _keeps_values(node) and _is_mask(node.args[0])


def _keeps_values(node: fx.Node) -> bool:
    return node.target in _CASTS or isinstance(ops.kind_of(node), (ops.Reshape, ops.Expand, ops.Permute))


def _plain(mask: Any) -> Any:
    """The mask without its casts."""
    return _plain(mask.args[0]) if mask.target in _CASTS else mask


def _as_bool(node: Any, editor: GraphEditor) -> fx.Node:
    """The mask as a bool."""
    if node.meta["val"].dtype is torch.bool:
        return node  # type: ignore[no-any-return]
    if node.target is aten.mul.Tensor:
        return editor.call(aten.logical_and.default, *(_as_bool(arg, editor) for arg in node.args))
    inner = _as_bool(node.args[0], editor)
    return inner if node.target in _CASTS else editor.again(node, self=inner)


def _masked(weights: _Weights, editor: GraphEditor) -> fx.Node:
    """The logits, -inf where a mask hides the weight."""
    logits = weights.logits
    for mask, hides in weights.masks:
        seen = _as_bool(mask, editor)
        if hides and seen.target in _NOT:
            seen, hides = seen.args[0], False  # type: ignore[assignment]
        if hides:
            logits = editor.call(aten.where.ScalarSelf, seen, float("-inf"), logits)
        else:
            logits = editor.call(aten.where.ScalarOther, seen, logits, float("-inf"))
    return logits
