"""SiLU and a split in four, in either order: what `gr::silu_split` computes.

    silu(x) -> split -> u, v, q, k          all are activated
    x -> split -> silu(u), v, q, k          those whose only readers are SiLUs
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.fx as fx

from gr_compile.analysis.operators import Items, kind_of
from gr_compile.graph_pass import Miss
from gr_compile.ops.silu_split import PARTS
from gr_compile.passes.fuse_token_operators.norms import DTYPES
from gr_compile.passes.fuse_token_operators.spellings import activated, given, item_of, last_dim, readers, value_of

aten = torch.ops.aten


@dataclass(frozen=True)
class Split:
    """x, taken apart along the last dimension.

    Attributes:
        parts: for each part the values that stand for it after SiLU, or for itself where it has none.
        activated: a bit a part.
    """

    node: fx.Node
    x: fx.Node
    widths: tuple[int, ...]
    parts: tuple[tuple[fx.Node, ...], ...]
    activated: int


def split_at(source: fx.Node) -> Split | Miss | None:
    """What becomes of a value that is split and goes through SiLU; None where it does not."""
    inside = _taken_apart(source)
    if inside is None:
        return None
    before = activated(source)
    behind = [_silus(nodes) for nodes in inside.nodes]
    if before is None and not any(behind):
        return None
    blocked = _blocked(source, inside, before)
    if blocked is not None:
        return blocked
    if before is not None:
        mask, parts = (1 << PARTS) - 1, inside.nodes
    else:
        mask = sum(1 << k for k, silus in enumerate(behind) if silus)
        parts = [silus or nodes for silus, nodes in zip(behind, inside.nodes)]
    x = source if before is None else before
    return Split(inside.node, x, tuple(inside.widths), tuple(map(tuple, parts)), mask)


@dataclass(frozen=True)
class _Apart:
    """The nodes of each part, in order; `node` is where they are made."""

    node: fx.Node
    nodes: list[list[fx.Node]]
    widths: list[int]
    last: bool
    others: list[fx.Node]


def _taken_apart(source: fx.Node) -> _Apart | None:
    """The parts that the readers of a value take of it: by one call that splits, or by slices that cover it."""
    if value_of(source) is None or value_of(source).dim() < 1:  # type: ignore[union-attr]
        return None
    found = readers(source)
    calls = [user for user in found if isinstance(kind := kind_of(user), Items) and not kind.drop]
    if calls:
        return _by_call(calls[0], [user for user in found if user is not calls[0]])
    slices = [user for user in found if user.target is aten.slice.Tensor and last_dim(source, given(user, "dim"))]
    return _by_slices(source, slices, [user for user in found if user not in slices]) if len(slices) > 1 else None


def _by_call(call: fx.Node, others: list[fx.Node]) -> _Apart:
    sizes = call.meta["val"]
    nodes = [[user for user in call.users if item_of(user, k)] for k in range(len(sizes))]
    widths = [part.shape[-1] for part in sizes]
    return _Apart(call, nodes, widths, last_dim(call.args[0], _dim(call)), others)  # type: ignore[arg-type]


def _dim(call: fx.Node) -> int:
    kind = kind_of(call)
    assert isinstance(kind, Items)
    return kind.dim


def _by_slices(source: fx.Node, slices: Sequence[fx.Node], others: list[fx.Node]) -> _Apart | None:
    """Slices that cover the last dimension, one behind the other; None where they do not."""
    extent, at = source.meta["val"].shape[-1], 0
    by_start: dict[object, list[fx.Node]] = {}
    for one in slices:
        if given(one, "step") != 1:
            return None
        by_start.setdefault(given(one, "start") or 0, []).append(one)
    nodes, widths = [], []
    while isinstance(extent, int) and at < extent:
        here = by_start.pop(at, [])
        ends = {one.meta["val"].shape[-1] for one in here}
        if len(ends) != 1 or not isinstance(width := ends.pop(), int) or width == 0:
            return None
        nodes.append(here)
        widths.append(width)
        at += width
    first = min(slices, key=list(source.graph.nodes).index)
    return None if by_start or at != extent else _Apart(first, nodes, widths, True, others)


def _silus(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """The SiLUs of a part that nothing else reads."""
    found = [user for node in nodes for user in readers(node)]
    return found if found and all(activated(user) in nodes for user in found) else []


def _blocked(source: fx.Node, inside: _Apart, before: fx.Node | None) -> Miss | None:
    x = source.meta["val"]
    if not inside.last:
        return Miss("SiLU and a split, but not along the features", inside.node)
    if len(inside.nodes) != PARTS:
        count = len(inside.nodes)
        return Miss(f"SiLU and a split in {count}: the operator has {PARTS} parts, u, v, q and k", inside.node)
    if inside.others and before is not None:
        return Miss("what is split is read elsewhere, too", inside.others[0])
    if x.dtype not in DTYPES:
        return Miss(f"SiLU and a split of {x.dtype}, for which no kernel is made", inside.node)
    if not all(isinstance(width, int) for width in inside.widths):
        return Miss("the widths of the parts are known at run time only", inside.node)
    return None
