"""Reads: how an operator that is not packed reads a packed value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.fx as fx

from gr_compile.analysis.element import Blocked, Elements
from gr_compile.analysis.element_rules import RULES
from gr_compile.analysis.expr import Expr, index

aten = torch.ops.aten
SHAPE_ONLY = {aten.sym_size.int, aten.sym_numel.default, aten.sym_stride.int}
CROSS_ENTROPY = aten.cross_entropy_loss.default
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


def boolean_index(user: fx.Node) -> fx.Node | None:
    """The mask of `x[mask]`."""
    if user.target is not aten.index.Tensor:
        return None
    given = list(user.args[1])  # type: ignore[arg-type]
    if len(given) == 1 and isinstance(given[0], fx.Node) and given[0].meta["val"].dtype == torch.bool:
        return given[0]
    return None


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
