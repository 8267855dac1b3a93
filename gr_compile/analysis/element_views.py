"""Element rules of views, case splits and gathers: an index map, a `where` over index ranges, a composed index."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.element import Blocked, Elements, Indices, Rule
from gr_compile.analysis.expr import FALSE, TRUE, Expr, add, and_, binary, cast, const, divmod_, mul, scale, sub, where
from gr_compile.analysis.gradients import counts_lookups, leaves_rows_out

aten = torch.ops.aten
VIEW_RULES: dict[Any, Rule] = {}
_OPEN = 2**63 - 1
"""The end of a slice that has none."""


def _register(*targets: Any) -> Callable[[Rule], Rule]:
    def add_rule(rule: Rule) -> Rule:
        for target in targets:
            VIEW_RULES[target] = rule
        return rule

    return add_rule


@_register(aten.unsqueeze.default)
def _unsqueeze(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    dim = int(node.args[1]) % len(indices)  # type: ignore[arg-type]
    return pull.element(node.args[0], indices[:dim] + indices[dim + 1 :])


@_register(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
def _squeeze(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    shape, rest = pull.shape(node.args[0]), list(indices)  # type: ignore[arg-type]
    named = node.args[1] if len(node.args) > 1 else list(range(len(shape)))
    dims = {int(d) % len(shape) for d in (named if isinstance(named, (list, tuple)) else [named])}  # type: ignore[arg-type]
    unit = const(1)
    return pull.element(
        node.args[0], [const(0) if d in dims and s is unit else rest.pop(0) for d, s in enumerate(shape)]
    )


@_register(aten.permute.default, aten.transpose.int, aten.t.default, aten.mT.default, aten.numpy_T.default)
def _permute(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    kind = ops.kind_of(node)
    assert isinstance(kind, ops.Permute)
    out: list[Expr] = [const(0)] * len(indices)
    for position, dim in enumerate(kind.order):
        out[dim] = indices[position]
    return pull.element(kind.source, out)


@_register(aten.expand.default, aten.expand_as.default, aten.broadcast_to.default)
def _expand(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    return pull.broadcast(node.args[0], node, indices)


@_register(aten.slice.Tensor)
def _slice(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    dim, step = int(ops.argument(node, 1, "dim", 0)) % len(indices), int(ops.argument(node, 4, "step", 1))
    extents = pull.shape(node.args[0])[dim], pull.shape(node)[dim]  # type: ignore[arg-type]
    begin = first_place(pull, ops.argument(node, 2, "start"), ops.argument(node, 3, "end"), step, *extents)
    places = list(indices)
    places[dim] = add(begin, scale(places[dim], step))
    return pull.element(node.args[0], places)


def first_place(pull: Elements, start: Any, end: Any, step: int, extent: Expr, count: Expr) -> Expr:
    """Where a slice of `count` places begins. A start below 0 counts from the end, and one that is in front of all
    places is the first of them: `x[-5:]` of three places. A slice up to the end begins `count` places before it."""
    place = wrapped(pull, pull.element(start, ()), extent) if start is not None else const(0)
    if pull.ranges.ge0(place):
        return place
    if step == 1 and (end is None or (isinstance(end, int) and end >= _OPEN)):
        return sub(extent, count)
    return binary("maximum", place, const(0), "i")


@_register(aten.select.int)
def _select(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    shape = pull.shape(node.args[0])  # type: ignore[arg-type]
    dim, chosen = int(node.args[1]) % len(shape), node.args[2]  # type: ignore[arg-type]
    places = list(indices)
    places.insert(dim, wrapped(pull, pull.element(chosen, ()), shape[dim]))
    return pull.element(node.args[0], places)


# -------------------------------------------------------------------------------------------- reshape
def reshape_indices(
    pull: Elements, source: Sequence[Expr], out: Sequence[Expr], places: Indices, node: fx.Node
) -> list[Expr]:
    """The source's indices under a row-major reshape: factors are grouped, flattened, and split again."""
    result: list[Expr] = []
    a = b = 0
    while a < len(source) or b < len(out):
        a0, b0 = a, b
        left = right = const(1)
        if a < len(source):
            left, a = source[a], a + 1
        if b < len(out):
            right, b = out[b], b + 1
        while left is not right:
            growth = pull.ranges.size_min(sub(right, left))
            if a < len(source) and ((growth is not None and growth > 0) or b >= len(out)):
                left, a = mul(left, source[a]), a + 1
            elif b < len(out):
                right, b = mul(right, out[b]), b + 1
            elif a < len(source):
                left, a = mul(left, source[a]), a + 1
            else:
                raise Blocked(f"a reshape from {list(source)} to {list(out)}, whose factors do not line up", node)
        result += _regroup(pull, source[a0:a], out[b0:b], places[b0:b])
    return result


