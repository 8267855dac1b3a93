"""Positions and buckets: what an embedding of places or of times between places is looked up by."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from idiom import LONGEST, Body, Idiom, Inputs, Small
from torch import Tensor

Positions = Callable[[Inputs], Tensor]


def placed(positions: Positions) -> Body:
    """A model whose tokens have an embedding of their position."""

    def body(m: Small, d: Inputs) -> Tensor:
        x = m.tokens(d) + m.positions(positions(d))
        return m.loss(m.softmax_attention(x, d), d)

    return body


def by_arange(d: Inputs) -> Tensor:
    return torch.arange(d.ids.shape[1])


def by_expanded_arange(d: Inputs) -> Tensor:
    return torch.arange(d.ids.shape[1]).unsqueeze(0).expand_as(d.ids)


def by_cumsum_of_the_mask(d: Inputs) -> Tensor:
    return (d.mask.long().cumsum(1) - 1).clamp(min=0)


def by_cumsum_times_the_mask(d: Inputs) -> Tensor:
    return torch.cumsum(d.ids.ne(0).int(), dim=1).type_as(d.ids) * d.ids.ne(0)


def flipped(d: Inputs) -> Tensor:
    return torch.arange(d.ids.shape[1]).flip(0)


def counted_from_the_end(d: Inputs) -> Tensor:
    return torch.arange(d.ids.shape[1] - 1, -1, -1).expand_as(d.ids)


def counted_back_from_the_last_valid(d: Inputs) -> Tensor:
    return (d.lengths[:, None] - 1 - torch.arange(d.ids.shape[1])).clamp(min=0)


def flipped_cumsum_of_the_mask(d: Inputs) -> Tensor:
    return (d.mask.long().flip(1).cumsum(1).flip(1) - 1).clamp(min=0)


def of_a_parameter(m: Small, d: Inputs) -> Tensor:
    x = m.tokens(d) + m.positions.weight[: d.ids.shape[1]]
    return m.loss(m.softmax_attention(x, d), d)


# -------------------------------------------------------------------------------------------------------- buckets
def log_buckets(apart: Tensor) -> Tensor:
    return (torch.log(apart.abs().clamp(min=1).float()) / 0.301).long().clamp(0, 2 * LONGEST - 1)


def sqrt_buckets(apart: Tensor) -> Tensor:
    return torch.sqrt(apart.abs().float()).floor().long().clamp(max=2 * LONGEST - 1)


def log_buckets_beyond_some(apart: Tensor) -> Tensor:
    """T5's: exact up to 4, logarithmic behind."""
    near = apart.clamp(min=0)
    far = 4 + (torch.log(near.float().clamp(min=1) / 4) / 2.0 * 4).long()
    return torch.where(near < 4, near, far.clamp(max=15))


def bucketed(buckets: Callable[[Tensor], Tensor], silu: bool) -> Body:
    """A bias of the scores for each bucket of the time between two places."""

    def body(m: Small, d: Inputs) -> Tensor:
        bias = m.bias[buckets(d.times[:, :, None] - d.times[:, None, :])].unsqueeze(1)
        if silu:
            x = m.attend(m.tokens(d), lambda scores: F.silu(scores + bias) / scores.shape[-1] * d.seen)
        else:
            x = m.attend(m.tokens(d), lambda scores: torch.softmax((scores + bias).masked_fill(~d.seen, -1e9), -1))
        return m.loss(x, d)

    return body


def time_since_the_last(m: Small, d: Inputs) -> Tensor:
    """A bucket of the time since the item in front, a token's own feature."""
    before = torch.cat([d.times[:, :1], d.times[:, :-1]], 1)
    x = m.tokens(d) + m.positions(log_buckets(d.times - before).clamp(max=LONGEST - 1))
    return m.loss(m.softmax_attention(x, d), d)


def time_until_now(m: Small, d: Inputs) -> Tensor:
    now = d.times.max(1, keepdim=True).values
    x = m.tokens(d) + m.positions(sqrt_buckets(now - d.times).clamp(max=LONGEST - 1))
    return m.loss(m.softmax_attention(x, d), d)


POSITIONS: dict[str, Idiom] = {
    "positions by arange": Idiom(placed(by_arange), attentions=1),
    "positions by expanded arange": Idiom(placed(by_expanded_arange), attentions=1),
    "positions by cumsum of the mask": Idiom(placed(by_cumsum_of_the_mask), attentions=1),
    "positions by cumsum times the mask": Idiom(placed(by_cumsum_times_the_mask), attentions=1),
    "positions flipped": Idiom(placed(flipped), attentions=1),
    "positions counted from the end": Idiom(placed(counted_from_the_end), attentions=1),
    "positions counted back from the last valid": Idiom(placed(counted_back_from_the_last_valid), attentions=1),
    "positions by flipped cumsum of the mask": Idiom(placed(flipped_cumsum_of_the_mask), attentions=1),
    "positions by a slice of a parameter": Idiom(of_a_parameter, attentions=1),
    "buckets by log": Idiom(bucketed(log_buckets, silu=True), attentions=1),
    "buckets by log, softmax": Idiom(bucketed(log_buckets, silu=False), attentions=1),
    "buckets by sqrt": Idiom(bucketed(sqrt_buckets, silu=True), attentions=1),
    "buckets by log beyond some": Idiom(bucketed(log_buckets_beyond_some, silu=False), attentions=1),
    "bucket of the time since the last": Idiom(time_since_the_last, attentions=1),
    "bucket of the time until now": Idiom(time_until_now, attentions=1),
}
