"""HR@k and NDCG@k of leave-one-out, ranked against the full catalogue."""

from __future__ import annotations

from dataclasses import dataclass

import torch


def ranks(logits: torch.Tensor, targets: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
    """How many items stand before each row's target; equal scores stand in order of item id.

    Args:
        logits: [B, V + 1] float; column 0 (padding) never ranks.
        targets: [B] int64 in 1..V.
        seen: [B, N] int64 item ids that do not rank (0 is ignored); a target among them still ranks.
    Returns:
        [B] int64, 0 is the best.
    Raises:
        ValueError: a logit is not finite; comparisons with NaN would count as a perfect rank.
    """
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("the model's scores are not finite; nothing can be ranked")
    logits = excluded(logits, targets, seen)
    target_logits = logits.gather(1, targets.unsqueeze(1))
    ids = torch.arange(logits.size(1), device=logits.device)
    before = (logits > target_logits) | ((logits == target_logits) & (ids < targets.unsqueeze(1)))
    return before.sum(dim=1)


def excluded(logits: torch.Tensor, targets: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
    """`logits` [B, V + 1] in float32 with -inf where an item cannot be recommended."""
    logits = logits.detach().float().clone()
    target_logits = logits.gather(1, targets.unsqueeze(1))
    if seen is not None:
        logits.scatter_(1, seen, float("-inf"))
    logits[:, 0] = float("-inf")
    return logits.scatter_(1, targets.unsqueeze(1), target_logits)


@dataclass(frozen=True)
class Quality:
    """HR@k: the share of users whose target ranks among the first k.
    NDCG@k: the mean of 1 / log2(rank + 2) over those, 0 for the others (one relevant item a user).
    """

    hit_rate: float
    ndcg: float
    users: int
    k: int


def quality(all_ranks: torch.Tensor, k: int) -> Quality:
    """`all_ranks` [U] int64 from 0 -> the two means."""
    hit = all_ranks < k
    gain = torch.where(hit, 1.0 / torch.log2(all_ranks.double() + 2.0), 0.0)
    return Quality(hit.double().mean().item(), gain.mean().item(), len(all_ranks), k)
