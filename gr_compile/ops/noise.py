"""Dropout as a counter: whether an element is kept is a hash of (seed, sequence, head, query place, key place).

    row   = mix(mix(mix(mix(low32(seed)) ^ high32(seed) + b * A) + h * B) + i * C)
    kept  = mix(j * D + row) >= p * 2^32                        mix: the finalizer of MurmurHash3, 32 bits

Nothing depends on how a kernel walks, so forward and backward, reference and printed kernels agree.
lowering/cpu/runtime/numeric.h holds the same in C++.
"""

from __future__ import annotations

from torch import Tensor

_MASK = 0xFFFFFFFF
_BATCH, _HEAD, _QUERY, _KEY = 0x9E3779B9, 0x85EBCA77, 0xC2B2AE3D, 0x9E3779B1


def _mix(x: Tensor) -> Tensor:
    x = x ^ (x >> 16)
    x = (x * 0x85EBCA6B) & _MASK
    x = x ^ (x >> 13)
    x = (x * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)


def row_noise(seed: Tensor, batch: Tensor, head: Tensor, query: Tensor) -> Tensor:
    """The hash of a row, int64 in [0, 2^32); the operands are int64 and broadcast."""
    x = _mix(seed & _MASK) ^ ((seed >> 32) & _MASK)
    x = _mix((x + (batch & _MASK) * _BATCH) & _MASK)
    x = _mix((x + (head & _MASK) * _HEAD) & _MASK)
    return _mix((x + (query & _MASK) * _QUERY) & _MASK)


def kept(row: Tensor, key: Tensor, p: float) -> Tensor:
    """Bool: true with probability 1 - p, by `row_noise` and the key's place."""
    drop = _MASK if p >= 1 else min(int(p * 2**32), _MASK)
    return _mix((row + key * _KEY) & _MASK) >= drop
