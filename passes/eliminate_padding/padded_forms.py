"""The padded form of jagged values: [B, N, *rest] instead of [T, *rest], one rule a kind of operator.

The rules hold for operators that read and write row t only together with row t: over the place that a row stands for
they compute the same number. It is what `Packer` does, the other way round.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.element import Blocked
from gr_compile.editor import GraphEditor
from gr_compile.sizes import size_expr

aten = torch.ops.aten
_PLACE = "YX"
"""Letters for b and n where a contraction has one for t: no rule of `operators` uses them."""


class PaddedForms:
    """Makes the padded forms of the jagged values of one raggedness.

    Attributes:
        forms: jagged value (or several: of a split) -> its padded form. Rows are dimension 0, places 0 and 1.
    """

    def __init__(self, editor: GraphEditor) -> None:
        self.editor = editor
        self.forms: dict[fx.Node, fx.Node] = {}

    def make(self, node: fx.Node) -> None:
        """Add the form of a call on jagged values.

        Raises:
            Blocked: it may read rows elsewhere than where it writes.
        """
        kind = ops.kind_of(node)
        rule = getattr(self, "_" + type(kind).__name__.lower(), None)
        with self.editor.at(before=node, like=node):
            made = rule(node, kind) if rule is not None else None
        if made is None:
            raise Blocked(f"{node.target} may read jagged rows elsewhere than where it writes", node)
        self.forms[node] = made

    def form(self, node: fx.Node) -> fx.Node:
        """The padded form of a jagged value; any other value itself."""
        return self.forms.get(node, node)

    # --------------------------------------------------------------------------------------------- helpers
    def _again(self, node: fx.Node, rank: int) -> fx.Node:
        """The call on padded forms; `rank`: of the jagged value whose dimensions its arguments count."""
        names = {a.name: k for k, a in enumerate(node.target._schema.arguments)}  # type: ignore[union-attr]
        given = {key: ops.argument(node, names[key], key) for key in ("dim", "dims") if key in names}
        dims = {key: _from_the_end(dim, rank) for key, dim in given.items() if dim is not None}
        return self.editor.again(node, self.form, **dims)

    def _rest(self, node: fx.Node) -> list[Any]:
        return [self.editor.symbol_of(size) for size in node.meta["val"].shape[1:]]

    def _keeps_rows(self, node: fx.Node, source: fx.Node) -> bool:
        value, rows = node.meta["val"], source.meta["val"].shape[0]
        return bool(value.dim() > 0 and size_expr(value.shape[0]) == size_expr(rows))

    def _all_jagged(self, sources: tuple[fx.Node, ...]) -> bool:
        return all(source in self.forms for source in sources)

    # ----------------------------------------------------------------------------------------------- rules
    def _pointwise(self, node: fx.Node, kind: ops.Pointwise) -> fx.Node | None:
        """Every operand has the rows as its first dimension, or nothing there that is repeated over them."""
        rank = ops.rank(node)
        for operand in ops.tensor_operands(node):
            jagged, shape = operand in self.forms, operand.meta["val"].shape
            if ops.rank(operand) == rank and not jagged and not (isinstance(shape[0], int) and shape[0] == 1):
                return None
            if jagged and ops.rank(operand) != rank:
                return None
        return self._again(node, rank)

    def _reshape(self, node: fx.Node, kind: ops.Reshape) -> fx.Node | None:
        if not self._keeps_rows(node, kind.source):
            return None
        form = self.form(kind.source)
        places = [self.editor.size(form, 0), self.editor.size(form, 1)]
        made: fx.Node = self.editor.call(aten.reshape.default, form, [*places, *self._rest(node)])
        return made

    def _permute(self, node: fx.Node, kind: ops.Permute) -> fx.Node | None:
        if kind.order[0] != 0:
            return None
        order = [0, *(d + 1 for d in kind.order)]
        made: fx.Node = self.editor.call(aten.permute.default, self.form(kind.source), order)
        return made

    def _expand(self, node: fx.Node, kind: ops.Expand) -> fx.Node | None:
        if ops.rank(node) != ops.rank(kind.source) or not self._keeps_rows(node, kind.source):
            return None
        sizes = [-1, -1, *self._rest(node)]
        made: fx.Node = self.editor.call(aten.expand.default, self.form(kind.source), sizes)
        return made

    def _reduce(self, node: fx.Node, kind: ops.Reduce | ops.Along) -> fx.Node | None:
        return self._again(node, ops.rank(kind.source)) if 0 not in kind.dims else None

    _along = _reduce

    def _slice(self, node: fx.Node, kind: ops.Slice) -> fx.Node | None:
        if kind.dim == 0:
            return self.form(kind.source) if kind.whole else None
        return self._again(node, ops.rank(kind.source))

    def _select(self, node: fx.Node, kind: ops.Select | ops.Items) -> fx.Node | None:
        return self._again(node, ops.rank(kind.source)) if kind.dim != 0 else None

    _items = _select

    def _item(self, node: fx.Node, kind: ops.Item) -> fx.Node:
        made: fx.Node = self.editor.call(operator.getitem, self.form(kind.source), kind.position)
        return made

    def _gather(self, node: fx.Node, kind: ops.Gather) -> fx.Node | None:
        local = kind.dim != 0 and self._all_jagged((kind.source, kind.index))
        return self._again(node, ops.rank(kind.source)) if local else None

    def _concatenate(self, node: fx.Node, kind: ops.Concatenate | ops.Stack) -> fx.Node | None:
        return self._again(node, ops.rank(node)) if kind.dim != 0 and self._all_jagged(kind.sources) else None

    _stack = _concatenate

    def _lookup(self, node: fx.Node, kind: ops.Lookup) -> fx.Node | None:
        return self._again(node, ops.rank(node)) if kind.table not in self.forms else None

    def _contract(self, node: fx.Node, kind: ops.Contract) -> fx.Node | None:
        """Rows are the first dimension of the product and are summed over nowhere."""
        rows = kind.out_labels[:1]
        for operand, labels in ((kind.left, kind.left_labels), (kind.right, kind.right_labels)):
            if (operand in self.forms) != (rows in labels) or (operand in self.forms and labels[0] != rows):
                return None
        if kind.bias is not None and (kind.bias in self.forms or ops.rank(kind.bias) >= ops.rank(node)):
            return None
        left, right = self.form(kind.left), self.form(kind.right)
        if node.target is aten.linear.default:
            return self._again(node, ops.rank(node))
        if kind.right not in self.forms and kind.right_labels == "kn" and kind.left_labels.endswith("k"):
            product = self.editor.call(aten.matmul.default, left, right)
        else:
            equation = f"{kind.left_labels},{kind.right_labels}->{kind.out_labels}".replace(rows, _PLACE)
            product = self.editor.call(aten.einsum.default, equation, [left, right])
        if kind.bias is None:
            return product
        made: fx.Node = self.editor.call(aten.add.Tensor, product, kind.bias)
        return made


def _from_the_end(dim: Any, rank: int) -> Any:
    """Dimensions counted from the end, which stay when one is put in front."""
    return [int(d) % rank - rank for d in dim] if isinstance(dim, (list, tuple)) else int(dim) % rank - rank
