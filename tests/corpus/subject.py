"""What the corpus tries: a stranger's model with a batch, of a size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Size:
    """B sequences of at most N places, of which `fill` are valid; small: what a package has by default, else long."""

    batch: int
    n: int
    fill: float = 0.25

    def lengths(self) -> Tensor:
        """[B], mean fill * N, one sequence of N, one of 2 places."""
        generator = torch.Generator().manual_seed(7)
        raw = torch.exp(torch.randn(self.batch, generator=generator) * 0.6)
        found = (raw / raw.mean() * self.fill * self.n).long().clamp(2, self.n)
        if self.fill >= 1:
            return torch.full((self.batch,), self.n)
        found[0], found[-1] = self.n, 2
        return found

    def mask(self, side: str) -> Tensor:
        """bool [B, N], valid at the left or at the right."""
        lengths, place = self.lengths()[:, None], torch.arange(self.n)[None]
        return place < lengths if side == "right" else place >= self.n - lengths


@dataclass(frozen=True)
class Subject:
    """A model, the arguments of a call, and the padding that its user would declare."""

    model: nn.Module
    arguments: tuple[Any, ...]
    padding: dict[str, Any] | None = None


Maker = Callable[[Size], Subject]
