"""How many places there are, and which: inside the graph, or the number outside it (`mode=host`)."""

from __future__ import annotations

import torch
import torch.fx as fx

from gr_compile.graph_pass import Miss
from gr_compile.host_sizes import blocker
from gr_compile.pipeline import PassContext

aten, gr = torch.ops.aten, torch.ops.gr


class PlaceCounter:
    """Makes the packed indices of one raggedness.

    Attributes:
        misses: indices whose number was wanted outside the graph and stays inside, with the reason.
    """

    def __init__(self, context: PassContext, host: bool) -> None:
        self.editor, self.host = context.editor, host
        self.misses: list[Miss] = []
        self._supported = all(map(context.supports, ("gr::count_true", "gr::true_places")))

    def places(self, mask: fx.Node, what: str, counted: fx.Node | None = None) -> fx.Node:
        """The flat places where `mask` is true, int64 [T].

        Args:
            what: what is found there, for a Miss.
            counted: a mask with as many true places that is computed from the inputs; default: `mask` itself.
        """
        counted = counted if counted is not None else mask
        if self.host and self._known_outside(counted, what):
            count = self.editor.call(gr.count_true.default, counted)
            made: fx.Node = self.editor.call(gr.true_places.default, mask, count)
            return made
        flat = mask if mask.meta["val"].dim() == 1 else self.editor.call(aten.reshape.default, mask, [-1])
        found = self.editor.call(aten.nonzero.default, flat)
        listed: fx.Node = self.editor.call(aten.reshape.default, found, [-1])
        return listed

    def _known_outside(self, mask: fx.Node, what: str) -> bool:
        if not self._supported:
            reason, cause, hint = "the target has no kernel for gr::count_true and gr::true_places", mask, ""
        elif (blocked := blocker(mask)) is not None:
            reason, cause = blocked.reason, blocked.node
            hint = "compute the mask from integer and boolean inputs, by comparisons and logic"
        else:
            return True
        where = cause if cause.meta.get("stack_trace") else mask
        self.misses.append(Miss(f"the number of {what} stays inside the graph: {reason}", where, hint))
        return False
