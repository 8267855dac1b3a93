"""Scoring a sequence's state against the whole catalogue, and the loss of next-item prediction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class CosineSimilarity(nn.Module):
    """Cosine of a state and every item's embedding, divided by a temperature.

    The `l2_norm` post-processor and dot-product similarity of Meta's generative-recommenders
    (research/modeling/sequential, temperature 0.05), over the whole catalogue instead of samples.
    """

    def __init__(self, temperature: float = 0.05, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.temperature = temperature
        self.epsilon = epsilon

    def forward(self, states: torch.Tensor, item_table: torch.Tensor) -> torch.Tensor:
        """`states` [..., D] float, `item_table` [V + 1, D] float -> logits [..., V + 1] float.

        Row 0 of the table is the padding item; its logit takes part in the softmax like any other.
        """
        states = F.normalize(states, dim=-1, eps=self.epsilon)
        items = F.normalize(item_table, dim=-1, eps=self.epsilon)
        return F.linear(states, items) / self.temperature

    def of_candidates(self, states: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        """Every place has candidates of its own: [B, N, D], [B, N, C, D] float -> logits [B, N, C] float."""
        states = F.normalize(states, dim=-1, eps=self.epsilon)
        candidates = F.normalize(candidates, dim=-1, eps=self.epsilon)
        return torch.einsum("bnd,bncd->bnc", states, candidates) / self.temperature


def next_item_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy over the places that have a target; a target of 0 is padding.

    `logits` [B, N, V + 1] float, `targets` [B, N] int64 in 0..V -> scalar.
    """
    return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=0)


def sampled_softmax_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean of -log(e^l+ / (e^l+ + sum of e^l-)) over the places that have a target; a target of 0 is padding.

    `logits` [B, N, 1 + K] float, the target's first; `targets` [B, N] int64 -> scalar.
    """
    has_target = targets != 0
    likely = F.log_softmax(logits, dim=-1)[..., 0]
    return -(likely * has_target).sum() / has_target.sum()


def state_at(states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """One place of every sequence: `states` [B, N, D], `index` [B] int64 -> [B, D]; -1 reads place 0."""
    index = index.clamp(min=0).view(-1, 1, 1).expand(-1, 1, states.size(-1))
    return states.gather(1, index).squeeze(1)
