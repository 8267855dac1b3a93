"""What a model does with its states x [B, N, D]: losses, pooled states, per-place outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Readout = Callable[[Any, Tensor, Tensor, Tensor, Tensor, Tensor], Any]
READOUTS: dict[str, Readout] = {}


def _readout(function: Readout) -> Readout:
    READOUTS[function.__name__] = function
    return function


@_readout
def cross_entropy(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    logits = x @ m.items.weight.T
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=0)


@_readout
def cross_entropy_sum(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(x, m.items.weight)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=0, reduction="sum") / ids.shape[0]


@_readout
def cross_entropy_classes_second(
    m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor
) -> Tensor:
    logits = F.linear(x, m.items.weight)
    return F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=0)


@_readout
def cross_entropy_shifted(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    """Next-item loss by shifting the ids themselves."""
    logits = F.linear(x[:, :-1], m.items.weight)
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1), ignore_index=0)


@_readout
def cross_entropy_masked(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(x, m.items.weight)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    return (losses * valid).sum() / valid.sum().clamp(min=1)


@_readout
def cross_entropy_of_masked_rows(
    m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor
) -> Tensor:
    logits = F.linear(x, m.items.weight)
    return F.cross_entropy(logits[valid], targets[valid], reduction="sum")


@_readout
def cross_entropy_of_all(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    """A loss that reads padded places: no ignore_index."""
    logits = F.linear(x, m.items.weight)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@_readout
def bpr(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    positive = (x * m.items(targets)).sum(-1)
    negative = (x * m.items((targets * 7 + 3) % 21)).sum(-1)
    return -(F.logsigmoid(positive - negative) * (targets != 0)).sum() / (targets != 0).sum().clamp(min=1)


@_readout
def bce(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    """SASRec's loss: one positive and one negative at every valid place."""
    positive = (x * m.items(targets)).sum(-1)
    negative = (x * m.items((targets * 5 + 2) % 21)).sum(-1)
    chosen = (targets > 0).view(-1).to(x.dtype)
    terms = -torch.log(torch.sigmoid(positive.view(-1)) + 1e-24) * chosen
    terms = terms - torch.log(1 - torch.sigmoid(negative.view(-1)) + 1e-24) * chosen
    return terms.sum() / chosen.sum().clamp(min=1)


@_readout
def bce_at_indices(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    """The published SASRec: places by np.where, here torch.where(targets != 0)."""
    rows, columns = torch.where(targets != 0)
    positive = (x * m.items(targets)).sum(-1)[rows, columns]
    return F.binary_cross_entropy_with_logits(positive, torch.ones_like(positive), reduction="sum")


@_readout
def sampled_softmax(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    negatives = (targets.unsqueeze(-1) * (1 + 2 * torch.arange(1, 4)) + 1) % 21
    candidates = torch.cat([targets.unsqueeze(-1), negatives], -1)
    logits = torch.einsum("bnd,bnkd->bnk", x, m.items(candidates))
    return -(torch.log_softmax(logits, -1)[..., 0] * valid).sum() / valid.sum().clamp(min=1)


@_readout
def last_by_gather(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    last = (valid.sum(1) - 1).clamp(min=0)
    return x.gather(1, last.view(-1, 1, 1).expand(-1, 1, x.shape[-1])).squeeze(1) @ m.items.weight.T


@_readout
def last_by_index(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    return x[torch.arange(x.shape[0]), (valid.sum(1) - 1).clamp(min=0)] @ m.items.weight.T


@_readout
def last_by_negative_index(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    """An empty sequence reads place -1, which is the last padded place."""
    return x[torch.arange(x.shape[0]), valid.sum(1) - 1] @ m.items.weight.T


@_readout
def last_column(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    return x[:, -1] @ m.items.weight.T


@_readout
def last_two_columns(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    return x[:, -2:].flatten(1)


@_readout
def mean_over_all_places(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    return (x * valid.unsqueeze(-1)).mean(1)


@_readout
def mean_over_valid_places(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    return (x * valid.unsqueeze(-1)).sum(1) / valid.sum(1, keepdim=True).clamp(min=1)


@_readout
def unmasked_mean(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    return x.mean(1)


@_readout
def maximum(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    return x.masked_fill(~valid.unsqueeze(-1), -1e9).amax(1)


@_readout
def maximum_and_place(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    values, places = x.masked_fill(~valid.unsqueeze(-1), -1e9).max(dim=1)
    return values + places


@_readout
def attention_pooling(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    scores = (x @ m.items.weight[1]).masked_fill(~valid, -1e9)
    return (torch.softmax(scores, 1).unsqueeze(-1) * x).sum(1)


@_readout
def attention_pooling_by_einsum(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    scores = (x @ m.items.weight[1]).masked_fill(~valid, torch.finfo(x.dtype).min)
    return torch.einsum("bn,bnd->bd", torch.softmax(scores, 1), x)


@_readout
def rows_of_a_transposed_mask(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    """The rows come position by position, not sequence by sequence."""
    rows = x.transpose(0, 1)[valid.T]
    return rows * torch.arange(rows.shape[0], dtype=x.dtype).unsqueeze(-1)


@_readout
def rows_by_coordinates(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    rows, columns = valid.nonzero().unbind(1)
    return x[rows, columns] * m.items(ids)[rows, columns]


@_readout
def rows_of_the_flattened(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    chosen = valid.flatten().nonzero().squeeze(1)
    return F.cross_entropy(F.linear(x.flatten(0, 1).index_select(0, chosen), m.items.weight), targets.flatten()[chosen])


@_readout
def normalised_places(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    """What padded places hold is the bias of the norm: one row."""
    return m.norm(x * valid.unsqueeze(-1))


@_readout
def scored_places(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    head = F.linear(x * valid.unsqueeze(-1), m.items.weight, m.items.weight[:, 0])
    return torch.log_softmax(head, -1).transpose(1, 2)


@_readout
def projected_places_and_positions(
    m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor
) -> Tensor:
    """A row at padded places that differs from position to position."""
    return m.norm(x * valid.unsqueeze(-1) + m.positions(torch.arange(x.shape[1])))


@_readout
def zeroed_places(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    return x * valid.unsqueeze(-1)


@_readout
def filled_places(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    return x.masked_fill(~valid.unsqueeze(-1), 3.5)


@_readout
def transposed_places(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    return (x * valid.unsqueeze(-1)).transpose(1, 2)


@_readout
def norm_of_all(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x * valid.unsqueeze(-1), dim=(1, 2)) + (x * valid.unsqueeze(-1)).pow(2).mean((0, 2))[0]


@_readout
def cumulative(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    return ((x * valid.unsqueeze(-1)).cumsum(1) * valid.unsqueeze(-1)).sum(1)


@_readout
def flattened_rows(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    flat = x.reshape(-1, x.shape[-1])
    return (flat * valid.reshape(-1, 1)).sum(0)


@_readout
def every_place(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Tensor:
    return x


@_readout
def loss_and_every_place(m: Any, x: Tensor, valid: Tensor, lengths: Tensor, ids: Tensor, targets: Tensor) -> Any:
    logits = F.linear(x, m.items.weight)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=0), logits
