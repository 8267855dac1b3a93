"""Pull one element of a value back through the graph: `element(node, indices)` is an expression over indices and loads.

Index maps compose; nothing is labelled. A value that depends on at most one of the pair indices i and j, and that is
not plain index arithmetic, stays a load of its node: a column. What depends on both is pulled to its defining
expression, in the order and dtypes the model wrote. An operator without a rule is opaque: a load, or, for a value
with both i and j, a `Blocked`.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import sympy
import torch
import torch.fx as fx

from gr_compile.analysis.classify import closed_form
from gr_compile.analysis.expr import FALSE, TRUE, Expr, Ranges, add, cast, const, ge0, load, make, mul, size, sub, walk
from gr_compile.analysis.inputs import is_data
from gr_compile.constants import Constants
from gr_compile.sizes import size_expr

DTYPES = {
    torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16", torch.bool: "b",
    torch.int64: "i", torch.int32: "i", torch.int16: "i", torch.int8: "i", torch.uint8: "i",
}  # fmt: skip
Indices: TypeAlias = tuple[Expr, ...]
Rule: TypeAlias = "Callable[[Elements, fx.Node, Indices], Expr]"


@dataclass(frozen=True)
class Dot:
    """A contraction over features, read at one element: each operand with its indices, `feature` among them."""

    node: fx.Node
    operands: tuple[fx.Node, fx.Node]
    indices: tuple[Indices, Indices]
    feature: Expr


class Blocked(Exception):
    """No expression can be given; `node` is the operation that blocks."""

    def __init__(self, reason: str, node: fx.Node | None = None) -> None:
        super().__init__(reason)
        self.reason, self.node = reason, node


class Elements:
    """The pull over one graph.

    Attributes:
        ranges: what is known of index variables; `bind` adds one.
        visited: node -> the index tuples at which it was read, since `forget`.
        definitions: load of an integer column -> the expression that defines it (for proofs).
        size_values: name of a size in expressions -> the symbolic size it stands for.
        masks: inputs that are declared to be masks: their elements are 0 or 1.
        dots: a product over features -> the contraction that computes it, with its operands' indices.
    """

    def __init__(
        self, graph_module: fx.GraphModule, constants: Constants | None = None, masks: Iterable[fx.Node] = ()
    ) -> None:
        self.constants = constants or Constants()
        self.ranges = Ranges()
        self.pair: frozenset[str] = frozenset()
        self.nodes = {node.name: node for node in graph_module.graph.nodes}
        self.visited: dict[fx.Node, set[Indices]] = defaultdict(set)
        self.definitions: dict[Expr, Expr] = {}
        self.size_values: dict[str, Any] = {}
        self.dots: dict[Expr, Dot] = {}
        self.masks = frozenset(masks)
        self._memo: dict[tuple[fx.Node, Indices], Expr | Blocked] = {}
        self._closed: dict[fx.Node, bool] = {}
        self._fresh = 0

    # ------------------------------------------------------------------------------------------ indices
    def bind(self, name: str, extent: Expr) -> None:
        """0 <= name < extent."""
        self.ranges.bound(name, extent)

    def forget(self, pair: Sequence[str] = ()) -> None:
        """Begin a new question with these pair indices: nothing visited, nothing remembered."""
        self.pair = frozenset(pair)
        self._memo.clear()
        self.visited.clear()

    def fresh(self, extent: Expr) -> Expr:
        """A new feature index, bound to its extent."""
        self._fresh += 1
        name = f"d{self._fresh}"
        self.bind(name, extent)
        return make("index", (name,), "i")

    # ------------------------------------------------------------------------------------------ shapes
    def extent(self, value: Any) -> Expr:
        """A size as an integer expression."""
        if isinstance(value, torch.SymInt):
            return self._symbolic(size_expr(value))
        return const(int(value))

    def shape(self, node: fx.Node) -> list[Expr]:
        """The sizes of a tensor node."""
        return [self.extent(s) for s in node.meta["val"].shape]

    def dtype(self, node: fx.Node) -> str:
        """The expression dtype of a tensor node."""
        dtype = node.meta["val"].dtype
        if dtype not in DTYPES:
            raise Blocked(f"dtype {dtype} has no expression", node)
        return DTYPES[dtype]

    def _symbolic(self, expr: sympy.Expr) -> Expr:
        if expr.is_Integer:
            return const(int(expr))
        if expr.is_Add:
            return add(*(self._symbolic(a) for a in expr.args))
        if expr.is_Mul:
            result = const(1)
            for part in expr.args:
                result = mul(result, self._symbolic(part))
            return result
        if expr.is_Pow and expr.exp.is_Integer and expr.exp > 0:
            result = const(1)
            for _ in range(int(expr.exp)):
                result = mul(result, self._symbolic(expr.base))
            return result
        self.size_values.setdefault(str(expr), expr)
        return size(str(expr))

    # -------------------------------------------------------------------------------------------- pull
    def element(self, node: Any, indices: Sequence[Expr]) -> Expr:
        """The element of `node` at `indices`.

        Raises:
            Blocked: it depends on both pair indices through an operation that has no rule.
        """
        if not isinstance(node, fx.Node):
            return self.scalar(node)
        value = node.meta.get("val")
        if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
            return self.extent(value)
        if isinstance(value, (float, torch.SymFloat)):
            return const(float(value), "f64") if isinstance(value, float) else load(node.name, (), "f64")
        key = (node, tuple(indices))
        self.visited[node].add(key[1])
        known = self._memo.get(key)
        if known is None:
            try:
                known = self._pull(node, key[1])
            except Blocked as blocked:
                known = blocked
            self._memo[key] = known
        if isinstance(known, Blocked):
            raise known
        return known

    def scalar(self, value: Any) -> Expr:
        """A Python number or symbolic size as an expression; a float is a double, whatever it is combined with."""
        if isinstance(value, bool):
            return const(value)
        if isinstance(value, float):
            return const(value, "f64")
        if isinstance(value, (int, torch.SymInt)):
            return self.extent(value)
        raise Blocked(f"{type(value).__name__} is no scalar")

    def _pull(self, node: fx.Node, indices: Indices) -> Expr:
        content = self._constant(node, indices)
        if content is not None:
            return content
        if node in self.masks and self.dtype(node) != "b":
            return cast(cast(self.column(node, indices), "b"), self.dtype(node))
        if node.op in ("placeholder", "get_attr"):
            return self.column(node, indices)
        rule, is_view = self._rule(node)
        both = len(self._pair_free(indices)) > 1
        if rule is None:
            if both:
                raise Blocked(f"{_name(node)} makes a value with both a query and a key place and has no rule", node)
            return self.column(node, indices)
        if is_view or both:
            return rule(self, node, indices)
        if self.closed(node):
            return self._closed_element(node, indices, rule)
        return self.column(node, indices)

    def _closed_element(self, node: fx.Node, indices: Indices, rule: Rule) -> Expr:
        try:
            pulled = rule(self, node, indices)
        except Blocked:
            return self.column(node, indices)
        plain = {"load", "poly", "index", "size", "const"}
        parts = walk(pulled)
        if pulled.dtype != "i" or not any(p.op == "load" for p in parts) or all(p.op in plain for p in parts):
            return pulled
        column = self.column(node, indices)
        self.definitions[column] = pulled
        return column

    def _constant(self, node: fx.Node, indices: Indices) -> Expr | None:
        if node not in self.constants.tensors:
            return None
        tensor = self.constants.tensors[node]
        pulled = closed_form(tensor, indices, self.ranges)
        if pulled is not None:
            self.constants.content(node)
        return pulled

    def column(self, node: fx.Node, indices: Indices) -> Expr:
        """A load of the node itself; indices into size-1 dimensions are 0."""
        unit = const(1)
        return load(
            node.name,
            tuple(const(0) if extent is unit else i for i, extent in zip(indices, self.shape(node))),
            self.dtype(node),
        )

    def closed(self, node: fx.Node) -> bool:
        """Computed from inputs without gradient, constants and generators only: masks and index arithmetic."""
        known = self._closed.get(node)
        if known is None:
            known = self._closed[node] = self._is_closed(node)
        return known

    def _is_closed(self, node: fx.Node) -> bool:
        if node.op in ("placeholder", "get_attr"):
            return node in self.constants.tensors or is_data(node)
        if node.op != "call_function" or _is_random(node):
            return False
        if node.target is torch.ops.aten.sym_size.int:  # a size takes no gradient, whatever it is the size of
            return True
        from gr_compile.analysis.contraction import is_contraction

        return not is_contraction(node) and all(self.closed(a) for a in node.all_input_nodes)

    def _rule(self, node: fx.Node) -> tuple[Rule | None, bool]:
        from gr_compile.analysis.element_rules import RULES, VIEW_OPERATORS

        return RULES.get(node.target), node.target in VIEW_OPERATORS or node.target is operator.getitem

    def _pair_free(self, indices: Sequence[Expr]) -> frozenset[str]:
        free: frozenset[str] = frozenset().union(*(i.free for i in indices))
        return free & self.pair

    # --------------------------------------------------------------------------------------- for rules
    def broadcast(self, operand: Any, node: fx.Node, indices: Indices) -> Expr:
        """An operand of a pointwise operator at the output's indices."""
        if not isinstance(operand, fx.Node) or not isinstance(operand.meta.get("val"), torch.Tensor):
            return self.element(operand, ())
        shape, out = self.shape(operand), self.shape(node)
        skip, unit = len(out) - len(shape), const(1)
        picked = [
            const(0) if extent is unit and full is not unit else i
            for i, extent, full in zip(indices[skip:], shape, out[skip:])
        ]
        return self.element(operand, picked)

    def last(self, extent: Expr) -> Expr:
        """extent - 1."""
        return sub(extent, const(1))

    def at_least_zero(self, value: Expr) -> Expr:
        """value >= 0, decided where the ranges decide it."""
        return at_least_zero(value, self.ranges)


def at_least_zero(value: Expr, ranges: Ranges) -> Expr:
    """value >= 0 as a boolean expression; TRUE or FALSE where the ranges decide it."""
    if ranges.ge0(value):
        return TRUE
    return FALSE if ranges.ge0(sub(const(-1), value)) else ge0(value)


def _is_random(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def _name(node: fx.Node) -> str:
    return str(node.target)
