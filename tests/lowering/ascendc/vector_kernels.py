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
    """The only result of a call, with no help from the compiler's own synchronisation."""
    (found,) = run_all(operator, machine, *args)
    return found


def run_all(operator: str, machine: Machine, *args: Any) -> list[torch.Tensor]:
    """All results of a call, as `run`."""
    row = OPERATORS[operator]
    names = [argument.name for argument in row.overload._schema.arguments]
    given = dict(zip(names, args))
    kernel = vector_kernel(operator, given, machine)
    want = row.overload(*args)
    results = [torch.empty(1, dtype=torch.int64)] if isinstance(want, int) else [want] if isinstance(want, torch.Tensor) else want
    arguments = [
        *(In(_tensor(row, given, port.argument)) for port in row.inputs),
        *(Out(tuple(result.shape), result.dtype) for result in results),
        Workspace(kernel.workspace_bytes),
        Tiling(kernel.tiling),
    ]
    program = compiled(kernel.source, kernel.name, kernel.tiling_fields)
    return list(program.run(kernel.name, arguments, machine, blocks=kernel.blocks, auto_sync=False))


def _tensor(row: Any, given: dict[str, Any], name: str) -> torch.Tensor:
    """An input; one that is not there has no elements."""
    value = given[name]
    if value is None or isinstance(value, torch.Tensor):
        return torch.empty(0) if value is None else value
    like = (row.like or {}).get(name)
    return torch.tensor([value], dtype=given[like].dtype if like else torch.int64)
