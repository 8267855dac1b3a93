"""Reads: how an operator that is not packed reads a packed value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.element import Blocked, Elements
from gr_compile.analysis.element_rules import RULES
from gr_compile.analysis.element_views import VIEW_RULES
from gr_compile.analysis.expr import TRUE, Expr, and_, compare, const, index, or_, substitute
from gr_compile.analysis.implies import project
from gr_compile.analysis.layout import Layout, TokenLayout
from gr_compile.analysis.masked_index import masked_index, row_numbers
from gr_compile.analysis.pad_value import PadValues
from gr_compile.analysis.places import Places

aten = torch.ops.aten
SHAPE_ONLY = {aten.sym_size.int, aten.sym_numel.default, aten.sym_stride.int}
PACK = torch.ops.gr.pack.default


@dataclass(frozen=True)
class Read:
    """`user` reads `node` at the places `where` (over b and n); `what` says so in words.

    `rows`: the reader takes packed rows as they are, so a row must be there even where its content is known.
    """

    node: fx.Node
    user: fx.Node
    where: Expr
    what: str
    rows: bool = False


def read_tuples(pull: Elements, node: fx.Node, user: fx.Node) -> set[tuple[Expr, ...]] | None:
    """At which index tuples does one element of `user` read `node`? None where no rule says so."""
    rule = RULES.get(user.target)
    if rule is None:
        return None
    pull.forget()
    places = []
    for position, extent in enumerate(pull.shape(user)):
        name = f"o{position}"
        pull.bind(name, extent)
        places.append(index(name))
    try:
        rule(pull, user, tuple(places))
    except Blocked:
        return None
    return set(pull.visited.get(node, ()))


def flat_places(layout: TokenLayout, node: fx.Node, user: fx.Node) -> fx.Node | None:
    """The numbers b * N + n of the places that `x.flatten(0, 1)[numbers]` reads."""
    numbers = row_numbers(user)
    flat = numbers is not None and user.args[0] is node and layout.dims.of(node)[0] == (layout.batch, layout.sequence)
    return numbers if flat else None


class Readers:
    """Reads of one layout's values.

    `output_read`: the places that an output shows; `packs`: packed indices that the graph has already, with the masks
    of the places that they keep; `named`: the places that a tensor of numbers names.
    """

    def __init__(
        self, pull: Elements, layout: TokenLayout, places: Places, pads: PadValues, output_read: Expr,
        packs: Mapping[fx.Node, fx.Node], named: Callable[[fx.Node], Expr],
    ) -> None:  # fmt: skip
        self.pull, self.layout, self.places, self.pads = pull, layout, places, pads
        self.output_read, self.packs, self.named = output_read, packs, named

    def read(self, node: fx.Node, user: fx.Node) -> Read:
        """The places of `node` that `user` reads."""
        if user.op == "output":
            return Read(node, user, self.output_read, "an output")
        if user.target in ops.CLASS_LOSSES:
            return Read(node, user, self._loss_read(node, user), "a loss that ignores some targets", True)
        chosen = masked_index(user)
        if chosen is not None and node is user.args[0]:
            return Read(node, user, self._mask_read(node, chosen.mask), "an index by a mask", True)
        kind = ops.kind_of(user)
        if isinstance(kind, ops.Contract):
            return Read(node, user, self._contracted_read(node, kind), f"{user.target}")
        if user.target in VIEW_RULES:
            return Read(node, user, self._indexed_read(node, user), f"{user.target}", True)
        return Read(node, user, TRUE, f"{user.target}")

    def _loss_read(self, node: fx.Node, user: fx.Node) -> Expr:
        """Cross entropy reads the rows whose target is not ignore_index."""
        target = user.args[1]
        if node is not user.args[0] or not isinstance(target, fx.Node) or target.meta["val"].dtype.is_floating_point:
            return TRUE
        if self.layout.of(target) is not Layout.TOKENS or ops.argument(user, 3, "reduction", 1) == 0:
            return TRUE
        try:
            element = self.pull.element(target, self.places.of(target))
        except Blocked:
            return TRUE
        return compare("ne", element, const(int(ops.argument(user, 4, "ignore_index", -100))), self.pull.ranges)

    def _contracted_read(self, node: fx.Node, kind: ops.Contract) -> Expr:
        """A sum over places of products with weights reads the places where the weights are not 0."""
        sides = [(kind.left, kind.left_labels), (kind.right, kind.right_labels)]
        if kind.left is kind.right or kind.bias is not None:
            return TRUE
        (_, labels), (weights, other) = sides if node is kind.left else sides[::-1]
        own, theirs = (dict(zip(self.layout.dims.of(n), lab)) for n, lab in ((node, labels), (weights, other)))
        shared = [(self.layout.batch,), (self.layout.sequence,)]
        if self.layout.of(weights) is not Layout.TOKENS or any(own.get(d) != theirs.get(d) for d in shared):
            return TRUE
        pad = self.pads.of(weights)
        return pad.support if pad.fill == 0 and None not in map(own.get, shared) else TRUE

    def _indexed_read(self, node: fx.Node, user: fx.Node) -> Expr:
        """The places that a gather, an index, a slice or a select reads, whatever its other indices are."""
        numbers = flat_places(self.layout, node, user)
        if numbers is not None and self.pull.closed(numbers):
            return self.named(numbers)
        tuples = read_tuples(self.pull, node, user)
        if tuples is None:
            return TRUE
        wanted = self._packed_from(user)
        sets = []
        for indices in tuples:
            batch, sequence = self.places.read_at(node, indices)
            if batch is None or sequence is None or batch.op != "index":
                return TRUE
            at = and_(compare("eq", index("n"), sequence, self.pull.ranges), wanted)
            at = substitute(at, {batch: index("b")})
            sets.append(project(self.pull.ranges, at, frozenset({"b", "n"})))
        return or_(*sets)

    def _packed_from(self, user: fx.Node) -> Expr:
        """Which elements (o0, o1) of `user` are read, where only packing by known places reads it: a sequence cut
        short by a slice has places of its own, and those that nobody keeps are not read."""
        masks = [self.packs.get(p.args[1]) if p.target is PACK else None for p in user.users]  # type: ignore[arg-type]
        if not masks or None in masks:
            return TRUE
        return or_(*(self.pull.element(mask, (index("o0"), index("o1"))) for mask in masks))

    def _mask_read(self, node: fx.Node, mask: fx.Node) -> Expr:
        if self.layout.of(mask) is not Layout.TOKENS or not self._leads(mask, node):
            return TRUE
        try:
            return self.pull.element(mask, self.places.of(mask))
        except Blocked:
            return TRUE

    def _leads(self, mask: fx.Node, node: fx.Node) -> bool:
        """The mask's dimensions are the first ones of the node."""
        return self.layout.dims.of(node)[: ops.rank(mask)] == self.layout.dims.of(mask)
