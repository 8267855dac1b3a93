"""Losses alone, of states that are there already: sampled softmax, and softmax over the whole catalogue."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from gr_compile.model_zoo.retrieval import next_item_loss, sampled_softmax_loss


class _States(nn.Module):
    """States [B, N, D] of a backbone, which take a gradient, and a tied table [V + 1, D] of items; 0 is padding."""

    def __init__(self, items: int, dim: int, batch_size: int, max_seq_len: int) -> None:
        super().__init__()
        self.states = nn.Parameter(torch.randn(batch_size, max_seq_len, dim))
        self.table = nn.Embedding(items + 1, dim, padding_idx=0)
        with torch.no_grad():
            self.table.weight.mul_(dim**-0.5)


class SampledSoftmax(_States):
    """Each token's target against negatives of its own, dot products."""

    def forward(self, targets: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
        """`targets` [B, N], `negatives` [B, N, R] int64 -> scalar: the mean over places that have a target."""
        positive = (self.states * self.table(targets)).sum(dim=-1, keepdim=True)
        logits = torch.einsum("bnd,bnrd->bnr", self.states, self.table(negatives))
        return sampled_softmax_loss(torch.cat([positive, logits], dim=-1), targets)


class FullSoftmax(_States):
    """Each token's target against all items."""

    def forward(self, targets: torch.Tensor) -> torch.Tensor:
        """`targets` [B, N] int64 -> scalar: the mean over places that have a target."""
        return next_item_loss(F.linear(self.states, self.table.weight), targets)
