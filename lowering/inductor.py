"""Target "inductor": AOTAutograd and TorchInductor, for the CPU (and whatever device Inductor knows)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor
from torch._inductor.compile_fx import compile_fx
from torch._inductor.decomposition import select_decomp_table

import gr_compile.lowering.cpu.kernels
import gr_compile.lowering.cpu.lookup  # noqa: F401
from gr_compile.lowering.target import Compiled

aten = torch.ops.aten


class InductorTarget:
    """Hands the graph to `compile_fx`; rewriting has happened before, so Inductor's caches stay safe."""

    name = "inductor"

    def compile(self, graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Compiled:
        compiled: Any = compile_fx(graph_module, list(inputs), decompositions=_decompositions())
        return compiled  # type: ignore[no-any-return]

    def supports(self, operator: str) -> bool:
        return _on_cpu_or_composed(operator)


def _decompositions() -> dict[Any, Callable[..., Any]]:
    """Inductor's, but for the gradient of a table: Inductor adds its rows one by one, atomically, in any order."""
    found = dict(select_decomp_table())
    usual = found[aten.embedding_dense_backward.default]

    def embedding_dense_backward(grad: Tensor, ids: Tensor, rows: int, padding: int, by_frequency: bool) -> Tensor:
        if by_frequency or grad.device.type != "cpu":
            return usual(grad, ids, rows, padding, by_frequency)  # type: ignore[no-any-return]
        return torch.ops.gr.lookup_gradient(grad, ids, rows, padding)  # type: ignore[no-any-return]

    found[aten.embedding_dense_backward.default] = embedding_dense_backward
    return found


def _on_cpu_or_composed(operator: str) -> bool:
    return torch._C._dispatch_has_kernel(operator)
