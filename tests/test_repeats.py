"""Layers of one kind are traced once, and the captured graph is the one that tracing them all gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.fx as fx
import torch.nn.functional as F
from torch import Tensor, nn

import gr_compile.capture as capture_module
from gr_compile.repeats import find_repeat


class Layer(nn.Module):
    """Attention over [B, N, 8] with sizes in its arithmetic, a dropout, and a constant that may differ."""

    def __init__(self, scale: float = 0.5) -> None:
        super().__init__()
        self.project, self.scale = nn.Linear(8, 24), scale

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.project(F.layer_norm(x, (8,))).view(b, n, 3, 8).unbind(2)
        weights = F.silu(q @ k.transpose(1, 2) * self.scale) / n * mask
        weights = F.dropout(weights, 0.1, self.training)
        return x + torch.cat([weights @ v, x[:, :n]], dim=-1).view(b, n, 2, 8).sum(2)


class Stack(nn.Module):
    """`forward` of a subclass says how the layers are put together."""

    def __init__(self, layers: int = 6, scales: Sequence[float] | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(scale) for scale in scales or [0.5] * layers])

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[1], x.shape[1]).tril()
        for layer in self.layers:
            x = layer(x, mask)
        return x * 2


class Tied(Stack):
    def __init__(self) -> None:
        super().__init__(6)
        for layer in self.layers[3:]:
            layer.project.weight = self.layers[0].project.weight


class Pairs(Stack):
    """What repeats is two layers."""

    def __init__(self) -> None:
        super().__init__(scales=[0.5, 0.25] * 4)


class Collected(Stack):
    def forward(self, x: Tensor) -> Tensor:
        states = []
        for layer in self.layers:
            x = layer(x, torch.ones(x.shape[1], x.shape[1]))
            states.append(x)
        return torch.stack(states)


class Skipping(Stack):
    """Each layer reads the one in front and the one before that."""

    def forward(self, x: Tensor) -> Tensor:
        before = x
        for layer in self.layers:
            before, x = x, layer(x + before, torch.ones(x.shape[1], x.shape[1]))
        return x


class Older(Stack):
    """Each layer reads what was three layers ago."""

    def forward(self, x: Tensor) -> Tensor:
        states = [x, x, x]
        for layer in self.layers:
            states.append(layer(states[-1] + states[-3], torch.ones(x.shape[1], x.shape[1])))
        return states[-1]


class SharedFirst(Stack):
    """All layers read a mask that depends on the first layer's result."""

    def forward(self, x: Tensor) -> Tensor:
        x = first = self.layers[0](x, torch.ones(x.shape[1], x.shape[1]))
        mask = torch.tril(first @ first.transpose(1, 2))
        for layer in self.layers[1:]:
            x = layer(x, mask)
        return x


class Written(Stack):
    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[1], x.shape[1])
        for layer in self.layers:
            x = layer(x, mask)
            x.mul_(0.5)
        return x


class Literal(Stack):
    """Tensors of numbers become constants of the traced graph, each its own: all layers are traced after all."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, torch.tensor([1.0, 0.5, 0.25, 0.125, 0.0]))
        return x


class NoGrad(Stack):
    """A region without gradients in each layer."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            with torch.no_grad():
                mask = (x @ x.transpose(1, 2)).sigmoid()
            x = layer(x, mask)
        return x


@pytest.fixture(autouse=True)
def anew() -> None:
    torch._dynamo.reset()


def captured(model: nn.Module, dynamic: bool, monkeypatch: pytest.MonkeyPatch, x: Tensor) -> list[Any]:
    """The graphs with and without the search, how many layers it found, and the number of nodes traced."""
    found: list[Any] = []

    def backend(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        repeat = find_repeat(graph_module)
        found.append(0 if repeat is None else len(repeat.layers))
        found.append(capture_module.capture(graph_module))
        with monkeypatch.context() as patch:
            patch.setattr(capture_module, "find_repeat", lambda whole: None)
            found.append(capture_module.capture(graph_module))
        return graph_module.forward

    with torch._dynamo.config.patch(specialize_float=True):
        torch.compile(model, backend=backend, dynamic=dynamic)(x)
    return found


def described(graph_module: fx.GraphModule) -> list[Any]:
    """All that a reader of the graph sees."""
    return [
        (
            node.format_node(), str(node.kwargs), str(node.meta.get("val")), node.meta.get("stack_trace"),
            sorted(node.meta), [user.name for user in node.users],
        )
        for node in graph_module.graph.nodes
    ]  # fmt: skip


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize(
    ("make", "alike"),
    [
        (Stack, 5), (Tied, 5), (Pairs, 3), (NoGrad, 5), (SharedFirst, 4), (Collected, 0), (Skipping, 4), (Older, 0),
        (Written, None), (Literal, 5), (lambda: Stack(scales=[0.1 * k for k in range(6)]), 0), (lambda: Stack(2), 0),
    ],
)  # fmt: skip
def test_the_graph_is_that_of_all_layers(
    make: Callable[[], nn.Module], alike: int | None, dynamic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 8)
    found, ours, theirs = captured(make().train(), dynamic, monkeypatch, x)
    assert described(ours) == described(theirs)
    if alike is not None:
        assert found == alike


def test_values_and_gradients_are_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = Tied().eval(), torch.randn(3, 5, 8)
    _, ours, _ = captured(model, True, monkeypatch, x)
    inputs = [node.meta["gr_source"] for node in ours.graph.find_nodes(op="placeholder")]
    given = {"L['x']": x, **{_source(name): value for name, value in model.named_parameters()}}
    arguments = [given[name] if name in given else x.shape[0 if "0" in name else 1] for name in inputs]
    (got,) = ours(*arguments)
    torch.testing.assert_close(got, model(x))
    parameters = list(model.parameters())
    for one, other in zip(torch.autograd.grad(got.sum(), parameters), torch.autograd.grad(model(x).sum(), parameters)):
        torch.testing.assert_close(one, other)


def _source(name: str) -> str:
    *modules, last = name.split(".")
    return "L['self']" + "".join(f"._modules['{part}']" for part in modules) + f"._parameters['{last}']"


def test_fewer_nodes_are_traced() -> None:
    counts: list[tuple[int, int]] = []

    def backend(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        repeat = find_repeat(graph_module)
        counts.append((len(repeat.shortened.graph.nodes), len(graph_module.graph.nodes)))
        return graph_module.forward

    with torch._dynamo.config.patch(specialize_float=True):
        torch.compile(Stack(12), backend=backend, dynamic=True)(torch.randn(3, 5, 8))
    assert counts[0][0] * 2 < counts[0][1]
