"""`gr::linear_cross_entropy` on the CPU: products by torch over blocks of tokens, the softmax between them row by row.

A block's logits become exponentials in place and are not divided by their sums: the sums, the weights and the scale
are factors of a token, and go into x and into the gradient of x, which are D and not V wide.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from gr_compile.lowering.cpu.call import whole_rows
from gr_compile.lowering.cpu.kernels import enabled, entry
from gr_compile.lowering.cpu.source import registered, runtime
from gr_compile.ops.linear_cross_entropy import (
    check,
    counted_blocks,
    gradients_reference,
    new_gradients,
    tokens_reference,
    total,
)
from gr_compile.ops.registry import LIBRARY, outside_autocast

_FIELDS = ("threads", "rows", "items", "slopes", "logits", "bias", "target", "loss", "sum")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_NO_GRADIENTS = (False, False, False)


class Arguments(ctypes.Structure):
    """`EntropyArgs` of runtime/cross_entropy.h: 64-bit integers and pointers, in its order."""

    _fields_ = [(name, ctypes.c_int64) for name in _FIELDS]


def source() -> str:
    """The translation unit of the softmax between the products."""
    parts = [runtime(name) for name in ("vector.h", "numeric.h", "cross_entropy.h")]
    return registered(parts, "gr_cross_entropy")


@functools.lru_cache(maxsize=1)
def kernel() -> ctypes._CFuncPtr | None:  # type: ignore[name-defined]
    """The entry of the kernel; None where the reference has to do."""
    return entry(source, "gr_cross_entropy")


class _Sweep:
    """One call: blocks of tokens from logits to losses and gradients."""

    def __init__(self, x: Tensor, table: Tensor, bias: Tensor | None, scale: float, needs: Sequence[bool]) -> None:
        self.x, self.scale = x, scale
        self.table = whole_rows(table.float())
        self.bias = None if bias is None else bias.float().contiguous()
        self.losses = x.new_zeros(x.shape[0], dtype=torch.float32)
        self.grads = [grad.zero_() for grad in new_gradients(x, table, bias, needs)]
        self.needs = (needs[0], needs[1], needs[2] and bias is not None)
        self.logits = self.losses.new_empty(0)

    def run(self, found: ctypes._CFuncPtr, target: Tensor, weight: Tensor) -> None:  # type: ignore[name-defined]
        blocks = counted_blocks(target, weight, self.table)
        if blocks:
            self.logits = self.losses.new_empty(blocks[0].shape[0], self.table.shape[0])
        for rows in blocks:
            picked = self.x[rows].float()
            logits = self.logits[: rows.shape[0]].addmm_(picked, self.table.t(), beta=0, alpha=self.scale)
            loss, sums = self._softmax(found, logits, target[rows])
            share = weight[rows].float()
            self.losses[rows] = loss * share
            self._add(rows, picked, logits, share / sums)

    def _softmax(
        self, found: ctypes._CFuncPtr, logits: Tensor, target: Tensor  # type: ignore[name-defined]
    ) -> tuple[Tensor, Tensor]:
        loss, sums = logits.new_empty(2, logits.shape[0])
        arguments = Arguments(
            torch.get_num_threads(), *logits.shape, any(self.needs),
            logits.data_ptr(), 0 if self.bias is None else self.bias.data_ptr(), target.data_ptr(),
            loss.data_ptr(), sums.data_ptr(),
        )  # fmt: skip
        found(ctypes.byref(arguments))
        return loss, sums

    def _add(self, rows: Tensor, picked: Tensor, slopes: Tensor, factor: Tensor) -> None:
        grad_x, grad_table, grad_bias = self.grads
        scaled = (factor * self.scale)[:, None]
        if self.needs[0]:
            grad_x[rows] = slopes.mm(self.table).mul_(scaled)
        if self.needs[1]:
            grad_table.addmm_(slopes.t(), picked.mul_(scaled))
        if self.needs[2]:
            grad_bias.addmv_(slopes.t(), factor)


def _swept(
    x: Tensor, table: Tensor, bias: Tensor | None, target: Tensor, weight: Tensor, scale: float, needs: Sequence[bool]
) -> _Sweep | None:
    check(x, table, bias, target, weight)
    found = kernel() if enabled() and x.dtype in _DTYPES else None
    if found is None:
        return None
    with outside_autocast(x.device):
        sweep = _Sweep(x, table, bias, scale, needs)
        sweep.run(found, target, weight)
    return sweep


def tokens(x: Tensor, table: Tensor, bias: Tensor | None, target: Tensor, weight: Tensor, scale: float) -> Tensor:
    """The CPU's `gr::linear_cross_entropy_tokens`."""
    sweep = _swept(x, table, bias, target, weight, scale, _NO_GRADIENTS)
    return tokens_reference(x, table, bias, target, weight, scale) if sweep is None else sweep.losses


def gradients(
    x: Tensor, table: Tensor, bias: Tensor | None, target: Tensor, weight: Tensor, scale: float, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The CPU's `gr::linear_cross_entropy_gradients`."""
    sweep = _swept(x, table, bias, target, weight, scale, needs)
    if sweep is None:
        return gradients_reference(x, table, bias, target, weight, scale, needs)
    return (total(sweep.losses), *sweep.grads)  # type: ignore[return-value]


LIBRARY.impl("linear_cross_entropy_tokens", tokens, "CPU")
LIBRARY.impl("linear_cross_entropy_gradients", gradients, "CPU")
