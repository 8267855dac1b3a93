"""Sizes that only the data tells leave the graph: torchair cannot build a GE graph around one.

nonzero(mask)                    T inside the graph
true_places(mask, T)             T = count_true(mask), counted before the graph runs, an input of it

Reads by a mask are written by nonzero first (masked_reads.py). Assertions of the model leave the
graph, too (assertions.py).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree

from gr_compile.editor import GraphEditor
from gr_compile.graph_pass import Miss
from gr_compile.host_sizes import HostSizes, blocker, split
from gr_compile.lowering.torchair.assertions import leave_out
from gr_compile.lowering.torchair.masked_reads import MaskedReads
from gr_compile.lowering.torchair.replay import unbacked
from gr_compile.sizes import size_expr

aten, gr = torch.ops.aten, torch.ops.gr


class DataDependentSize(ValueError):
    """A size depends on data in a way that cannot be counted before the graph; the message names the line."""


@dataclass(frozen=True)
class Prepared:
    """A graph whose sizes are all known when it is called.

    Attributes:
        main: takes the inputs of the whole graph, then one number for each of `sizes`.
        counts: what computes these numbers beforehand; None where there are none.
        assertions: how many of the model's were left out: no node of a GE graph stops a run.
    """

    main: fx.GraphModule
    counts: HostSizes | None
    assertions: int = 0

    @property
    def prelude(self) -> fx.GraphModule | None:
        """The graph that computes the counts."""
        return self.counts.prelude if self.counts is not None else None

    @property
    def sizes(self) -> tuple[Any, ...]:
        return self.counts.sizes if self.counts is not None else ()

    def count(self, inputs: Sequence[Any]) -> list[int]:
        """The numbers for these inputs."""
        if self.counts is None:
            return []
        with torch.no_grad():
            return [int(n) for n in self.counts.prelude(*(inputs[p] for p in self.counts.positions))]


def prepare(graph_module: fx.GraphModule) -> Prepared:
    """The graph with its counts outside; `graph_module` stays as it is.

    Raises:
        DataDependentSize: a size is left that only the data tells.
    """
    copied = fx.GraphModule(graph_module, copy.deepcopy(graph_module.graph))
    editor = GraphEditor(copied)
    assertions = leave_out(editor)
    MaskedReads(editor).rewrite()
    for node in copied.graph.find_nodes(op="call_function", target=aten.nonzero.default):
        _count(node, editor)
    copied.graph.eliminate_dead_code()
    counts = split(copied)
    prepared = Prepared(counts.main if counts is not None else copied, counts, assertions)
    _check(prepared)
    return prepared


def _count(node: fx.Node, editor: GraphEditor) -> None:
    """The coordinates [T, rank] of `nonzero`, from the flat places of the true elements."""
    tested: Any = node.args[0]
    with editor.at(before=node, like=node):
        value = tested.meta["val"]
        mask = tested if value.dtype == torch.bool else editor.call(aten.ne.Scalar, tested, 0)
        count = editor.call(gr.count_true.default, mask)
        places = editor.call(gr.true_places.default, mask, count)
        editor.same_count(places, node)
        columns = []
        for dimension in reversed(range(value.dim())):
            size = editor.size(tested, dimension)
            columns.append(editor.call(aten.remainder.Scalar, places, size) if dimension else places)
            if dimension:
                places = editor.call(aten.div.Scalar_mode, places, size, rounding_mode="floor")
        if not columns:
            return  # a scalar's nonzero has no column: it is left as it is, and refused
        editor.replace(node, editor.call(aten.stack.default, columns[::-1], 1))


def _check(prepared: Prepared) -> None:
    known = set().union(*(size_expr(size).free_symbols for size in prepared.sizes))
    for node in prepared.main.graph.nodes:
        for value in pytree.tree_leaves(node.meta.get("val")):
            if unbacked(value) - known:
                blocked = blocker(node)
                why = Miss(blocked.reason, blocked.node) if blocked is not None else Miss("it depends on data", node)
                raise DataDependentSize(
                    f"{node.target} has a size that only the data tells, and no GE graph can be built around it: {why}"
                )
