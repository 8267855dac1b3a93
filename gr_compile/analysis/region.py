"""Find attention-like regions and extract their score programs: O[b,h,i,d] = sum over j of P[b,h,i,j] V[b,h,j,d].

P = f(...), or P = post(softmax_j(f(...))), where f is over s = q . k, the indices, and loads of columns and tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.fx as fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from gr_compile.analysis import operators as ops
from gr_compile.analysis.contraction import extents, operand_indices
from gr_compile.analysis.dims import Atom, DimensionProvenance
from gr_compile.analysis.element import Blocked, Dot, Elements, Indices
from gr_compile.analysis.expr import Expr, add, binary, const, divmod_, index, make, mul, substitute, walk, where

SDPA = torch.ops.aten.scaled_dot_product_attention.default
PAIR = ("i", "j")


@dataclass(frozen=True)
class Operand:
    """A tensor operand of the region, with the index that each of its dimensions is read at."""

    node: fx.Node
    indices: Indices
    feature: Expr


@dataclass
class Region:
    """One attention-like contraction with its score program.

    Attributes:
        node: the contraction that makes O; `out_places`: the index of each of O's dimensions (d: the feature).
        out_digits: the names of the indices that each of O's dimensions runs over, outermost first.
        score: f, with "s" for the product of query and key; post: P over "sm", or None for a pointwise program.
        value_element: V as an expression over b, h, j, d; its zeros count for the support.
        extents: size of b, i, j, d and of every head index.
        heads: the head indices, outermost first.
        reads: every node that was read while extracting, with the indices it was read at.
        definitions: integer columns and what defines them.
        sighted: it is known that every query sees a key.
    """

    node: fx.Node
    out_places: Indices
    out_digits: tuple[tuple[str, ...], ...]
    score: Expr
    post: Expr | None
    fully_masked: Literal["zero", "natural"]
    query: Operand | None
    key: Operand | None
    value: Operand
    value_element: Expr
    extents: dict[str, Expr]
    heads: tuple[str, ...]
    batch_atom: Atom | None
    query_atom: Atom | None
    key_atom: Atom | None
    reads: dict[fx.Node, set[Indices]] = field(default_factory=dict)
    definitions: dict[Expr, Expr] = field(default_factory=dict)
    sighted: bool = False

    @property
    def softmax(self) -> bool:
        """Whether the program normalises over keys."""
        return self.post is not None


class RegionFinder:
    """Finds the regions of one graph. `misses` holds contractions that look like attention, and what blocks them."""

    def __init__(self, graph_module: fx.GraphModule, pull: Elements, dims: DimensionProvenance) -> None:
        self.graph_module, self.pull, self.dims = graph_module, pull, dims
        self.misses: list[tuple[fx.Node, Blocked]] = []

    def find(self, batch: Atom | None = None) -> list[Region]:
        """All regions, in graph order. `batch`: the atom that must play b; by default the outermost shared one."""
        self.misses = []
        found = []
        for node in self.graph_module.graph.nodes:
            if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
                continue
            region = self._sdpa(node, batch) if node.target is SDPA else self._contraction(node, batch)
            if region is not None:
                found.append(region)
        return found

    # ------------------------------------------------------------------------------------- contractions
    def _contraction(self, node: fx.Node, batch: Atom | None) -> Region | None:
        kind = ops.kind_of(node)
        if not isinstance(kind, ops.Contract) or kind.bias is not None:
            return None
        summed = [c for c in kind.left_labels if c in kind.right_labels and c not in kind.out_labels]
        if len(summed) != 1:
            return None
        sides = ((kind.left, kind.left_labels), (kind.right, kind.right_labels))
        for (p_node, p_labels), (v_node, v_labels) in (sides, sides[::-1]):
            if p_node.op == "placeholder":
                continue
            before = len(self.misses)
            region = self._try(node, kind, (p_node, p_labels), (v_node, v_labels), summed[0], batch)
            if region is not None or len(self.misses) > before:
                return region
        return None

    def _try(
        self, node: fx.Node, kind: ops.Contract, p_side: tuple[fx.Node, str], v_side: tuple[fx.Node, str], key: str,
        batch: Atom | None,
    ) -> Region | None:  # fmt: skip
        (p_node, p_labels), (v_node, v_labels) = p_side, v_side
        rows = [c for c in p_labels if c in kind.out_labels and c not in v_labels]
        features = [c for c in kind.out_labels if c in v_labels and c not in p_labels]
        if len(rows) != 1 or not features:
            return None
        row, feature = rows[0], features[-1]
        features_over = self._label_dim(kind, feature)
        if features_over and features_over in (self._label_dim(kind, key), self._label_dim(kind, row)):
            return None  # "V", or the product, is itself a value over pairs of places
        shared = [c for c in kind.out_labels if c not in (row, feature)]
        if not shared or self._is_over_packed_tokens(kind, (row, key)):
            return None
        sizes = extents(self.pull, kind)
        self.pull.forget(PAIR)
        axes = _Axes(self.pull, {c: self._label_dim(kind, c) for c in shared}, sizes, batch)
        places = {**axes.places, row: index("i"), key: index("j"), feature: index("d")}
        for name, label in (("i", row), ("j", key), ("d", feature)):
            self.pull.bind(name, sizes[label])
            axes.extents[name] = sizes[label]
        try:
            p_element = self.pull.element(p_node, operand_indices(self.pull, p_node, p_labels, places, sizes))
            if not _relates_pairs(p_element):
                return None
            if _is_plain_product(p_element) and self._label_dim(kind, row) != self._label_dim(kind, key):
                return None
            v_places = operand_indices(self.pull, v_node, v_labels, places, sizes)
            v_element = self.pull.element(v_node, v_places)
            score, post, safe = _split_softmax(p_element)
            dot, score = self._one_dot(score, node)
            if dot is not None and not self._keys_vary_with_batch(dot, axes):
                return None
        except Blocked as blocked:
            if self._looks_like_attention(p_node, p_labels, row, key):
                self.misses.append((node, blocked))
            return None
        query, key_operand = _sides(dot, node)
        if axes.extents["i"] is const(1):  # one query: a seed, or a candidate item
            first = {index("i"): const(0)}
            score, post = substitute(score, first), substitute(post, first) if post is not None else None
        digits = {**axes.digits, row: ("i",), feature: ("d",)}
        return Region(
            node=node, out_places=tuple(places[c] for c in kind.out_labels),
            out_digits=tuple(digits[c] for c in kind.out_labels), score=score, post=post,
            fully_masked="zero" if safe else "natural", query=query, key=key_operand,
            value=Operand(v_node, v_places, index("d")), value_element=v_element, extents=axes.extents,
            heads=axes.heads, batch_atom=axes.batch_atom, query_atom=self._atom(kind, row),
            key_atom=self._atom(kind, key), reads={n: set(r) for n, r in self.pull.visited.items()},
            definitions=dict(self.pull.definitions),
        )  # fmt: skip

    def _label_dim(self, kind: ops.Contract, label: str) -> tuple[Atom, ...]:
        """What the label runs over; a size of 1 only where no operand has more."""
        found: tuple[Atom, ...] = ()
        for operand, labels in ((kind.left, kind.left_labels), (kind.right, kind.right_labels)):
            if label in labels:
                dim = self.dims.of(operand)[labels.index(label)]
                if any(atom.size != 1 for atom in dim):
                    return dim
                found = found or dim
        return found

    def _is_over_packed_tokens(self, kind: ops.Contract, labels: tuple[str, str]) -> bool:
        """Packed tokens of all sequences are no queries: this is a token-wise product, by an expert or a head."""
        return any(free_unbacked_symbols(atom.size) for label in labels for atom in self._label_dim(kind, label))

    def _atom(self, kind: ops.Contract, label: str) -> Atom | None:
        dim = self._label_dim(kind, label)
        return dim[0] if len(dim) == 1 else None

    def _looks_like_attention(self, p_node: fx.Node, labels: str, row: str, key: str) -> bool:
        """A miss is worth reporting where P is computed, floating, and over two places of one sequence."""
        value = p_node.meta["val"]
        if not value.dtype.is_floating_point or p_node.op != "call_function":
            return False
        dims = dict(zip(labels, self.dims.of(p_node)))
        return bool(dims[row]) and dims[row] == dims[key]

    def _one_dot(self, score: Expr, node: fx.Node) -> tuple[Dot | None, Expr]:
        dots = [part for part in walk(score) if part.op == "dot"]
        if not dots:
            return None, score
        if len(dots) > 1:
            raise Blocked("a score over two products of queries and keys", node)
        dot = self.pull.dots.get(dots[0])
        if dot is None:
            raise Blocked("a score whose product sums over more than one dimension", node)
        return dot, substitute(score, {dots[0]: make("s", (), dots[0].dtype)})

    def _keys_vary_with_batch(self, dot: Dot, axes: _Axes) -> bool:
        """silu(x W) @ y is a feed-forward network: keys of attention carry the batch, and are no bare input."""
        for operand, indices in zip(dot.operands, dot.indices):
            free: frozenset[str] = frozenset().union(*(i.free for i in indices))
            if "j" not in free:
                continue
            if "b" not in free if axes.extents["b"] is not const(1) else _viewed(operand).op == "placeholder":
                return False
        return True

    # --------------------------------------------------------------------------------------------- SDPA
    def _sdpa(self, node: fx.Node, batch: Atom | None) -> Region | None:
        try:
            return self._sdpa_region(node, batch)
        except Blocked as blocked:
            self.misses.append((node, blocked))
            return None

    def _sdpa_region(self, node: fx.Node, batch: Atom | None) -> Region:
        query, key, value = (node.args[k] for k in range(3))
        pull = self.pull
        pull.forget(PAIR)
        q_shape, k_shape = pull.shape(query), pull.shape(key)  # type: ignore[arg-type]
        labels = "zyxw"[: len(q_shape) - 2]
        q_dims, k_dims = self.dims.of(query), self.dims.of(key)  # type: ignore[arg-type]
        if q_shape[:-3] != k_shape[:-3] or k_shape[:-2] != pull.shape(value)[:-2]:  # type: ignore[arg-type]
            raise Blocked("queries, keys or values of one sequence serve several", node)
        axes = _Axes(pull, dict(zip(labels, q_dims)), dict(zip(labels, q_shape)), batch)
        for name, extent in (("i", q_shape[-2]), ("j", k_shape[-2]), ("d", pull.shape(value)[-1])):  # type: ignore[arg-type]
            pull.bind(name, extent)
            axes.extents[name] = extent
        lead = [axes.places[c] for c in labels]
        key_lead = list(lead)
        if ops.argument(node, 7, "enable_gqa", False) and len(lead) > 1:
            group = _exact_ratio(q_shape[-3], k_shape[-3], node)
            key_lead[-1] = divmod_(lead[-1], group, pull.ranges)[0]
        feature = pull.fresh(q_shape[-1])
        q_places, k_places = (*lead, index("i"), feature), (*key_lead, index("j"), feature)
        q_places, k_places = self._unit(query, q_places), self._unit(key, k_places)
        pull.element(query, q_places)
        pull.element(key, k_places)
        v_places = self._unit(value, (*key_lead, index("j"), index("d")))
        v_element = pull.element(value, v_places)
        score = self._sdpa_score(node, lead)
        dtype = pull.dtype(node)
        if axes.extents["i"] is const(1):
            score = substitute(score, {index("i"): const(0)})
        post = make("sm", (), dtype)
        probability = float(ops.argument(node, 4, "dropout_p", 0.0))
        if probability:
            post = make("dropout", (post, const(probability, "f32")), dtype)
        return Region(
            node=node, out_places=(*lead, index("i"), index("d")),
            out_digits=(*(axes.digits[c] for c in labels), ("i",), ("d",)), score=score, post=post, fully_masked="zero",
            query=Operand(query, q_places, feature), key=Operand(key, k_places, feature),  # type: ignore[arg-type]
            value=Operand(value, v_places, index("d")), value_element=v_element, extents=axes.extents,  # type: ignore[arg-type]
            heads=axes.heads, batch_atom=axes.batch_atom, query_atom=_single(q_dims[-2]), key_atom=_single(k_dims[-2]),
            reads={n: set(r) for n, r in pull.visited.items()}, definitions=dict(pull.definitions),
        )  # fmt: skip

    def _unit(self, node: Any, places: Indices) -> Indices:
        unit = const(1)
        return tuple(const(0) if s is unit and "d" not in str(p) else p for s, p in zip(self.pull.shape(node), places))

    def _sdpa_score(self, node: fx.Node, lead: Sequence[Expr]) -> Expr:
        pull, dtype = self.pull, self.pull.dtype(node)
        scale = ops.argument(node, 6, "scale")
        width = node.args[0].meta["val"].shape[-1]  # type: ignore[union-attr]
        if scale is None and not isinstance(width, int):
            raise Blocked("the width of a head is not static", node)
        factor = float(scale) if scale is not None else float(width) ** -0.5
        score = binary("mul", make("s", (), dtype), const(factor, dtype), dtype)
        masked = const(float("-inf"), dtype)
        if ops.argument(node, 5, "is_causal", False):
            score = where(pull.at_least_zero(add(index("i"), mul(const(-1), index("j")))), score, masked, dtype)
        mask = ops.argument(node, 3, "attn_mask")
        if mask is not None:
            full = [*lead, index("i"), index("j")]
            element = pull.element(mask, self._unit(mask, tuple(full[len(full) - ops.rank(mask) :])))
            if element.dtype == "b":
                score = where(element, score, masked, dtype)
            else:
                score = binary("add", score, element, dtype)
        return score


class _Axes:
    """The shared labels of a region as index expressions: one atom plays b, all others are heads."""

    def __init__(
        self, pull: Elements, dims: dict[str, tuple[Atom, ...]], sizes: dict[str, Expr], batch: Atom | None
    ) -> None:
        atoms = [atom for dim in dims.values() for atom in dim]
        self.batch_atom = batch if batch is not None and batch in atoms else (atoms[0] if atoms else None)
        self.places: dict[str, Expr] = {}
        self.digits: dict[str, tuple[str, ...]] = {}
        self.extents: dict[str, Expr] = {"b": const(1)}
        self._heads: list[str] = []
        for position, (label, dim) in enumerate(dims.items()):
            self.places[label], self.digits[label] = self._place(pull, dim, sizes[label], position == 0)
        pull.bind("b", self.extents["b"])
        self.heads = tuple(self._heads)

    def _place(self, pull: Elements, dim: tuple[Atom, ...], extent: Expr, first: bool) -> tuple[Expr, tuple[str, ...]]:
        if not dim:
            if first and self.batch_atom is None:
                self.extents["b"] = extent
                return index("b"), ("b",)
            if extent is const(1):
                return const(0), ()
            head = self._head(pull, extent)
            return head, (head.args[0],)
        place, names = const(0), []
        for atom in dim:
            size = pull._symbolic(atom.size)
            if atom is self.batch_atom and "b" not in names:
                self.extents["b"] = size
                digit = index("b")
            else:
                digit = self._head(pull, size)
            names.append(digit.args[0])
            place = add(mul(place, size), digit)
        return place, tuple(names)

    def _head(self, pull: Elements, extent: Expr) -> Expr:
        name = f"h{len(self._heads)}"
        self._heads.append(name)
        self.extents[name] = extent
        pull.bind(name, extent)
        return index(name)


def _sides(dot: Dot | None, node: fx.Node) -> tuple[Operand | None, Operand | None]:
    if dot is None:
        return None, None
    sides: dict[str, Operand] = {}
    for operand, indices in zip(dot.operands, dot.indices):
        free: frozenset[str] = frozenset().union(*(i.free for i in indices))
        side = "i" if "i" in free else "j"
        if side in sides:
            raise Blocked("a product that is not between a query and a key", node)
        sides[side] = Operand(operand, indices, dot.feature)
    return sides.get("i"), sides.get("j")


def _viewed(node: fx.Node) -> fx.Node:
    """What `node` is a view of."""
    kind = ops.kind_of(node)
    return _viewed(kind.source) if isinstance(kind, (ops.Reshape, ops.Permute, ops.Expand, ops.Slice)) else node


def _single(dim: tuple[Atom, ...]) -> Atom | None:
    return dim[0] if len(dim) == 1 else None


def _exact_ratio(larger: Expr, smaller: Expr, node: fx.Node) -> Expr:
    if larger.op == "const" and smaller.op == "const" and larger.args[0] % smaller.args[0] == 0:
        return const(larger.args[0] // smaller.args[0])
    raise Blocked("grouped heads whose number is not a multiple", node)


def _split_softmax(element: Expr) -> tuple[Expr, Expr | None, bool]:
    """P = post(softmax_j(f)) -> (f, post over "sm", safe); P = f -> (f, None, False)."""
    found = [part for part in walk(element) if part.op in ("softmax", "safe_softmax")]
    if not found:
        return element, None, False
    if len(found) > 1:
        raise Blocked("two softmaxes in one product")
    softmax = found[0]
    if softmax.args[1] is not index("j"):
        raise Blocked("a softmax over another dimension than the keys")
    post = substitute(element, {softmax: make("sm", (), softmax.dtype)})
    return softmax.args[0], post, softmax.op == "safe_softmax"


def _relates_pairs(element: Expr) -> bool:
    """Does the expression relate i and j other than as a function, elu or relu, of one table read at (i, j)?"""
    return any(_relates(part) for part in walk(element))


def _is_plain_product(element: Expr) -> bool:
    """q kᵀ, scaled and shifted by query or by key: a chain of products, as in linear attention, no attention map."""
    if element.op == "dot" or not {"i", "j"} <= element.free:
        return True
    sides = [a for a in element.args if isinstance(a, Expr)]
    return element.op in ("add", "sub", "mul", "div", "neg", "cast") and all(map(_is_plain_product, sides))


def _relates(part: Expr) -> bool:
    both = {"i", "j"}
    if not both <= part.free:
        return False
    if part.op in ("dot", "ge0", "eq0"):
        return True
    if part.op == "load":
        return any(both <= place.free for place in part.args[1])
    sides = [frozenset(a.free & both) for a in part.args if isinstance(a, Expr)]
    return frozenset("i") in sides and frozenset("j") in sides
