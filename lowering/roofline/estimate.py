"""Seconds and bytes of a training step by operator: a roofline. It is an estimate; nothing here was measured.

    product     max(FLOPs / (peak * product), bytes / (bandwidth * memory))
    attention   the time of the tiling that is chosen for its program (lowering/ascendc/tiling.py); without a kernel
                max(FLOPs / (peak * attention), operations / (vector peak * vector), bytes / (bandwidth * memory))
    the rest    max(operations / (vector peak * vector), bytes / (bandwidth * memory))
    each kernel + launch;   the step / (1 - exposed)

Cube and vector cores work side by side in attention. The optimizer is AdamW on float32 copies: 28 bytes a weight and
step for the dense weights, and for the rows of the item table that were looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.fx as fx

from gr_compile.lowering.ascendc.machine import Machine
from gr_compile.lowering.roofline.memory import peak_activations
from gr_compile.lowering.roofline.work import Step, steps_of

OPTIMIZER_BYTES = 28  # gradient 2, weight, two moments read and written in float32 24, weight in float16 2
STATE_BYTES = 16  # weight and gradient in float16, weight and two moments in float32


@dataclass(frozen=True)
class Efficiency:
    """Shares of a machine's peaks that kernels reach. One set for all models, assumed, and fitted to no row.

    All but the last are assumptions. product: of large matrix products. attention: where no kernel is printed for it.
    vector, memory: of long runs. launch: seconds between two kernels. exposed: share of a step that waits
    for others or for communication; TurboGR publishes 94.3 % of compute.
    """

    product: float = 0.75
    attention: float = 0.6
    vector: float = 0.7
    memory: float = 0.8
    launch: float = 5e-6
    exposed: float = 0.057


@dataclass(frozen=True)
class Row:
    """An operator of one part of the step, all its kernels together; `bound` is what most of its time is spent on."""

    part: str
    kind: str
    label: str
    kernels: int
    flops: float
    bytes: float
    seconds: float
    bound: str


@dataclass(frozen=True)
class Estimate:
    """seconds: of a step. useful_flops: three times the forward's products and attention. memory: bytes by what they
    hold; item tables, which are sharded over devices, are not among them."""

    rows: tuple[Row, ...]
    seconds: float
    useful_flops: float
    memory: dict[str, int]


def estimate(
    graphs: Sequence[fx.GraphModule], lengths: list[int], weights: int, table_rows: int, width: int, machine: Machine,
    efficiency: Efficiency = Efficiency(),
) -> Estimate:
    """Of the graphs [forward, backward] of a step over sequences of these lengths.

    Args:
        weights: numbers in the dense weights. table_rows: rows of item tables that a step touches, of `width` numbers.
    """
    steps = [steps_of(graph.graph, lengths, machine) for graph in graphs]
    rows: list[Row] = []
    for part, found in zip(("forward", "backward"), steps):
        rows += _rows(part, found, machine, efficiency)
    for label, numbers in (("dense weights", weights), ("rows of item tables", table_rows * width)):
        step = Step("optimizer", label, bytes=float(OPTIMIZER_BYTES * numbers))
        rows += _rows("update", [step], machine, efficiency)
    forward = sum(step.flops for step in steps[0])
    activations = peak_activations(graphs[0].graph, graphs[1].graph, steps)
    return Estimate(
        tuple(rows), sum(row.seconds for row in rows) / (1 - efficiency.exposed), 3 * forward,
        {"weights, gradients, moments": STATE_BYTES * weights, "activations": activations},
    )  # fmt: skip


def _rows(part: str, steps: Sequence[Step], machine: Machine, efficiency: Efficiency) -> list[Row]:
    together: dict[tuple[str, str], list[Step]] = {}
    for step in steps:
        if step.bytes:
            together.setdefault((step.kind, step.label), []).append(step)
    return [_row(part, same, machine, efficiency) for same in together.values()]


def _row(part: str, same: Sequence[Step], machine: Machine, efficiency: Efficiency) -> Row:
    limits = [_limits(step, machine, efficiency) for step in same]
    seconds = sum(max(limit.values()) for limit in limits) + efficiency.launch * len(same)
    bound = max(limits[0], key=lambda name: sum(limit.get(name, 0.0) for limit in limits))
    flops, moved = sum(step.flops for step in same), sum(step.bytes for step in same)
    return Row(part, same[0].kind, same[0].label, len(same), flops, moved, seconds, bound)


def _limits(step: Step, machine: Machine, efficiency: Efficiency) -> dict[str, float]:
    """Seconds that each unit needs by itself."""
    if step.tiled is not None:
        return {step.tiled.bound: step.tiled.seconds}
    cube = efficiency.attention if step.kind == "attention" else efficiency.product
    operations = machine.vector_cores * machine.vector_width / 4 * machine.megahertz * 1e6
    return {
        "cube": step.flops / (machine.cube_flops * cube),
        "vector": step.vector / (operations * efficiency.vector),
        "memory": step.bytes / (machine.memory_bandwidth * efficiency.memory),
    }
