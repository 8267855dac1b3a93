"""Steps of a score program: where scores that are computed anew, and so round differently, would change the answer.

`s < threshold` with a threshold that is one of the scores (top-k, a maximum) holds exactly at equality. A kernel that
computes the scores again would decide by the last bit.
"""

from __future__ import annotations

import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.dims import DimensionProvenance
from gr_compile.analysis.expr import Expr, walk
from gr_compile.analysis.region import Region

_STEPS = {
    "compare", "ceil", "floor", "round", "sign", "trunc", "floordiv", "truncdiv", "mod", "cast", "eq0", "ge0",
}  # fmt: skip
_SCORES = {"s", "sm"}


def decided_by_rounding(region: Region, dims: DimensionProvenance, nodes: dict[str, fx.Node]) -> fx.Node | None:
    """The value, computed from products of the region's queries and keys, that a step compares its scores with.

    `nodes`: what the loads of the program read.
    """
    programs = [region.score] if region.post is None else [region.score, region.post]
    for part in walk(*programs):
        if not _is_step(part):
            continue
        inside = list(walk(part))
        if not any(p.op in _SCORES for p in inside):
            continue
        for p in inside:
            if p.op == "load" and p.dtype not in ("b", "i") and _made_of_products(nodes[p.args[0]], region, dims):
                return nodes[p.args[0]]
    return None


def _is_step(part: Expr) -> bool:
    return part.op in _STEPS and (part.op != "cast" or part.dtype in ("b", "i"))


def _made_of_products(leaf: fx.Node, region: Region, dims: DimensionProvenance) -> bool:
    """Whether a product over pairs of the region's places, or what its scores are read from, is among the sources."""
    pair = [atom for atom in (region.query_atom, region.key_atom) if atom is not None]
    stack, seen = [leaf], set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if isinstance(ops.kind_of(node), ops.Contract):
            atoms = [atom for dim in dims.of(node) for atom in dim]
            if all(atoms.count(atom) >= pair.count(atom) for atom in pair):
                return True
        stack += node.all_input_nodes
    return False
