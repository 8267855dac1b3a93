"""Dropout of many equal weights at once.

    gr::dropout_share   counts, p, seed -> the share of their sum that is left, 1 in the mean

Of `count` equal weights each is dropped with probability p, and the others are divided by 1 - p: their sum is
multiplied by Binomial(count, 1 - p) / (count (1 - p)). Random numbers come from the seed alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gr_compile.ops.registry import define_operator, require


def _fake(count: Tensor, p: float, seed: Tensor) -> Tensor:
    require(not count.dtype.is_floating_point, lambda: f"gr::dropout_share: count must be whole, not {count.dtype}")
    require(0 <= p <= 1, lambda: f"gr::dropout_share: p must be within 0..1, not {p}")
    require(
        seed.dtype == torch.int64 and seed.dim() == 0, lambda: "gr::dropout_share: seed must be an int64 scalar tensor"
    )
    return count.new_empty(count.shape, dtype=torch.float32)


def dropout_share_reference(count: Tensor, p: float, seed: Tensor) -> Tensor:
    """float32, of the shape of `count` (whole numbers, at least 1); waits for the device, which holds `seed`."""
    out = _fake(count, p, seed)
    if p >= 1:
        return out.zero_()
    generator = torch.Generator(count.device).manual_seed(int(seed))
    many = count.to(torch.float32)
    survivors = torch.binomial(many, torch.full_like(many, 1 - p), generator)
    return survivors / (many * (1 - p))


dropout_share = define_operator(
    "dropout_share(Tensor count, float p, Tensor seed) -> Tensor", dropout_share_reference, _fake
)
