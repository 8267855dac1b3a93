"""canonicalize: one spelling for what later passes look at.

    before   y = _unsafe_view(clone(x)); z = to(y, float32); m = masked_fill(z, ~mask, 0.); w = addmm(b, x, t(W))
    after    y = view(x); m = where(mask, z, 0); w = linear(x, W, b)

    before   softmax(x - amax(x, -1, keepdim=True), -1)
    after    softmax(x, -1)

    before   q = cat(split(x, 16, dim=2), dim=0)
    after    q = reshape(permute(reshape(x, [B, N, H, 16]), (2, 0, 1, 3)), [H * B, N, 16])

Identities (casts to the same dtype, whole slices, dropout that does nothing, expands that keep the shape) go, equal
calls become one. Bitwise: no value changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.fx as fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from gr_compile.analysis import operators as ops
from gr_compile.analysis.layout import is_floating
from gr_compile.analysis.parts import parts_of
from gr_compile.analysis.softmax_rules import difference, is_maximum
from gr_compile.editor import GraphEditor
from gr_compile.graph_pass import Match, Numerics, Pass, PassResult
from gr_compile.pipeline import PassContext
from gr_compile.sizes import size_expr
from gr_compile.verify import same_shape
from gr_compile.writes import written

aten = torch.ops.aten
_RANDOM = torch.Tag.nondeterministic_seeded
_CASTS = {  # -> the place of `copy` among the arguments
    aten.to.dtype: 3,
    aten.to.device: 4,
    aten.to.other: 3,
    aten.to.dtype_layout: 99,
    aten.type_as.default: 99,
    aten._to_copy.default: 99,
}


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Rewrite every call to its canonical spelling; remove identities and repeated calls."""

    name: ClassVar[str] = "canonicalize"
    provides: ClassVar[frozenset[str]] = frozenset({"canonical"})
    numerics: ClassVar[Numerics] = "bitwise"

    def run(self, graph_module: fx.GraphModule, context: PassContext) -> PassResult:
        """One walk over the graph; each rule fires at most once a node."""
        matches: list[Match] = []
        seen: dict[Any, fx.Node] = {}
        for node in list(graph_module.graph.nodes):
            current: fx.Node | None = node if node.op == "call_function" else None
            for step in (_respelled, _identity, _repeated):
                if current is None:
                    break
                found = step(current, context.editor, seen)
                if found is None or not context.allow(f"{found.what} {current.name}", current):
                    continue
                matches.append(Match(found.what, current))
                context.editor.replace(current, found.replacement)
                context.editor.erase(current)
                current = found.replacement if step is _respelled else None
        return PassResult(bool(matches), tuple(matches))


@dataclass(frozen=True)
class _Found:
    """A rewrite: all users of the node read `replacement`."""

    what: str
    replacement: fx.Node


def _respelled(node: fx.Node, editor: GraphEditor, seen: dict[Any, fx.Node]) -> _Found | None:
    rule = _RULES.get(node.target)
    if rule is None:
        return None
    with editor.at(before=node, like=node):
        replacement = rule(node, editor)
    return _Found(f"spelling of {node.target}", replacement) if replacement is not None else None


def _identity(node: fx.Node, editor: GraphEditor, seen: dict[Any, fx.Node]) -> _Found | None:
    """A call that returns its operand unchanged; an output that must not alias an input stays a copy."""
    source = _unchanged_operand(node)
    if source is None or (_makes_a_copy(node) and _is_output(node)):
        return None
    return _Found(f"identity {node.target}", source)


def _makes_a_copy(node: fx.Node) -> bool:
    if node.target in (aten._to_copy.default, aten.lift_fresh_copy.default):
        return True
    return node.target in _CASTS and bool(ops.argument(node, _CASTS[node.target], "copy", False))


def _is_output(node: fx.Node) -> bool:
    return any(user.op == "output" for user in node.users)


def _unchanged_operand(node: fx.Node) -> fx.Node | None:
    """The operand that a call returns unchanged, if it does."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or not isinstance(node.meta.get("val"), torch.Tensor):
        return None
    before, after = source.meta.get("val"), node.meta["val"]
    if not isinstance(before, torch.Tensor) or not same_shape(before, after) or before.device != after.device:
        return None
    kind = ops.kind_of(node)
    if node.target in _CASTS or node.target in (aten.alias.default, aten.lift_fresh_copy.default):
        return source if node.kwargs.get("memory_format") is None else None
    if node.target is aten.dropout.default and (not node.args[2] or node.args[1] == 0):
        return source
    if isinstance(kind, (ops.Reshape, ops.Expand)):
        return source
    if isinstance(kind, ops.Slice) and kind.whole and ops.argument(node, 4, "step", 1) == 1:
        return source
    if isinstance(kind, ops.Permute) and kind.order == tuple(range(len(kind.order))):
        return source
    return None


def _repeated(node: fx.Node, editor: GraphEditor, seen: dict[Any, fx.Node]) -> _Found | None:
    """A call that an earlier one made already: the same operator on the same operands.

    Nothing random and nothing with unbacked sizes; two outputs stay two tensors, which the caller may write to.
    """
    if not isinstance(node.target, torch._ops.OpOverload) or _RANDOM in node.target.tags:
        return None
    if node.meta.get("unbacked_bindings") or node.meta.get("recompute") is not None or not node.users:
        return None
    first = seen.setdefault((node.target, _frozen(node.args), _frozen(node.kwargs)), node)
    if first is node or (_is_output(first) and _is_output(node)):
        return None
    return _Found("repeated call", first)


def _frozen(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(v) for v in value)
    if isinstance(value, dict):
        return tuple(sorted((k, _frozen(v)) for k, v in value.items()))
    return (type(value), repr(value)) if isinstance(value, (bool, int, float)) else value


# ------------------------------------------------------------------------------------------------- rules
def _masked_fill(node: fx.Node, editor: GraphEditor) -> fx.Node | None:
    """masked_fill(x, ~m, c) -> where(m, x, c)."""
    source, mask, value = node.args[:3]
    if (
        isinstance(value, fx.Node)
        or not isinstance(mask, fx.Node)
        or not same_dims(source, node)
        or not is_floating(node)
    ):
        return None
    if mask.target in (aten.bitwise_not.default, aten.logical_not.default) and _is_bool(mask.args[0]):
        return editor.call(aten.where.ScalarOther, mask.args[0], source, value)
    return editor.call(aten.where.ScalarSelf, mask, value, source)


def same_dims(source: Any, node: fx.Node) -> bool:
    """The result has the source's own shape and dtype."""
    return isinstance(source, fx.Node) and same_shape(source.meta["val"], node.meta["val"])


