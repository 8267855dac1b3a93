"""Products of states with rows that are looked up: what a sampled logit is, in every spelling.

    einsum("bnd,bnrd->bnr", x, table[ids]),  matmul(table[ids], x[..., None]),  (x[..., None, :] * table[ids]).sum(-1),
    cosine_similarity(x[..., None, :], table[ids], -1),  any of them with normalised or scaled rows

Operands are pulled back through views to what they are read from, so that transposes, expansions and reshapes do not
matter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.contraction import extents, operand_indices
from gr_compile.analysis.element import Blocked, Elements
from gr_compile.analysis.expr import Expr, const, index, load
from gr_compile.analysis.kinds import Contract, Reduce
from gr_compile.analysis.looked_up import Rows, rows_of, sums_its_gradient, table_and_ids
from gr_compile.analysis.reads import SHAPE_ONLY

aten = torch.ops.aten
_LABELS = "abcdefgh"
_SMALL = 1e-6  # norms of rows are not below
_FAR = 8  # operators between a lookup and a product that are looked at to say what is in the way


@dataclass(frozen=True)
class Product:
    """Logits `node` = sum over `feature` of a query and rows of a table.

    Attributes:
        query: an operand; `query_labels` names its dimensions, `out_labels` the result's.
        tokens, own: labels of the result that the query has, and those that rows alone have; in the result's order.
        sizes: of every label, as the graph has them.
        cosine: the query is divided by the greater of its norm and rows.eps, too.
        inside: the nodes between the lookup and the result, which nobody else may read.
    """

    node: fx.Node
    query: fx.Node
    query_labels: str
    out_labels: str
    feature: str
    tokens: str
    own: str
    sizes: dict[str, Any]
    rows: Rows
    cosine: bool
    inside: tuple[fx.Node, ...]

    @property
    def table(self) -> fx.Node:
        """[V, D]."""
        return self._read[0]

    @property
    def ids(self) -> fx.Node:
        """The ids that the lookup reads, as the graph has them."""
        return self._read[1]

    @property
    def _read(self) -> tuple[fx.Node, fx.Node]:
        read = table_and_ids(self.rows.node)
        assert read is not None
        return read


class Rejected(Exception):
    """A product with looked-up rows that is not fused; `node` is the operation that blocks."""

    def __init__(self, reason: str, node: fx.Node, hint: str = "") -> None:
        super().__init__(reason)
        self.reason, self.node, self.hint = reason, node, hint


@dataclass(frozen=True)
class _Sum:
    """A contraction over one dimension; `eps` of a cosine; the nodes that it is spelled with, but the last."""

    kind: Contract
    eps: float | None = None
    inside: tuple[fx.Node, ...] = ()

    @property
    def summed(self) -> str:
        kind = self.kind
        return "".join(c for c in kind.left_labels if c in kind.right_labels and c not in kind.out_labels)


def _sum_of(node: fx.Node) -> _Sum | None:
    kind = ops.kind_of(node)
    if isinstance(kind, Contract):
        return _Sum(kind) if kind.bias is None else None
    if node.target is aten.cosine_similarity.default:
        rank = max(ops.rank(x) for x in node.args[:2])  # type: ignore[arg-type]
        last = int(ops.argument(node, 2, "dim", 1)) % rank == rank - 1
        eps = ops.argument(node, 3, "eps", 1e-8)
        return _Sum(_elementwise(node, rank), eps) if last and isinstance(eps, (int, float)) else None
    if isinstance(kind, Reduce) and node.target is aten.sum.dim_IntList and ops.argument(node, 3, "dtype") is None:
        product = kind.source
        tensors = all(isinstance(x, fx.Node) and ops.rank(x) for x in product.args[:2])
        if product.target is aten.mul.Tensor and tensors and kind.dims == (ops.rank(product) - 1,):
            return _Sum(_elementwise(product, ops.rank(product)), inside=(product,))
    return None


def _elementwise(node: fx.Node, rank: int) -> Contract:
    """Of two operands that are broadcast: the last dimension is summed."""
    left: Any = node.args[0]
    right: Any = node.args[1]
    labels = _LABELS[:rank]
    return Contract(left, right, labels[rank - ops.rank(left) :], labels[rank - ops.rank(right) :], labels[:-1])


class ProductFinder:
    """Finds the products of one graph."""

    def __init__(self, pull: Elements) -> None:
        self.pull = pull

    def at(self, node: fx.Node) -> Product | None:
        """The product that `node` is, if it is one.

        Raises:
            Rejected: it would be one but for something.
        """
        if node.op != "call_function" or not isinstance(node.meta.get("val"), torch.Tensor):
            return None
        found = _sum_of(node)
        if found is None or len(found.summed) != 1:
            return None
        kind = found.kind
        sides = ((kind.left, kind.left_labels), (kind.right, kind.right_labels))
        for query, rows in (sides, sides[::-1]):
            product = self._product(node, found, query, rows)
            if product is not None and _is_lookup(product):
                _check(product)
                return product
        return None

    def _product(
        self, node: fx.Node, found: _Sum, query: tuple[fx.Node, str], looked_up: tuple[fx.Node, str]
    ) -> Product | None:
        pull, kind = self.pull, found.kind
        pull.forget()
        extent, unit = extents(pull, kind), const(1)
        places = {label: const(0) if size is unit else index(label) for label, size in extent.items()}
        for label, size in extent.items():
            pull.bind(label, size)
        try:
            rows = rows_of(pull, looked_up[0], operand_indices(pull, *looked_up, places, extent), places[found.summed])
            if rows is None:
                return None
            asked = pull.element(query[0], operand_indices(pull, *query, places, extent))
        except Blocked:
            return None
        labels = _split(kind, found.summed, extent, rows, asked)
        if labels is None:
            return None
        eps = found.eps
        if eps is not None:
            if rows.eps is not None or rows.factor != 1 or eps > _SMALL:
                return None  # below its eps a cosine has a gradient of its own
            rows = replace(rows, eps=eps)
        if not self._reads_whole_rows(rows, labels[0], found.summed, self._extent(*looked_up)):
            return None
        query = self._behind_views(asked, (*labels[0], found.summed), self._extent(*query)) or query
        return Product(
            node, *query, kind.out_labels, found.summed, *labels, _sizes(kind), rows, eps is not None,
            (*rows.between, *found.inside),
        )  # fmt: skip

    def _extent(self, operand: fx.Node, labels: str) -> dict[str, Expr]:
        """The sizes of an operand's own dimensions."""
        return dict(zip(labels, self.pull.shape(operand)))

    def _reads_whole_rows(self, rows: Rows, tokens: str, feature: str, extent: dict[str, Expr]) -> bool:
        """All features of the table's rows, and all numbers of a group."""
        read = table_and_ids(rows.node)
        if read is not None and self.pull.shape(read[0])[1] is not extent[feature]:
            return False
        return rows.group is None or self.pull.shape(rows.group)[0] is extent[tokens]

    def _behind_views(
        self, asked: Expr, labels: tuple[str, ...], extent: dict[str, Expr]
    ) -> tuple[fx.Node, str] | None:
        """What the query is a view of, all of it, with the labels of its dimensions ("." for a size of 1)."""
        if asked.op != "load":
            return None
        node = self.pull.nodes[asked.args[0]]
        names = ["." if x is const(0) else x.args[0] if x.op == "index" else "" for x in asked.args[1]]
        if sorted(x for x in names if x != ".") != sorted(labels):
            return None
        whole = all(extent.get(name, const(1)) is size for name, size in zip(names, self.pull.shape(node)))
        return (node, "".join(names)) if whole else None


