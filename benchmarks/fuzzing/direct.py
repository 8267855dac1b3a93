"""The compiler without Dynamo, several times faster: for long sweeps. Each size of batch gets a graph of its own, whose
sizes are numbers or, as under `dynamic=True`, symbols (equal ones the same symbol)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx as fx
from torch import nn
from torch._dynamo.source import LocalSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.fx.traceback import set_stack_trace
from torch.overrides import TorchFunctionMode

from gr_compile.backend import Backend, Session
from gr_compile.compiled import make_session
from gr_compile.pipeline import Hook

PASSES = "canonicalize,eliminate-padding{min-saving=-1000},fuse-jagged-attention"
"""Everything that can be packed is packed, worth it or not."""
NAMES = ("ids", "lengths", "mask", "times", "targets", "negatives", "features", "given", "context_ids")


class Direct:
    """Called like the model; one graph for each tuple of shapes.

    `passes`: the pipeline; `hooks` are told of the graph after every pass; `symbolic`: sizes of inputs are.
    """

    def __init__(
        self, model: nn.Module, symbolic: bool = False, passes: str = PASSES, hooks: Sequence[Hook] = ()
    ) -> None:
        self.model, self.passes, self.hooks = model, passes, hooks
        self._input_sizes = DimDynamic.DUCK if symbolic else DimDynamic.STATIC
        self.sessions: list[Session] = []
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def __call__(self, *inputs: torch.Tensor) -> Any:
        state = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        shapes = (tuple(i.shape for i in inputs), torch.is_grad_enabled())
        if shapes not in self._compiled:
            self._compiled[shapes] = self._compile(state, inputs)
        return self._compiled[shapes](*state.values(), *inputs)

    def _compile(self, state: dict[str, torch.Tensor], inputs: tuple[torch.Tensor, ...]) -> Callable[..., Any]:
        session = make_session({"target": "eager", "verify": "off", "passes": self.passes}, "fuzz")
        session.hooks = [*session.hooks, *self.hooks]
        self.sessions.append(session)
        graph, mode, names = fx.Graph(), FakeTensorMode(shape_env=ShapeEnv()), list(state)
        sources = [self._source(name) for name in names] + [f"L['{name}']" for name in NAMES]
        placeholders = []
        for source, value in zip(sources, [*state.values(), *inputs]):
            node = graph.placeholder("".join(c if c.isalnum() else "_" for c in source))
            kind = DimDynamic.STATIC if len(placeholders) < len(names) else self._input_sizes
            context = StatelessSymbolicContext(dynamic_sizes=[kind] * value.dim())
            node.meta["example_value"] = mode.from_tensor(
                value, source=LocalSource(node.name), symbolic_context=context
            )
            node.meta["grapharg"] = _Argument(source)
            placeholders.append(node)

        def run(*values: Any) -> Any:
            with _Lines():
                return functional_call(self.model, dict(zip(names, values)), values[len(names) :])

        graph.output(graph.call_function(run, tuple(placeholders)))
        return Backend(session)(fx.GraphModule({}, graph), [*state.values(), *inputs])

    def _source(self, name: str) -> str:
        *path, last = name.split(".")
        owner = "".join(f"._modules['{part}']" for part in path)
        kind = "_buffers" if name in dict(self.model.named_buffers()) else "_parameters"
        return f"L['self']{owner}.{kind}['{last}']"


class _Lines(TorchFunctionMode):
    """Every operator's node knows the line of the model that calls it, as it would from Dynamo."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        frame: Any = sys._getframe(1)
        while f"{os.sep}torch{os.sep}" in frame.f_code.co_filename and frame.f_back is not None:
            frame = frame.f_back
        where = frame.f_code
        set_stack_trace([f'  File "{where.co_filename}", line {frame.f_lineno}, in {where.co_name}\n'])
        return func(*args, **(kwargs or {}))


class _Argument:
    """What capture asks of Dynamo's record of an input: where it came from."""

    def __init__(self, source: str) -> None:
        self.source = type("Source", (), {"name": source})
