"""Large tensors of zeros whose pages come when they are written: a gradient that touches few rows is small."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

_LEAST_BYTES = 32 << 20  # less comes from memory that was used before


def zero_rows(rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """As torch.zeros(rows, width) on the CPU, which writes all of it at once.

    Raises:
        MemoryError: the system does not give so much.
    """
    size = rows * width * dtype.itemsize
    if size < _LEAST_BYTES or not hasattr(mmap, "MAP_PRIVATE"):
        return torch.zeros(rows, width, dtype=dtype)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"there is no memory for a tensor of {size} bytes") from error
    storage = torch.frombuffer(memory, dtype=dtype).untyped_storage()
    return torch.empty(0, dtype=dtype).set_(storage, 0, (rows, width), (width, 1))
