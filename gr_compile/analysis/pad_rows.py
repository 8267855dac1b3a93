"""Pad rows: outside which places (b, n) does a value hold one row, the same at all of them?

An output projection of `x * mask` holds its bias there: the token-wise program run on the constants that its operands
hold at padded places. `PadValues` knows values of one number; this is what token-wise operators make of them.
"""

from __future__ import annotations

import math

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.expr import TRUE, Expr, or_
from gr_compile.analysis.layout import Layout, TokenLayout
from gr_compile.analysis.pad_value import PadValues


class PadRows:
    """Supports of all values of one layout: where it is false, the value is its row."""

    def __init__(self, layout: TokenLayout, pads: PadValues) -> None:
        self.layout, self.pads = layout, pads
        self._memo: dict[fx.Node, Expr] = {}

    def of(self, node: fx.Node) -> Expr:
        """The places, over b and n, outside which `node` holds one row; TRUE where that is not known."""
        if node not in self._memo:
            self._memo[node] = self._derive(node)
        return self._memo[node]

    def constant(self, node: fx.Node) -> float | None:
        """The number that every element of the row is, where it is one."""
        fill = self.pads.of(node).fill
        return fill if fill is not None and math.isfinite(fill) else None

    def _derive(self, node: fx.Node) -> Expr:
        if self.constant(node) is not None:
            return self.pads.of(node).support
        if not self.layout.is_local(node) or _is_random(node):
            return TRUE
        kind = ops.kind_of(node)
        several = ops.kind_of(kind.source) if isinstance(kind, ops.Item) else None
        operands = ops.tensor_operands(node) if several is None else [several.source]  # type: ignore[attr-defined]
        tokens = [operand for operand in operands if self.layout.of(operand) is Layout.TOKENS]
        if not tokens or any(self.layout.of(o) is not Layout.DENSE for o in operands if o not in tokens):
            return TRUE
        return or_(*(self.of(operand) for operand in tokens))


def _is_random(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags
