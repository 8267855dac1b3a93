"""Runs a vector kernel of the table on the functional model; programs are compiled once a session."""

from __future__ import annotations

import functools
from typing import Any

import torch

from gr_compile.lowering.ascendc.functional_model import In, Out, Program, Tiling, Workspace, compile_kernels
from gr_compile.lowering.ascendc.machine import Machine
from gr_compile.lowering.ascendc.operators import OPERATORS
from gr_compile.lowering.ascendc.vector import vector_kernel


@functools.lru_cache
def compiled(source: str, name: str, fields: tuple[tuple[str, str], ...]) -> Program:
    return compile_kernels(source, [name], tiling=fields)


def run(operator: str, machine: Machine, *args: Any) -> torch.Tensor:
    """The first result of a call, with no help from the compiler's own synchronisation."""
    row = OPERATORS[operator]
    names = [argument.name for argument in row.overload._schema.arguments]
    given = dict(zip(names, args))
    kernel = vector_kernel(operator, given, machine)
    want = row.overload(*args)
    shape = (1,) if isinstance(want, int) else tuple(want.shape)
    arguments = [
        *(In(_tensor(row, given, port.argument)) for port in row.inputs),
        Out(shape, torch.int64 if isinstance(want, int) else want.dtype),
        Workspace(kernel.workspace_bytes),
        Tiling(kernel.tiling),
    ]
    program = compiled(kernel.source, kernel.name, kernel.tiling_fields)
    (found,) = program.run(kernel.name, arguments, machine, blocks=kernel.blocks, auto_sync=False)
    return found


def _tensor(row: Any, given: dict[str, Any], name: str) -> torch.Tensor:
    value = given[name]
    if isinstance(value, torch.Tensor):
        return value
    like = (row.like or {}).get(name)
    return torch.tensor([value], dtype=given[like].dtype if like else torch.int64)
