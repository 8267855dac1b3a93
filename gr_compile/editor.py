"""GraphEditor: the only way to change a graph. It keeps fake values, stack traces and a record of what it touched."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import compute_unbacked_bindings, free_unbacked_symbols

from gr_compile.kinds import kind
from gr_compile.sizes import size_expr

_ARITHMETIC: dict[str, Any] = {
    "Add": operator.add,
    "Mul": operator.mul,
    "Pow": operator.pow,
    "PowByNatural": operator.pow,
    "FloorDiv": operator.floordiv,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
}
_INHERITED = ("stack_trace", "nn_module_stack", "source_fn_stack", "recompute", "ac_graph_id", "custom")


def fake_mode_of(values: Iterable[Any]) -> FakeTensorMode | None:
    """The mode of the first fake tensor among `values`."""
    return next((v.fake_mode for v in values if isinstance(v, FakeTensor)), None)


class GraphEditor:
    """Edits one graph. Every node it makes has a computed fake value and the provenance of the node it stands for.

    Attributes:
        touched: nodes made or changed since the last `stamp`.
        rewired: those among them whose operands became of another kind since their value was computed.
        edits: how many edits there were since the last `stamp`.
    """

    def __init__(self, graph_module: fx.GraphModule, fake_mode: FakeTensorMode | None = None) -> None:
        self.graph_module = graph_module
        self.graph = graph_module.graph
        values = (node.meta.get("val") for node in self.graph.nodes)
        self.fake_mode = fake_mode or fake_mode_of(values)
        self.touched: set[fx.Node] = set()
        self.rewired: set[fx.Node] = set()
        self.edits = 0
        self._known: dict[Any, Any] = {}
        self._like: fx.Node | None = None
        self._stamp = ""
        self._point: fx.Node | None = None

    # ------------------------------------------------------------------------------------ where and as what
    @contextlib.contextmanager
    def at(
        self, *, before: fx.Node | None = None, after: fx.Node | None = None, like: fx.Node | None = None
    ) -> Iterator[GraphEditor]:
        """Nodes made inside stand before or after a node and inherit the provenance of `like`."""
        if after is not None:
            before = after.next  # fx itself would put each next call in front of the one made before it
        scope = self.graph.inserting_before(before) if before is not None else contextlib.nullcontext()
        previous = self._like, self._point
        self._like = like if like is not None else self._like
        if before is not None:
            self._point = before
        try:
            with scope:
                yield self
        finally:
            self._like, self._point = previous

    # -------------------------------------------------------------------------------------------- edits
    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A new call of `target` at the insertion point. Arguments: nodes and constants, SymInts become nodes."""
        args, kwargs = self._materialise(args), self._materialise(kwargs)
        node = self.graph.call_function(target, args, kwargs)
        if self._like is not None:
            for key in _INHERITED:
                if key in self._like.meta:
                    node.meta[key] = self._like.meta[key]
        node.meta["gr_made_by"] = self._stamp
        self.refresh(node)
        self.touched.add(node)
        self.edits += 1
        return node

    def again(self, node: fx.Node, form: Callable[[fx.Node], Any] | None = None, /, **changed: Any) -> fx.Node:
        """The operator of `node` with `form` of each operand, and `changed` arguments, named as in its schema."""
        schema = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
        args: list[Any] = list(node.args)
        kwargs: dict[str, Any] = dict(node.kwargs)
        if form is not None:
            args, kwargs = list(fx.map_arg(node.args, form)), dict(fx.map_arg(node.kwargs, form))
        for name, value in changed.items():
            position = schema.index(name)
            if position < len(args):
                args[position] = value
            else:
                kwargs[name] = value
        return self.call(node.target, *args, **kwargs)  # type: ignore[arg-type]

    def refresh(self, node: fx.Node) -> None:
        """Compute the fake value of a call again, from its arguments' values."""
        args, kwargs = pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], (node.args, node.kwargs))
        node.meta["val"] = self.evaluate(node.target, *args, **kwargs)  # type: ignore[arg-type]
        if self.fake_mode is not None and self.fake_mode.shape_env is not None:
            bindings = compute_unbacked_bindings(self.fake_mode.shape_env, node.meta["val"])
            if bindings:
                node.meta["unbacked_bindings"] = bindings

    def evaluate(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The fake value of a call, without making a node. Calls of one kind, as layers have them, share it."""
        if not isinstance(target, torch._ops.OpOverload) or self.fake_mode is None or target._schema.is_mutable:
            return self._evaluate(target, args, kwargs)
        key = target, kind(args), kind(tuple(kwargs.items()))
        if key in self._known:
            return self._known[key]
        value = self._evaluate(target, args, kwargs)
        if _told_by_data(value) <= _told_by_data((args, kwargs)):  # how many are true is told of one tensor alone
            self._known[key] = value
        return value

    def _evaluate(self, target: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        mode = self.fake_mode if self.fake_mode is not None else contextlib.nullcontext()
        with mode, enable_python_dispatcher(), torch.no_grad():
            return target(*args, **kwargs)

    def replace(
        self, node: fx.Node, replacement: fx.Node, *, only: Callable[[fx.Node], bool] | None = None
    ) -> None:
        """All users of `node` (or those that `only` accepts) read `replacement` instead."""
        users = [user for user in node.users if user is not replacement and (only is None or only(user))]
        for user in users:
            self.set_argument(user, node, replacement)

    def same_count(self, made: fx.Node, old: fx.Node) -> None:
        """A size of `made` that depends on data is the one that `old` had: it keeps that symbol."""
        shape_env = self.fake_mode.shape_env if self.fake_mode is not None else None
        for sizes in zip(made.meta["val"].shape, old.meta["val"].shape):
            new, known = map(size_expr, sizes)
            if shape_env is not None and new != known and new.is_Symbol and known.is_Symbol:
                shape_env._rename_unbacked_to(new, known)

    def set_argument(self, user: fx.Node, old: fx.Node, new: fx.Node) -> None:
        """`user` reads `new` wherever it read `old`."""
        user.replace_input_with(old, new)
        self.touched.add(user)
        self.edits += 1
        if not _alike(old.meta.get("val"), new.meta.get("val"), strides=_looks_at_strides(user)):
            self.rewired.add(user)

    def erase(self, node: fx.Node) -> None:
        """Remove a node that nobody uses."""
        self.graph.erase_node(node)
        self.touched.discard(node)
        self.rewired.discard(node)
        self.edits += 1

    def sort(self) -> None:
        """Bring the nodes into an order in which every operand stands before its users, otherwise as they stand."""
        position = {node: k for k, node in enumerate(self.graph.nodes)}
        waiting = {node: len(set(node.all_input_nodes)) for node in position}
        ready = [(position[node], node.name, node) for node, count in waiting.items() if count == 0]
        heapq.heapify(ready)
        order: list[fx.Node] = []
        while ready:
            node = heapq.heappop(ready)[2]
            order.append(node)
            for user in node.users:
                waiting[user] -= 1
                if waiting[user] == 0:
                    heapq.heappush(ready, (position[user], user.name, user))
        if len(order) != len(position):
            stuck = [node.name for node in position if waiting[node] > 0]
            raise ValueError(f"the graph has a cycle among {', '.join(stuck[:8])}")
        if order != list(position):
            for node in order:
                self.graph._root.prepend(node)
            self.edits += 1

    def eliminate_dead_code(self) -> bool:
        """Remove everything that no output needs; what has an effect stays."""
        before = len(self.graph.nodes)
        self.graph.eliminate_dead_code()
        alive = set(self.graph.nodes)
        self.touched &= alive
        self.rewired &= alive
        return len(alive) != before

    def stamp(self, pass_name: str) -> None:
        """New nodes are marked as made by this pass; the record of touched nodes starts anew."""
        self._stamp, self.touched, self.rewired, self.edits = pass_name, set(), set(), 0

    # ------------------------------------------------------------------------------------------- sizes
    def size(self, tensor: fx.Node, dim: int) -> int | fx.Node:
        """The size of one dimension as a constant or a node."""
        extent = tensor.meta["val"].shape[dim]
        return extent if isinstance(extent, int) else self.symbol(extent)

    def _materialise(self, value: Any) -> Any:
        return pytree.tree_map_only(torch.SymInt, self.symbol, value)

    def symbol_of(self, extent: Any) -> fx.Node | int:
        """A node or constant for a size given as an int, a SymInt or a sympy expression."""
        if isinstance(extent, torch.SymInt):
            return self.symbol(extent)
        return int(extent) if isinstance(extent, int) else self._symbol_expr(size_expr(extent))

    def symbol(self, extent: torch.SymInt) -> fx.Node | int:
        """A node for a symbolic integer: an input, a size of a value that stands before, or arithmetic on these."""
        expr = size_expr(extent)
        if expr.is_Integer:
            return int(expr)
        return self._symbol_expr(expr)

    def _symbol_expr(self, expr: Any) -> fx.Node | int:
        """Inputs first, then arithmetic on inputs, and only then sizes of computed values."""
        if expr.is_Integer:
            return int(expr)
        found: fx.Node | None = self._find_size(expr, inputs_only=True)
        if found is not None:
            return found
        if expr.args:
            try:
                return self._fold(expr, [self._symbol_expr(argument) for argument in expr.args])
            except ValueError:
                pass
        found = self._find_size(expr, inputs_only=False)
        if found is None:
            raise ValueError(f"no value in front of the insertion point has the size {expr}")
        return found

    def _fold(self, expr: Any, parts: list[fx.Node | int]) -> fx.Node | int:
        function: Any = _ARITHMETIC.get(type(expr).__name__)
        if function is operator.pow and isinstance(parts[1], int) and parts[1] > 0:
            function, parts = operator.mul, [parts[0]] * parts[1]
        if function is None or function is operator.pow:
            raise ValueError(f"cannot spell the size {expr} as graph nodes")
        result: Any = parts[0]
        for part in parts[1:]:
            plain = not isinstance(result, fx.Node) and not isinstance(part, fx.Node)
            result = function(result, part) if plain else self.call(function, result, part)
        return result  # type: ignore[no-any-return]

    def _find_size(self, expr: Any, *, inputs_only: bool) -> fx.Node | None:
        before = [node for node in self._nodes_before() if not inputs_only or node.op == "placeholder"]
        for node in before:
            value = node.meta.get("val")
            if isinstance(value, torch.SymInt) and size_expr(value) == expr:
                return node
        for node in before:
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor):
                for dim, extent in enumerate(value.shape):
                    if isinstance(extent, torch.SymInt) and size_expr(extent) == expr:
                        return self.call(torch.ops.aten.sym_size.int, node, dim)
        return None

    def _nodes_before(self) -> Iterator[fx.Node]:
        """The nodes in front of the insertion point."""
        return itertools.takewhile(lambda node: node is not self._point, self.graph.nodes)


def _told_by_data(values: Any) -> set[Any]:
    """The symbols of sizes that the data alone tells."""
    sized = (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool)
    leaves = (leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, sized))
    return set().union(*(free_unbacked_symbols(leaf) for leaf in leaves))


def _alike(old: Any, new: Any, strides: bool) -> bool:
    """An operator cannot tell the two tensors' kinds apart: same dtype, device and sizes, and strides if asked."""
    if not isinstance(old, torch.Tensor) or not isinstance(new, torch.Tensor):
        return False
    if (old.dtype, old.device, old.layout, old.dim()) != (new.dtype, new.device, new.layout, new.dim()):
        return False
    pairs = [*zip(old.shape, new.shape), *(zip(old.stride(), new.stride()) if strides else ())]
    return all(size_expr(a) == size_expr(b) for a, b in pairs)


def _looks_at_strides(node: fx.Node) -> bool:
    """Views fail on some strides; everything else accepts any."""
    return not isinstance(node.target, torch._ops.OpOverload) or node.target.is_view


def copy_provenance(source: fx.Node, target: fx.Node) -> None:
    """`target` stands for `source`: stack trace, module stack and recompute tags follow."""
    for key in _INHERITED:
        if key in source.meta:
            target.meta.setdefault(key, source.meta[key])
