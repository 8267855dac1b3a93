"""The packed form of token values: [T, *rest] instead of [.., B, .., N, ..], one rule a kind of operator."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.dims import Atom
from gr_compile.analysis.layout import Layout, PlaceLayout, TokenLayout
from gr_compile.editor import GraphEditor
from gr_compile.passes.ragged import PackedIndex
from gr_compile.sizes import same_sizes

aten = torch.ops.aten


class RowForms:
    """Makes the packed form of values that are computed place by place, from those of the values they are made of."""

    def __init__(self, editor: GraphEditor, layout: PlaceLayout) -> None:
        self.editor, self.layout = editor, layout
        self._packed: dict[fx.Node, fx.Node] = {}
        self._sources: dict[fx.Node, fx.Node] = {}

    def packed(self, node: fx.Node) -> fx.Node:
        """The packed form of a TOKENS value."""
        if node not in self._packed:
            with self.editor.at(like=node):
                self._packed[node] = self._form(node)
        return self._packed[node]

    def _form(self, node: fx.Node) -> fx.Node:
        return self._compute(node)

    def arrange(self, node: fx.Node, first: list[Atom]) -> fx.Node:
        """`node` with the given index spaces as leading dimensions and its other dimensions behind, in their order."""
        dims = self.layout.dims.of(node)
        atoms = [atom for dim in dims for atom in dim]
        if list(dims[: len(first)]) == [(a,) for a in first]:
            return node
        split = self.editor.call(aten.reshape.default, node, [self.extent(a) for a in atoms])
        moved = self.editor.call(aten.permute.default, split, _order(atoms, first))
        sizes = [self.extent(a) for a in first] + [self.size_of(node, p, d) for p, d in self._rest(node, first)]
        made: fx.Node = self.editor.call(aten.reshape.default, moved, sizes)
        return made

    def arrange_back(self, dense: fx.Node, node: fx.Node, first: list[Atom]) -> fx.Node:
        """The inverse of `arrange`: [*first, *rest] in the dimensions of `node`."""
        dims = self.layout.dims.of(node)
        if list(dims[: len(first)]) == [(a,) for a in first]:
            return dense
        atoms = [atom for dim in dims for atom in dim]
        stored = first + [a for a in atoms if a not in first]
        split = self.editor.call(aten.reshape.default, dense, [self.extent(a) for a in stored])
        order = _order(atoms, first)
        moved = self.editor.call(aten.permute.default, split, sorted(range(len(order)), key=order.__getitem__))
        shape = [self.editor.symbol_of(s) for s in node.meta["val"].shape]
        made: fx.Node = self.editor.call(aten.reshape.default, moved, shape)
        return made

    def _rest(self, node: fx.Node, first: list[Atom]) -> list[tuple[int, tuple[Atom, ...]]]:
        kept = []
        for position, dim in enumerate(self.layout.dims.of(node)):
            others = tuple(a for a in dim if a not in first)
            if others or not any(a in first for a in dim):
                kept.append((position, others))
        return kept

    def extent(self, atom: Atom) -> Any:
        """The size of an index space."""
        return self.editor.symbol_of(atom.size)

    def size_of(self, node: fx.Node, position: int, atoms: tuple[Atom, ...]) -> Any:
        """The size that a dimension has left without its places."""
        if not self.layout.has_place(self.layout.dims.of(node)[position]):
            return self.editor.symbol_of(node.meta["val"].shape[position])
        product: Any = 1
        for atom in atoms:
            product = product * atom.size
        return self.editor.symbol_of(product)

    # -------------------------------------------------------------------------------------------- operands
    def aligned(self, operand: Any, node: fx.Node) -> Any:
        """An operand of a broadcasting operator in a form that broadcasts against the packed output."""
        if not isinstance(operand, fx.Node) or not isinstance(operand.meta.get("val"), torch.Tensor):
            return operand
        value, first = self._operand(operand)
        return self._fit(value, operand, node, first)

    def _operand(self, operand: fx.Node) -> tuple[fx.Node, list[Atom]]:
        """A form of an operand with a row for each place, and the index spaces that the rows stand for; or as it is."""
        if self.layout.of(operand) is Layout.TOKENS:
            return self.packed(operand), list(self.layout.places)
        return operand, []

    def _fit(self, value: fx.Node, operand: fx.Node, node: fx.Node, first: list[Atom]) -> fx.Node:
        """Drop dimensions that stood at places, add dimensions of size 1 for those the operand lacks."""
        skip = ops.rank(node) - ops.rank(operand)
        kept = dict(self._rest(operand, first)) if first else dict(enumerate(self.layout.dims.of(operand)))
        out = [position for position, _ in self.layout.rest(node)]
        sizes: list[Any] = ["T"] if first else []
        for position in out:
            own = position - skip
            if own in kept:
                sizes.append(self.size_of(operand, own, kept[own]))
            elif first or own >= 0:
                sizes.append(1)
        expected = (["T"] if first else []) + [self.size_of(operand, p, d) for p, d in kept.items()]
        if _equal(sizes, expected):
            return value
        if first:
            sizes[0] = -1
        made: fx.Node = self.editor.call(aten.reshape.default, value, sizes)
        return made

    def dim(self, node: fx.Node, position: int) -> int:
        """Where dimension `position` of `node` stands in its packed form."""
        return 1 + [p for p, _ in self.layout.rest(node)].index(position)

    # --------------------------------------------------------------------------------------------- rules
    def _compute(self, node: fx.Node) -> fx.Node:
        kind = ops.kind_of(node)
        rule: Callable[[fx.Node, Any], fx.Node] = getattr(self, "_" + type(kind).__name__.lower())
        return rule(node, kind)

    def _pointwise(self, node: fx.Node, kind: ops.Pointwise) -> fx.Node:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda a: self.aligned(a, node))
        made: fx.Node = self.editor.call(node.target, *args, **kwargs)  # type: ignore[arg-type]
        return made

    def _shape(self, node: fx.Node) -> list[Any]:
        return [self.size_of(node, position, atoms) for position, atoms in self.layout.rest(node)]

    def _expand(self, node: fx.Node, kind: ops.Expand) -> fx.Node:
        source = self.aligned(kind.source, node)
        made: fx.Node = self.editor.call(aten.expand.default, source, [-1, *self._shape(node)])
        return made

    def _reshape(self, node: fx.Node, kind: ops.Reshape) -> fx.Node:
        source, shape = self.packed(kind.source), self._shape(node)
        if _equal(shape, self._shape(kind.source)):
            return source
        made: fx.Node = self.editor.call(aten.reshape.default, source, [-1, *shape] if 0 not in shape else shape)
        return made

    def _permute(self, node: fx.Node, kind: ops.Permute) -> fx.Node:
        source = self.packed(kind.source)
        order = [0] + [self.dim(kind.source, kind.order[position]) for position, _ in self.layout.rest(node)]
        if order == list(range(len(order))):
            return source
        made: fx.Node = self.editor.call(aten.permute.default, source, order)
        return made

    def _reduce(self, node: fx.Node, kind: ops.Reduce) -> fx.Node:
        dims = [self.dim(kind.source, d) for d in kind.dims]
        own = next(a for a in node.target._schema.arguments if a.name == "dim")  # type: ignore[union-attr]
        single = "int[" not in str(own.type) and "List[int]" not in str(own.type)
        source = node.target._schema.arguments[0].name  # type: ignore[union-attr]
        return self.editor.again(node, **{source: self.packed(kind.source), "dim": dims[0] if single else dims})

    def _along(self, node: fx.Node, kind: ops.Along) -> fx.Node:
        names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
        changed: dict[str, Any] = {names[0]: self.packed(kind.source)}
        if "dim" in names:
            changed["dim"] = self.dim(kind.source, kind.dims[0])
        elif "dims" in names:
            changed["dims"] = [self.dim(kind.source, d) for d in kind.dims]
        return self.editor.again(node, **changed)

    def _contract(self, node: fx.Node, kind: ops.Contract) -> fx.Node:
        if node.target is aten.linear.default:
            return self.editor.again(node, input=self.packed(kind.left))
        plain = self.layout.of(kind.right) is Layout.DENSE and ops.rank(kind.right) == 2 and kind.bias is None
        if plain and node.target is aten.matmul.default and not self._contracts_place(kind):
            return self.editor.again(node, self=self.packed(kind.left))
        out = [kind.out_labels[position] for position, _ in self.layout.rest(node)]
        left, left_labels = self._labelled(kind.left, kind.left_labels, kind, out)
        right, right_labels = self._labelled(kind.right, kind.right_labels, kind, out)
        equation = f"{left_labels},{right_labels}->t{''.join(out)}"
        product = self.editor.call(aten.einsum.default, equation, [left, right])
        if kind.bias is None:
            return product
        made: fx.Node = self.editor.call(aten.add.Tensor, product, self.aligned(kind.bias, node))
        return made

    def _contracts_place(self, kind: ops.Contract) -> bool:
        """Whether the left operand's packed form no longer ends with (row, summed) as matmul needs."""
        return not kind.left_labels.endswith("k") or self.layout.of(kind.left) is not Layout.TOKENS

    def _labelled(self, operand: fx.Node, labels: str, kind: ops.Contract, out: list[str]) -> tuple[fx.Node, str]:
        summed = [c for c in kind.left_labels if c in kind.right_labels and c not in kind.out_labels]
        value, first = self._operand(operand)
        if first:
            return value, "t" + "".join(labels[position] for position, _ in self.layout.rest(operand))
        kept = [k for k, c in enumerate(labels) if c in out or c in summed]
        for k in reversed([k for k in range(len(labels)) if k not in kept]):
            value = self.editor.call(aten.squeeze.dim, value, k)
        return value, "".join(labels[k] for k in kept)

    def _lookup(self, node: fx.Node, kind: ops.Lookup) -> fx.Node:
        if node.target is aten.index.Tensor:
            return self.editor.again(node, indices=[self.packed(kind.index)])
        return self.editor.again(node, indices=self.packed(kind.index))

    def _gather(self, node: fx.Node, kind: ops.Gather) -> fx.Node:
        source, index = self.packed(kind.source), self.packed(kind.index)
        return self.editor.again(node, self=source, dim=self.dim(kind.source, kind.dim), index=index)

    def _complex(self, node: fx.Node, kind: ops.Complex) -> fx.Node:
        """The two parts stay the last dimension; a copy has them side by side, wherever the source's memory begins."""
        source = self.packed(kind.source)
        if not source.meta["val"].is_complex():
            source = self.editor.call(aten.clone.default, source, memory_format=torch.contiguous_format)
        made: fx.Node = self.editor.call(node.target, source)  # type: ignore[arg-type]
        return made

    def _pick(self, node: fx.Node, kind: ops.Pick) -> fx.Node:
        source, dim = self.packed(kind.source), self.dim(kind.source, kind.dim)
        if node.target is aten.index.Tensor:
            return self.editor.again(node, self=source, indices=[*[None] * dim, kind.index])
        return self.editor.again(node, self=source, dim=dim)

    def _put(self, node: fx.Node, kind: ops.Put) -> fx.Node:
        """The values stand as the source does, one row a place, and broadcast against what is written."""
        source, dim = self.packed(kind.source), self.dim(kind.source, kind.dim)
        values = self.aligned(kind.values, node)
        return self.editor.again(node, self=source, indices=[*[None] * dim, kind.index], values=values)

    def _rowloss(self, node: fx.Node, kind: ops.RowLoss) -> fx.Node:
        logits, target = self.packed(kind.logits), self.packed(kind.target)
        made: fx.Node = self.editor.call(node.target, logits, target, *node.args[2:], **node.kwargs)  # type: ignore[arg-type]
        return made

    def _concatenate(self, node: fx.Node, kind: ops.Concatenate) -> fx.Node:
        made: fx.Node = self.editor.call(
            aten.cat.default, [self.packed(s) for s in kind.sources], self.dim(node, kind.dim)
        )
        return made

    def _stack(self, node: fx.Node, kind: ops.Stack) -> fx.Node:
        made: fx.Node = self.editor.call(
            aten.stack.default, [self.packed(s) for s in kind.sources], self.dim(node, kind.dim)
        )
        return made

    def _slice(self, node: fx.Node, kind: ops.Slice) -> fx.Node:
        if kind.whole:
            return self.packed(kind.source)
        return self.editor.again(node, self=self.packed(kind.source), dim=self.dim(kind.source, kind.dim))

    def _select(self, node: fx.Node, kind: ops.Select) -> fx.Node:
        return self.editor.again(node, self=self.packed(kind.source), dim=self.dim(kind.source, kind.dim))

    def _item(self, node: fx.Node, kind: ops.Item) -> fx.Node:
        several = kind.source
        if several not in self._sources:
            self._sources[several] = self._several(several)
        made: fx.Node = self.editor.call(operator.getitem, self._sources[several], kind.position)
        return made

    def _several(self, node: fx.Node) -> fx.Node:
        kind = ops.kind_of(node)
        if isinstance(kind, ops.Reduce):
            return self._reduce(node, kind)
        if isinstance(kind, ops.Along):
            return self._along(node, kind)
        assert isinstance(kind, ops.Items)
        names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
        return self.editor.again(node, **{names[0]: self.packed(kind.source), "dim": self.dim(kind.source, kind.dim)})


