"""Target "eager": runs the rewritten graph operator by operator, for debugging."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx as fx

import gr_compile.lowering.cpu.kernels
import gr_compile.lowering.cpu.linear_cross_entropy
import gr_compile.lowering.cpu.sampled_logits
import gr_compile.lowering.cpu.segmented_logits
import gr_compile.lowering.cpu.stored_rows  # noqa: F401  (registers them)
from gr_compile.lowering.target import Compiled


class EagerTarget:
    """The graph's own Python code, under ordinary autograd."""

    name = "eager"

    def compile(self, graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Compiled:
        return graph_module.forward

    def supports(self, operator: str) -> bool:
        return torch._C._dispatch_has_kernel(operator)
