"""Pad values: outside which places (b, n) does a value hold one known constant?

`Pad(support, fill)`: wherever `support` is false, the value is `fill`. Unknown is `Pad(TRUE, None)`. Finite operands
are assumed (0 * x = 0), as everywhere in padding elimination.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.element import Blocked, Elements
from gr_compile.analysis.expr import FALSE, TRUE, Expr, and_, cast, compare, const, not_, or_
from gr_compile.analysis.layout import Layout, TokenLayout
from gr_compile.analysis.places import Places
from gr_compile.analysis.support import MASKED, nonzero

aten = torch.ops.aten
_SOFTMAX = {aten.softmax.int, aten._softmax.default}
_PRODUCTS = {aten.mul.Tensor, aten.mul.Scalar}
_QUOTIENTS = {aten.div.Tensor, aten.div.Scalar}
_RANDOM = {aten.rand_like.default, aten.randn_like.default, aten.bernoulli.p, aten.bernoulli.default}
_DROPOUT = {aten.dropout.default, aten.native_dropout.default}
_KEEP_FILL = {aten.amax.default, aten.amin.default, aten.mean.dim, aten.max.dim, aten.min.dim}
_KEEP_ZERO = {*_KEEP_FILL, aten.sum.dim_IntList, aten.linalg_vector_norm.default, aten.prod.dim_int}


@dataclass(frozen=True)
class Pad:
    """Where `support` (over b and n) is false, the value is `fill`."""

    support: Expr
    fill: float | None

    @property
    def known(self) -> bool:
        """Whether anything is known."""
        return self.fill is not None


UNKNOWN = Pad(TRUE, None)


class PadValues:
    """Pad values of all values of one layout.

    `given` holds what other analyses know (attention outputs). `sequences_without` gives a name, over b, to the
    sequences in which no place is in a set.
    """

    def __init__(
        self, pull: Elements, layout: TokenLayout, places: Places, given: dict[fx.Node, Pad],
        sequences_without: Callable[[Expr], Expr | None] = lambda places: None,
    ) -> None:  # fmt: skip
        self.pull, self.layout, self.places, self.given = pull, layout, places, given
        self.sequences_without = sequences_without
        self._memo: dict[fx.Node, Pad] = {}

    def of(self, node: fx.Node) -> Pad:
        """The pad value of a tensor node."""
        known = self._memo.get(node)
        if known is None:
            known = self._memo[node] = self._derive(node)
        return known

    def condition(self, operand: Any, node: fx.Node) -> Expr | None:
        """A mask operand of a pointwise `node` as a boolean over b and n; None where it depends on anything else."""
        if not isinstance(operand, fx.Node) or not self.pull.closed(operand):
            return None
        try:
            element = cast(self.pull.broadcast(operand, node, self.places.of(node)), "b")
        except Blocked:
            return None
        return element if element.free <= {"b", "n"} else None

    # ---------------------------------------------------------------------------------------------- rules
    def _derive(self, node: fx.Node) -> Pad:
        if node in self.given:
            return self.given[node]
        if self.layout.of(node) is not Layout.TOKENS:
            return UNKNOWN
        if self.pull.closed(node):
            return self._closed(node)
        kind = ops.kind_of(node)
        rule = getattr(self, "_" + type(kind).__name__.lower(), None)
        pad: Pad = rule(node, kind) if rule is not None else UNKNOWN
        return pad

    def _closed(self, node: fx.Node) -> Pad:
        try:
            element = self.pull.element(node, self.places.of(node))
        except Blocked:
            return UNKNOWN
        return _pad_of(element)

    def _pointwise(self, node: fx.Node, kind: ops.Pointwise) -> Pad:
        if node.target in _PRODUCTS:
            return self._product(node)
        if node.target in _QUOTIENTS:
            pad = self._operand(node.args[0], node)
            return pad if pad.fill == 0 else self._evaluated(node)
        if node.target in (aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf):
            return self._where(node, *node.args[:3])
        if node.target in (aten.masked_fill.Scalar, aten.masked_fill.Tensor):
            return self._where(node, node.args[1], node.args[2], node.args[0])
        if node.target in _DROPOUT:
            pad = self._operand(node.args[0], node)
            return pad if pad.fill == 0 else UNKNOWN
        return self._evaluated(node)

    def _product(self, node: fx.Node) -> Pad:
        zeros = [pad for a in node.args[:2] if (pad := self._operand(a, node)).fill == 0]
        return Pad(and_(*(pad.support for pad in zeros)), 0.0) if zeros else self._evaluated(node)

    def _operand(self, operand: Any, node: fx.Node) -> Pad:
        """The pad value of an operand of a pointwise operator, seen at the output's places."""
        if isinstance(operand, (int, float)):
            return Pad(FALSE, float(operand))
        if not isinstance(operand, fx.Node) or not isinstance(operand.meta.get("val"), torch.Tensor):
            return UNKNOWN
        if self.layout.of(operand) is Layout.TOKENS:
            return self.of(operand)
        if self.pull.closed(operand):
            return self._closed_operand(operand, node)
        return UNKNOWN

    def _closed_operand(self, operand: fx.Node, node: fx.Node) -> Pad:
        try:
            element = self.pull.broadcast(operand, node, self.places.of(node))
        except Blocked:
            return UNKNOWN
        return _pad_of(element)

    def _where(self, node: fx.Node, condition: Any, yes: Any, no: Any) -> Pad:
        choice = self.condition(condition, node)
        first, second = self._operand(yes, node), self._operand(no, node)
        if first.known and second.known and first.fill == second.fill:
            return Pad(or_(first.support, second.support), first.fill)
        if choice is None:
            return UNKNOWN
        if second.support is FALSE and second.known:
            inner = first.support if first.fill == second.fill else TRUE
            return Pad(and_(choice, inner), second.fill)
        if first.support is FALSE and first.known:
            inner = second.support if first.fill == second.fill else TRUE
            return Pad(and_(not_(choice), inner), first.fill)
        return UNKNOWN

    def _evaluated(self, node: fx.Node) -> Pad:
        """Any pointwise operator on known fills: computed by torch itself on scalars of the operands' dtypes."""
        if node.target in _RANDOM:
            return UNKNOWN
        pads = {operand: self._operand(operand, node) for operand in ops.tensor_operands(node)}
        if not pads or not all(pad.known for pad in pads.values()):
            return UNKNOWN

        def scalar(n: fx.Node) -> Any:
            return torch.tensor(pads[n].fill, dtype=n.meta["val"].dtype) if n in pads else n.meta["val"]

        try:
            value = node.target(*fx.map_arg(node.args, scalar), **fx.map_arg(node.kwargs, scalar))  # type: ignore[operator]
            fill = float(value)
        except (RuntimeError, TypeError, ValueError, IndexError):
            return UNKNOWN
        return Pad(or_(*(pad.support for pad in pads.values())), fill)

    def _source(self, node: fx.Node, kind: Any) -> Pad:
        return self.of(kind.source)

    _reshape = _permute = _slice = _select = _gather = _expand = _source

    def _pick(self, node: fx.Node, kind: ops.Pick) -> Pad:
        return self.of(kind.source) if self.layout.is_local(node) else UNKNOWN

    def _put(self, node: fx.Node, kind: ops.Put) -> Pad:
        """One constant written into the same constant."""
        before, written = self.of(kind.source), self.of(kind.values)
        if not self.layout.is_local(node) or not before.known or before.fill != written.fill:
            return UNKNOWN
        return Pad(or_(before.support, written.support), before.fill)

    def _item(self, node: fx.Node, kind: ops.Item) -> Pad:
        source = ops.kind_of(kind.source)
        return self.of(source.source) if isinstance(source, ops.Items) else UNKNOWN

    def _reduce(self, node: fx.Node, kind: ops.Reduce) -> Pad:
        pad = self.of(kind.source)
        if node.target in _KEEP_FILL and pad.known:
            return pad
        return pad if node.target in _KEEP_ZERO and pad.fill == 0 else UNKNOWN

    def _along(self, node: fx.Node, kind: ops.Along) -> Pad:
        """A softmax over places gives 0 to those that are masked, in sequences that have another one."""
        pad = self.of(kind.source)
        if node.target not in _SOFTMAX or not pad.known or not pad.fill <= MASKED:  # type: ignore[operator]
            return UNKNOWN
        if self.layout.dims.of(node)[kind.dims[0]] != (self.layout.sequence,):
            return UNKNOWN
        empty = self.sequences_without(pad.support)
        return Pad(or_(pad.support, empty), 0.0) if empty is not None else UNKNOWN

    def _contract(self, node: fx.Node, kind: ops.Contract) -> Pad:
        if kind.bias is not None:
            return UNKNOWN
        sides = ((kind.left, kind.left_labels), (kind.right, kind.right_labels))
        tokens = [n for n, labels in sides if self.layout.of(n) is Layout.TOKENS and self._places_stay(n, labels, kind)]
        zeros = [pad.support for n in tokens if (pad := self.of(n)).fill == 0]
        return Pad(and_(*zeros), 0.0) if zeros else UNKNOWN

    def _places_stay(self, operand: fx.Node, labels: str, kind: ops.Contract) -> bool:
        """The product at (b, n) reads the operand at (b, n) alone: attention reads V at all places."""
        dims = zip(labels, self.layout.dims.of(operand))
        return all(label in kind.out_labels for label, dim in dims if self.layout.has_place(dim))

    def _rowloss(self, node: fx.Node, kind: ops.RowLoss) -> Pad:
        """A loss of every place is 0 where its target is ignored."""
        if kind.target.meta["val"].dtype.is_floating_point or self.layout.of(kind.target) is not Layout.TOKENS:
            return UNKNOWN
        try:
            element = self.pull.element(kind.target, self.places.of(kind.target))
        except Blocked:
            return UNKNOWN
        ignored = const(int(ops.argument(node, 4, "ignore_index", -100)))
        support = compare("ne", element, ignored, self.pull.ranges)
        return Pad(support, 0.0) if support.free <= {"b", "n"} else UNKNOWN

    def _concatenate(self, node: fx.Node, kind: ops.Concatenate | ops.Stack) -> Pad:
        pads = [self.of(source) for source in kind.sources]
        if not all(pad.known and pad.fill == pads[0].fill for pad in pads):
            return UNKNOWN
        return Pad(or_(*(pad.support for pad in pads)), pads[0].fill)

    _stack = _concatenate


def _pad_of(element: Expr) -> Pad:
    """The pad value of a closed value, from what it is at (b, n)."""
    if element.op == "const":
        return Pad(FALSE, float(element.args[0]))
    support = nonzero(element)
    return Pad(support, 0.0) if support is not TRUE and support.free <= {"b", "n"} else UNKNOWN
