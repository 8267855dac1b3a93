"""Layout of every value with respect to places: those of one raggedness (a batch and a sequence dimension), or of ids.

`TOKENS` values have a place for every (b, n). An operator is *local* when its value at (b, n) reads its operands only
at that (b, n), at b, at n, or nowhere: then it can run on packed tokens [T, ...] instead of [B, N, ...].
"""

from __future__ import annotations

from enum import Enum

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.dims import Atom, Dim, DimensionProvenance
from gr_compile.analysis.gradients import counts_lookups
from gr_compile.analysis.looked_up import lookup_behind

aten = torch.ops.aten
_ASKS_FOR_ROWS = frozenset({aten.roll.default, aten.cummax.default, aten.logsumexp.default})
"""Shape functions that branch on whether there are any elements: impossible while that depends on data."""


class Layout(Enum):
    """How a value relates to the places (b, n)."""

    TOKENS = "a value for every place"
    SEQUENCE = "a value for every sequence"
    POSITION = "a value for every position"
    DENSE = "no place"
    OTHER = "places in another form (pairs of places, places twice)"


class PlaceLayout:
    """Layouts and locality for the index spaces `places`: those of a tensor of ids, say.

    `sampled`: products of tokens with several looked-up rows of their sequence are local, too: a later pass reads each
    row where it is multiplied.
    """

    def __init__(self, dims: DimensionProvenance, places: tuple[Atom, ...], sampled: bool = False) -> None:
        self.dims, self.places, self.sampled = dims, places, sampled

    def of(self, node: fx.Node) -> Layout:
        """The layout of a tensor node: TOKENS, DENSE or OTHER."""
        if not self.dims.known(node):
            return Layout.OTHER
        atoms = [atom for dim in self.dims.of(node) for atom in dim]
        counts = {atoms.count(place) for place in self.places}
        return {frozenset({1}): Layout.TOKENS, frozenset({0}): Layout.DENSE}.get(frozenset(counts), Layout.OTHER)

    def has_place(self, dim: Dim) -> bool:
        """Whether a dimension runs over places."""
        return any(place in dim for place in self.places)

    def rest(self, node: fx.Node) -> list[tuple[int, Dim]]:
        """The dimensions that stay when places are packed: (dimension, its atoms that are no places)."""
        kept = []
        for position, dim in enumerate(self.dims.of(node)):
            others = tuple(a for a in dim if a not in self.places)
            if others or not self.has_place(dim):
                kept.append((position, others))
        return kept

    # ---------------------------------------------------------------------------------------- locality
    def is_local(self, node: fx.Node) -> bool:
        """True when the operator can run on packed tokens."""
        if self.of(node) is not Layout.TOKENS:
            return False
        kind = ops.kind_of(node)
        if kind is None or node.target in _ASKS_FOR_ROWS:
            return False
        if any(self.of(n) is Layout.OTHER for n in ops.tensor_operands(node)):
            return False
        rule = getattr(self, "_" + type(kind).__name__.lower(), None)
        return bool(rule is not None and rule(node, kind))

    def why_not_local(self, node: fx.Node) -> str:
        """The reason in words."""
        kind = ops.kind_of(node)
        if kind is None:
            return f"{node.target} has no rule: it may read any place"
        if node.target in _ASKS_FOR_ROWS:
            return f"{node.target} cannot be compiled for a number of rows that depends on data"
        if counts_lookups(node):
            return "an embedding with scale_grad_by_freq counts the lookups of all places"
        return f"{node.target} mixes places"

    def _aligned(self, node: fx.Node, operand: fx.Node) -> bool:
        """Every place dimension of the operand stands where the output has the same places."""
        out, dims = self.dims.of(node), self.dims.of(operand)
        skip = len(out) - len(dims)
        for position, dim in enumerate(dims):
            if self.has_place(dim) and (skip + position < 0 or dim != out[skip + position]):
                return False
        return True

    def _pointwise(self, node: fx.Node, kind: ops.Pointwise) -> bool:
        return all(self._aligned(node, operand) for operand in ops.tensor_operands(node))

    def _expand(self, node: fx.Node, kind: ops.Expand) -> bool:
        return self.of(kind.source) is Layout.TOKENS and self._aligned(node, kind.source)

    def _reshape(self, node: fx.Node, kind: ops.Reshape) -> bool:
        if self.of(kind.source) is not Layout.TOKENS:
            return False

        def flat(n: fx.Node) -> list[Atom]:
            return [a for dim in self.dims.of(n) for a in dim if a.size != 1]

        return flat(node) == flat(kind.source)

    def _permute(self, node: fx.Node, kind: ops.Permute) -> bool:
        return self.of(kind.source) is Layout.TOKENS

    def _free_of_places(self, node: fx.Node, dims: tuple[int, ...]) -> bool:
        own = self.dims.of(node)
        return not any(self.has_place(own[d]) for d in dims)

    def _reduce(self, node: fx.Node, kind: ops.Reduce) -> bool:
        return self.of(kind.source) is Layout.TOKENS and self._free_of_places(kind.source, kind.dims)

    _along = _reduce

    def _contract(self, node: fx.Node, kind: ops.Contract) -> bool:
        sides = ((kind.left, kind.left_labels), (kind.right, kind.right_labels))
        for operand, labels in sides:
            for label, dim in zip(labels, self.dims.of(operand)):
                if self.has_place(dim) and label not in kind.out_labels:
                    return False
        layouts = {self.of(operand) for operand, _ in sides}
        if Layout.SEQUENCE in layouts and not self._one_row_a_sequence(node, kind):
            return False
        return Layout.TOKENS in layouts and layouts <= {Layout.TOKENS, Layout.DENSE, Layout.SEQUENCE}

    def _one_row_a_sequence(self, node: fx.Node, kind: ops.Contract) -> bool:
        """A product of tokens with one row of their sequence: a candidate's embedding, but not many queries. Many
        rows would be copied for each token, unless they are sampled ones."""
        sides = ((kind.left, kind.left_labels), (kind.right, kind.right_labels))
        table = {label: dim for operand, labels in sides for label, dim in zip(labels, self.dims.of(operand)) if dim}
        for operand, labels in sides:
            if self.of(operand) is Layout.SEQUENCE:
                kept = [label for label in labels if label in kind.out_labels and label in table]
                many = self.sampled and self._is_sampled(node, kind, operand, labels)
                return (len(kept) == 1 or many) and kind.bias is None
        return False

    def _is_sampled(self, node: fx.Node, kind: ops.Contract, operand: fx.Node, labels: str) -> bool:
        """Rows of a table that nobody else reads, multiplied by tokens over all of their features."""
        lookup = lookup_behind(operand, node)
        summed = [label for label in labels if label not in kind.out_labels]
        if lookup is None or len(summed) != 1:
            return False
        return self.dims.of(operand)[labels.index(summed[0])] == self.dims.of(lookup)[-1]

    def _lookup(self, node: fx.Node, kind: ops.Lookup) -> bool:
        if counts_lookups(node):
            return False
        return self.of(kind.table) is Layout.DENSE and self.of(kind.index) is Layout.TOKENS

    def _gather(self, node: fx.Node, kind: ops.Gather) -> bool:
        if self.of(kind.source) is not Layout.TOKENS or self.of(kind.index) is not Layout.TOKENS:
            return False
        source, index = self.dims.of(kind.source), self.dims.of(kind.index)
        return not self.has_place(source[kind.dim]) and all(
            a == b for d, (a, b) in enumerate(zip(source, index)) if self.has_place(a) or self.has_place(b)
        )

    def _complex(self, node: fx.Node, kind: ops.Complex) -> bool:
        """The two parts are no place: a sequence may have two of them."""
        parts = kind.source if node.meta["val"].is_complex() else node
        return self.of(kind.source) is Layout.TOKENS and self._free_of_places(parts, (ops.rank(parts) - 1,))

    def _pick(self, node: fx.Node, kind: ops.Pick) -> bool:
        dense = kind.index is None or self.of(kind.index) is Layout.DENSE
        return dense and self.of(kind.source) is Layout.TOKENS and self._free_of_places(kind.source, (kind.dim,))

    def _put(self, node: fx.Node, kind: ops.Put) -> bool:
        """A write along features: every place writes its own values, or all places the same ones."""
        if self.of(kind.source) is not Layout.TOKENS or self.of(kind.index) is not Layout.DENSE:
            return False
        return self._free_of_places(kind.source, (kind.dim,)) and self._aligned(node, kind.values)

    def _rowloss(self, node: fx.Node, kind: ops.RowLoss) -> bool:
        both = self.of(kind.logits) is Layout.TOKENS and self.of(kind.target) is Layout.TOKENS
        return both and not self.rest(kind.target) and len(self.rest(kind.logits)) == 1

    def _concatenate(self, node: fx.Node, kind: ops.Concatenate) -> bool:
        return not self.has_place(self.dims.of(node)[kind.dim]) and all(
            self.of(source) is Layout.TOKENS for source in kind.sources
        )

    def _stack(self, node: fx.Node, kind: ops.Stack) -> bool:
        return all(self.of(source) is Layout.TOKENS for source in kind.sources)

    def _slice(self, node: fx.Node, kind: ops.Slice) -> bool:
        return self.of(kind.source) is Layout.TOKENS and (kind.whole or self._free_of_places(kind.source, (kind.dim,)))

    def _select(self, node: fx.Node, kind: ops.Select) -> bool:
        return self.of(kind.source) is Layout.TOKENS and self._free_of_places(kind.source, (kind.dim,))

    def _item(self, node: fx.Node, kind: ops.Item) -> bool:
        source = ops.kind_of(kind.source)
        if kind.source.target in _ASKS_FOR_ROWS:
            return False
        if isinstance(source, ops.Items):
            return self.of(source.source) is Layout.TOKENS and self._free_of_places(source.source, (source.dim,))
        if isinstance(source, (ops.Reduce, ops.Along)):
            return self.of(source.source) is Layout.TOKENS and self._free_of_places(source.source, source.dims)
        return False


class TokenLayout(PlaceLayout):
    """Layouts and locality for one pair (batch, sequence) of index spaces."""

    def __init__(self, dims: DimensionProvenance, batch: Atom, sequence: Atom, sampled: bool = False) -> None:
        super().__init__(dims, (batch, sequence), sampled)
        self.batch, self.sequence = batch, sequence

    def of(self, node: fx.Node) -> Layout:
        """The layout of a tensor node; SEQUENCE and POSITION too."""
        if not self.dims.known(node):
            return Layout.OTHER
        atoms = [atom for dim in self.dims.of(node) for atom in dim]
        counts = atoms.count(self.batch), atoms.count(self.sequence)
        table = {(1, 1): Layout.TOKENS, (1, 0): Layout.SEQUENCE, (0, 1): Layout.POSITION, (0, 0): Layout.DENSE}
        return table.get(counts, Layout.OTHER)


def is_floating(node: fx.Node) -> bool:
    """A tensor of a floating dtype."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.dtype.is_floating_point
