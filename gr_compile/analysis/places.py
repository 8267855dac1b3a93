"""Places: the index expressions of a value at (b, n), and which place an index tuple reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch.fx as fx

from gr_compile.analysis.dims import Dim
from gr_compile.analysis.element import Elements
from gr_compile.analysis.expr import Expr, add, const, divmod_, index, mul
from gr_compile.analysis.layout import TokenLayout


class Places:
    """Index tuples of nodes in terms of b, n and one feature index for each other index space."""

    def __init__(self, pull: Elements, layout: TokenLayout, node: fx.Node) -> None:
        self.pull, self.layout = pull, layout
        dims = layout.dims.of(node)
        for dim in dims:
            for atom in dim:
                if atom is layout.batch:
                    self.batch_extent = pull._symbolic(atom.size)
                if atom is layout.sequence:
                    self.sequence_extent = pull._symbolic(atom.size)
        pull.bind("b", self.batch_extent)
        pull.bind("n", self.sequence_extent)

    def of(self, node: fx.Node) -> tuple[Expr, ...]:
        """The indices of `node` at (b, n); other dimensions have feature indices of their own."""
        return tuple(self._place(dim) for dim in self.layout.dims.of(node))

    def _place(self, dim: Dim) -> Expr:
        place = const(0)
        for atom in dim:
            size = self.pull._symbolic(atom.size)
            if atom is self.layout.batch:
                digit = index("b")
            elif atom is self.layout.sequence:
                digit = index("n")
            else:
                digit = index(f"f{atom.number}")
                self.pull.bind(f"f{atom.number}", size)
            place = add(mul(place, size), digit)
        return place

    def read_at(self, node: fx.Node, indices: Sequence[Expr]) -> tuple[Expr | None, Expr | None]:
        """The (b, n) that an index tuple reads of a value; None where the value has no such dimension.

        A dimension that runs over several index spaces is taken apart by its sizes.
        """
        batch = sequence = None
        for dim, place in zip(self.layout.dims.of(node), indices):
            for atom in reversed(dim):
                size = self.pull._symbolic(atom.size)
                place, digit = (const(0), place) if atom is dim[0] else divmod_(place, size, self.pull.ranges)
                if atom is self.layout.batch:
                    batch = digit
                if atom is self.layout.sequence:
                    sequence = digit
        return batch, sequence
