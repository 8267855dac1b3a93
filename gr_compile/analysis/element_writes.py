"""Element rules of in-place writes, as functional graphs spell them: what was written, or else what was there.

`x[a:b] = y` is a slice_scatter, `x[k] = y` a select_scatter, `x.diagonal().zero_()` a diagonal_scatter, `x[mask] = y`
and `x[arange, index] = y` an index_put; one_hot writes a 1 in each row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.element import Blocked, Elements, Indices, Rule
from gr_compile.analysis.element_views import first_place, wrapped
from gr_compile.analysis.expr import FALSE, TRUE, Expr, add, and_, binary, cast, compare, const, divmod_, sub, where

aten = torch.ops.aten
WRITE_RULES: dict[Any, Rule] = {}


def _register(*targets: Any) -> Callable[[Rule], Rule]:
    def add_rule(rule: Rule) -> Rule:
        for target in targets:
            WRITE_RULES[target] = rule
        return rule

    return add_rule


def _written(pull: Elements, node: fx.Node, indices: Indices, inside: Expr, places: Indices) -> Expr:
    """The source's element at `places` where `inside`, else the element that was there."""
    before: Any = node.args[0]
    source: Any = node.args[1]
    if inside is FALSE:
        return pull.element(before, indices)
    value = cast(pull.element(source, places), pull.dtype(node))
    return value if inside is TRUE else where(inside, value, pull.element(before, indices), pull.dtype(node))


def _least(pull: Elements, bound: Expr, extent: Expr) -> Expr:
    if pull.ranges.ge0(sub(extent, bound)):
        return bound
    return extent if pull.ranges.ge0(sub(bound, extent)) else binary("minimum", bound, extent, "i")


@_register(aten.slice_scatter.default)
def _slice_scatter(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    dim = int(ops.argument(node, 2, "dim", 0)) % len(indices)
    start, end = ops.argument(node, 3, "start"), ops.argument(node, 4, "end")
    step = int(ops.argument(node, 5, "step", 1))
    extent, place = pull.shape(node)[dim], indices[dim]
    begin = first_place(pull, start, end, step, extent, pull.shape(node.args[1])[dim])  # type: ignore[arg-type]
    stop = extent if end is None else _least(pull, wrapped(pull, pull.element(end, ()), extent), extent)
    inside = and_(pull.at_least_zero(sub(place, begin)), pull.at_least_zero(sub(pull.last(stop), place)))
    at = sub(place, begin)
    if step != 1:
        at, rest = divmod_(at, const(step), pull.ranges)
        inside = and_(inside, compare("eq", rest, const(0), pull.ranges))
    return _written(pull, node, indices, inside, (*indices[:dim], at, *indices[dim + 1 :]))


@_register(aten.select_scatter.default)
def _select_scatter(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    dim, chosen = int(node.args[2]) % len(indices), node.args[3]  # type: ignore[arg-type]
    place = wrapped(pull, pull.element(chosen, ()), pull.shape(node)[dim])
    inside = compare("eq", indices[dim], place, pull.ranges)
    return _written(pull, node, indices, inside, indices[:dim] + indices[dim + 1 :])


@_register(aten.diagonal_scatter.default)
def _diagonal_scatter(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    offset = int(ops.argument(node, 2, "offset", 0))
    rows = int(ops.argument(node, 3, "dim1", 0)) % len(indices)
    columns = int(ops.argument(node, 4, "dim2", 1)) % len(indices)
    inside = compare("eq", sub(indices[columns], indices[rows]), const(offset), pull.ranges)
    along = indices[rows] if offset >= 0 else indices[columns]
    others = tuple(place for dim, place in enumerate(indices) if dim not in (rows, columns))
    return _written(pull, node, indices, inside, (*others, along))


@_register(aten.as_strided_scatter.default)
def _fill_diagonal(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    """`mask.fill_diagonal_(True)` of a square matrix: a write at every (N + 1)-th of its N * N elements."""
    shape = pull.shape(node)
    sizes, strides = ([pull.element(x, ()) for x in given] for given in node.args[2:4])  # type: ignore[union-attr]
    plain = (
        len(shape) == 2 and shape[0] is shape[1] and sizes == shape[:1] and not ops.argument(node, 4, "storage_offset")
    )
    if not plain or strides != [add(shape[1], const(1))]:
        raise Blocked("a write at strided places", node)
    inside = compare("eq", indices[0], indices[1], pull.ranges)
    return _written(pull, node, indices, inside, (indices[0],))


@_register(aten.index_put.default)
def _index_put(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    """x[mask] = one number, or x[arange, index] = one number: one place in every row."""
    given = list(node.args[1])  # type: ignore[arg-type]
    value: Any = node.args[2]
    before: Any = node.args[0]
    if ops.argument(node, 3, "accumulate", False) or value.meta["val"].numel() != 1:
        raise Blocked("a write of several values at the places of a mask", node)
    mask = given[0]
    if len(given) == 1 and isinstance(mask, fx.Node) and mask.meta["val"].dtype == torch.bool:
        inside = pull.element(mask, indices[: ops.rank(mask)])
    elif len(given) == 2 and _is_row_number(pull, node, given[0], indices[0]):
        place = wrapped(pull, pull.element(given[1], (indices[0],)), pull.shape(node)[1])
        inside = compare("eq", indices[1], place, pull.ranges)
    else:
        raise Blocked("a write at computed places", node)
    written = cast(pull.element(value, (const(0),) * ops.rank(value)), pull.dtype(node))
    return where(inside, written, pull.element(before, indices), pull.dtype(node))


def _is_row_number(pull: Elements, node: fx.Node, rows: fx.Node | None, row: Expr) -> bool:
    """Whether `rows` and the index beside it are [R], R being the rows of the matrix `node`, and rows[r] = r."""
    if rows is None or ops.rank(node) != 2 or any(x is None or ops.rank(x) != 1 for x in node.args[1]):  # type: ignore[union-attr,arg-type]
        return False
    sizes = [pull.shape(x)[0] for x in node.args[1]]  # type: ignore[union-attr,arg-type]
    return all(size is pull.shape(node)[0] for size in sizes) and pull.element(rows, (row,)) is row


@_register(aten.one_hot.default)
def _one_hot(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    """Zeros, with a 1 written at the number of each row."""
    place = pull.element(node.args[0], indices[:-1])
    return cast(compare("eq", indices[-1], place, pull.ranges), pull.dtype(node))
