"""What a target is: the last step, from the rewritten graph to a callable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch.fx as fx

Compiled = Callable[..., Any]


class Target(Protocol):
    """A lowering. Found by name under the entry point group `gr_compile.targets`."""

    name: str

    def compile(self, graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Compiled:
        """A callable with the graph's inputs and outputs; gradients flow through it."""

    def supports(self, operator: str) -> bool:
        """Whether this target has a kernel for a `gr::` operator on the graph's device."""
