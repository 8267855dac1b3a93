"""Masks inside attention's operands: which values decide what a query sees, and so must stay what they are."""

from __future__ import annotations

import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.element import Elements
from gr_compile.analysis.expr import TRUE, Expr
from gr_compile.analysis.layout import Layout, TokenLayout
from gr_compile.analysis.region import Region
from gr_compile.analysis.support import nonzero


class MasksInside:
    """Answers for one layout whether a value carries the mask of a region."""

    def __init__(self, pull: Elements, layout: TokenLayout) -> None:
        self.pull, self.layout = pull, layout

    def inside(self, node: fx.Node, region: Region, interior: set[fx.Node]) -> bool:
        """Whether what the program's support says comes from inside `node`: unpacked, it must then hold at padded keys
        what it held there, be it a weight of 0 or a masked score. Queries and keys decide nothing."""
        on_value_side = node in _cone(region.value.node, interior | {node})
        if on_value_side and nonzero(region.value_element) is not TRUE:
            return True
        return not on_value_side and node in _score_path(region) and self._masks(node)

    def _masks(self, node: fx.Node) -> bool:
        """Whether masks take part in the node's value, since the last product or lookup."""
        return any(
            self.pull.closed(operand) and self.layout.of(operand) is not Layout.DENSE
            for part in _cone(node, None)
            if not isinstance(ops.kind_of(part), (ops.Contract, ops.Lookup))
            for operand in ops.tensor_operands(part)
        )


def _score_path(region: Region) -> set[fx.Node]:
    """What the scores are made of, up to the products of queries and keys."""
    kind = ops.kind_of(region.node)
    if isinstance(kind, ops.Contract):
        roots = [n for n in (kind.left, kind.right) if n is not region.value.node]
    else:
        roots = [n for n in (ops.argument(region.node, 3, "attn_mask"),) if n is not None]
    return set().union(*(_cone(root, None) for root in roots))

def scores_of(region: Region) -> list[fx.Node]:
    """Values over queries and keys of attention: [B, queries, N] is no value of tokens, it never becomes one."""
    if region.query is None:
        return []
    return [node for node, reads in region.reads.items() if any({"i", "j"} <= _free(indices) for indices in reads)]


def _free(indices: tuple[Expr, ...]) -> frozenset[str]:
    return frozenset().union(*(i.free for i in indices))


def _cone(root: fx.Node, among: set[fx.Node] | None) -> set[fx.Node]:
    """What `root` is computed from, itself included: up to products and lookups, or only among the given nodes."""
    found: set[fx.Node] = set()
    stack = [root]
    while stack:
        node = stack.pop()
        if node in found:
            continue
        found.add(node)
        if among is None and isinstance(ops.kind_of(node), (ops.Contract, ops.Lookup)):
            continue
        stack += [n for n in node.all_input_nodes if among is None or n in among]
    return found