def _split(kind: Contract, feature: str, extent: dict[str, Expr], rows: Rows, asked: Expr) -> tuple[str, str] | None:
    """(labels of tokens, labels of their own rows), where every token has rows of its own; None for other products."""
    needed: frozenset[str] = frozenset().union(*(x.free for x in rows.at))
    unit = const(1)
    tokens = "".join(c for c in kind.out_labels if c in asked.free)
    own = "".join(c for c in kind.out_labels if c not in asked.free and c in needed)
    others = [c for c in kind.out_labels if c not in tokens + own and extent[c] is not unit]
    if rows.group is not None and (len(tokens) != 1 or rows.at[0] is not load(rows.group.name, [index(tokens)], "i")):
        return None  # several tokens share a number of the group
    if others or not tokens or feature not in asked.free or not set(tokens) <= needed:
        return None
    return tokens, own


def _sizes(kind: Contract) -> dict[str, Any]:
    sizes: dict[str, Any] = {}
    for operand, labels in ((kind.left, kind.left_labels), (kind.right, kind.right_labels)):
        for label, size in zip(labels, operand.meta["val"].shape):
            if label not in sizes or (isinstance(sizes[label], int) and sizes[label] == 1):
                sizes[label] = size
    return sizes


def _is_lookup(product: Product) -> bool:
    """Are the rows a lookup, and nothing else?

    Raises:
        Rejected: they are made of one.
    """
    source = product.rows.node
    if table_and_ids(source) is not None:
        return True
    if product.own and _is_made_of_lookups(source):
        raise Rejected(f"the rows that are looked up go through {source.target} before the product", source)
    return False


def _rank(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, torch.Tensor) else -1


def _is_made_of_lookups(node: fx.Node) -> bool:
    """Does a lookup reach the node by operators on rows alone?"""
    seen, front = {node}, [node]
    for _ in range(_FAR):
        front = [x for n in front for x in n.all_input_nodes if x not in seen and _rank(x) >= ops.rank(node)]
        seen.update(front)
        if any(table_and_ids(x) is not None for x in front):
            return True
    return False


def _check(product: Product) -> None:
    """Raises Rejected where others read the rows, or the table's gradient is not the sum over its lookups."""
    lookup = product.rows.node
    inside = {lookup, *product.inside}
    for value in inside:
        for user in value.users:
            if user not in inside and user is not product.node and user.target not in SHAPE_ONLY:
                raise Rejected("the rows that are looked up are read elsewhere, too", user)
    if not sums_its_gradient(lookup):
        hint = "leave sparse=True or scale_grad_by_freq=True out"
        raise Rejected("the table's gradient is sparse, or scaled by how often an id occurs", lookup, hint)
