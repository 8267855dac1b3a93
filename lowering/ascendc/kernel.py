"""An AscendC kernel of one graph operator, as whoever writes an operator project needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Kernel:
    """A kernel with the tiling that was chosen for one call.

    Attributes:
        name: of the `extern "C" __global__ __aicore__` function in `source`.
        source: the C++ file.
        tiling_fields: (name, C++ type) of the tiling struct's fields, in order.
        tiling: the value of every field.
        blocks: of the launch.
        workspace_bytes: what the kernel needs of global memory for itself.
        reason: why this tiling was chosen, in one line.
    """

    name: str
    source: str
    tiling_fields: tuple[tuple[str, str], ...]
    tiling: Mapping[str, int | float]
    blocks: int
    workspace_bytes: int
    reason: str
