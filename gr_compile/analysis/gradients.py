"""Operators whose gradient is not the derivative of the values that they give: an expression of these would lose it."""

from __future__ import annotations

import torch
import torch.fx as fx

from gr_compile.analysis.operators import argument

aten = torch.ops.aten


def counts_lookups(node: fx.Node) -> bool:
    """An embedding whose gradient is divided by how often each row is looked up, at padded places, too."""
    return node.target is aten.embedding.default and bool(argument(node, 3, "scale_grad_by_freq", False))


def leaves_rows_out(node: fx.Node) -> bool:
    """An embedding with a padding_idx: that row of the table takes no gradient."""
    return node.target is aten.embedding.default and int(argument(node, 2, "padding_idx", -1)) >= 0
