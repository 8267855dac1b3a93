"""Expressions over the places (b, n) as graph nodes: one tensor broadcastable to [B, N] for each expression."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis.element import Elements
from gr_compile.analysis.expr import Expr
from gr_compile.editor import GraphEditor
from gr_compile.sizes import size_expr

aten = torch.ops.aten
_DTYPE = {
    "i": torch.int64, "b": torch.bool, "f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32,
    "f64": torch.float64,
}  # fmt: skip
_BINARY = {
    "add": aten.add.Tensor, "sub": aten.sub.Tensor, "mul": aten.mul.Tensor, "div": aten.div.Tensor,
    "maximum": aten.maximum.default, "minimum": aten.minimum.default,
}  # fmt: skip
_COMPARE = {"lt": aten.lt, "le": aten.le, "eq": aten.eq}
_ROUND = {"floordiv": "floor", "truncdiv": "trunc"}


class PlaceEmitter:
    """Emits expressions at the editor's insertion point.

    Args:
        axes: index name -> (its extent as a node or int, the dimension of the grid it runs along); the grid has one
            dimension where there are none.
        given: expressions' load names that stand for nodes of their own, broadcastable to the grid.
    """

    def __init__(
        self, editor: GraphEditor, pull: Elements, axes: Mapping[str, tuple[Any, int]], device: torch.device,
        given: Mapping[str, fx.Node] | None = None,
    ) -> None:  # fmt: skip
        self.editor, self.pull, self.axes, self.device = editor, pull, axes, device
        self.given = dict(given or {})
        self.rank = 1 + max((dim for _, dim in axes.values()), default=0)
        self._memo: dict[Expr, Any] = {}

    def __call__(self, expr: Expr) -> Any:
        """A node (or a Python number) for the expression."""
        if expr not in self._memo:
            self._memo[expr] = self._emit(expr)
        return self._memo[expr]

    def tensor(self, expr: Expr) -> fx.Node:
        """A tensor node, even for a constant."""
        value = self(expr)
        if isinstance(value, fx.Node) and isinstance(value.meta["val"], torch.Tensor):
            return value
        made: fx.Node = self.editor.call(
            aten.full.default, [1] * self.rank, value, dtype=_DTYPE[expr.dtype], device=self.device
        )
        return made

    def _emit(self, expr: Expr) -> Any:
        op, args = expr.op, expr.args
        if op == "const":
            return args[0]
        rule = getattr(self, "_" + op, None)
        if rule is not None:
            return rule(expr)
        if op in _BINARY:
            return self.editor.call(_BINARY[op], self._as(args[0]), self._as(args[1]))
        if op in _ROUND:
            return self.editor.call(
                aten.div.Tensor_mode, self._as(args[0]), self._as(args[1]), rounding_mode=_ROUND[op]
            )
        target = getattr(aten, op, None)
        if target is None or len(args) != 1:
            raise NotImplementedError(f"no operator computes {op} over places")
        return self.editor.call(target.default, self._as(args[0]))

    def _as(self, expr: Expr) -> fx.Node:
        return self.tensor(expr)

    def _index(self, expr: Expr) -> fx.Node:
        extent, dim = self.axes[expr.args[0]]
        places = self.editor.call(aten.arange.default, extent, dtype=torch.int64, device=self.device)
        shape = [1] * self.rank
        shape[dim] = -1
        made: fx.Node = self.editor.call(aten.view.default, places, shape)
        return made

    def _size(self, expr: Expr) -> Any:
        return self.editor.symbol_of(self.pull.size_values[expr.args[0]])

    def _poly(self, expr: Expr) -> Any:
        total: Any = None
        for monomial, factor in expr.args:
            term: Any = factor if factor != 1 or not monomial else None
            for atom in monomial:
                value = self(atom)
                term = value if term is None else self._times(term, value)
            total = term if total is None else self._plus(total, term)
        return total

    def _times(self, a: Any, b: Any) -> Any:
        return self._arithmetic(aten.mul, "mul", a, b)

    def _plus(self, a: Any, b: Any) -> Any:
        return self._arithmetic(aten.add, "add", a, b)

    def _arithmetic(self, packet: Any, name: str, a: Any, b: Any) -> Any:
        def is_tensor(x: Any) -> bool:
            return isinstance(x, fx.Node) and isinstance(x.meta["val"], torch.Tensor)

        if is_tensor(a) or is_tensor(b):
            first, second = (a, b) if is_tensor(a) else (b, a)
            return self.editor.call(packet.Tensor if is_tensor(second) else packet.Scalar, first, second)
        plain = getattr(operator, name)
        return plain(a, b) if not (isinstance(a, fx.Node) or isinstance(b, fx.Node)) else self.editor.call(plain, a, b)

    def _ge0(self, expr: Expr) -> fx.Node:
        made: fx.Node = self.editor.call(aten.ge.Scalar, self._as(expr.args[0]), 0)
        return made

    def _eq0(self, expr: Expr) -> fx.Node:
        made: fx.Node = self.editor.call(aten.eq.Scalar, self._as(expr.args[0]), 0)
        return made

    def _compare(self, expr: Expr) -> fx.Node:
        name, left, right = expr.args
        made: fx.Node = self.editor.call(_COMPARE[name].Tensor, self._as(left), self._as(right))
        return made

    def _and(self, expr: Expr) -> fx.Node:
        result = self._as(expr.args[0])
        for part in expr.args[1:]:
            result = self.editor.call(aten.logical_and.default, result, self._as(part))
        return result

    def _not(self, expr: Expr) -> fx.Node:
        made: fx.Node = self.editor.call(aten.logical_not.default, self._as(expr.args[0]))
        return made

    def _where(self, expr: Expr) -> fx.Node:
        made: fx.Node = self.editor.call(aten.where.self, *(self._as(a) for a in expr.args))
        return made

    def _cast(self, expr: Expr) -> fx.Node:
        made: fx.Node = self.editor.call(aten.to.dtype, self._as(expr.args[0]), _DTYPE[expr.dtype])
        return made

    def _mod(self, expr: Expr) -> fx.Node:
        made: fx.Node = self.editor.call(aten.remainder.Tensor, self._as(expr.args[0]), self._as(expr.args[1]))
        return made

    def _load(self, expr: Expr) -> fx.Node:
        name, places = expr.args
        if name in self.given:
            return self.given[name]
        node = self.pull.nodes[name]
        plain = self._plain_load(node, places)
        if plain is not None:
            return plain
        shape = node.meta["val"].shape
        inside = [self._clamped(self._as(place), shape[d]) for d, place in enumerate(places)]
        made: fx.Node = self.editor.call(aten.index.Tensor, node, inside)
        return made

    def _clamped(self, place: fx.Node, extent: Any) -> fx.Node:
        """Loads under a `where` are speculative: their places are brought into range."""
        last = self._plus(self.editor.symbol_of(extent), -1)
        made: fx.Node = self.editor.call(aten.clamp.default, place, 0, last)
        return made

    def _extent(self, name: str) -> Any:
        extent = self.axes[name][0]
        return size_expr(extent.meta["val"] if isinstance(extent, fx.Node) else extent)

    def _plain_load(self, node: fx.Node, places: tuple[Expr, ...]) -> fx.Node | None:
        """A load at distinct grid indices is the node itself, permuted and with size-1 dimensions."""
        names = [p.args[0] if p.op == "index" else "" for p in places]
        if not all(name in self.axes or (p.op == "const" and p.args[0] == 0) for name, p in zip(names, places)):
            return None
        used = [name for name in names if name]
        if len(set(used)) != len(used):
            return None
        shape = node.meta["val"].shape
        if any(size_expr(shape[d]) != (self._extent(name) if name else 1) for d, name in enumerate(names)):
            return None
        result = node
        for d in reversed([d for d, name in enumerate(names) if not name]):
            result = self.editor.call(aten.squeeze.dim, result, d)
        order = sorted(range(len(used)), key=lambda k: self.axes[used[k]][1])
        if order != list(range(len(used))):
            result = self.editor.call(aten.permute.default, result, order)
        present = {self.axes[name][1] for name in used}
        for dim in range(self.rank):
            if dim not in present:
                result = self.editor.call(aten.unsqueeze.default, result, dim)
        return result
