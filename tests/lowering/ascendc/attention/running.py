"""Run a generated kernel on the functional model, and the float64 reference beside it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gr_compile.analysis.expr import TORCH_DTYPE
from gr_compile.lowering.ascendc.attention.backward import Backward, wants
from gr_compile.lowering.ascendc.attention.call import Call
from gr_compile.lowering.ascendc.attention.forward import Forward
from gr_compile.lowering.ascendc.functional_model import In, Out, Tiling, Workspace, compile_kernels
from gr_compile.lowering.ascendc.kernel import Kernel
from gr_compile.lowering.ascendc.machine import machine
from gr_compile.lowering.ascendc.tiling import Tiling as Choice
from gr_compile.ops.attention_blocks import Inputs
from gr_compile.ops.score_program import ScoreProgram

MACHINE = machine("910b1")
SMALL = Choice(32, 64, 8, 64, 64, {"L0A": 32768, "L0B": 65536}, 0.0, 0.0, s_step=32)
WIDE = replace(SMALL, columns=128, vector_columns=64)  # that the vector code takes in parts


def forward(inputs: Inputs, tiling: Choice | None = SMALL, cores: int = 2) -> Tensor:
    """O by the generated kernel."""
    kernel = Forward(Call.of(inputs)).kernel(MACHINE, tiling, cores)
    shape = (inputs.query_positions.shape[0], inputs.heads, inputs.v.shape[2])
    (out,) = run(kernel, inputs, [Out(shape, TORCH_DTYPE[inputs.program.out_dtype])])
    return out


def backward(inputs: Inputs, grad: Tensor, tiling: Choice | None = SMALL, cores: int = 2) -> list[Tensor]:
    """Gradients of q, k, v (those that the program reads) and of the leaves in floats, by the generated kernel."""
    call = Call.of(inputs)
    needs = wants(call)
    kernel = Backward(call, needs).kernel(MACHINE, tiling, cores)
    operands = [x for x, need in zip((inputs.q, inputs.k, inputs.v, *inputs.leaves.values()), needs) if need]
    outputs = [Out(tuple(x.shape), x.dtype) for x in operands if x is not None]
    return run(kernel, inputs, [In(grad), *outputs])


def run(kernel: Kernel, inputs: Inputs, outputs: Sequence[In | Out]) -> list[Tensor]:
    program = compile_kernels(kernel.source, [kernel.name], tiling=kernel.tiling_fields)
    nothing = torch.zeros(1, dtype=inputs.v.dtype)
    used = inputs.program.product is not None
    operands = [x if used and x is not None else nothing for x in (inputs.q, inputs.k)]
    rows = (inputs.query_offsets, inputs.query_positions, inputs.key_offsets, inputs.key_positions)
    sizes = torch.tensor(list(inputs.sizes.values()) or [0])
    given = [In(x.detach()) for x in (*operands, inputs.v, *inputs.leaves.values(), *rows, sizes)]
    tiling = Tiling(kernel.tiling)
    arguments = [*given, *outputs, Workspace(max(kernel.workspace_bytes, 1)), tiling]
    return program.run(kernel.name, arguments, MACHINE, blocks=kernel.blocks, cores="mix")


def exact(found: Inputs) -> Inputs:
    """The same operands in float64, for a program that computes in float64."""
    program = ScoreProgram.parse(re.sub(r"\b(f32|f16|bf16)\b", "f64", found.program.text()))
    leaves = {name: x.double() if x.is_floating_point() else x for name, x in found.leaves.items()}
    q, k = (None if x is None else x.double() for x in (found.q, found.k))
    return dataclasses.replace(found, program=program, q=q, k=k, v=found.v.double(), leaves=leaves)


def distance(got: Tensor, want: Tensor, least: float = 1e-12) -> float:
    """Relative to the tensor's norm, or to `least` where that is more; NaN only where the other has it."""
    assert torch.equal(got.isnan(), want.isnan())
    got, want = (x.detach().double().nan_to_num() for x in (got, want))
    return float((got - want).norm() / want.norm().clamp(min=least)) if want.numel() else 0.0
