"""verify="numerics": after every pass, outputs and gradients of the real inputs against the captured graph's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx as fx

from gr_compile.dropout import WithoutDropout
from gr_compile.graph_pass import StageEvent
from gr_compile.modes import autocast_as

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}


class NumericsError(RuntimeError):
    """A pass changed the numbers; the message names it."""


class NumericsCheck:
    """A hook that compares every stage with the captured graph on the inputs of the call that compiles.

    Dropout is switched off in both. Under padded_outputs="zero", places where the rewritten program gives exact
    zeros are not compared.
    """

    def __init__(self, captured: fx.GraphModule, inputs: Sequence[Any], padded_outputs: str) -> None:
        self.inputs, self.padded_outputs = [_concrete(value) for value in inputs], padded_outputs
        wanted = zip(captured.graph.find_nodes(op="placeholder"), self.inputs)
        self.names = [
            node.name for node, value in wanted if isinstance(value, torch.Tensor) and value.requires_grad
        ]
        self.expected = _run(captured, self.inputs)

    def __call__(self, event: StageEvent) -> None:
        if event.record is None or not event.record.changed:
            return
        outputs, gradients = _run(event.graph_module, self.inputs)
        for position, (got, want) in enumerate(zip(outputs, self.expected[0])):
            if self.padded_outputs == "zero" and got.shape == want.shape:
                want = torch.where(got == 0, got, want)
            _compare(event.stage, f"output {position}", got, want)
        for name, grad, wanted in zip(self.names, gradients, self.expected[1]):
            _compare(event.stage, f"gradient of {name}", *_filled(grad, wanted))


def _filled(
    got: torch.Tensor | None, want: torch.Tensor | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """No gradient is a gradient of zeros."""
    if got is None and want is not None:
        return torch.zeros_like(want), want
    if want is None and got is not None:
        return got, torch.zeros_like(got)
    return got, want


def _compare(stage: str, what: str, got: torch.Tensor | None, want: torch.Tensor | None) -> None:
    if got is None or want is None:
        return
    if got.shape != want.shape:
        raise NumericsError(
            f"{stage} changed the shape of {what}: {tuple(want.shape)} became {tuple(got.shape)}"
        )
    a, b = got.double(), want.double()
    if bool((a.isnan() != b.isnan()).any()):
        raise NumericsError(f"{stage} changed which elements of {what} are NaN")
    error = float((a - b).nan_to_num(0, 0, 0).norm() / (b.nan_to_num(0, 0, 0).norm() + 1e-30))
    if error > _TOLERANCE.get(want.dtype, 0.0):
        raise NumericsError(f"{stage} changed {what}: relative error {error:.2e}")


def _run(graph_module: fx.GraphModule, inputs: list[Any]) -> tuple[list[Any], list[Any]]:
    """(outputs, gradients of the inputs under fixed weights of the outputs)."""
    with torch.inference_mode(False), WithoutDropout():
        return outputs_and_gradients(graph_module, [_leaf(value) for value in inputs])


def outputs_and_gradients(
    program: Callable[..., Any], leaves: Sequence[Any], training: bool = True
) -> tuple[list[Any], list[Any]]:
    """(tensors that a program returns, gradients of the inputs that require one, under fixed weights of the outputs).

    Without `training` no gradients are taken.
    """
    wanted = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    with torch.set_grad_enabled(training), autocast_as({}):
        outputs = [o for o in program(*leaves) if isinstance(o, torch.Tensor)]
        differentiable = [o for o in outputs if o.requires_grad]
        if not differentiable or not wanted:
            return [o.detach() for o in outputs], [None] * len(wanted)
        total: Any = sum((o * _weights(o)).sum() for o in differentiable)
        gradients = torch.autograd.grad(total, wanted, allow_unused=True)
    return [o.detach() for o in outputs], list(gradients)


def _concrete(value: Any) -> Any:
    """Sizes reach a backend as symbols; their hint is the size of the call that compiles."""
    return int(value.node.hint) if isinstance(value, torch.SymInt) else value


def _leaf(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    copied = value.detach().clone()
    return copied.requires_grad_(value.requires_grad) if value.is_floating_point() else copied


def _weights(output: torch.Tensor) -> torch.Tensor:
    steps = torch.arange(output.numel(), device=output.device, dtype=torch.float64)
    return (torch.cos(steps) + 1.5).to(output.dtype).reshape(output.shape)
