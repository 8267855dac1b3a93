"""Put `gr::linear_cross_entropy` where a cross entropy over all items of a table was.

    logits = linear(x, table, bias) / t
    loss = cross_entropy(logits, target, ignore_index=...)
    ->
    counts = target != ignore_index
    loss = gr.linear_cross_entropy(x, table, bias / t, target, counts, 1 / t) / counts.sum()
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.element import Blocked, Elements
from gr_compile.analysis.expr import index
from gr_compile.analysis.kinds import Contract, Permute
from gr_compile.analysis.looked_up import Rows, first_operand, rows_and_numbers, unscaled
from gr_compile.analysis.reads import SHAPE_ONLY
from gr_compile.editor import GraphEditor
from gr_compile.passes.fuse_sampled_logits.losses import MEAN, NONE, Loss, Total, loss_at, total_of
from gr_compile.passes.fuse_sampled_logits.products import Rejected
from gr_compile.sizes import same_sizes
from gr_compile.verify import same_shape

aten = torch.ops.aten
_ITEM = "v"
_TIMES = 4
_WIDE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


@dataclass(frozen=True)
class Product:
    """Logits of all items: `node` = x times the table, read at `rows.at`.

    Attributes:
        x: the states; `x_labels` names its dimensions, `labels` the result's, of which `item` and `feature` are two.
        table: [V, D], or [D, V] where `turned`.
        chosen: the node that reads some rows of the logits [T, V] by their numbers, where one does.
        tokens: the sizes of the product's dimensions but for the items'; behind `chosen` those of the target.
        items: how many items the loss is over: the first rows of the table.
    """

    rows: Rows
    x: fx.Node
    x_labels: str
    labels: str
    item: str
    feature: str
    table: fx.Node
    turned: bool
    bias: fx.Node | None
    chosen: fx.Node | None
    tokens: list[Any]
    items: Any

    @property
    def all_items(self) -> Any:
        """Rows of the table."""
        return self.table.meta["val"].shape[1 if self.turned else 0]

    def is_large(self) -> bool:
        """Some times more items than features: otherwise logits take little more memory than states."""
        width = self.table.meta["val"].shape[0 if self.turned else 1]
        return not isinstance(self.items, int) or not isinstance(width, int) or self.items >= _TIMES * width


@dataclass(frozen=True)
class CatalogueLoss:
    """A loss over all items of a table, and what sums its tokens up, if something does."""

    loss: Loss
    product: Product
    total: Total | None

    @property
    def result(self) -> fx.Node:
        """What is replaced."""
        return self.loss.node if self.total is None else self.total.node


def catalogue_loss_at(node: fx.Node, pull: Elements) -> CatalogueLoss | None:
    """The loss over a catalogue that a node is, if it is one.

    Raises:
        Rejected: it would be one but for something.
    """
    loss = loss_at(node) if node.op == "call_function" else None
    product = _product_of(loss, pull) if loss is not None else None
    if loss is None or product is None or not product.is_large():
        return None
    if loss.beside:
        raise Rejected(f"a loss over a catalogue with {loss.beside}", node)
    inside = {product.rows.node, *product.rows.between}
    for value in inside:
        for user in value.users:
            if user not in inside and user is not node and user.target not in SHAPE_ONLY:
                raise Rejected("the logits of the whole catalogue are read elsewhere, too", user)
    return CatalogueLoss(loss, product, total_of(node, pull) if loss.reduction == NONE else None)


def _product_of(loss: Loss, pull: Elements) -> Product | None:
    pull.forget()
    shape = pull.shape(loss.logits)
    names = [_ITEM if dim == loss.classes else f"t{dim}" for dim in range(len(shape))]
    for name, extent in zip(names, shape):
        pull.bind(name, extent)
    try:
        rows = unscaled(pull, loss.logits, tuple(index(name) for name in names))
        if loss.softened:
            if rows.factor != 1 or not _is_log_softmax(rows):
                return None
            inner = unscaled(pull, first_operand(rows.node), rows.at)
            rows = replace(inner, between=(*rows.between, rows.node, *inner.between))
        chosen = _chosen(rows)
        items = loss.logits.meta["val"].shape[loss.classes]
        if chosen is None:
            return _sides(rows, None, loss.tokens, items)
        source = first_operand(chosen)
        pull.forget()
        pull.bind("t0", pull.shape(source)[0])
        inner = unscaled(pull, source, (index("t0"), index(_ITEM)))
    except Blocked:
        return None
    between, factor = (*rows.between, chosen, *inner.between), rows.factor * inner.factor
    return _sides(replace(inner, between=between, factor=factor), chosen, [source.meta["val"].shape[0]], items)


def _chosen(rows: Rows) -> fx.Node | None:
    """logits[numbers]: some rows of a matrix."""
    found = rows_and_numbers(rows.node)
    if found is None or rows.node.target is aten.embedding.default or rows.at != (index("t0"), index(_ITEM)):
        return None
    return rows.node if ops.rank(found[0]) == 2 else None


def _is_log_softmax(rows: Rows) -> bool:
    """Over the items, in the dtype of the logits."""
    node = rows.node
    if node.target is not aten.log_softmax.int or node.meta["val"].dtype != first_operand(node).meta["val"].dtype:
        return False
    return rows.at[int(node.args[1])] is index(_ITEM)  # type: ignore[arg-type]


def _sides(rows: Rows, chosen: fx.Node | None, tokens: list[Any], count: Any) -> Product | None:
    """Which operand of a contraction is the table, and which the states."""
    kind = ops.kind_of(rows.node)
    if not isinstance(kind, Contract):
        return None
    summed = [c for c in kind.left_labels if c in kind.right_labels and c not in kind.out_labels]
    items = [c for c, place in zip(kind.out_labels, rows.at) if place is index(_ITEM)]
    others = [place for c, place in zip(kind.out_labels, rows.at) if c not in items]
    if len(summed) != 1 or len(items) != 1 or any(_ITEM in place.free for place in others):
        return None
    item, feature = items[0], summed[0]
    states = sorted(kind.out_labels.replace(item, feature))
    sides = ((kind.left, kind.left_labels), (kind.right, kind.right_labels))
    for (x, x_labels), (table, labels) in (sides, sides[::-1]):
        if sorted(labels) == sorted(item + feature) and sorted(x_labels) == states:
            turned = labels[0] != item
            behind = ops.kind_of(table)
            if turned and isinstance(behind, Permute):
                table, turned = behind.source, False
            names = (x_labels, kind.out_labels, item, feature)
            found = Product(rows, x, *names, table, turned, kind.bias, chosen, tokens, count)
            return found if _bias_fits(found) else None
    return None


def _bias_fits(product: Product) -> bool:
    """There is none, or one number an item."""
    if product.bias is None:
        return True
    fits = same_sizes(product.bias.meta["val"].shape, [product.all_items])
    return fits and product.labels[-1] == product.item


class CatalogueLosses:
    """Emits the operator into one graph."""

    def __init__(self, editor: GraphEditor, pull: Elements) -> None:
        self.editor, self.pull = editor, pull

    def replace(self, found: CatalogueLoss) -> None:
        """The loss, or what sums it up, becomes the operator.

        Raises:
            Rejected: logits are read at places that no reshape of the states gives; nothing has changed then.
        """
        editor, result = self.editor, found.result
        with editor.at(before=result, like=found.loss.node):
            operands, counted = self._operands(found)
            if found.loss.reduction == NONE and found.total is None:
                made = editor.call(torch.ops.gr.linear_cross_entropy_tokens.default, *operands)
                made = made if found.loss.sign > 0 else editor.call(aten.neg.default, made)
            else:
                made = editor.call(torch.ops.gr.linear_cross_entropy.default, *operands)
                made = self._scaled(found, made, counted)
            made = self._like(made, result)
        editor.replace(result, made)
        editor.erase(result)

    def _like(self, made: fx.Node, result: fx.Node) -> fx.Node:
        value = result.meta["val"]
        if made.meta["val"].dtype != value.dtype:
            made = self.editor.call(aten.to.dtype, made, value.dtype)
        if not same_shape(made.meta["val"], value):
            made = self.editor.call(aten.reshape.default, made, list(value.shape))
        return made

    def _scaled(self, found: CatalogueLoss, made: fx.Node, counted: fx.Node | None) -> fx.Node:
        """A mean over what counts, NaN over nothing; the factors behind losses of tokens."""
        editor, total = self.editor, found.total
        if found.loss.reduction == MEAN:
            assert counted is not None  # a loss that means knows what it ignores
            count = editor.call(aten.sum.default, counted)
            mean = editor.call(aten.div.Tensor, made, editor.call(aten.clamp_min.default, count, 1))
            return editor.call(aten.where.ScalarOther, editor.call(aten.gt.Scalar, count, 0), mean, math.nan)
        if total is None:
            return made
        factor = total.factor * found.loss.sign
        if factor != 1:
            made = editor.call(aten.mul.Tensor, made, factor)
        if total.over is not None:
            tokens = editor.symbol_of(math.prod(total.over.meta["val"].shape))
            made = editor.call(aten.div.Tensor, made, tokens)
        return made

    # --------------------------------------------------------------------------------------- operands
    def _operands(self, found: CatalogueLoss) -> tuple[list[Any], fx.Node | None]:
        """What the operator takes, and which targets count (None: all)."""
        editor, loss, product = self.editor, found.loss, found.product
        x, count = self._states(found), math.prod(loss.tokens)
        target = self._flat(loss.target, count)
        if target.meta["val"].dtype != torch.int64:
            target = editor.call(aten.to.dtype, target, torch.int64)
        counted = None if loss.ignored is None else editor.call(aten.ne.Scalar, target, loss.ignored)
        table = product.table
        if product.turned:
            table = editor.call(aten.permute.default, table, [1, 0])
        bias, factor = product.bias, product.rows.factor
        if not same_sizes([product.items], [product.all_items]):
            table = editor.call(aten.slice.Tensor, table, 0, 0, product.items)
            bias = bias if bias is None else editor.call(aten.slice.Tensor, bias, 0, 0, product.items)
        if bias is not None and factor != 1:
            bias = editor.call(aten.mul.Tensor, bias, factor)
        return [x, table, bias, target, self._weight(found, x, counted, count), factor], counted

    def _flat(self, value: fx.Node, count: Any) -> fx.Node:
        if same_sizes(value.meta["val"].shape, [count]):
            return value
        return self.editor.call(aten.reshape.default, value, [count])

    def _weight(self, found: CatalogueLoss, x: fx.Node, counted: fx.Node | None, count: Any) -> fx.Node:
        editor, value = self.editor, x.meta["val"]
        dtype = _WIDE.get(value.dtype, value.dtype)
        weights = [] if counted is None else [counted]
        for one in found.total.weights if found.total is not None else ():
            weights.append(self._flat(one, count))
        made = [editor.call(aten.to.dtype, x, dtype) if x.meta["val"].dtype != dtype else x for x in weights]
        if not made:
            return editor.call(aten.full.default, [count], 1.0, dtype=dtype, device=value.device)
        weight = made[0]
        for other in made[1:]:
            weight = editor.call(aten.mul.Tensor, weight, other)
        return weight

    def _states(self, found: CatalogueLoss) -> fx.Node:
        """[T, D] in the order of the targets."""
        editor, product, loss = self.editor, found.product, found.loss
        wanted = product.labels.replace(product.item, "") + product.feature
        x, width = product.x, product.x.meta["val"].shape[product.x_labels.index(product.feature)]
        if product.x_labels != wanted:
            x = editor.call(aten.permute.default, x, [product.x_labels.index(c) for c in wanted])
        shape = [*product.tokens, width]
        if same_sizes([math.prod(x.meta["val"].shape)], [math.prod(shape)]):
            x = x if same_sizes(x.meta["val"].shape, shape) else editor.call(aten.reshape.default, x, shape)
            if self._is_read_at(x, found):
                x = x if len(shape) == 2 else editor.call(aten.reshape.default, x, [math.prod(loss.tokens), width])
                return x if product.chosen is None else editor.again(product.chosen, self=x)
        raise Rejected("logits are read at places that are no reshape of the states", product.rows.node)

    def _is_read_at(self, x: fx.Node, found: CatalogueLoss) -> bool:
        """Does `x` hold for each target the states that its logits are made of?"""
        product, loss = found.product, found.loss
        tokens = [f"t{dim}" for dim in range(ops.rank(loss.logits)) if dim != loss.classes]
        feature = index("d")
        self.pull.bind("d", self.pull.shape(x)[-1])
        at = dict(zip(product.labels, product.rows.at))
        self.pull.forget()
        try:
            held = self.pull.element(x, [*map(index, tokens), feature])
            read = [feature if c == product.feature else at[c] for c in product.x_labels]
            return held is self.pull.element(product.x, read)
        except Blocked:
            return False
