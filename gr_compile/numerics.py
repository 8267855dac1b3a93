"""verify="numerics": after every pass, outputs and gradients of the real inputs against the captured graph's."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.fx as fx

from gr_compile.graph_pass import StageEvent

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}


class NumericsError(RuntimeError):
    """A pass changed the numbers; the message names it."""


class NumericsCheck:
    """A hook that compares every stage with the captured graph on the inputs of the call that compiles.

    Dropout is switched off in both. Under padded_outputs="zero", places where the rewritten program gives exact
    zeros are not compared.
    """

    def __init__(self, captured: fx.GraphModule, inputs: Sequence[Any], padded_outputs: str) -> None:
        self.inputs, self.padded_outputs = list(inputs), padded_outputs
        self.expected = _run(captured, self.inputs)

    def __call__(self, event: StageEvent) -> None:
        if event.record is None or not event.record.changed:
            return
        outputs, gradients = _run(event.graph_module, self.inputs)
        for kind, got, want in (
            ("output", outputs, self.expected[0]),
            ("gradient of input", gradients, self.expected[1]),
        ):
            for position, (a, b) in enumerate(zip(got, want)):
                self._compare(event.stage, f"{kind} {position}", a, b)

    def _compare(self, stage: str, what: str, got: torch.Tensor | None, want: torch.Tensor | None) -> None:
        if got is None or want is None:
            return
        if self.padded_outputs == "zero" and what.startswith("output") and got.shape == want.shape:
            want = torch.where(got == 0, got, want)
        if got.shape != want.shape:
            raise NumericsError(f"{stage} changed the shape of {what}: {tuple(want.shape)} became {tuple(got.shape)}")
        a, b = got.double(), want.double()
        if bool((a.isnan() != b.isnan()).any()):
            raise NumericsError(f"{stage} changed which elements of {what} are NaN")
        error = float((a - b).nan_to_num(0, 0, 0).norm() / (b.nan_to_num(0, 0, 0).norm() + 1e-30))
        if error > _TOLERANCE.get(want.dtype, 0.0):
            raise NumericsError(f"{stage} changed {what}: relative error {error:.2e}")


def _run(graph_module: fx.GraphModule, inputs: list[Any]) -> tuple[list[Any], list[Any]]:
    """(outputs, gradients of the inputs under fixed weights of the outputs)."""
    program = _without_dropout(graph_module)
    leaves = [_leaf(value) for value in inputs]
    with torch.enable_grad():
        outputs = [o for o in program(*leaves) if isinstance(o, torch.Tensor)]
        differentiable = [o for o in outputs if o.requires_grad]
        wanted = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
        if not differentiable or not wanted:
            return [o.detach() for o in outputs], []
        total = sum((o * _weights(o)).sum() for o in differentiable)
        gradients = torch.autograd.grad(total, wanted, allow_unused=True)  # type: ignore[arg-type]
    return [o.detach() for o in outputs], list(gradients)


def _leaf(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    copied = value.detach().clone()
    return copied.requires_grad_(value.requires_grad) if value.is_floating_point() else copied


def _weights(output: torch.Tensor) -> torch.Tensor:
    steps = torch.arange(output.numel(), device=output.device, dtype=torch.float64)
    return (torch.cos(steps) + 1.5).to(output.dtype).reshape(output.shape)


def _without_dropout(graph_module: fx.GraphModule) -> fx.GraphModule:
    program = copy.deepcopy(graph_module)
    for node in program.graph.find_nodes(op="call_function", target=torch.ops.aten.dropout.default):
        node.args = (*node.args[:2], False)
    program.recompile()
    return program