class Packer(RowForms):
    """Packed tokens. `packable` are those computed on tokens; all others are gathered from their dense form.
    `decided`: selections by a mask that are, at all packed places, the same operand."""

    layout: TokenLayout

    def __init__(
        self, editor: GraphEditor, layout: TokenLayout, packable: set[fx.Node], index: PackedIndex,
        decided: Mapping[fx.Node, fx.Node] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        super().__init__(editor, layout)
        self.packable, self.index, self.decided = packable, index, decided

    def _form(self, node: fx.Node) -> fx.Node:
        if node in self.decided:
            return self.packed(self.decided[node])
        if node in self.packable and self.layout.is_local(node):
            return self._compute(node)
        dense = self.arrange(node, list(self.layout.places))
        made: fx.Node = self.editor.call(torch.ops.gr.pack.default, dense, self.index.flat)
        return made

    def unpacked(self, node: fx.Node, fill: float | bool, row: fx.Node | None = None) -> fx.Node:
        """The dense form of a packed value, in the dimensions of `node`; places that are not kept hold `fill`, or `row`
        ([1, *rest])."""
        with self.editor.at(like=node):
            index = self.index
            dense = self.editor.call(
                torch.ops.gr.unpack.default, self.packed(node), index.flat, index.batch_size, index.length, fill
            )
            if row is not None:
                mask = index.mask
                for _ in self.layout.rest(node):
                    mask = self.editor.call(aten.unsqueeze.default, mask, -1)
                dense = self.editor.call(aten.where.self, mask, dense, self.editor.call(aten.unsqueeze.default, row, 0))
            return self.arrange_back(dense, node, list(self.layout.places))

    def _operand(self, operand: fx.Node) -> tuple[fx.Node, list[Atom]]:
        layout, batch, sequence = self.layout.of(operand), self.layout.batch, self.layout.sequence
        if layout is Layout.SEQUENCE:
            return self._at_tokens(operand, batch, self.index.batch(self.editor)), [batch]
        if layout is Layout.POSITION:
            return self._at_tokens(operand, sequence, self.index.position(self.editor)), [sequence]
        return super()._operand(operand)

    def _at_tokens(self, operand: fx.Node, atom: Atom, places: fx.Node) -> fx.Node:
        made: fx.Node = self.editor.call(aten.index_select.default, self.arrange(operand, [atom]), 0, places)
        return made


def _equal(sizes: list[Any], others: list[Any]) -> bool:
    """Equal as expressions: one size may be computed by several nodes."""

    tokens = [k for k, size in enumerate(sizes) if size == "T"]
    known = [[x.meta["val"] if isinstance(x, fx.Node) else x for x in each if x != "T"] for each in (sizes, others)]
    return tokens == [k for k, size in enumerate(others) if size == "T"] and same_sizes(*known)


def _order(atoms: list[Atom], first: list[Atom]) -> list[int]:
    """The dimensions of `first`, then all others as they stand; two of those may run over one index space."""
    return [atoms.index(a) for a in first] + [k for k, a in enumerate(atoms) if a not in first]
