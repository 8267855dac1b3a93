"""The compiler without Dynamo, several times faster: for long sweeps. Each size of batch gets a graph of its own."""

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

from gr_compile.backend import Backend, Session
from gr_compile.compiled import make_session

PASSES = "canonicalize,eliminate-padding{min-saving=-1000},fuse-jagged-attention"
"""Everything that can be packed is packed, worth it or not."""
NAMES = ("ids", "lengths", "mask", "times", "targets", "negatives", "features", "given", "context_ids")


class Direct:
    """Called like the model; one graph for each tuple of shapes."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.sessions: list[Session] = []
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *inputs: torch.Tensor) -> Any:
        state = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        shapes = (tuple(i.shape for i in inputs), torch.is_grad_enabled())
        if shapes not in self._compiled:
            self._compiled[shapes] = self._compile(state, inputs)
        return self._compiled[shapes](*state.values(), *inputs)

    def _compile(self, state: dict[str, torch.Tensor], inputs: tuple[torch.Tensor, ...]) -> Callable[..., Any]:
        session = make_session({"target": "eager", "verify": "off", "passes": PASSES}, "fuzz")
        self.sessions.append(session)
        graph, mode, names = fx.Graph(), FakeTensorMode(shape_env=ShapeEnv()), list(state)
        sources = [self._source(name) for name in names] + [f"L['{name}']" for name in NAMES]
        placeholders = []
        for source, value in zip(sources, [*state.values(), *inputs]):
            node = graph.placeholder("".join(c if c.isalnum() else "_" for c in source))
            context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.STATIC] * value.dim())
            node.meta["example_value"] = mode.from_tensor(value, source=LocalSource(node.name), symbolic_context=context)
            node.meta["grapharg"] = _Argument(source)
            placeholders.append(node)

        def run(*values: Any) -> Any:
            return functional_call(self.model, dict(zip(names, values)), values[len(names) :])

        graph.output(graph.call_function(run, tuple(placeholders)))
        return Backend(session)(fx.GraphModule({}, graph), [*state.values(), *inputs])

    def _source(self, name: str) -> str:
        *path, last = name.split(".")
        owner = "".join(f"._modules['{part}']" for part in path)
        kind = "_buffers" if name in dict(self.model.named_buffers()) else "_parameters"
        return f"L['self']{owner}.{kind}['{last}']"


class _Argument:
    """What capture asks of Dynamo's record of an input: where it came from."""

    def __init__(self, source: str) -> None:
        self.source = type("Source", (), {"name": source})
