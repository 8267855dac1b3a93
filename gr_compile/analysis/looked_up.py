"""Rows that are looked up, followed back from where they are read: through views, casts, factors and a normalisation.

    F.normalize(table[ids].transpose(1, 2)) * 20    ->    table, ids, factor 20, eps 1e-12, read at [b, n, r, d]
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.element import Elements, Indices
from gr_compile.analysis.expr import Expr, load
from gr_compile.analysis.gradients import counts_lookups
from gr_compile.analysis.kinds import Expand, Lookup, Permute, Pick, Reshape

aten = torch.ops.aten
_CASTS = (aten.to.dtype, aten._to_copy.default, aten.type_as.default, aten.to.other)
_FACTORS = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar)
_NORMS = (aten.linalg_vector_norm.default, aten.linalg_norm.default)
_COPIES = (aten.clone.default, aten.contiguous.default, aten.alias.default)


@dataclass(frozen=True)
class Rows:
    """What is read at one element: `node` at the indices `at`, times `factor`, over max(norm, `eps`).

    Attributes:
        group: token t reads the rows of sequence group[t].
        between: the nodes that were passed, from the reader down to `node`.
    """

    node: fx.Node
    at: Indices
    factor: float = 1.0
    eps: float | None = None
    group: fx.Node | None = None
    between: tuple[fx.Node, ...] = ()

    def behind(self, source: fx.Node, *passed: fx.Node) -> Rows:
        """The same, read from `source` through `passed`."""
        return replace(self, node=source, between=tuple(dict.fromkeys((*self.between, self.node, *passed))))


def rows_of(pull: Elements, node: fx.Node, indices: Indices, feature: Expr) -> Rows | None:
    """From an operand back to the lookup that it is, or to what is in the way; None where features are no features.

    Raises:
        Blocked: a view that has no rule.
    """
    rows = Rows(node, indices)
    while True:
        rows = _through_views(pull, rows)
        if (grouped := _grouped(rows)) is not None:
            rows = grouped
            continue
        if rows.at[-1:] != (feature,) or any(feature.free & x.free for x in rows.at[:-1]):
            return None
        if table_and_ids(rows.node) is not None:
            return rows
        further = _scaled(rows) or _normalized(rows)
        if further is None:
            return rows
        rows = further


def rows_and_numbers(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """x and the numbers, where `node` is x[numbers] along its first dimension."""
    kind = ops.kind_of(node)
    if isinstance(kind, Lookup):
        return kind.table, kind.index
    if isinstance(kind, Pick) and kind.dim == 0 and kind.index is not None:
        return kind.source, kind.index
    return None


def table_and_ids(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The table [V, D] and the ids of a lookup."""
    found = rows_and_numbers(node)
    whole = found is not None and ops.rank(found[0]) == 2 and found[0].meta["val"].is_floating_point()
    return found if whole else None


def unscaled(pull: Elements, node: fx.Node, indices: Indices) -> Rows:
    """From a value back through views, casts and factors to what is left.

    Raises:
        Blocked: a view that has no rule.
    """
    rows = _through_views(pull, Rows(node, indices))
    while (further := _scaled(rows)) is not None:
        rows = _through_views(pull, further)
    return rows


def lookup_behind(operand: fx.Node, reader: fx.Node) -> fx.Node | None:
    """The lookup that `operand` is, behind what `rows_of` passes, where `reader` alone reads it; None otherwise."""
    rows = Rows(operand, ())
    while table_and_ids(rows.node) is None:
        kind = ops.kind_of(rows.node)
        viewed = rows.behind(kind.source) if isinstance(kind, (Reshape, Permute)) else None
        further = viewed or _scaled(rows) or _normalized(rows)
        if further is None:
            return None
        rows = further
    inside = {rows.node, *rows.between}
    read = {user for value in inside for user in value.users}
    return rows.node if read <= {*inside, reader} and sums_its_gradient(rows.node) else None


