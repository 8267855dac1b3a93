"""offload-negatives: logits of sampled rows, made segment by segment of their table, which may lie in a file.

    before   z = gr.sampled_logits(state, table, ids)                 reads rows where they lie, in any order
    after    z = gr.segmented_logits(state, table, ids, segments=n)   reads n ranges of rows, one after the other

A table that gr_compile.offload has put into a file then needs memory for two segments, and one is read while the other
is computed on; docs/losses.md says when that helps. Offloading of negatives of TurboGR (arXiv 2605.13433), with a disk
for the host's memory. On by name only: a table in memory gains nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.fx as fx

from gr_compile.analysis.reads import SHAPE_ONLY
from gr_compile.graph_pass import Match, Miss, Numerics, Pass, PassResult
from gr_compile.pipeline import PassContext

_CALL = torch.ops.gr.sampled_logits.default
_SEGMENTED = torch.ops.gr.segmented_logits.default
_OPERANDS = 6
_OPERATOR = "gr::segmented_logits"


@dataclass(frozen=True)
class OffloadNegatives(Pass):
    """Make logits of sampled rows in segments of their table, so that it may lie in a file.

    Attributes:
        segments: how many ranges of rows; memory holds two of them.
    """

    segments: int = 8

    name: ClassVar[str] = "offload-negatives"
    after: ClassVar[frozenset[str]] = frozenset({
        "canonicalize", "eliminate-padding", "fuse-sampled-logits", "share-logits",
    })  # fmt: skip
    numerics: ClassVar[Numerics] = "reassociates"
    preset_targets: ClassVar[frozenset[str] | None] = frozenset()  # by name only: for no target is it a gain as such

    def __post_init__(self) -> None:
        if self.segments < 1:
            raise ValueError(f"segments={self.segments}: at least 1, which is the whole table")

    def run(self, graph_module: fx.GraphModule, context: PassContext) -> PassResult:
        """Candidates: calls of gr::sampled_logits."""
        calls = graph_module.graph.find_nodes(op="call_function", target=_CALL)
        matches, misses = [], []
        if not calls and not graph_module.graph.find_nodes(op="call_function", target=_SEGMENTED):
            misses.append(Miss("there is no gr::sampled_logits", hint="fuse-sampled-logits makes it, or says why not"))
        for node in calls:
            miss = _obstacle(node, context)
            if miss is not None:
                misses.append(miss)
            elif context.allow(f"segmented logits {node.name}", node):
                matches.append(Match("logits of looked-up rows", node, f"{_OPERATOR}, {self.segments} segments"))
                self._rewrite(node, context)
        return PassResult(bool(matches), tuple(matches), tuple(misses))

    def _rewrite(self, node: fx.Node, context: PassContext) -> None:
        editor = context.editor
        with editor.at(before=node, like=node):
            made = editor.call(_SEGMENTED, *node.args[:_OPERANDS], self.segments)
        editor.replace(node, made)
        editor.erase(node)


def _obstacle(node: fx.Node, context: PassContext) -> Miss | None:
    """Why a call stays as it is."""
    table = node.args[1]
    assert isinstance(table, fx.Node)
    value = table.meta["val"]
    if value.device.type != "cpu":
        hint = "keep the table on the CPU; a table in host memory for a model on another device is not supported yet"
        return Miss(f"the table is on {value.device.type}, and {_OPERATOR} has a kernel for the CPU", node, hint)
    if not context.supports(_OPERATOR):
        return Miss(f"the target has no kernel for {_OPERATOR}", node)
    if table.op not in ("placeholder", "get_attr"):
        hint = "look up rows of the parameter itself; what is done to rows can be done to logits, or to the rows"
        return Miss(f"the table is made by {table.target} in the graph: all of it is in memory", table, hint)
    others = [user for user in table.users if user.target not in (_CALL, _SEGMENTED) and user.target not in SHAPE_ONLY]
    if others and context.report.training and not table.meta.get("gr_requires_grad", True):
        hint = "give the negatives a table of their own, or let the table take a gradient (which then lies in a file)"
        what = f"{others[0].target} reads the table, too, whose row optimizer would not see that gradient"
        return Miss(what, others[0], hint)
    if any(x is not None for x in (*node.args[_OPERANDS:], *node.kwargs.values())):
        return Miss("the rows are read from a copy in another dtype, which is in memory", node)
    return None
