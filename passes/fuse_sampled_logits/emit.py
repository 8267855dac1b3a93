"""Put `gr::sampled_logits` where products were: one call for all products of one query with rows of one table.

    positive = (x * table[target]).sum(-1)          logits = gr.sampled_logits(x, table, cat([target, ids], 1))
    negative = einsum("td,trd->tr", x, table[ids])  positive, negative = logits[:, 0], logits[:, 1:]

The gradient of the table is then made once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.element import Blocked, Elements
from gr_compile.analysis.expr import index
from gr_compile.analysis.looked_up import rows_and_numbers
from gr_compile.editor import GraphEditor
from gr_compile.passes.fuse_sampled_logits.products import Product, Rejected
from gr_compile.sizes import same_sizes
from gr_compile.verify import same_shape

aten = torch.ops.aten
_IDS = (torch.int64, torch.int32)


class SampledLogits:
    """Emits the operator into one graph."""

    def __init__(self, editor: GraphEditor, pull: Elements) -> None:
        self.editor, self.pull = editor, pull

    def replace(self, products: Sequence[Product]) -> None:
        """All products read results of one operator instead.

        Raises:
            Rejected: ids are read at places that no reshape of them gives; nothing has changed then.
        """
        first = products[0]
        columns = [math.prod(p.sizes[c] for c in p.own) for p in products]
        with self.editor.at(before=first.node, like=first.node):
            ids = [self._ids(p, count) for p, count in zip(products, columns)]
            together = ids[0] if len(ids) == 1 else self._concatenated(ids)
            rows, group, padding = first.rows, first.rows.group, padding_of(first)
            logits = self.editor.call(
                torch.ops.gr.sampled_logits.default, self._query(first), first.table, together,
                None if group is None else self._group(first), rows.eps, padding,
            )  # fmt: skip
            begin: Any = 0
            for product, count in zip(products, columns):
                part = logits
                if len(products) > 1:
                    part = self.editor.call(aten.slice.Tensor, logits, 1, begin, begin + count)
                    begin = begin + count
                self.editor.replace(product.node, self._shaped(product, part))
        self.editor.sort()
        for product in products:
            self.editor.erase(product.node)

    # --------------------------------------------------------------------------------------------- ids
    def _ids(self, product: Product, count: Any) -> fx.Node:
        """[T, R] (by sequence: [B, R]) ids in the order of the product's tokens and of its own labels."""
        editor, ids, at = self.editor, product.ids, product.rows.at[:-1]
        wanted = [index(c) for c in product.tokens + product.own]
        sizes = [product.sizes[c] for c in product.tokens + product.own]
        if product.rows.group is not None:
            wanted[0], sizes[0] = at[0], _rows_of_group(product)
        order = {str(x.args[0]): k for k, x in enumerate(wanted) if x.op == "index"}
        key = [min((order[name] for name in x.free if name in order), default=-1) for x in at]
        permuted = sorted(range(len(at)), key=lambda dim: key[dim])
        if permuted != list(range(len(at))):
            ids = editor.call(aten.permute.default, ids, permuted)
        if not same_sizes(ids.meta["val"].shape, sizes):
            if not same_sizes([math.prod(ids.meta["val"].shape)], [math.prod(sizes)]):
                raise Rejected("a part of the rows that are looked up is read", product.rows.node, "look less up")
            ids = editor.call(aten.reshape.default, ids, sizes)
        if not self._is_read_at(ids, wanted, product):
            raise Rejected("ids are read at places that are no reshape of them", product.rows.node)
        rows = sizes[0] if product.rows.group is not None else math.prod(sizes[: len(product.tokens)])
        if not same_sizes(ids.meta["val"].shape, [rows, count]):
            ids = editor.call(aten.reshape.default, ids, [rows, count])
        return self._as_index(ids, product)

    def _is_read_at(self, ids: fx.Node, wanted: Sequence[Any], product: Product) -> bool:
        """Does `ids` at the wanted places hold what the lookup reads?"""
        self.pull.forget()
        try:
            held = self.pull.element(ids, wanted)
            return held is self.pull.element(product.ids, product.rows.at[:-1])
        except Blocked:
            return False

    def _as_index(self, ids: fx.Node, product: Product) -> fx.Node:
        """Of a dtype that the operator takes; x[ids] counts negative ids from the end."""
        editor = self.editor
        if ids.meta["val"].dtype not in _IDS:
            ids = editor.call(aten.to.dtype, ids, torch.int64)
        if product.rows.node.target is aten.index.Tensor:
            ids = from_the_start(editor, ids, editor.size(product.table, 0))
        return ids

    def _concatenated(self, ids: Sequence[fx.Node]) -> fx.Node:
        if len({x.meta["val"].dtype for x in ids}) > 1:
            ids = [self.editor.call(aten.to.dtype, x, torch.int64) for x in ids]
        return self.editor.call(aten.cat.default, list(ids), 1)

    def _group(self, product: Product) -> fx.Node:
        group: Any = product.rows.group
        if group.meta["val"].dtype not in _IDS:
            group = self.editor.call(aten.to.dtype, group, torch.int64)
        read_by = ((x, rows_and_numbers(x)) for x in product.rows.between)
        grouped = next(x for x, found in read_by if found is not None and found[1] is product.rows.group)
        if grouped.target is aten.index.Tensor:
            group = from_the_start(self.editor, group, _rows_of_group(product))
        return group  # type: ignore[no-any-return]

    # ------------------------------------------------------------------------------------ query, result
    def _query(self, product: Product) -> fx.Node:
        """[T, D], in the result's dtype; normalised for a cosine."""
        editor, query, labels = self.editor, product.query, product.query_labels
        wanted = product.tokens + product.feature
        for dim in reversed(range(len(labels))):
            if labels[dim] not in wanted:
                query = editor.call(aten.select.int, query, dim, 0)
                labels = labels[:dim] + labels[dim + 1 :]
        if labels != wanted:
            query = editor.call(aten.permute.default, query, [labels.index(c) for c in wanted])
        if len(product.tokens) > 1:
            count = math.prod(product.sizes[c] for c in product.tokens)
            query = editor.call(aten.reshape.default, query, [count, product.sizes[product.feature]])
        dtype = product.node.meta["val"].dtype
        if query.meta["val"].dtype != dtype:
            query = editor.call(aten.to.dtype, query, dtype)
        if product.cosine:
            norm = editor.call(aten.linalg_vector_norm.default, query, 2, [-1], True)
            query = editor.call(aten.div.Tensor, query, editor.call(aten.clamp_min.default, norm, product.rows.eps))
        return query

    def _shaped(self, product: Product, logits: fx.Node) -> fx.Node:
        """[T, R] as the product has it."""
        editor, labels = self.editor, product.tokens + product.own
        if product.rows.factor != 1:
            logits = editor.call(aten.mul.Tensor, logits, product.rows.factor)
        sizes = [product.sizes[c] for c in labels]
        if not same_sizes(logits.meta["val"].shape, sizes):
            logits = editor.call(aten.reshape.default, logits, sizes)
        order = [labels.index(c) for c in product.out_labels if c in labels]
        if order != sorted(order):
            logits = editor.call(aten.permute.default, logits, order)
        value = product.node.meta["val"]
        if not same_shape(logits.meta["val"], value):
            logits = editor.call(aten.reshape.default, logits, list(value.shape))
        return logits


def padding_of(product: Product) -> int:
    """The id whose row takes no gradient; -1 where there is none."""
    lookup = product.rows.node
    return int(ops.argument(lookup, 2, "padding_idx", -1)) if lookup.target is aten.embedding.default else -1


def from_the_start(editor: GraphEditor, numbers: fx.Node, extent: Any) -> fx.Node:
    """The numbers as x[numbers] reads them: those below 0 count from the end of `extent` places."""
    below = editor.call(aten.lt.Scalar, numbers, 0)
    return editor.call(aten.where.self, below, editor.call(aten.add.Tensor, numbers, extent), numbers)


def _rows_of_group(product: Product) -> Any:
    """The number of rows of ids, for a product by sequence."""
    dim = next(k for k, x in enumerate(product.rows.at) if x.op == "load")
    return product.ids.meta["val"].shape[dim]

