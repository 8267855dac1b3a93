"""Where every dimension of every value comes from: provenance, never equal sizes (B, N and D collide in real models).

A dimension is a tuple of atoms: `(B,)`, a flattened `(B, N)`, or `()` for a size of 1 that was made for broadcasting.
Two dimensions share an atom only where some operator reads index k of one together with index k of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.masked_index import masked_index
from gr_compile.sizes import size_expr


class Atom:
    """One index space. Atoms that an operator aligns are merged; one that a reshape splits refers to its parts."""

    __slots__ = ("number", "parent", "parts", "size")

    def __init__(self, size: sympy.Expr, number: int) -> None:
        self.size, self.number = size, number
        self.parent: Atom | None = None
        self.parts: tuple[Atom, ...] | None = None

    def root(self) -> Atom:
        """The representative of the merged class."""
        atom = self
        while atom.parent is not None:
            atom = atom.parent
        return atom

    def __repr__(self) -> str:
        return f"a{self.number}:{self.size}"


Dim = tuple[Atom, ...]


class DimensionProvenance:
    """The dimensions of every tensor of a graph as tuples of atoms."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        self._dims: dict[fx.Node, tuple[Dim, ...]] = {}
        self._count = 0
        self._ragged: dict[fx.Node, tuple[Dim, Dim, Dim]] = {}
        for node in graph_module.graph.nodes:
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor):
                self._dims[node] = tuple(self._of(node, value))
            elif isinstance(value, (tuple, list)) and any(isinstance(v, torch.Tensor) for v in value):
                self._of_several(node)

    def of(self, node: fx.Node) -> tuple[Dim, ...]:
        """The dimensions of a tensor node, atoms resolved to their roots and parts."""
        return tuple(self.resolve(dim) for dim in self._dims[node])

    def known(self, node: fx.Node) -> bool:
        """True for tensor nodes."""
        return node in self._dims

    def resolve(self, dim: Dim) -> Dim:
        """Merged atoms become their roots, split ones their parts."""
        out: list[Atom] = []
        for atom in dim:
            root = atom.root()
            out += self.resolve(root.parts) if root.parts is not None else (root,)
        return tuple(out)

    # ------------------------------------------------------------------------------------------- building
    def _fresh(self, size: Any) -> Dim:
        self._count += 1
        return (Atom(size_expr(size), self._count),)

    def _fresh_dims(self, value: torch.Tensor) -> list[Dim]:
        return [self._fresh(size) for size in value.shape]

    def _of(self, node: fx.Node, value: torch.Tensor) -> list[Dim]:
        self._align_masked_index(node)
        kind = ops.kind_of(node)
        if kind is None:
            return self._opaque(node, value)
        rule = getattr(self, "_" + type(kind).__name__.lower())
        dims: list[Dim] = rule(node, value, kind)
        return dims if len(dims) == value.dim() else self._fresh_dims(value)

    def _of_several(self, node: fx.Node) -> None:
        kind = ops.kind_of(node)
        first = next(v for v in node.meta["val"] if isinstance(v, torch.Tensor))
        if isinstance(kind, (ops.Reduce, ops.Along)) and self.known(kind.source):
            rule = self._reduce if isinstance(kind, ops.Reduce) else self._along
            self._dims[node] = tuple(rule(node, first, kind))  # type: ignore[arg-type]

    def _opaque(self, node: fx.Node, value: torch.Tensor) -> list[Dim]:
        if node.target is torch.ops.aten.scaled_dot_product_attention.default:
            query, key, values = (self._dims[n] for n in node.args[:3])  # type: ignore[index]
            lead = []
            for position, (a, b, c) in enumerate(zip(query[:-2], key[:-2], values[:-2])):
                self._unify(a, b)
                self._unify(a, c)
                size = size_expr(value.shape[position])  # one query may serve all sequences
                lead.append(next((dim for dim in (a, b, c) if self._size(dim) == size), a))
            self._unify(key[-2], values[-2])
            self._align_mask(ops.argument(node, 3, "attn_mask"), (*lead, query[-2], key[-2]))
            return [*lead, query[-2], values[-1]]
        if node.target in ops.CLASS_LOSSES:
            self._align_targets(node)
        if node.target is torch.ops.gr.pack.default:
            batch, length, tokens = self._places_of(node.args[1], node.args[0].meta["val"].shape, value.shape[0])  # type: ignore[arg-type,union-attr]
            dense = self._dims[node.args[0]]  # type: ignore[index]
            self._unify(dense[0], batch)
            self._unify(dense[1], length)
            return [tokens, *dense[2:]]
        if node.target is torch.ops.gr.unpack.default:
            packed = self._dims[node.args[0]]  # type: ignore[index]
            batch, length, _ = self._places_of(node.args[1], value.shape, node.args[0].meta["val"].shape[0])  # type: ignore[arg-type,union-attr]
            return [batch, length, *packed[1:]]
        if node.target is torch.ops.gr.numbered.default:
            return list(self._dims[node.args[0]])  # type: ignore[index]
        return self._fresh_dims(value)

    def _places_of(self, index: fx.Node, dense: Any, tokens: Any) -> tuple[Dim, Dim, Dim]:
        """All values packed by one index share their places."""
        if index not in self._ragged:
            self._ragged[index] = (self._fresh(dense[0]), self._fresh(dense[1]), self._fresh(tokens))
        return self._ragged[index]

    def _align_mask(self, mask: fx.Node | None, scores: tuple[Dim, ...]) -> None:
        """The mask of an attention operator broadcasts against [..., queries, keys]."""
        if mask is None:
            return
        for own, dim in zip(self._dims[mask][::-1], scores[::-1]):
            if own and self._size(own) == self._size(dim):
                self._unify(dim, own)

    def _align_masked_index(self, node: fx.Node) -> None:
        """x[mask], x[torch.where(mask)]: the mask has the first dimensions of x."""
        chosen = masked_index(node)
        if chosen is not None:
            for a, b in zip(self._dims[node.args[0]], self._dims[chosen.mask]):  # type: ignore[index]
                self._unify(a, b)

    def _align_targets(self, node: fx.Node) -> None:
        """Classes are dimension 1 of logits; all others run with the targets'."""
        logits, targets = (self._dims[n] for n in node.args[:2])  # type: ignore[index]
        if len(logits) == len(targets) + 1:
            for a, b in zip((logits[0], *logits[2:]), targets):
                self._unify(a, b)

    def _pointwise(self, node: fx.Node, value: torch.Tensor, kind: ops.Pointwise) -> list[Dim]:
        return self._broadcast([self._dims[n] for n in ops.tensor_operands(node)], value)

    def _broadcast(self, operands: Sequence[tuple[Dim, ...]], value: torch.Tensor) -> list[Dim]:
        out: list[Dim] = []
        for position in range(value.dim()):
            size = size_expr(value.shape[position])
            aligned = [dims[k] for dims in operands if (k := len(dims) - value.dim() + position) >= 0]
            full = [dim for dim in aligned if self._size(dim) == size and dim]
            for other in full[1:]:
                self._unify(full[0], other)
            out.append(full[0] if full else (() if size == 1 else self._fresh(value.shape[position])))
        return out

    def _expand(self, node: fx.Node, value: torch.Tensor, kind: ops.Expand) -> list[Dim]:
        return self._broadcast([self._dims[kind.source]], value)

    def _permute(self, node: fx.Node, value: torch.Tensor, kind: ops.Permute) -> list[Dim]:
        return [self._dims[kind.source][d] for d in kind.order]

    def _reduce(self, node: fx.Node, value: torch.Tensor, kind: ops.Reduce) -> list[Dim]:
        dims = self._dims[kind.source]
        if kind.keepdim:
            return [() if d in kind.dims else dim for d, dim in enumerate(dims)]
        return [dim for d, dim in enumerate(dims) if d not in kind.dims]

    def _along(self, node: fx.Node, value: torch.Tensor, kind: ops.Along) -> list[Dim]:
        return [
            dim if self._size(dim) == size_expr(value.shape[d]) else self._fresh(value.shape[d])
            for d, dim in enumerate(self._dims[kind.source])
        ]

    def _contract(self, node: fx.Node, value: torch.Tensor, kind: ops.Contract) -> list[Dim]:
        table: dict[str, Dim] = {}
        for operand, labels in ((kind.left, kind.left_labels), (kind.right, kind.right_labels)):
            for label, dim in zip(labels, self._dims[operand]):
                if label not in table or not table[label] or self._size(table[label]) == 1:
                    table[label] = dim
                elif dim and self._size(dim) != 1:
                    self._unify(table[label], dim)
        out = [table[label] for label in kind.out_labels]
        if kind.bias is not None:
            self._broadcast([tuple(out), self._dims[kind.bias]], value)
        return out

    def _lookup(self, node: fx.Node, value: torch.Tensor, kind: ops.Lookup) -> list[Dim]:
        return [*self._dims[kind.index], *self._dims[kind.table][1:]]

    def _gather(self, node: fx.Node, value: torch.Tensor, kind: ops.Gather) -> list[Dim]:
        index = list(self._dims[kind.index])
        for d, dim in enumerate(self._dims[kind.source]):
            if d != kind.dim and self._size(dim) == self._size(index[d]):
                self._unify(dim, index[d])
        return index

    def _complex(self, node: fx.Node, value: torch.Tensor, kind: ops.Complex) -> list[Dim]:
        dims = list(self._dims[kind.source])
        return dims[:-1] if value.is_complex() else [*dims, self._fresh(2)]

    def _pick(self, node: fx.Node, value: torch.Tensor, kind: ops.Pick) -> list[Dim]:
        out = list(self._dims[kind.source])
        out[kind.dim] = self._fresh(value.shape[kind.dim]) if kind.index is None else self._dims[kind.index][0]
        return out

    def _put(self, node: fx.Node, value: torch.Tensor, kind: ops.Put) -> list[Dim]:
        """The values' other dimensions run with the source's."""
        out, values = list(self._dims[kind.source]), self._dims[kind.values]
        for position, dim in enumerate(values, start=len(out) - len(values)):
            if position != kind.dim and dim:
                self._unify(out[position], dim)
        return out

    def _concatenate(self, node: fx.Node, value: torch.Tensor, kind: ops.Concatenate) -> list[Dim]:
        sources = [self._dims[source] for source in kind.sources if source.meta["val"].dim() == value.dim()]
        out = []
        for d in range(value.dim()):
            if d == kind.dim:
                out.append(self._fresh(value.shape[d]))
                continue
            for other in sources[1:]:
                self._unify(sources[0][d], other[d])
            out.append(sources[0][d])
        return out

    def _stack(self, node: fx.Node, value: torch.Tensor, kind: ops.Stack) -> list[Dim]:
        sources = [self._dims[source] for source in kind.sources]
        for other in sources[1:]:
            for a, b in zip(sources[0], other):
                self._unify(a, b)
        out = list(sources[0])
        out.insert(kind.dim, self._fresh(value.shape[kind.dim]))
        return out

    def _slice(self, node: fx.Node, value: torch.Tensor, kind: ops.Slice) -> list[Dim]:
        out = list(self._dims[kind.source])
        if not kind.whole:
            out[kind.dim] = self._fresh(value.shape[kind.dim])
        return out

    def _select(self, node: fx.Node, value: torch.Tensor, kind: ops.Select) -> list[Dim]:
        return [dim for d, dim in enumerate(self._dims[kind.source]) if d != kind.dim]

    def _item(self, node: fx.Node, value: torch.Tensor, kind: ops.Item) -> list[Dim]:
        source = ops.kind_of(kind.source)
        if isinstance(source, ops.Items):
            dims = list(self._dims[source.source])
            if source.drop:
                del dims[source.dim]
            elif self._size(dims[source.dim]) != size_expr(value.shape[source.dim]):
                dims[source.dim] = self._fresh(value.shape[source.dim])
            return dims
        if self.known(kind.source) and isinstance(source, (ops.Reduce, ops.Along, ops.Pointwise)):
            return list(self._dims[kind.source])
        return self._fresh_dims(value)

    def _rowloss(self, node: fx.Node, value: torch.Tensor, kind: ops.RowLoss) -> list[Dim]:
        self._align_targets(node)
        return list(self._dims[kind.target])

    def _items(self, node: fx.Node, value: torch.Tensor, kind: ops.Items) -> list[Dim]:
        return self._fresh_dims(value)

    # ------------------------------------------------------------------------------------------- reshape
    def _reshape(self, node: fx.Node, value: torch.Tensor, kind: ops.Reshape) -> list[Dim]:
        atoms = [atom for dim in self._dims[kind.source] for atom in self.resolve(dim) if atom.size != 1]
        sizes = [size_expr(size) for size in value.shape]
        out: list[Dim] = []
        for position, size in enumerate(sizes):
            taken = self._take(atoms, size)
            if taken is None:
                return [*out, *(self._fresh(s) if s != 1 else () for s in sizes[position:])]
            out.append(taken)
        return self._keep_unit_batch(node, kind, out, value)

    def _keep_unit_batch(self, node: fx.Node, kind: ops.Reshape, out: list[Dim], value: torch.Tensor) -> list[Dim]:
        """A size-1 dimension that an input brought (B = 1) keeps its atom where the reshape does not move it."""
        for d, dim in enumerate(self._dims[kind.source]):
            if dim and self._size(dim) == 1 and d < len(out) and out[d] == () and all(
                self._size(self._dims[kind.source][e]) == self._size(out[e]) for e in range(d)
            ):  # fmt: skip
                out[d] = dim
        return out

    def _take(self, atoms: list[Atom], size: sympy.Expr) -> Dim | None:
        """Remove from `atoms` those that make up a dimension of `size`; the last one is split where it reaches over."""
        taken: list[Atom] = []
        left = size
        while left != 1:
            if not atoms:
                return None
            atom = atoms.pop(0)
            rest = _quotient(left, atom.size)
            if rest is None:
                beyond = _quotient(atom.size, left)
                if beyond is None:
                    return None
                atom.parts = (self._fresh(left)[0], self._fresh(beyond)[0])
                atoms.insert(0, atom.parts[1])
                atom, rest = atom.parts[0], sympy.Integer(1)
            taken.append(atom)
            left = rest
        return tuple(taken)

    # --------------------------------------------------------------------------------------------- merging
    def _size(self, dim: Dim) -> sympy.Expr:
        product = sympy.Integer(1)
        for atom in dim:
            product = product * atom.size
        return product

    def _unify(self, a: Dim, b: Dim) -> None:
        a, b = self.resolve(a), self.resolve(b)
        if a == b or self._size(a) != self._size(b):
            return
        if len(a) == len(b):
            for x, y in zip(a, b):
                if x is not y and x.size == y.size:
                    old, new = (x, y) if y.number < x.number else (y, x)
                    old.parent = new
        elif len(a) == 1 and a[0] not in b:
            a[0].parts = b
        elif len(b) == 1 and b[0] not in a:
            b[0].parts = a


def _quotient(size: sympy.Expr, part: sympy.Expr) -> sympy.Expr | None:
    """size / part where that is a whole number whatever the symbols stand for."""
    if part == 0:
        return None
    quotient = sympy.cancel(size / part)
    numerator, denominator = quotient.as_numer_denom()
    return numerator if denominator == 1 else None
