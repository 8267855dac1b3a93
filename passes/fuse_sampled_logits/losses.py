"""Cross entropy over classes, in every spelling, and what sums its tokens up.

    cross_entropy(logits, target)                            the mean, the sum, or one loss a token
    nll_loss(log_softmax(logits, -1), target)
    -(log_softmax(logits, -1).gather(-1, target[..., None]).squeeze(-1) * mask).sum()
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.element import Elements
from gr_compile.analysis.kinds import Reduce, Reshape
from gr_compile.sizes import same_sizes

aten = torch.ops.aten
NONE, MEAN, SUM = 0, 1, 2
_MULTIPLY = (aten.mul.Tensor, aten.mul.Scalar)
_DIVIDE = (aten.div.Tensor, aten.div.Scalar)


@dataclass(frozen=True)
class Loss:
    """Cross entropy of logits.

    Attributes:
        node: its result: a number, or one a token.
        logits: [*tokens, V], with the items at dimension `classes`; under `softened` their log_softmax.
        target: the item of each token, [*tokens], for a gather [*tokens, 1].
        ignored: the target that does not count; None where all do.
        reduction: NONE for one loss a token, MEAN over what counts, SUM.
        sign: -1 where `node` is the logarithm of the chance itself.
        beside: what it is beside that, in words; "" for a plain cross entropy.
    """

    node: fx.Node
    logits: fx.Node
    classes: int
    target: fx.Node
    ignored: int | None
    reduction: int
    softened: bool = False
    sign: int = 1
    beside: str = ""

    @property
    def tokens(self) -> list[Any]:
        """The sizes of the logits but for the items."""
        shape = list(self.logits.meta["val"].shape)
        return shape[: self.classes] + shape[self.classes + 1 :]


def loss_at(node: fx.Node) -> Loss | None:
    """The loss that a node is, if it is one."""
    if node.target in (aten.cross_entropy_loss.default, aten.nll_loss_nd.default):
        return _cross_entropy(node)
    return _picked(node) if node.target is aten.gather.default else None


def _cross_entropy(node: fx.Node) -> Loss | None:
    logits: Any = node.args[0]
    target: Any = node.args[1]
    if target.meta["val"].dtype != torch.int64 or ops.rank(logits) != ops.rank(target) + 1 or ops.rank(target) < 1:
        return None  # chances of all classes, or one token without a dimension
    softened = node.target is aten.nll_loss_nd.default
    beside = "smoothed labels" if not softened and ops.argument(node, 5, "label_smoothing", 0.0) != 0 else ""
    if ops.argument(node, 2, "weight") is not None:
        beside = "class weights"
    reduction, ignored = int(ops.argument(node, 3, "reduction", 1)), ops.argument(node, 4, "ignore_index", -100)
    if not isinstance(ignored, int):
        return None  # a number that is told at run time
    return Loss(node, logits, 1, target, ignored, reduction, softened, beside=beside)


def _picked(node: fx.Node) -> Loss | None:
    """log_softmax(logits, -1).gather(-1, target[..., None])."""
    source: Any = node.args[0]
    index: Any = node.args[2]
    last = ops.rank(source) - 1
    if last < 1 or int(node.args[1]) % (last + 1) != last:  # type: ignore[arg-type]
        return None
    if not same_sizes(index.meta["val"].shape, [*source.meta["val"].shape[:-1], 1]):
        return None
    return Loss(node, source, last, index, None, NONE, softened=True, sign=-1)


# ----------------------------------------------------------------------------------- the sum over tokens
@dataclass(frozen=True)
class Total:
    """The sum of losses of tokens, each times `factor` and its `weights`, as the graph has it at `node`.

    A mean divides by the number of elements `over` beside that.
    """

    node: fx.Node
    factor: float = 1.0
    weights: tuple[fx.Node, ...] = ()
    over: fx.Node | None = None


@dataclass
class _Way:
    node: fx.Node
    factor: float = 1.0
    weights: list[fx.Node] = field(default_factory=list)


def total_of(node: fx.Node, pull: Elements) -> Total | None:
    """What sums the losses `node` of all tokens up, through signs, factors and weights without a gradient."""
    way = _Way(node)
    while len(way.node.users) == 1:
        user = next(iter(way.node.users))
        kind = ops.kind_of(user)
        if isinstance(kind, Reduce) and user.target in (aten.sum.default, aten.sum.dim_IntList, aten.mean.default):
            whole = len(kind.dims) == ops.rank(way.node) and ops.argument(user, 3, "dtype") is None
            plain = whole and user.kwargs.get("dtype") is None
            over = way.node if user.target is aten.mean.default else None
            return Total(user, way.factor, tuple(way.weights), over) if plain else None
        if not _passes(way, user, pull):
            return None
        way.node = user
    return None


def _passes(way: _Way, user: fx.Node, pull: Elements) -> bool:
    """Does `user` multiply each loss by what is known without it? `way` then has it."""
    if user.target is aten.neg.default:
        way.factor = -way.factor
        return True
    if isinstance(ops.kind_of(user), Reshape):
        return not way.weights or same_sizes(user.meta["val"].shape, way.node.meta["val"].shape)
    if user.target not in (*_MULTIPLY, *_DIVIDE) or user.meta["val"].dtype != way.node.meta["val"].dtype:
        return False
    a, b = user.args[:2]
    if user.target in _DIVIDE and b is way.node:
        return False
    by = b if a is way.node else a
    if isinstance(by, (int, float)) and not isinstance(by, bool) and by != 0:
        way.factor = way.factor / by if user.target in _DIVIDE else way.factor * by
        return True
    if not isinstance(by, fx.Node) or by is way.node or user.target is not aten.mul.Tensor:
        return False
    if not isinstance(by.meta["val"], torch.Tensor) or not pull.closed(by):
        return False
    way.weights.append(by)
    return same_sizes(by.meta["val"].shape, way.node.meta["val"].shape)