def sums_its_gradient(lookup: fx.Node) -> bool:
    """Is the table's gradient a dense tensor, the sum over its lookups?"""
    sparse = lookup.target is aten.embedding.default and bool(ops.argument(lookup, 4, "sparse", False))
    return not sparse and not counts_lookups(lookup)


def _through_views(pull: Elements, rows: Rows) -> Rows:
    before = set(pull.visited)
    read = pull.element(rows.node, rows.at)
    if read.op != "load" or read.args[0] == rows.node.name:
        return rows
    node = pull.nodes[read.args[0]]
    views = (x for x in pull.visited if x not in before and x is not node and ops.rank(x) >= 2)
    return replace(rows.behind(node, *views), at=read.args[1])


def _scaled(rows: Rows) -> Rows | None:
    """x * c, x / c, a cast or a copy of x; under a normalisation a factor would be lost in its eps."""
    node = rows.node
    if node.target in _COPIES or (node.target in _CASTS and _keeps_precision(node)):
        return rows.behind(first_operand(node))
    if node.target not in _FACTORS or rows.eps is not None:
        return None
    x, by = node.args[:2]
    if node.target is aten.mul.Tensor and not isinstance(x, fx.Node):
        x, by = by, x
    if not isinstance(x, fx.Node) or isinstance(by, bool) or not isinstance(by, (int, float)) or by == 0:
        return None
    factor = rows.factor / by if node.target in (aten.div.Tensor, aten.div.Scalar) else rows.factor * by
    return replace(rows.behind(x), factor=factor)


def _normalized(rows: Rows) -> Rows | None:
    """x / max(norm of x over its features, eps)."""
    node = rows.node
    if node.target is not aten.div.Tensor or rows.eps is not None:
        return None
    x, divisor = (x if isinstance(x, fx.Node) else None for x in node.args[:2])
    if x is None or divisor is None:
        return None
    passed: list[fx.Node] = []
    if isinstance(ops.kind_of(divisor), Expand):
        passed.append(divisor)
        divisor = first_operand(divisor)
    eps = 0.0
    if divisor.target in (aten.clamp_min.default, aten.clamp.default):
        if ops.argument(divisor, 2, "max") is not None or not isinstance(bound := divisor.args[1], (int, float)):
            return None
        if bound < 0:
            return None
        eps = float(bound)
        passed.append(divisor)
        divisor = first_operand(divisor)
    if not is_norm_of(divisor, x):
        return None
    return replace(rows.behind(x, *passed, divisor), eps=eps)


def first_operand(node: fx.Node) -> fx.Node:
    """Of a call whose first argument is a tensor."""
    operand = node.args[0]
    assert isinstance(operand, fx.Node)
    return operand


def is_norm_of(node: Any, x: fx.Node) -> bool:
    """Is `node` the Euclidean norm of x over its last dimension, which it keeps?"""
    if not isinstance(node, fx.Node) or node.target not in _NORMS or node.args[0] is not x:
        return False
    dims, kept = ops.argument(node, 2, "dim"), ops.argument(node, 3, "keepdim", False)
    last = isinstance(dims, (list, tuple)) and [d % ops.rank(x) for d in dims] == [ops.rank(x) - 1]
    return last and bool(kept) and ops.argument(node, 1, "ord") in (None, 2) and node.kwargs.get("dtype") is None


def _grouped(rows: Rows) -> Rows | None:
    """x[group], where rows are looked up for each sequence: token t reads those of sequence group[t]."""
    found = rows_and_numbers(rows.node)
    if found is None:
        return None
    source, group = found
    if ops.rank(source) < 3 or ops.rank(group) != 1 or rows.group is not None:
        return None
    at = (load(group.name, rows.at[:1], "i"), *rows.at[1:])
    return replace(rows.behind(source), at=at, group=group)


def _keeps_precision(cast: fx.Node) -> bool:
    """From floats to floats, and to doubles from doubles alone: what is fused computes as its operands are."""
    made, given = cast.meta["val"].dtype, first_operand(cast).meta["val"].dtype
    both = made.is_floating_point and given.is_floating_point
    return bool(both and (made != torch.float64 or given == made))
