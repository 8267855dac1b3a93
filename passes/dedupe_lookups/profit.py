"""The profit gate: what a batch costs with a row for every place, and with a row for every distinct id.

    before = P * work
    after  = U * work + P * (spread + 40) + 5 * V + 1e6

P places, V rows of the table, U distinct ids; `work` of the members of a region at one place, `spread` of the values
that leave it. All in accesses: float32 numbers that are moved to or from memory, 16 multiply-adds for one
(analysis/cost.py). The constants are measured: an id marks a row and reads its number, both at random; the calls alone
take a tenth of a millisecond. A training step computes a product three times (itself and two gradients), and every
other value twice; without gradients most of what is no product is fused into its neighbours, and counts a quarter.

Of P draws from V rows, whatever their probabilities are, at most V (1 - (1 - 1/V)^P) distinct ones are expected: equal
probabilities have the most. Batches whose items are of unequal popularity have fewer, and gain more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx
import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.cost import elements_per_place, work_per_place
from gr_compile.analysis.kinds import Contract, Reduce
from gr_compile.analysis.looked_up import rows_and_numbers
from gr_compile.analysis.reads import SHAPE_ONLY
from gr_compile.passes.dedupe_lookups.regions import Region, operands
from gr_compile.sizes import size_expr

aten = torch.ops.aten
_PER_ID, _PER_ROW, _FIXED = 40.0, 5.0, 1e6
_NOTHING = 1e-6
_FUSED = 0.25  # of what is no product and is computed without gradients


def expected_distinct(places: float, rows: float) -> float:
    """The most distinct rows that `places` independent draws from `rows` rows are expected to have."""
    if rows <= 1 or places <= 1:
        return min(places, rows)
    return -rows * math.expm1(places * math.log1p(-1 / rows))


class Sizes:
    """Example sizes: of inputs those of the batch at hand, of what data counts an expectation.

    `fill`: the expected share of places that are kept; `share`: the share of distinct ids that the user expects.
    """

    def __init__(self, graph_module: fx.GraphModule, fill: float, share: float) -> None:
        self._fill, self._share = fill, share
        self._counted: dict[Any, fx.Node] = {}
        for node in graph_module.graph.nodes:
            for symbol in node.meta.get("unbacked_bindings") or ():
                self._counted[symbol] = node

    def of(self, size: Any) -> float:
        """An example value of a size."""
        expr = size_expr(size)
        values = {symbol: self._symbol(symbol, size) for symbol in expr.free_symbols}
        return max(float(expr.xreplace(values)), 0.0)

    def _symbol(self, symbol: Any, size: Any) -> int:
        counter = self._counted.get(symbol)
        if counter is not None:
            return math.ceil(self._counted_places(counter))
        shape_env = size.node.shape_env if isinstance(size, torch.SymInt) else None
        hint = shape_env.backed_var_to_val.get(symbol) if shape_env is not None else None
        return int(hint) if hint is not None else 64

    def _counted_places(self, counter: fx.Node) -> float:
        mask = next((x for x in counter.all_input_nodes if isinstance(x.meta.get("val"), torch.Tensor)), None)
        if mask is None:
            return 64.0
        if mask.target is torch.ops.gr.occurring.default:
            return self.distinct(self.of_tensor(mask.all_input_nodes[0]), self.of(mask.meta["val"].shape[0]))
        return self._fill * self.of_tensor(mask)

    def of_tensor(self, node: fx.Node) -> float:
        """The number of elements."""
        return math.prod(self.of(size) for size in node.meta["val"].shape)

    def distinct(self, places: float, rows: float) -> float:
        """How many of `rows` rows that many ids are expected to name."""
        return min(self._share * places, rows) if self._share else expected_distinct(places, rows)


@dataclass(frozen=True)
class Cut:
    """What of a region is computed by distinct id.

    Attributes:
        inside: the members, in the graph's order; none where nothing pays.
        spread: those of them whose values others read at every place.
        before, after: accesses, without what it costs to find the distinct ids.
    """

    region: Region
    inside: tuple[fx.Node, ...]
    spread: tuple[fx.Node, ...]
    before: float
    after: float


class Costs:
    """Accesses at a place, for one graph.

    `training`: with a backward. `weighed`: else ids are found and rows spread for next to nothing, and all that can be
    is computed by distinct id.
    """

    def __init__(self, sizes: Sizes, training: bool, weighed: bool = True) -> None:
        self.sizes, self._training, self._weighed = sizes, training, weighed

    def work(self, node: fx.Node, region: Region) -> float:
        """Of computing a member at one place."""
        if not _is_floating(node):
            return 0.0
        kind = ops.kind_of(node)
        if rows_and_numbers(node) is not None:
            return (4.0 if self._training else 2.0) * elements_per_place(node, region.layout)
        at_place = work_per_place(kind.source if isinstance(kind, Reduce) else node, region.layout)
        if isinstance(kind, Contract):
            return (3.0 if self._training else 1.0) * at_place
        return (2.0 if self._training else _FUSED) * at_place

    def spread(self, node: fx.Node, region: Region) -> float:
        """Of a row's way to one place: read and written, and its gradient."""
        way = (4.0 if self._training else 2.0) * elements_per_place(node, region.layout)
        return way if self._weighed else way * _NOTHING

    def places(self, region: Region) -> float:
        """How many ids there are."""
        return self.sizes.of_tensor(region.ids)

    def cut(self, region: Region, distinct: float, share: Mapping[fx.Node, float]) -> Cut:
        """The members that are best computed `distinct` times.

        `share`: the region's part of the rows of a member, which other regions may have, too.

        A minimum cut: a member outside costs its work at every place, one inside its work at every distinct id, and
        its way to the places where somebody outside reads it. What a member is made of is inside with it.
        """
        places, graph = self.places(region), nx.DiGraph()
        graph.add_nodes_from(("inside", "outside"))
        for node in region.members:
            work = self.work(node, region)
            graph.add_edge("inside", node, capacity=work * places)
            graph.add_edge(node, "outside", capacity=work * distinct * share[node] if self._weighed else 0.0)
            for operand in operands(node):
                if operand in region.members:
                    graph.add_edge(node, operand)  # without a capacity: it is never cut
            if leaves(node):
                graph.add_edge(node, (node,), capacity=self.spread(node, region) * places)
                for user in _readers(node):
                    graph.add_edge((node,), user if user in region.members else "outside")
        before = sum(self.work(node, region) * places for node in region.members)
        after, (chosen, _) = nx.minimum_cut(graph, "inside", "outside")
        inside = tuple(node for node in region.members if node in chosen)
        spread = tuple(x for x in inside if leaves(x) and any(user not in chosen for user in _readers(x)))
        return Cut(region, inside if spread else (), spread, before, after if spread else before)

    def finding(self, places: float, rows: float) -> float:
        """Of the distinct ids among all ids."""
        return _PER_ID * places + _PER_ROW * rows + _FIXED if self._weighed else 0.0


def leaves(node: fx.Node) -> bool:
    """Is the value spread to places where others read it? What is computed of ids, without rows, they compute anew."""
    return _is_floating(node)


def _readers(node: fx.Node) -> list[fx.Node]:
    """Who reads a value; lists of its parts are read by those who read the parts."""
    found: list[fx.Node] = []
    for user in node.users:
        if isinstance(user.meta.get("val"), (tuple, list)) and user.op == "call_function":
            found += _readers(user)
        elif user.target not in SHAPE_ONLY:
            found.append(user)
    return found


def _is_floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())
