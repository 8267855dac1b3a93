"""Lengths of made-up sequences with a stated mean fill, and batches of such sequences."""

from __future__ import annotations

from dataclasses import dataclass

import torch

SIGMA = 0.8
SEED = 7


def lengths_for(fill: float, batch_size: int, max_seq_len: int, seed: int = SEED) -> torch.Tensor:
    """[B] int64: exp(normal(mu, 0.8)) clipped to [1, N], mu solved for the mean `fill` of these B sequences.

    The same seed draws the same normals whatever the fill, so that fills differ in scale alone.
    """
    if not 0 < fill <= 1:
        raise ValueError(f"a fill is a share of the places within 0..1, not {fill}")
    if fill * max_seq_len < 1:
        raise ValueError(f"a fill of {fill} of {max_seq_len} places is less than one place a sequence")
    if fill == 1:
        return torch.full((batch_size,), max_seq_len)
    noise = SIGMA * torch.randn(batch_size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    low, high = -20.0, 40.0
    for _ in range(80):
        mu = (low + high) / 2
        mean = torch.exp(mu + noise).clamp(1, max_seq_len).mean()
        low, high = (mu, high) if mean < fill * max_seq_len else (low, mu)
    return torch.exp(low + noise).clamp(1, max_seq_len).round().long()


@dataclass(frozen=True)
class Sequences:
    """Right-padded with 0. `item_ids`, `timestamps`, `targets` [B, N] int64, `lengths` [B] int64."""

    item_ids: torch.Tensor
    timestamps: torch.Tensor
    targets: torch.Tensor
    lengths: torch.Tensor


def sequences_for(
    fill: float, batch_size: int, max_seq_len: int, items: int, seed: int = SEED
) -> Sequences:
    """Items 1..`items`, each as likely; timestamps that rise, over four months of seconds."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch_size, max_seq_len)
    lengths = lengths_for(fill, batch_size, max_seq_len, seed)
    valid = torch.arange(max_seq_len) < lengths.unsqueeze(1)
    ids = torch.randint(1, items + 1, shape, generator=generator) * valid
    stamps = torch.randint(0, 10**7, shape, generator=generator).sort(dim=1).values
    targets = torch.randint(1, items + 1, shape, generator=generator) * valid
    return Sequences(ids, stamps, targets, lengths)
