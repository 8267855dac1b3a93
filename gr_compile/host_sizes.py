"""Sizes known outside the graph: what counts places runs beforehand, and the compiled graph takes the counts as inputs.

Passes leave one graph in which `gr::count_true` says how many places there are. Before a target compiles it, `split`
cuts it in two:

    prelude   inputs -> counts          what the counts are computed from, run operator by operator on the real inputs
    main      inputs, counts -> outputs everything else; of no count it asks the device

A count must be the same number inside and outside the graph, whatever a target makes of the graph's arithmetic. So
the prelude holds operators only whose result no rounding, no order of summation and no random state can change:
`blocker` names the first one that is not of this kind, and such a count stays in the graph, where it is right too.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree

import gr_compile.ops  # noqa: F401  (registers gr::count_true)
from gr_compile.analysis.operators import is_pointwise

aten = torch.ops.aten
COUNT = torch.ops.gr.count_true.default
_ITEMS = {COUNT, aten.item.default, aten._local_scalar_dense.default}
_GENERATORS = {
    aten.arange.default, aten.arange.start, aten.arange.start_step, aten.full.default, aten.full_like.default,
    aten.zeros.default, aten.zeros_like.default, aten.ones.default, aten.ones_like.default,
    aten.scalar_tensor.default, aten.new_zeros.default, aten.new_ones.default, aten.new_full.default,
    aten.eye.default,
}  # fmt: skip
_MOVES = {
    aten.reshape.default, aten.flatten.using_ints, aten.clone.default, aten.contiguous.default, aten.cat.default,
    aten.stack.default, aten.roll.default, aten.flip.default, aten.tril.default, aten.triu.default,
    aten.repeat.default, aten.constant_pad_nd.default, aten.pad.default, aten.index.Tensor, aten.index_select.default,
    aten.gather.default, aten.embedding.default, aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf,
    aten.where.Scalar, aten.masked_fill.Scalar, aten.masked_fill.Tensor, torch.ops.gr.pack.default,
    torch.ops.gr.unpack.default, operator.getitem,
}  # fmt: skip
_CASTS = {
    aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other, aten._to_copy.default, aten.type_as.default,
}  # fmt: skip
_COMPARISONS = {
    getattr(packet, overload)
    for packet in (aten.eq, aten.ne, aten.lt, aten.le, aten.gt, aten.ge)
    for overload in ("Scalar", "Tensor")
} | {aten.isnan.default, aten.isfinite.default, aten.isinf.default}
_EXACT = frozenset(_GENERATORS | _MOVES | _CASTS | _COMPARISONS)
_WHOLE = {
    aten.sum.default, aten.sum.dim_IntList, aten.cumsum.default, aten.any.default, aten.any.dim, aten.any.dims,
    aten.all.default, aten.all.dim, aten.all.dims, aten.amax.default, aten.amin.default, aten.max.default,
    aten.min.default, aten.count_nonzero.default, aten.count_nonzero.dim_IntList, aten.searchsorted.Tensor,
    aten.bucketize.Tensor, aten.logical_and.default, aten.logical_or.default, aten.logical_not.default,
    torch.ops.gr.suffix_any.default, torch.ops.gr.segment_sum.default, torch.ops.gr.segment_expand.default,
    torch.ops.gr.true_places.default, torch.ops.gr.occurring.default, torch.ops.gr.numbered.default,
}  # fmt: skip


@dataclass(frozen=True)
class Blocker:
    """Why a value cannot be computed outside the graph, and the operation or input that is the cause."""

    reason: str
    node: fx.Node


def blocker(value: fx.Node) -> Blocker | None:
    """What keeps a graph value, or what it is computed from, from being computed outside the graph; None: nothing."""
    for node in _slice([value]):
        reason = _why_not(node)
        if reason is not None:
            return Blocker(reason, node)
    return None


def _slice(values: Iterable[fx.Node]) -> list[fx.Node]:
    """The values and everything that they are computed from, the nearest first."""
    found = dict.fromkeys(values)
    waiting = list(found)
    while waiting:
        new = [node for node in waiting.pop(0).all_input_nodes if node not in found]
        found.update(dict.fromkeys(new))
        waiting += new
    return list(found)


def _why_not(node: fx.Node) -> str | None:
    target: Any = node.target
    if node.op in ("placeholder", "get_attr"):
        return None
    if isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in target.tags:
        return f"it depends on random numbers ({target})"
    results = [v for v in pytree.tree_leaves(node.meta.get("val")) if isinstance(v, torch.Tensor)]
    if not results:
        return _why_not_a_size(node)
    if not isinstance(target, torch._ops.OpOverload) and target is not operator.getitem:
        return f"it depends on {target}, of which nothing is known"
    is_view = getattr(target, "is_view", False) and target not in _CASTS  # a cast may be a view, or rounds
    return None if is_view else _why_not_exact(node, results)


def _why_not_exact(node: fx.Node, results: Sequence[torch.Tensor]) -> str | None:
    """Compiled code keeps half precision in wider registers and contracts products with sums; of whole numbers, of
    comparisons and of values that are only moved there is one result."""
    target: Any = node.target
    operands = [a.meta["val"] for a in node.all_input_nodes if isinstance(a.meta.get("val"), torch.Tensor)]
    floating = [v for v in (*results, *operands) if v.is_floating_point() or v.is_complex()]
    if any(v.element_size() < 4 for v in floating):
        return f"it depends on values in half precision ({target}), which may be rounded otherwise there"
    if target in _EXACT:
        return None
    if floating:
        return f"it depends on floating-point arithmetic ({target}), which may be rounded otherwise there"
    if target in _WHOLE or is_pointwise(target):
        return None
    return f"it depends on {target}, which is not known to give the same there"


def _why_not_a_size(node: fx.Node) -> str | None:
    """Whole numbers: sizes, arithmetic on them, and elements of tensors that were read."""
    held = node.meta.get("val")
    if isinstance(held, (int, torch.SymInt)) and not isinstance(held, bool):
        return None
    return f"it depends on a number that is no size ({node.target})"


# ------------------------------------------------------------------------------------------------- the cut
@dataclass(frozen=True)
class HostSizes:
    """A graph in two parts.

    Attributes:
        prelude: takes the inputs at `positions`, returns one int for each of `sizes`.
        positions: which of the graph's inputs the prelude reads.
        main: takes the graph's inputs and then the ints.
        sizes: the ints as the graph's symbols, in order: example inputs for a target.
    """

    prelude: fx.GraphModule
    positions: tuple[int, ...]
    main: fx.GraphModule
    sizes: tuple[torch.SymInt, ...]


def split(graph_module: fx.GraphModule) -> HostSizes | None:
    """The two parts of a graph; None where no count can be computed outside it. `graph_module` stays as it is."""
    counts = [node for node in graph_module.graph.find_nodes(op="call_function", target=COUNT) if blocker(node) is None]
    if not counts:
        return None
    wanted = set(_slice(counts))
    read = [
        node for node in graph_module.graph.nodes
        if node in wanted and node.target in _ITEMS and isinstance(node.meta["val"], torch.SymInt)
    ]  # fmt: skip
    positions = tuple(k for k, node in enumerate(graph_module.graph.find_nodes(op="placeholder")) if node in wanted)
    sizes = tuple(node.meta["val"] for node in read)
    return HostSizes(_prelude(graph_module, wanted, read), positions, _main(graph_module, read), sizes)


def _prelude(graph_module: fx.GraphModule, wanted: set[fx.Node], read: Sequence[fx.Node]) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph_module.graph.nodes:
        if node in wanted:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in read))
    return fx.GraphModule(graph_module, graph, "Prelude")


def _main(graph_module: fx.GraphModule, read: Sequence[fx.Node]) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph_module.graph.find_nodes(op="placeholder"):
        copies[node] = graph.node_copy(node, copies.__getitem__)
    for node in read:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta["val"] = node.meta["val"]
    for node in graph_module.graph.nodes:
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.eliminate_dead_code()
    return fx.GraphModule(graph_module, graph)


class WithHostSizes:
    """A compiled main graph behind its prelude: called with the inputs of the whole graph."""

    def __init__(self, compiled: Callable[..., Any], parts: HostSizes) -> None:
        self.compiled, self.prelude, self.positions = compiled, parts.prelude.forward, parts.positions

    def __call__(self, *args: Any) -> Any:
        with torch.no_grad():
            sizes = self.prelude(*(args[position] for position in self.positions))
        return self.compiled(*args, *sizes)
