"""A product with one-hot rows picks places: BERT4Rec's authors read the states of masked places so.

    before   P: [B, M, N] = zeros; P.view(B * M, N)[arange(B * M), index.view(-1)] = 1; y = bmm(P, x: [B, N, D])
    after    y = x.flatten(0, 1)[b * N + index].view(B, M, D)          (0 where an index of a comparison is outside)

Proof: y[b, m] is the sum over n of [n = index[b, m]] * x[b, n], of which one term is not 0 (x is finite).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.algebra import coefficient_of
from gr_compile.analysis.element import Blocked, Elements
from gr_compile.analysis.expr import Expr, add, and_, const, index, is_mask_cast, mul, scale, substitute, where
from gr_compile.graph_pass import Match
from gr_compile.passes.eliminate_padding.emit import PlaceEmitter
from gr_compile.pipeline import PassContext

aten = torch.ops.aten
_WRITES = (aten.index_put.default, aten.one_hot.default)
"""They refuse places outside the sequence."""
_SEQUENCE, _ROW, _PLACE = index("o0"), index("o1"), index("o2")


@dataclass(frozen=True)
class _Picked:
    """A product `node` whose row (o0, o1) is that of `values` at (o0, `place`), where `inside` says so."""

    node: fx.Node
    values: fx.Node
    place: Expr
    inside: Expr
    strict: bool


def spell_one_hot_products_as_rows(graph_module: fx.GraphModule, context: PassContext) -> list[Match]:
    """Rewrite every product of one-hot rows with the places of their sequence; one Match for each."""
    pull = Elements(graph_module, context.constants)
    matches = []
    for node in list(graph_module.graph.nodes):
        kind = ops.kind_of(node)
        found = _picked(pull, node, kind) if isinstance(kind, ops.Contract) else None
        what = f"product with one-hot rows {node.name}"
        if found is not None and context.allow(what, node):
            matches.append(Match(what, node))
            context.editor.replace(node, _rows(found, pull, context))
            context.editor.erase(node)
    if matches:
        context.editor.eliminate_dead_code()
    return matches


def _picked(pull: Elements, node: fx.Node, kind: ops.Contract) -> _Picked | None:
    left, right, out = kind.left_labels, kind.right_labels, kind.out_labels
    if kind.bias is not None or len(left) != 3 or len(right) != 3:
        return None
    if out != left[:2] + right[2] or left[0] != right[0] or left[2] != right[1]:
        return None
    one_hot, values = kind.left, kind.right
    if not pull.closed(one_hot) or one_hot.meta["val"].dtype != values.meta["val"].dtype:
        return None
    shape = pull.shape(one_hot)
    if shape[0] is not pull.shape(values)[0]:
        return None
    pull.forget()
    for axis, extent in zip((_SEQUENCE, _ROW, _PLACE), shape):
        pull.bind(axis.args[0], extent)
    try:
        element = substitute(pull.element(one_hot, (_SEQUENCE, _ROW, _PLACE)), pull.definitions)
    except Blocked:
        return None
    place = _the_one(element)
    if place is None or _PLACE.args[0] in place.free:
        return None
    inside = and_(pull.at_least_zero(place), pull.at_least_zero(add(shape[2], scale(place, -1), const(-1))))
    strict = any(n.target in _WRITES for n in pull.visited)
    return _Picked(node, values, place, inside, strict)


def _the_one(element: Expr) -> Expr | None:
    """The place at which an element is 1 where it is 0 at all others."""
    while element.op == "cast" and not is_mask_cast(element):
        element = element.args[0]  # 0 and 1 are numbers of every dtype
    if not is_mask_cast(element) or element.args[0].op != "eq0":
        return None
    found = coefficient_of(element.args[0].args[0], _PLACE)
    if found is None or found[0] not in (const(1), const(-1)):
        return None
    return scale(found[1], -1) if found[0] is const(1) else found[1]


def _rows(found: _Picked, pull: Elements, context: PassContext) -> fx.Node:
    """A write at an index that is out of range is an error, and stays one; a comparison with it finds nothing."""
    editor, node, values = context.editor, found.node, found.values
    count, rows, width = (editor.symbol_of(size) for size in node.meta["val"].shape)
    length = pull.shape(values)[1]
    outside = mul(pull.shape(values)[0], length) if found.strict else const(0)
    number = where(found.inside, add(mul(_SEQUENCE, length), found.place), outside, "i")
    with editor.at(before=node, like=node):
        axes = {_SEQUENCE.args[0]: (count, 0), _ROW.args[0]: (rows, 1)}
        emit = PlaceEmitter(editor, pull, axes, node.meta["val"].device)
        numbers = editor.call(aten.expand.default, emit.tensor(number), [count, rows])
        numbers = editor.call(aten.reshape.default, numbers, [-1])
        flat = editor.call(aten.flatten.using_ints, values, 0, 1)
        picked = editor.call(aten.index.Tensor, flat, [numbers])
        made: fx.Node = editor.call(aten.reshape.default, picked, [count, rows, width])
        if not found.strict and found.inside.op != "const":
            inside = editor.call(aten.unsqueeze.default, emit.tensor(found.inside), -1)
            made = editor.call(aten.where.ScalarOther, inside, made, 0)
    return made
