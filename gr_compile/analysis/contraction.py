"""Contractions in the pull: matmul, bmm and einsum as `dot` of two elements; SDPA's place is in region.py."""

from __future__ import annotations

import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.element import Blocked, Dot, Elements, Indices
from gr_compile.analysis.expr import Expr, binary, const, make


def is_contraction(node: fx.Node) -> bool:
    """True for sums of products over a shared dimension; one of size 1 sums nothing up."""
    kind = ops.kind_of(node)
    return isinstance(kind, ops.Contract) and not _is_outer_product(kind)


def _is_outer_product(kind: ops.Contract) -> bool:
    sizes = [
        size
        for operand, labels in ((kind.left, kind.left_labels), (kind.right, kind.right_labels))
        for label, size in zip(labels, operand.meta["val"].shape)
        if label not in kind.out_labels
    ]
    return kind.bias is None and all(isinstance(size, int) and size == 1 for size in sizes)


def extents(pull: Elements, kind: ops.Contract) -> dict[str, Expr]:
    """The size of every label; a broadcast 1 yields to the other operand's size."""
    table: dict[str, Expr] = {}
    unit = const(1)
    for operand, labels in ((kind.left, kind.left_labels), (kind.right, kind.right_labels)):
        for label, extent in zip(labels, pull.shape(operand)):
            if table.get(label, unit) is unit:
                table[label] = extent
    return table


def operand_indices(
    pull: Elements, operand: fx.Node, labels: str, places: dict[str, Expr], sizes: dict[str, Expr]
) -> Indices:
    """The operand's indices under an assignment of labels; a broadcast dimension is read at 0."""
    unit = const(1)
    return tuple(
        const(0) if extent is unit and sizes[label] is not unit else places[label]
        for label, extent in zip(labels, pull.shape(operand))
    )


def dot(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    """The element of a contraction: `dot(a, b)` over a fresh feature index; a bias is added after it.

    An outer product of masks is the product of two elements. (One of queries and keys with one feature is a score.)
    """
    kind = ops.kind_of(node)
    if not isinstance(kind, ops.Contract):
        raise Blocked("this contraction is not of two operands", node)
    sizes = extents(pull, kind)
    places = dict(zip(kind.out_labels, indices))
    summed = sorted(set(kind.left_labels + kind.right_labels) - set(kind.out_labels))
    of_masks = _is_outer_product(kind) and pull.closed(node)
    for label in summed:
        places[label] = const(0) if of_masks else pull.fresh(sizes[label])
    sides, read = [], []
    for operand, labels in ((kind.left, kind.left_labels), (kind.right, kind.right_labels)):
        picked = operand_indices(pull, operand, labels, places, sizes)
        free = frozenset().union(*(i.free for i in picked)) & pull.pair
        if len(free) > 1:
            raise Blocked("a product of two pair values over features", node)
        sides.append(pull.element(operand, picked))
        read.append(picked)
    if of_masks:
        return binary("mul", sides[0], sides[1], pull.dtype(node))
    product = make("dot", tuple(sides), pull.dtype(node))
    if len(summed) == 1:
        pull.dots[product] = Dot(node, (kind.left, kind.right), (read[0], read[1]), places[summed[0]])
    if kind.bias is None:
        return product
    return binary("add", pull.broadcast(kind.bias, node, indices), product, pull.dtype(node))
