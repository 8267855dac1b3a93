"""`gr::lookup_gradient` on the CPU: lookups sorted by row of the table, rows summed in parallel without atomics."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from gr_compile.lowering.cpu.call import whole_rows
from gr_compile.lowering.cpu.kernels import enabled, entry
from gr_compile.lowering.cpu.lanes import ELEMENT
from gr_compile.lowering.cpu.source import registered, runtime
from gr_compile.ops.lookup import lookup_gradient_reference
from gr_compile.ops.registry import LIBRARY

_FIELDS = ("threads", "tokens", "rows", "width", "grad_row", "padding", "grad", "ids", "out")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Arguments(ctypes.Structure):
    """`LookupArgs` of runtime/lookup.h: 64-bit integers and pointers, in its order."""

    _fields_ = [(name, ctypes.c_int64) for name in _FIELDS]


def source(dtype: torch.dtype) -> str:
    """The translation unit for gradients of one dtype."""
    parts = [runtime("vector.h"), f"typedef {ELEMENT[dtype]} GT;", runtime("memory.h"), runtime("lookup.h")]
    return registered(parts, "gr_lookup_gradient")


@functools.lru_cache(maxsize=8)
def kernel(dtype: torch.dtype) -> ctypes._CFuncPtr | None:  # type: ignore[name-defined]
    """The entry of the kernel; None where the reference has to do."""
    return entry(lambda: source(dtype), "gr_lookup_gradient")


def lookup_gradient(grad: Tensor, ids: Tensor, rows: int, padding: int) -> Tensor:
    """The CPU's `gr::lookup_gradient`."""
    found = kernel(grad.dtype) if enabled() and grad.dtype in _DTYPES and grad.numel() else None
    if found is None:
        return lookup_gradient_reference(grad, ids, rows, padding)
    width = grad.shape[-1]
    places = whole_rows(grad.reshape(ids.numel(), width))
    flat = ids.reshape(-1).to(torch.int64).contiguous()
    out = grad.new_empty((rows, width))
    arguments = Arguments(
        torch.get_num_threads(), flat.shape[0], rows, width, places.stride(0), padding,
        places.data_ptr(), flat.data_ptr(), out.data_ptr(),
    )  # fmt: skip
    if found(ctypes.byref(arguments)):
        raise MemoryError("gr::lookup_gradient: there is no memory to sort the lookups")
    return out


LIBRARY.impl("lookup_gradient", lookup_gradient, "CPU")
