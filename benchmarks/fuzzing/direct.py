"""The compiler without Dynamo: several times faster, for long sweeps. Sizes of all batches are symbols of one graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.fx as fx
from torch import nn
from torch._dynamo.source import LocalSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from gr_compile.backend import Backend
from gr_compile.optimize import make_session

NAMES = ("ids", "lengths", "mask", "times", "targets", "negatives", "features", "given", "context_ids")


class GuardFailedError(Exception):
    """The graph does not hold for these sizes: it must be made anew."""


def direct(model: nn.Module, inputs: list[torch.Tensor], symbolic: bool) -> tuple[Callable[..., Any], Any]:
    """(a callable like the model, the session), compiled for inputs like these."""
    session = make_session({"target": "eager", "verify": "off"}, "fuzz")
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    graph, shapes = fx.Graph(), ShapeEnv(duck_shape=True)
    mode = FakeTensorMode(shape_env=shapes)
    placeholders, fakes = [], []
    sources = [_state_source(name, model) for name in state] + [f"L['{name}']" for name in NAMES]
    for source, value in zip(sources, [*state.values(), *inputs]):
        node = graph.placeholder("".join(c if c.isalnum() else "_" for c in source))
        dynamic = symbolic and len(placeholders) >= len(state)
        kinds = [_kind(value, d, dynamic) for d in range(value.dim())]
        fake = mode.from_tensor(value, source=LocalSource(node.name), symbolic_context=StatelessSymbolicContext(dynamic_sizes=kinds))
        node.meta["example_value"], node.meta["grapharg"] = fake, _Argument(source)
        placeholders.append(node)
        fakes.append(fake)
    names = list(state)

    def run(*values: Any) -> Any:
        return functional_call(model, dict(zip(names, values)), values[len(names) :])

    graph.output(graph.call_function(run, tuple(placeholders)))
    graph_module = fx.GraphModule({}, graph)
    compiled = Backend(session)(graph_module, [*state.values(), *inputs])

    def call(*arguments: torch.Tensor) -> Any:
        changed = [(a.shape, b.shape) for a, b in zip(arguments, inputs) if a.shape != b.shape]
        if changed and (not symbolic or any(1 in (*a, *b) for a, b in changed)):
            raise GuardFailedError
        if changed and not shapes.evaluate_guards_for_args(fakes, [*state.values(), *arguments]):
            raise GuardFailedError
        return compiled(*state.values(), *arguments)

    return call, session


class _Argument:
    def __init__(self, source: str) -> None:
        self.source = type("Source", (), {"name": source})


def _kind(value: torch.Tensor, dim: int, dynamic: bool) -> DimDynamic:
    batched = dynamic and value.shape[dim] != 1 and (dim == 0 or (dim == 1 and not value.dtype.is_floating_point))
    return DimDynamic.DUCK if batched or (dynamic and value.dim() == 3 and dim == 1 and value.shape[1] != 1) else DimDynamic.STATIC


def _state_source(name: str, model: nn.Module) -> str:
    *path, last = name.split(".")
    owner = "".join(f"._modules['{part}']" for part in path)
    kind = "_buffers" if name in dict(model.named_buffers()) else "_parameters"
    return f"L['self']{owner}.{kind}['{last}']"
