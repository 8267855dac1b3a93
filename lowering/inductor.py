"""Target "inductor": AOTAutograd and TorchInductor, for the CPU (and whatever device Inductor knows)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.fx as fx
from torch._inductor.compile_fx import compile_fx

import gr_compile.lowering.cpu.kernels
import gr_compile.lowering.cpu.linear_cross_entropy
import gr_compile.lowering.cpu.lookup
import gr_compile.lowering.cpu.places
import gr_compile.lowering.cpu.sampled_logits
import gr_compile.lowering.cpu.segmented_logits
import gr_compile.lowering.cpu.stored_rows  # noqa: F401
from gr_compile.lowering.decompositions import decompositions
from gr_compile.lowering.target import Compiled


class InductorTarget:
    """Hands the graph to `compile_fx`; rewriting has happened before, so Inductor's caches stay safe."""

    name = "inductor"

    def compile(self, graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Compiled:
        compiled: Any = compile_fx(graph_module, list(inputs), decompositions=decompositions())
        return compiled  # type: ignore[no-any-return]

    def supports(self, operator: str) -> bool:
        return _on_cpu_or_composed(operator)


def _on_cpu_or_composed(operator: str) -> bool:
    return torch._C._dispatch_has_kernel(operator)
