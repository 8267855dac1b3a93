"""Kinds of values: what tells one fake tensor, size or constant from another to an operator that is evaluated.

Values of one kind are equal and have equal hashes. A value of which too little is known is of a kind of its own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx
from torch._subclasses.fake_tensor import FakeTensor

_PLAIN = (
    int, bool, str, bytes, type(None), type(...), torch.dtype, torch.device, torch.layout,
    torch.memory_format,
)  # fmt: skip


class Other:
    """The kind of a value of which too little is known: equal to no other."""


def plain(value: Any) -> Any:
    """A constant argument as something that only its like is equal to; operands are all alike."""
    if isinstance(value, fx.Node):
        return fx.Node
    if isinstance(value, (tuple, list)):
        return "sequence", tuple(map(plain, value))
    if isinstance(value, dict):
        return "dict", tuple((key, plain(held)) for key, held in value.items())
    if isinstance(value, slice):
        return "slice", plain(value.start), plain(value.stop), plain(value.step)
    if isinstance(value, torch.SymInt):
        return torch.SymInt, value.node.expr
    if isinstance(value, (float, complex)):
        return type(value), repr(value)  # 0.0 is equal to -0.0, and nan to nothing
    return (type(value), value) if isinstance(value, _PLAIN) or callable(value) else Other()


def kind(value: Any) -> Any:
    """What tracing sees of a value: of a tensor its dtype, device, sizes, strides, and whether it needs a gradient."""
    if isinstance(value, (tuple, list)):
        return "sequence", tuple(map(kind, value))
    if not isinstance(value, torch.Tensor):
        return plain(value)
    if not isinstance(value, FakeTensor) or value.layout is not torch.strided or value.constant is not None:
        return Other()
    sizes = tuple(plain(size) for size in (*value.shape, *value.stride(), value.storage_offset()))
    bits = value.requires_grad, value.is_conj(), value.is_neg(), value.is_inference()
    return type(value), isinstance(value, torch.nn.Parameter), value.dtype, value.device, bits, value.dim(), sizes
