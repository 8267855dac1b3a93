"""Softmax losses whose target stands in column 0, and the tokens to which such a loss gives weight.

    -log_softmax(z, -1)[:, 0]      cross_entropy(z, zeros)      logsumexp(z, -1) - z[:, 0]

All read a number of every token from z [T, 1 + R]. What multiplies it, selects it or picks it before the sum over the
tokens says which tokens count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.element import Blocked, Elements
from gr_compile.analysis.element_rules import RULES
from gr_compile.analysis.expr import Expr, binary, const, index, is_const, split_mask, substitute, unary, walk
from gr_compile.analysis.kinds import Along, Concatenate, Gather, Pointwise, Reduce, Reshape, Select, Slice
from gr_compile.analysis.masked_index import masked_index, row_numbers
from gr_compile.analysis.reads import PACK, SHAPE_ONLY
from gr_compile.passes.fuse_sampled_logits.products import Rejected
from gr_compile.sizes import same_sizes

aten = torch.ops.aten
_CROSS_ENTROPY, _NLL = aten.cross_entropy_loss.default, aten.nll_loss_nd.default
_LOG_SOFTMAX, _LOG_SUM_EXP = aten.log_softmax.int, aten.logsumexp.default
_SOFTMAX = aten.softmax.int
SOFTMAXES = (_CROSS_ENTROPY, _LOG_SOFTMAX, _LOG_SUM_EXP, _SOFTMAX)
_SELECTIONS = (aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf)
_FILLS = (aten.masked_fill.Scalar, aten.masked_fill.Tensor)
_NONE = 0  # the reduction that leaves a loss for every token


@dataclass(frozen=True)
class Weight:
    """What says which tokens count: those where `by`, broadcast over the tokens' values `over`, is not 0.

    Attributes:
        picks: those whose numbers `by` lists instead.
        zero: those where `by` is 0 instead.
        ignored: those where `by` is not this number instead.
    """

    by: fx.Node
    over: fx.Node = field(compare=False)
    picks: bool = False
    zero: bool = False
    ignored: int | None = None


def logits_of(node: fx.Node) -> fx.Node | None:
    """What a softmax is taken of; None for other calls."""
    if node.op != "call_function" or node.target not in SOFTMAXES:
        return None
    return node.args[0]  # type: ignore[return-value]


def check_logits(node: fx.Node, logits: fx.Node) -> None:
    """Raises Rejected where the logits are not [T, 1 + R], or the softmax does not run over the last dimension."""
    rank = ops.rank(logits)
    if rank != 2:
        hint = "eliminate-padding packs tokens; where there is no padding, flatten them"
        raise Rejected(f"the logits have {rank} dimensions: tokens are not packed", node, hint)
    kind = ops.kind_of(node)
    if isinstance(kind, (Along, Reduce)) and kind.dims != (1,):
        raise Rejected("the softmax does not run over a token's logits", node)
    if node.target is _SOFTMAX:
        raise Rejected("a softmax, whose logarithm is taken later or never", node, "write log_softmax")


class Losses:
    """Proofs about the softmax losses of one graph."""

    def __init__(self, pull: Elements) -> None:
        self.pull = pull
        self._after: set[fx.Node] = set()

    def weights(self, node: fx.Node) -> tuple[Weight, ...]:
        """What says which tokens count in the loss that the softmax `node` belongs to; () where all do.

        Raises:
            Rejected: other columns than the target's are read, the target does not stand in column 0, or what the
                loss gives each token is not known.
        """
        self._after = _made_from(node)
        ways: set[tuple[Weight, ...]] = set()
        for value, ignoring in self._of_tokens(node):
            ways.update(self._ways(value, ignoring))
        if not ways:
            raise Rejected("nothing sums the losses of tokens up", node)
        if () in ways:
            return ()
        if len(ways) > 1:
            raise Rejected("the losses of tokens are summed with several weights", node)
        return next(iter(ways))

    # --------------------------------------------------------------------------------- the target's column
    def _of_tokens(self, node: fx.Node) -> Iterator[tuple[fx.Node, tuple[Weight, ...]]]:
        """Values that hold a number for every token, or the sum of all, made of the target's column alone."""
        if node.target is _CROSS_ENTROPY:
            yield node, self._class_loss(node)
        elif node.target is _LOG_SUM_EXP:
            for user in self._readers(node):
                self._check_difference(user, node)
                yield user, ()
        else:
            yield from self._columns(node)

    def _class_loss(self, node: fx.Node) -> tuple[Weight, ...]:
        """Of cross_entropy and nll_loss: that the target is 0, and which of its tokens do not count."""
        target: Any = node.args[1]
        if node.target is _CROSS_ENTROPY and ops.argument(node, 5, "label_smoothing", 0.0) != 0:
            raise Rejected("a cross entropy with smoothed labels", node)
        if ops.argument(node, 2, "weight") is not None:
            raise Rejected("a cross entropy with class weights", node)
        ignored = int(ops.argument(node, 4, "ignore_index", -100))
        if target.meta["val"].is_floating_point() or ops.rank(target) != 1:
            raise Rejected("the target is not one column for each token", node)
        values = self._values(target)
        if values is None or ignored == 0 or not values <= {0, ignored}:
            raise Rejected("the target's column is not known to be 0", node, "put the target's logit first")
        return (Weight(target, target, ignored=ignored),) if ignored in values else ()

    def _columns(self, node: fx.Node) -> Iterator[tuple[fx.Node, tuple[Weight, ...]]]:
        """Where column 0 of values like log_softmax is read, through signs, factors and reshapes of tokens."""
        for user in _users(node):
            kind, last = ops.kind_of(user), ops.rank(node) - 1
            if user.target is _NLL:
                yield user, self._class_loss(user)
            elif isinstance(kind, (Select, Slice, Gather)) and kind.dim == last and self._reads_first(user, kind):
                yield user, ()
            elif isinstance(kind, (Pointwise, Reshape)) and _keeps_columns(node, user):
                yield from self._columns(user)
            else:
                raise Rejected("other columns than the target's are read", user)

    def _reads_first(self, node: fx.Node, kind: Select | Slice | Gather) -> bool:
        """x[..., 0], x[..., :1], x.gather(-1, zeros)"""
        if isinstance(kind, Gather):
            return self._values(kind.index) == {0}
        if isinstance(kind, Select):
            return bool(node.args[2] == 0)
        return ops.argument(node, 2, "start") in (None, 0) and bool(ops.argument(node, 3, "end") == 1)

    def _readers(self, node: fx.Node) -> Iterator[fx.Node]:
        """Users of a logsumexp behind reshapes."""
        for user in _users(node):
            if isinstance(ops.kind_of(user), Reshape):
                yield from self._readers(user)
            else:
                yield user

    def _check_difference(self, user: fx.Node, softmax: fx.Node) -> None:
        """logsumexp(z) - z[:, 0], or the other way round.

        Raises:
            Rejected: it is something else.
        """
        logits: Any = softmax.args[0]
        self.pull.forget()
        places = [index(f"o{dim}") for dim in range(ops.rank(user))]
        for place, extent in zip(places, self.pull.shape(user)):
            self.pull.bind(str(place.args[0]), extent)
        reason = "a logsumexp that is not taken off the logit in column 0"
        wrong = Rejected(reason, user, "put the target's logit first")
        if user.target not in (aten.sub.Tensor, aten.add.Tensor) or ops.argument(user, 2, "alpha", 1) != 1:
            raise wrong
        try:
            made = self._written_out(RULES[user.target](self.pull, user, tuple(places)))
            total = self._written_out(self._sum_at(softmax, places))
            wanted = self._written_out(self.pull.element(logits, (places[0], const(0))))
        except Blocked:
            raise wrong from None
        dtype = self.pull.dtype(user)
        forms = (
            binary("sub", total, wanted, dtype), binary("sub", wanted, total, dtype),
            binary("add", unary("neg", wanted), total, dtype), binary("add", total, unary("neg", wanted), dtype),
        )  # fmt: skip
        if not any(made is form for form in forms):
            raise wrong

    def _sum_at(self, softmax: fx.Node, places: list[Expr]) -> Expr:
        at = (places[0],) if ops.rank(softmax) == 1 else (places[0], const(0))
        return self.pull.element(softmax, at)

    def _written_out(self, expr: Expr) -> Expr:
        """`expr` over loads that are no pointwise operators and no concatenations."""
        while True:
            known = {}
            for part in walk(expr):
                node = self.pull.nodes[part.args[0]] if part.op == "load" else None
                if node is None or not isinstance(ops.kind_of(node), (Pointwise, Concatenate)):
                    continue
                rule = RULES.get(node.target)
                if rule is not None and (meant := rule(self.pull, node, part.args[1])) is not part:
                    known[part] = meant
            if not known:
                return expr
            expr = substitute(expr, known)

    def _values(self, node: fx.Node) -> set[int] | None:
        """The numbers that whole numbers are among, where all are known."""
        self.pull.forget()
        try:
            return self._numbers(self.pull.element(node, [index(f"o{dim}") for dim in range(ops.rank(node))]))
        except Blocked:
            return None

    def _numbers(self, expr: Expr) -> set[int] | None:
        if is_const(expr):
            return {int(expr.args[0])}
        if expr.op == "where":
            arms = [self._numbers(x) for x in expr.args[1:]]
            return None if None in arms else set().union(*arms)  # type: ignore[arg-type]
        if expr.op == "poly" and (split := split_mask(expr)) is not None:
            return set(split[1:])
        if expr.op != "load":
            return None
        if expr in self.pull.definitions:
            return self._numbers(self.pull.definitions[expr])
        node = self.pull.nodes[expr.args[0]]
        if node.target is not PACK:
            return None
        dense: Any = node.args[0]  # whatever its places are
        return self._numbers(self.pull.element(dense, (index("b"), index("n"), *expr.args[1][1:])))

    # ------------------------------------------------------------------------------------- who counts
    def _ways(self, node: fx.Node, weights: tuple[Weight, ...]) -> Iterator[tuple[Weight, ...]]:
        """For each sum over tokens that `node` goes into: what says which tokens count."""
        if not ops.rank(node):
            yield weights
            return
        for user in _users(node):
            kind = ops.kind_of(user)
            if isinstance(kind, Reduce) and 0 in kind.dims:
                yield weights
            elif (picked := self._picked(node, user)) is not None:
                if weights:
                    raise Rejected("tokens are picked after their losses are weighted", user, "weight them afterwards")
                for _ in self._ways(user, ()):  # a token that is picked is taken to count
                    yield (picked,)
            elif isinstance(kind, Reshape) or (isinstance(kind, Reduce) and 0 not in kind.dims):
                yield from self._ways(user, weights)
            elif isinstance(kind, Pointwise) and same_sizes(user.meta["val"].shape, node.meta["val"].shape):
                yield from self._ways(user, (*weights, *self._weight(node, user)))
            else:
                hint = "sum them in the compiled function, by a sum or a mean"
                raise Rejected("it is not known which tokens the loss counts", user, hint)

    def _picked(self, node: fx.Node, user: fx.Node) -> Weight | None:
        """losses[numbers], losses[mask]"""
        numbers = row_numbers(user)
        if numbers is not None and user.args[0] is node and ops.rank(numbers) == 1:
            return Weight(numbers, node, picks=True)
        chosen = masked_index(user)
        if chosen is None or user.args[0] is not node:
            return None
        fits = same_sizes(chosen.mask.meta["val"].shape, node.meta["val"].shape)
        return Weight(chosen.mask, node) if fits else None

    def _weight(self, node: fx.Node, user: fx.Node) -> tuple[Weight, ...]:
        """What a pointwise operator multiplies losses by, or selects them by."""
        by: Any = None
        if user.target is aten.mul.Tensor:
            by = user.args[1] if user.args[0] is node else user.args[0]
            zero = False
        elif user.target in _SELECTIONS:
            by, zero = user.args[0], user.args[1] is not node
        elif user.target in _FILLS:
            by, zero = user.args[1], True
        if not isinstance(by, fx.Node) or not self.pull.closed(by) or by in self._after:
            return ()
        return (Weight(by, user, zero=zero),) if ops.rank(by) else ()


def _made_from(node: fx.Node) -> set[fx.Node]:
    found, front = {node}, [node]
    while front:
        further = [user for user in front.pop().users if user not in found]
        found.update(further)
        front += further
    return found


def _users(node: fx.Node) -> list[fx.Node]:
    return [user for user in node.users if user.target not in SHAPE_ONLY]


def _keeps_columns(node: fx.Node, user: fx.Node) -> bool:
    """One number of `user` for each of `node`, columns being the last dimension of both."""
    if isinstance(ops.kind_of(user), Pointwise):
        operands = [x for x in ops.tensor_operands(user) if x is not node]
        return not operands and same_sizes(user.meta["val"].shape, node.meta["val"].shape)
    return ops.rank(user) > 0 and same_sizes(user.meta["val"].shape[-1:], node.meta["val"].shape[-1:])
