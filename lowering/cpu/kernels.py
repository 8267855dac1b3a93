"""`gr::jagged_attention` and its backward on the CPU, by kernels printed from their score programs.

A program that has no kernel (it says why, once, in the log), or a machine that cannot build one, runs the reference.
The decision is by program and dtypes: forward and backward of one call decide alike, and their dropout is the same
in either, since it is a function of the seed and the place.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gr_compile.lowering.cpu import call
from gr_compile.lowering.cpu.build import BuildError, Failure, library
from gr_compile.lowering.cpu.lanes import Unsupported
from gr_compile.lowering.cpu.source import Request, source
from gr_compile.lowering.cpu.stages import wanted_leaves
from gr_compile.ops.attention_backward import attention_backward
from gr_compile.ops.attention_blocks import Inputs
from gr_compile.ops.attention_reference import attention
from gr_compile.ops.jagged_attention import backward_inputs, inputs_of
from gr_compile.ops.registry import LIBRARY

_LOG = logging.getLogger("gr_compile.kernels")
_MOST_PLACES = 1 << 30
_SMALL_TABLE = 1 << 20
_HALF = (torch.bfloat16, torch.float16)


def enabled() -> bool:
    """Kernels are on unless GR_COMPILE_CPU_KERNELS=0."""
    return os.environ.get("GR_COMPILE_CPU_KERNELS", "1") != "0"


@functools.lru_cache(maxsize=1024)
def kernel(request: Request) -> ctypes._CFuncPtr | None:  # type: ignore[name-defined]
    """The entry of a kernel, built if need be; None where the reference has to do."""
    return entry(lambda: source(request), "gr_attention_backward" if request.is_backward else "gr_attention_forward")


def entry(text: Callable[[], str], name: str) -> ctypes._CFuncPtr | None:  # type: ignore[name-defined]
    """The function `name` of a translation unit, built if need be; None, said once, where there is no kernel."""
    try:
        found = getattr(library(text()), name)
        found.restype = ctypes.c_int64
        return found
    except Unsupported as reason:
        _LOG.info("no kernel, the reference runs: %s", reason)
    except BuildError as error:
        _warn_once(error.failure)
    return None


@functools.lru_cache(maxsize=64)
def _warn_once(failure: Failure) -> None:
    warnings.warn(
        f"gr_compile cannot build kernels for the CPU; the jagged operators run by their reference, which is right "
        f"and slow (GR_COMPILE_CPU_KERNELS=0 chooses it without this warning): {failure}",
        stacklevel=2,
    )


def request_of(inputs: Inputs, grad: Tensor | None, needs: Sequence[bool] | None, narrow: bool) -> Request:
    """The kernel that a call needs."""
    wanted = None
    if needs is not None:
        named = dict(zip(("q", "k", "v", *inputs.leaves), needs))
        wanted = wanted_leaves(inputs.program, named)
    return Request(
        program=inputs.program,
        qk_dtype=inputs.v.dtype if inputs.q is None else inputs.q.dtype,
        v_dtype=inputs.v.dtype,
        grad_dtype=inputs.v.dtype if grad is None else grad.dtype,
        leaf_dtypes=tuple(x.dtype for x in inputs.leaves.values()),
        wanted=wanted,
        narrow=narrow,
    )


def _is_narrow(inputs: Inputs) -> bool:
    """Do sizes and leaves leave room for 32-bit places?"""
    sizes = all(0 <= x < _MOST_PLACES for x in inputs.sizes.values())
    return sizes and all(x.numel() < _MOST_PLACES for x in inputs.leaves.values())


def _wide_tables(inputs: Inputs) -> Inputs:
    """Small half-precision leaves in float32, of which processors gather lanes at once."""
    leaves = {
        name: x.float() if x.dtype in _HALF and x.numel() <= _SMALL_TABLE else x for name, x in inputs.leaves.items()
    }
    return dataclasses.replace(inputs, leaves=leaves)


def forward(*operands: Any) -> Tensor:
    """The CPU's `gr::jagged_attention`."""
    inputs = inputs_of(*operands)
    found = _run_forward(_wide_tables(inputs)) if enabled() and inputs.query_positions.shape[0] else None
    return attention(inputs) if found is None else found


def _run_forward(inputs: Inputs) -> Tensor | None:
    for narrow in (True, False) if _is_narrow(inputs) else (False,):
        entry = kernel(request_of(inputs, None, None, narrow))
        if entry is None:
            return None
        status, out = call.forward(inputs, entry)
        if _is_done(status):
            return out
    return None


def backward(grad_out: Tensor, *operands: Any) -> list[Tensor]:
    """The CPU's `gr::jagged_attention_backward`."""
    *rest, needs = operands
    inputs = backward_inputs(grad_out, rest, needs)
    found = None
    if enabled() and grad_out.numel() and any(needs):
        found = _run_backward(_wide_tables(inputs), grad_out, needs)
    if found is None:
        return attention_backward(inputs, grad_out, needs)
    tables = (grad.to(x.dtype) for grad, x in zip(found[3:], inputs.leaves.values()))
    return [*found[:3], *tables]


def _run_backward(inputs: Inputs, grad_out: Tensor, needs: Sequence[bool]) -> list[Tensor] | None:
    if any(need and x.dtype == torch.float64 for x, need in zip(inputs.leaves.values(), needs[3:])):
        return None
    for narrow in (True, False) if _is_narrow(inputs) else (False,):
        entry = kernel(request_of(inputs, grad_out, needs, narrow))
        if entry is None:
            return None
        status, found = call.backward(inputs, grad_out, needs, entry)
        if _is_done(status):
            return found
    return None


def _is_done(status: int) -> bool:
    if status == call.NO_MEMORY:
        raise MemoryError("gr::jagged_attention: there is no memory for the kernel's blocks")
    return status == call.DONE


LIBRARY.impl("jagged_attention", forward, "CPU")
LIBRARY.impl("jagged_attention_backward", backward, "CPU")
