"""Call a kernel: operands to `Args` (runtime/work.h), outputs as fresh tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from gr_compile.analysis.expr import TORCH_DTYPE
from gr_compile.ops.attention_blocks import Inputs

_NUMBERS = ("threads", "batch", "heads", "query_rows", "key_rows", "qk_width", "v_width", "seed")
_ROWS = ("query_offsets", "query_positions", "key_offsets", "key_positions", "q", "k", "v", "grad_out")
_STRIDES = (
    *("q_row", "q_head", "k_row", "k_head", "v_row", "v_head", "grad_row", "grad_head"),
    *("q_heads", "k_heads", "v_heads"),
)
_LISTS = ("sizes", "leaves", "extents", "numels", "out", "grad_q", "grad_k", "grad_v", "grad_leaves")
DONE, NO_MEMORY, TOO_WIDE = 0, 1, 2


class Arguments(ctypes.Structure):
    """`Args` of runtime/work.h: 64-bit integers and pointers, in its order."""

    _fields_ = [(name, ctypes.c_int64) for name in (*_NUMBERS, *_ROWS, *_STRIDES, *_LISTS)]


def whole_rows(x: Tensor) -> Tensor:
    """[T, ..., d] whose elements of a row follow one another, as kernels read them."""
    return x if x.stride(-1) == 1 or x.shape[-1] <= 1 else x.contiguous()


class Call:
    """One call's arguments; the object keeps alive what they point to."""

    def __init__(self, inputs: Inputs, grad_out: Tensor | None = None) -> None:
        self.kept: list[object] = []
        self.arguments = Arguments()
        q, k, v = inputs.q, inputs.k, inputs.v
        self._rows(inputs)
        self._operand("q", q)
        self._operand("k", k)
        self._operand("v", v)
        if grad_out is not None:
            self._operand("grad", grad_out, "grad_out")
        leaves = [x.contiguous() if x.numel() else x.new_zeros([1] * x.dim()) for x in inputs.leaves.values()]
        self._set("leaves", self._pointers(leaves))
        self._set("extents", self._integers([n for x in leaves for n in x.shape]))
        self._set("numels", self._integers([x.numel() for x in leaves]))
        self._set("sizes", self._integers(list(inputs.sizes.values())))
        self.arguments.threads = torch.get_num_threads()
        self.arguments.seed = 0 if inputs.seed is None else int(inputs.seed)

    def _rows(self, inputs: Inputs) -> None:
        for name in ("query_offsets", "query_positions", "key_offsets", "key_positions"):
            tensor = getattr(inputs, name).contiguous()
            self.kept.append(tensor)
            self._set(name, tensor.data_ptr())
        q, k, v = inputs.q, inputs.k, inputs.v
        self.arguments.batch = inputs.query_offsets.shape[0] - 1
        self.arguments.heads = inputs.heads
        self.arguments.query_rows = inputs.query_positions.shape[0]
        self.arguments.key_rows = inputs.key_positions.shape[0]
        self.arguments.v_width = v.shape[2]
        self.arguments.v_heads = v.shape[1]
        if q is not None and k is not None:
            self.arguments.qk_width = q.shape[2]
            self.arguments.q_heads, self.arguments.k_heads = q.shape[1], k.shape[1]

    def _operand(self, name: str, tensor: Tensor | None, pointer: str | None = None) -> None:
        if tensor is None:
            return
        tensor = whole_rows(tensor)
        self.kept.append(tensor)
        self._set(pointer or name, tensor.data_ptr())
        self._set(f"{name}_row", tensor.stride(0))
        self._set(f"{name}_head", tensor.stride(1))

    def _set(self, name: str, value: int) -> None:
        setattr(self.arguments, name, value)

    def _integers(self, values: Sequence[int]) -> int:
        array = (ctypes.c_int64 * max(len(values), 1))(*values)
        self.kept.append(array)
        return ctypes.addressof(array)

    def _pointers(self, tensors: Sequence[Tensor | None]) -> int:
        self.kept.append(tensors)
        return self._integers([0 if x is None else x.data_ptr() for x in tensors])

    def run(self, entry: ctypes._CFuncPtr) -> int:  # type: ignore[name-defined]
        """The kernel's status."""
        return int(entry(ctypes.byref(self.arguments)))


def forward(inputs: Inputs, entry: ctypes._CFuncPtr) -> tuple[int, Tensor]:  # type: ignore[name-defined]
    """(status, O)."""
    shape = (inputs.query_positions.shape[0], inputs.heads, inputs.v.shape[2])
    out = inputs.v.new_empty(shape, dtype=TORCH_DTYPE[inputs.program.out_dtype])
    call = Call(inputs)
    call.arguments.out = out.data_ptr()
    return call.run(entry), out


def backward(
    inputs: Inputs, grad_out: Tensor, needs: Sequence[bool], entry: ctypes._CFuncPtr  # type: ignore[name-defined]
) -> tuple[int, list[Tensor]]:
    """(status, gradients of q, k, v and the leaves; empty where `needs` says no)."""
    call = Call(inputs, grad_out)
    nothing = inputs.v.new_empty(0)
    found = []
    for name, x, need in zip("qkv", (inputs.q, inputs.k, inputs.v), needs):
        grad = torch.empty_like(x, memory_format=torch.contiguous_format) if x is not None and need else nothing
        if grad is not nothing:
            call._set(f"grad_{name}", grad.data_ptr())
        found.append(grad)
    tables = []
    for leaf, need in zip(inputs.leaves.values(), needs[3:]):
        tables.append(torch.zeros(max(leaf.numel(), 1), dtype=torch.float32) if need else None)
    call._set("grad_leaves", call._pointers(tables))
    status = call.run(entry)
    for leaf, table in zip(inputs.leaves.values(), tables):
        found.append(nothing if table is None else table[: leaf.numel()].view(leaf.shape).to(leaf.dtype))
    return status, found
