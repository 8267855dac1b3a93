"""Which item each logit is of: from logits back to the lookups that they are made of, and the same views of the ids.

    logits = gr.sampled_logits(x, table, cat([target, ids], 1))       ids of z = cat([target, ids], 1)
    z = cat([logits[:, :1], logits[:, 1:] - log_q], -1)               read as z reads the logits:
                                                                      cat([.[:, :1], .[:, 1:]], -1)
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.expr import const
from gr_compile.analysis.kinds import Concatenate, Contract, Expand, Item, Items, Permute, Reshape, Select, Slice, Stack
from gr_compile.analysis.looked_up import lookup_behind
from gr_compile.editor import GraphEditor
from gr_compile.passes.fuse_sampled_logits.emit import from_the_start
from gr_compile.passes.fuse_sampled_logits.products import Product, ProductFinder, Rejected
from gr_compile.sizes import same_sizes

aten = torch.ops.aten
CALL = torch.ops.gr.sampled_logits.default
OTHERS = torch.ops.gr.other_tokens.default
_VIEWS = (Reshape, Permute, Expand, Slice, Select, Concatenate, Stack, Items, Item)


class AlreadyShared(Exception):
    """The logits hold those of other tokens."""


@dataclass(frozen=True)
class Logits:
    """Logits of items.

    Attributes:
        origins: the calls and products that they come from, in order.
        table: whose rows the items are.
        group: where tokens of one sequence have the same negatives: the sequence of each token.
    """

    origins: tuple[fx.Node, ...]
    table: fx.Node
    group: fx.Node | None


class ItemFinder:
    """Items of logits in one graph."""

    def __init__(self, products: ProductFinder) -> None:
        self._products = products
        self._found: dict[fx.Node, Product | Rejected | None] = {}

    def reaches(self, node: fx.Node) -> bool:
        """Whether logits of looked-up rows come to `node` by views and pointwise operators alone."""
        return bool(self.origins(node))

    def origins(self, node: fx.Node) -> list[fx.Node]:
        """The calls of gr::sampled_logits and the products that do."""
        found, seen, front = [], {node}, [node]
        while front:
            at = front.pop()
            if at.target is CALL or self._product(at) is not None:
                found.append(at)
                continue
            further = [x for x in _operands(at) if x not in seen]
            seen.update(further)
            front += further
        return found

    def _product(self, node: fx.Node) -> Product | Rejected | None:
        if node not in self._found:
            try:
                self._found[node] = self._products.at(node)
            except Rejected as rejected:
                self._found[node] = rejected
        return self._found[node]

    # ---------------------------------------------------------------------------------------------- proof
    def of(self, node: fx.Node) -> Logits:
        """What is known of logits, each of which is one of a looked-up row.

        Raises:
            Rejected: a logit whose item is not known; rows of two tables.
            AlreadyShared: there are logits of other tokens among them.
        """
        origins: dict[fx.Node, None] = {}
        tables: dict[fx.Node, fx.Node] = {}
        groups: dict[fx.Node, fx.Node] = {}
        for origin in self._checked(node):
            origins[origin] = None
            tables.setdefault(self._table(origin), origin)
            group = self._group(origin)
            if group is not None:
                groups.setdefault(group, origin)
        for what, known in (("rows of two tables", tables), ("negatives of two kinds of sequences", groups)):
            if len(known) > 1:
                raise Rejected(f"the logits are of {what}", list(known.values())[1])
        return Logits(tuple(origins), next(iter(tables)), next(iter(groups), None))

    def query(self, origin: fx.Node) -> fx.Node:
        """The tokens' states, which a call or a product multiplies with rows."""
        product = self._product(origin)
        return product.query if isinstance(product, Product) else origin.args[0]  # type: ignore[return-value]

    def _table(self, origin: fx.Node) -> fx.Node:
        product = self._product(origin)
        return product.table if isinstance(product, Product) else origin.args[1]  # type: ignore[return-value]

    def _group(self, origin: fx.Node) -> fx.Node | None:
        product = self._product(origin)
        return product.rows.group if isinstance(product, Product) else origin.args[3]  # type: ignore[return-value]

    def _checked(self, node: fx.Node) -> list[fx.Node]:
        """The origins below `node`, every step of the way known."""
        if node.target is CALL:
            return [node]
        product = self._product(node)
        if product is not None:
            self._check_product(product)
            return [node]
        kind = ops.kind_of(node)
        if isinstance(kind, ops.Pick) and _is_of_others(kind.index):
            raise AlreadyShared
        if isinstance(kind, ops.Pointwise):
            return self._checked(self.behind(node))
        if not isinstance(kind, _VIEWS):
            raise Rejected(_unknown(node), node)
        return [origin for source in sources_of(node) for origin in self._checked(source)]

    def _check_product(self, product: Product | Rejected) -> None:
        if isinstance(product, Rejected):
            raise Rejected(product.reason, product.node, product.hint)
        if product.own:
            hint = "fuse-sampled-logits goes first: passes='default,share-logits'"
            raise Rejected("the negatives' rows are kept for their logits: no gr::sampled_logits", product.node, hint)
        places = [x for x in product.rows.at[:-1] if x is not const(0)]
        group = product.rows.group
        named = "index" if group is None else "load"  # of the token, or of its sequence
        if len(product.tokens) != 1 or len(places) != 1 or places[0].op != named:
            raise Rejected("the ids of a logit are read at places that no reshape gives", product.node)

    def behind(self, node: fx.Node) -> fx.Node:
        """The logits that a pointwise operator is made of; conditions and corrections are none.

        Raises:
            Rejected: it makes one of several, or of those of another shape.
        """
        reached = [x for x in _operands(node) if self.reaches(x)]
        bases = dict.fromkeys(map(self._base, reached))
        if len(bases) != 1:
            raise Rejected(f"{node.target} makes a number of several logits", node)
        base = next(iter(bases))
        if not same_sizes(base.meta["val"].shape, node.meta["val"].shape):
            raise Rejected(f"{node.target} makes several numbers of a logit", node)
        return base

    def _base(self, node: fx.Node) -> fx.Node:
        while isinstance(ops.kind_of(node), ops.Pointwise) and self._product(node) is None:
            node = self.behind(node)
        return node

    # ----------------------------------------------------------------------------------------------- ids
    def ids(self, editor: GraphEditor, node: fx.Node, made: dict[fx.Node, fx.Node]) -> fx.Node:
        """The id of every logit of `node`, whole numbers of its shape, made at the editor's point.

        `node` is one that `of` accepts; `made` holds what this has made already.
        """
        if node not in made:
            made[node] = self._ids(editor, node, made)
        return made[node]

    def _ids(self, editor: GraphEditor, node: fx.Node, made: dict[fx.Node, fx.Node]) -> fx.Node:
        if node.target is CALL:
            ids: Any = node.args[2]
            group: Any = node.args[3]
            return ids if group is None else editor.call(aten.index_select.default, ids, 0, group)
        product = self._product(node)
        if isinstance(product, Product):
            return self._ids_of_product(editor, product)
        kind = ops.kind_of(node)
        if isinstance(kind, ops.Pointwise):
            return self.ids(editor, self.behind(node), made)
        sources = {source: self.ids(editor, source, made) for source in sources_of(node)}
        if isinstance(kind, Reshape):
            return editor.call(aten.reshape.default, sources[kind.source], list(node.meta["val"].shape))
        if isinstance(kind, Item):
            return editor.call(operator.getitem, sources[kind.source], kind.position)
        return editor.again(node, lambda x: sources.get(x, x))

    def _ids_of_product(self, editor: GraphEditor, product: Product) -> fx.Node:
        """[T] ids (by sequence: those of the token's sequence) as the product has its logits."""
        ids = product.ids
        for dim, place in reversed(list(enumerate(product.rows.at[:-1]))):
            if place is const(0):
                ids = editor.call(aten.select.int, ids, dim, 0)
        if product.rows.group is not None:
            ids = editor.call(aten.index.Tensor, ids, [product.rows.group])
        if product.rows.node.target is aten.index.Tensor:  # a negative id counts from the end
            ids = from_the_start(editor, ids, editor.size(product.table, 0))
        return editor.call(aten.reshape.default, ids, list(product.node.meta["val"].shape))


def sources_of(node: fx.Node) -> tuple[fx.Node, ...]:
    """What a view shows."""
    kind = ops.kind_of(node)
    if isinstance(kind, (Concatenate, Stack)):
        return kind.sources
    return (kind.source,) if isinstance(kind, _VIEWS) else ()  # type: ignore[union-attr]


def _operands(node: fx.Node) -> list[fx.Node]:
    """The logits that `node` may be made of, or show."""
    kind = ops.kind_of(node)
    if isinstance(kind, ops.Pointwise):
        return [x for x in ops.tensor_operands(node) if x.meta["val"].is_floating_point()]
    return [kind.source] if isinstance(kind, ops.Pick) and _is_of_others(kind.index) else list(sources_of(node))


def _is_of_others(index: fx.Node | None) -> bool:
    while index is not None and isinstance(ops.kind_of(index), _VIEWS):
        index = sources_of(index)[0]
    return index is not None and index.target is OTHERS


def _unknown(node: fx.Node) -> str:
    kind = ops.kind_of(node)
    if isinstance(kind, Contract) and any(lookup_behind(side, node) for side in (kind.left, kind.right)):
        return "all tokens have these negatives already: sharing adds none"
    return f"{node.target} makes logits whose items are not known"