def _regroup(pull: Elements, source: Sequence[Expr], out: Sequence[Expr], places: Sequence[Expr]) -> list[Expr]:
    if len(source) == 1 and len(out) == 1:
        return [places[0]]
    flat = const(0)
    for extent, place in zip(out, places):
        flat = add(mul(flat, extent), place)
    tail: list[Expr] = []
    for extent in reversed(source[1:]):
        flat, rest = divmod_(flat, extent, pull.ranges)
        tail.append(rest)
    return ([flat] if source else []) + tail[::-1]


@_register(
    aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints, aten.unflatten.int,
    aten.view_as.default, aten.reshape_as.default,
)  # fmt: skip
def _reshape(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    source: Any = node.args[0]
    return pull.element(source, reshape_indices(pull, pull.shape(source), pull.shape(node), indices, node))


@_register(aten.repeat.default)
def _repeat(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    source: Any = node.args[0]
    shape, times = pull.shape(source), list(node.args[1])  # type: ignore[arg-type]
    skip = len(indices) - len(shape)
    places = [
        i if t == 1 else divmod_(i, extent, pull.ranges)[1] for i, extent, t in zip(indices[skip:], shape, times[skip:])
    ]
    return pull.element(source, places)


@_register(aten.repeat_interleave.self_int)
def _repeat_interleave(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    dim = ops.argument(node, 2, "dim")
    if dim is None:
        raise Blocked("repeat_interleave of the flattened tensor", node)
    places = list(indices)
    dim = int(dim) % len(places)
    places[dim] = divmod_(places[dim], pull.element(node.args[1], ()), pull.ranges)[0]
    return pull.element(node.args[0], places)


@_register(aten.flip.default)
def _flip(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    places, shape = list(indices), pull.shape(node)
    for dim in node.args[1]:  # type: ignore[union-attr]
        d = int(dim) % len(places)  # type: ignore[arg-type]
        places[d] = sub(pull.last(shape[d]), places[d])
    return pull.element(node.args[0], places)


@_register(operator.getitem)
def _item(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    source: Any = node.args[0]
    position: Any = node.args[1]
    kind = ops.kind_of(source)
    if not isinstance(kind, ops.Items):
        if len(pull._pair_free(indices)) > 1:
            raise Blocked(f"an output of {source.target}", node)
        return pull.column(node, indices)
    places = list(indices)
    if kind.drop:
        places.insert(kind.dim, const(position))
    else:
        before = [pull.extent(part.shape[kind.dim]) for part in source.meta["val"][:position]]
        places[kind.dim] = add(places[kind.dim], *before)
    return pull.element(kind.source, places)


# ----------------------------------------------------------------------------------- case splits: where
@_register(aten.pad.default, aten.constant_pad_nd.default)
def _pad(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    if node.target is aten.pad.default and ops.argument(node, 2, "mode", "constant") != "constant":
        raise Blocked("a pad that is not constant", node)
    value = ops.argument(node, 3 if node.target is aten.pad.default else 2, "value") or 0
    widths = [pull.element(w, ()) for w in node.args[1]]  # type: ignore[union-attr]
    places, shape, inside = list(indices), pull.shape(node.args[0]), TRUE  # type: ignore[arg-type]
    for k in range(len(widths) // 2):
        d = len(places) - 1 - k
        places[d] = sub(places[d], widths[2 * k])
        inside = and_(inside, pull.at_least_zero(places[d]), pull.at_least_zero(sub(pull.last(shape[d]), places[d])))
    outside = cast(const(value), pull.dtype(node))
    return outside if inside is FALSE else where(inside, pull.element(node.args[0], places), outside, pull.dtype(node))


@_register(aten.cat.default, aten.concat.default)
def _cat(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    kind = ops.kind_of(node)
    assert isinstance(kind, ops.Concatenate)
    arms: list[tuple[Expr, fx.Node, list[Expr]]] = []
    offset = const(0)
    for source in kind.sources:
        places = list(indices)
        places[kind.dim] = sub(indices[kind.dim], offset)
        offset = add(offset, pull.shape(source)[kind.dim])
        arms.append((pull.at_least_zero(sub(pull.last(offset), indices[kind.dim])), source, places))
    return _first_arm(pull, arms, pull.dtype(node))


def _first_arm(pull: Elements, arms: list[tuple[Expr, fx.Node, list[Expr]]], dtype: str) -> Expr:
    (inside, source, places), rest = arms[0], arms[1:]
    if inside is FALSE and rest:
        return _first_arm(pull, rest, dtype)
    value = pull.element(source, places)
    return value if inside is TRUE or not rest else where(inside, value, _first_arm(pull, rest, dtype), dtype)


@_register(aten.stack.default)
def _stack(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    kind = ops.kind_of(node)
    assert isinstance(kind, ops.Stack)
    chosen = indices[kind.dim]
    if chosen.op != "const":
        raise Blocked("a stack read at a computed place", node)
    return pull.element(kind.sources[chosen.args[0]], indices[: kind.dim] + indices[kind.dim + 1 :])


@_register(aten.roll.default)
def _roll(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    shifts, dims = node.args[1], ops.argument(node, 2, "dims", [])
    if not dims:
        raise Blocked("a roll of the flattened tensor", node)
    places, shape = list(indices), pull.shape(node)
    for shift, dim in zip(shifts, dims):  # type: ignore[arg-type]
        places[dim] = divmod_(sub(places[dim], pull.element(shift, ())), shape[dim], pull.ranges)[1]
    return pull.element(node.args[0], places)


# --------------------------------------------------------------------------------------------- gathers
@_register(aten.index.Tensor)
def _index(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    source: Any = node.args[0]
    given = list(node.args[1])  # type: ignore[arg-type]
    shape = pull.shape(source)
    given += [None] * (len(shape) - len(given))
    chosen = [d for d, tensor in enumerate(given) if tensor is not None]
    if any(given[d].meta["val"].dtype == torch.bool for d in chosen):
        raise Blocked("an index by a boolean mask: its size depends on data", node)
    width = max(given[d].meta["val"].dim() for d in chosen)
    adjacent = chosen == list(range(chosen[0], chosen[-1] + 1))
    at = chosen[0] if adjacent else 0
    block, rest = indices[at : at + width], list(indices[:at] + indices[at + width :])
    out_shape = pull.shape(node)[at : at + width]
    places = []
    for d, tensor in enumerate(given):
        if tensor is None:
            places.append(rest.pop(0))
            continue
        sizes, unit = pull.shape(tensor), const(1)
        skip = width - len(sizes)
        picked = [
            const(0) if s is unit and o is not unit else i for i, s, o in zip(block[skip:], sizes, out_shape[skip:])
        ]
        places.append(wrapped(pull, pull.element(tensor, picked), shape[d]))
    return pull.element(source, places)


def wrapped(pull: Elements, place: Expr, extent: Expr) -> Expr:
    """A negative index counts from the end; where it is provably non-negative nothing needs to wrap."""
    if pull.ranges.ge0(place) or _non_negative(place):
        return place
    if place.op == "const":
        return add(extent, place)
    return where(pull.at_least_zero(place), place, add(place, extent), "i")


def _non_negative(place: Expr) -> bool:
    if place.op == "const":
        return bool(place.args[0] >= 0)
    if place.op == "maximum":
        return any(_non_negative(a) for a in place.args)
    if place.op == "minimum":
        return all(_non_negative(a) for a in place.args)
    if place.op == "cast":
        return place.args[0].dtype == "b" or _non_negative(place.args[0])
    if place.op in ("div", "floordiv", "truncdiv"):
        return _non_negative(place.args[0]) and place.args[1].op == "const" and place.args[1].args[0] > 0
    if place.op in ("floor", "trunc"):
        return _non_negative(place.args[0])
    if place.op == "log":
        return _at_least_one(place.args[0])
    return place.op in ("abs", "sqrt", "sigmoid", "exp", "relu")


def _at_least_one(value: Expr) -> bool:
    if value.op == "const":
        return bool(value.args[0] >= 1)
    if value.op == "maximum":
        return any(_at_least_one(a) for a in value.args)
    return value.op == "cast" and _at_least_one(value.args[0])


@_register(aten.embedding.default)
def _embedding(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    """An element of the table, where the gradient is that of the element: not so for the row of padding_idx, which
    takes none, nor for rows that share one by how often they occur."""
    if (counts_lookups(node) or leaves_rows_out(node)) and not pull.closed(node.args[0]):  # type: ignore[arg-type]
        raise Blocked("an embedding with padding_idx or scale_grad_by_freq, between a query and a key", node)
    row = pull.element(node.args[1], indices[:-1])
    return pull.element(node.args[0], (row, indices[-1]))


@_register(aten.index_select.default)
def _index_select(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    places, dim = list(indices), int(node.args[1]) % len(indices)  # type: ignore[arg-type]
    places[dim] = pull.element(node.args[2], [places[dim]])
    return pull.element(node.args[0], places)


@_register(aten.gather.default)
def _gather(pull: Elements, node: fx.Node, indices: Indices) -> Expr:
    places, dim = list(indices), int(node.args[1]) % len(indices)  # type: ignore[arg-type]
    places[dim] = pull.element(node.args[2], indices)
    return pull.element(node.args[0], places)