def _is_bool(value: Any) -> bool:
    return isinstance(value, fx.Node) and value.meta["val"].dtype == torch.bool


def _view(node: fx.Node, editor: GraphEditor) -> fx.Node | None:
    """_unsafe_view(clone(x)) -> reshape(x), and likewise a view of a contiguous copy."""
    source: Any = node.args[0]
    if source.target in (aten.clone.default, aten.contiguous.default) and len(source.users) == 1:
        if source.args[0] in written(node.graph):
            return None
        return editor.call(aten.reshape.default, source.args[0], node.args[1])
    if node.target is aten._unsafe_view.default:
        return editor.call(aten.reshape.default, source, node.args[1])
    return None


def _full(node: fx.Node, editor: GraphEditor) -> fx.Node | None:
    """ones_like(x) -> full(sizes of x): it reads nothing of x."""
    value = node.meta["val"]
    if any(free_unbacked_symbols(size) for size in value.shape) or value.layout is not torch.strided:
        return None
    fill = _LIKE[node.target] if node.target in _LIKE else node.args[1]
    if isinstance(fill, fx.Node):
        return None
    sizes = [editor.symbol_of(size) for size in value.shape]
    return editor.call(aten.full.default, sizes, fill, dtype=value.dtype, device=value.device)


def _addmm(node: fx.Node, editor: GraphEditor) -> fx.Node | None:
    """addmm(bias, x, t(W)) -> linear(x, W, bias)."""
    kind = ops.kind_of(node)
    if not isinstance(kind, ops.Contract) or kind.bias is None or ops.rank(kind.bias) != 1:
        return None
    transposed = ops.kind_of(kind.right)
    if not isinstance(transposed, ops.Permute) or transposed.order != (1, 0):
        return None
    return editor.call(aten.linear.default, kind.left, transposed.source, kind.bias)


def _softmax(node: fx.Node, editor: GraphEditor) -> fx.Node | None:
    """softmax(x - max(x)) -> softmax(x), which subtracts the maximum itself.

    Rows that are all -inf, or hold inf or NaN, are NaN in both; the gradient of what all of a row share is 0.
    """
    source, shift = difference(node.args[0])
    if not same_dims(source, node):
        return None
    if not is_maximum(shift, source, int(node.args[1])):  # type: ignore[arg-type]
        return None
    return editor.again(node, self=source)


def _joined_parts(node: fx.Node, editor: GraphEditor) -> fx.Node | None:
    """cat or stack of all parts of one tensor -> a reshape and a permutation of it."""
    kind: Any = ops.kind_of(node)
    found = parts_of(kind.sources)
    if found is None:
        return None
    sizes = list(found.source.meta["val"].shape)
    if not found.drop:  # [.., count, size / count, ..]
        sizes[found.dim : found.dim + 1] = [found.count, kind.sources[0].meta["val"].shape[found.dim]]
    order = [d for d in range(len(sizes)) if d != found.dim]
    order.insert(kind.dim, found.dim)
    value = found.source
    if order != sorted(order):
        value = editor.call(aten.permute.default, _reshaped(value, sizes, editor), order)
    value = _reshaped(value, list(node.meta["val"].shape), editor)
    return value if value is not found.source or not _is_output(node) else None


def _reshaped(value: fx.Node, sizes: list[Any], editor: GraphEditor) -> fx.Node:
    if [size_expr(s) for s in value.meta["val"].shape] == [size_expr(s) for s in sizes]:
        return value
    made: fx.Node = editor.call(aten.reshape.default, value, [editor.symbol_of(s) for s in sizes])
    return made


_LIKE = {aten.zeros_like.default: 0, aten.ones_like.default: 1}
_RULES: dict[Any, Callable[[fx.Node, GraphEditor], fx.Node | None]] = {
    aten.masked_fill.Scalar: _masked_fill,
    aten._unsafe_view.default: _view,
    aten.view.default: _view,
    aten.addmm.default: _addmm,
    aten.softmax.int: _softmax,
    aten._softmax.default: _softmax,
    aten.full_like.default: _full,
    **dict.fromkeys(_LIKE, _full),
    aten.cat.default: _joined_parts,
    aten.stack.default: _joined_parts,
}
