"""The graphs of a training step for given sizes: forward and backward, after the passes, in fake tensors.

Weights are never touched: a model comes from the meta device, and its storage is allocated and not written. The inputs
are real, since the number of packed tokens is counted from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
import torch.fx as fx
from torch import nn
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._functorch.aot_autograd import aot_module_simplified
from torch._functorch.partitioners import default_partition
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode

from gr_compile.backend import Backend, Session
from gr_compile.config import Config
from gr_compile.lowering.ascendc.operators import OPERATORS
from gr_compile.lowering.torchair.sizes import prepare
from gr_compile.pipeline import Pipeline

_NO_WORK = frozenset({"gr::sampled_logits"})  # work.py does not know what it costs


class _Captured(Exception):
    """The graph is there; it does not run."""


@dataclass
class _Recorder:
    """Stands where a target stands: keeps graphs and what they were called with, and runs none."""

    name: str = "roofline"
    graphs: list[tuple[fx.GraphModule, Sequence[Any]]] = field(default_factory=list)

    def supports(self, operator: str) -> bool:
        return operator in OPERATORS and operator not in _NO_WORK

    def compile(self, graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        def run(*args: Any) -> NoReturn:
            self.graphs.append((graph_module, args))
            raise _Captured

        return run


def step_graphs(
    make: Callable[[], nn.Module], inputs: dict[str, torch.Tensor], passes: str = "default",
    dtype: torch.dtype = torch.float16,
) -> list[fx.GraphModule]:
    """[forward, backward] of `make()(**inputs)`, with every size a number; `make` is called under the meta device.

    Raises:
        ValueError: the model is more than one graph.
    """
    with torch.device("meta"):
        model = make().to(dtype).train()
    graph, arguments = _captured(model.to_empty(device="cpu"), inputs, passes)
    prepared = prepare(graph)
    counts = prepared.count(arguments)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = [mode.from_tensor(a, static_shapes=True) if isinstance(a, torch.Tensor) else a for a in arguments]
    parts: list[fx.GraphModule] = []

    def keep(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        parts.append(gm)
        return make_boxed_func(gm.forward)

    eager_backward = torch._functorch.config.patch(force_non_lazy_backward_lowering=True)
    with mode, tracing(TracingContext(mode)), eager_backward, torch.enable_grad():
        aot_module_simplified(
            prepared.main, [*fakes, *counts], fw_compiler=keep, bw_compiler=keep,
            partition_fn=default_partition,
        )  # fmt: skip
    return parts


def _captured(
    model: nn.Module, inputs: dict[str, torch.Tensor], passes: str
) -> tuple[fx.GraphModule, Sequence[Any]]:
    recorder = _Recorder()
    session = Session(Config(passes=passes, dynamic=False, model=type(model).__name__), Pipeline.parse(passes))
    make: Any = torch.compile
    compiled = make(model, backend=Backend(session, recorder), dynamic=False, fullgraph=True)
    settings = torch._dynamo.config.patch(
        capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True, specialize_float=True
    )
    try:
        with settings, torch.enable_grad():
            compiled(**inputs)
    except _Captured:
        return recorder.graphs[0]
    raise ValueError(f"{type(model).__name__} computes nothing with tensors: there is nothing to estimate")
