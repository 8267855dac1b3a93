"""Losses over padded logits: which places count, and how a model says so."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from idiom import ITEMS, Idiom, Inputs, Small
from readout_idioms import reading, shared
from torch import Tensor


def logits_of(m: Small, x: Tensor) -> Tensor:
    return F.linear(x, m.items.weight)


def boolean_index(m: Small, x: Tensor, d: Inputs) -> Tensor:
    logits, chosen = logits_of(m, x), d.targets != 0
    return F.cross_entropy(logits[chosen], d.targets[chosen], reduction="sum")


def boolean_index_of_the_flattened(m: Small, x: Tensor, d: Inputs) -> Tensor:
    flat, labels = logits_of(m, x).view(-1, ITEMS + 1), d.targets.view(-1)
    active = labels > 0
    return F.cross_entropy(flat[active], labels[active], reduction="sum")


def boolean_index_of_states(m: Small, x: Tensor, d: Inputs) -> Tensor:
    chosen = d.mask.reshape(-1)
    return F.cross_entropy(
        logits_of(m, x.reshape(-1, x.shape[-1])[chosen]), d.targets.reshape(-1)[chosen], reduction="sum"
    )


def ignore_index(m: Small, x: Tensor, d: Inputs) -> Tensor:
    labels = d.targets.masked_fill(~d.mask, -100)
    return F.cross_entropy(logits_of(m, x).flatten(0, 1), labels.flatten(), reduction="sum")


def token_weights(m: Small, x: Tensor, d: Inputs) -> Tensor:
    losses = F.cross_entropy(logits_of(m, x).flatten(0, 1), d.targets.flatten(), reduction="none")
    weights = (d.targets != 0).to(x.dtype) * (1 + d.places).reciprocal()
    return (losses * weights.flatten()).sum() / weights.sum().clamp(min=1e-9)


def gathered_log_softmax(m: Small, x: Tensor, d: Inputs) -> Tensor:
    chances = torch.log_softmax(logits_of(m, x), -1)
    picked = chances.gather(-1, d.targets.unsqueeze(-1)).squeeze(-1)
    return -(picked * d.mask).sum() / d.mask.sum().clamp(min=1)


def shifted_labels(m: Small, x: Tensor, d: Inputs) -> Tensor:
    """The loss itself moves the labels by one place."""
    labels = torch.where(d.mask, d.ids, -100)
    logits = logits_of(m, x)[..., :-1, :].contiguous()
    return F.cross_entropy(logits.view(-1, ITEMS + 1), labels[..., 1:].contiguous().view(-1), reduction="sum")


def padded_shifted_labels(m: Small, x: Tensor, d: Inputs) -> Tensor:
    """Labels moved by a pad, as transformers do since 4.45: the logits keep their places."""
    labels = F.pad(torch.where(d.mask, d.ids, -100), (0, 1), value=-100)[..., 1:].contiguous()
    return F.cross_entropy(logits_of(m, x).view(-1, ITEMS + 1), labels.view(-1), ignore_index=-100, reduction="sum")


def bpr_of_indexed(m: Small, x: Tensor, d: Inputs) -> Tensor:
    apart = (x * m.items(d.targets)).sum(-1) - (x * m.items(d.negatives)).sum(-1)
    return -torch.log(torch.sigmoid(apart[d.mask]) + 1e-10).sum()


def bce_with_negatives(m: Small, x: Tensor, d: Inputs) -> Tensor:
    positive, negative = ((x * m.items(ids)).sum(-1) for ids in (d.targets, d.negatives))
    losses = F.binary_cross_entropy_with_logits(positive, torch.ones_like(positive), reduction="none")
    losses = losses + F.binary_cross_entropy_with_logits(negative, torch.zeros_like(negative), reduction="none")
    return (losses * d.mask).sum() / d.mask.sum().clamp(min=1)


def bce_with_negatives_by_softplus(m: Small, x: Tensor, d: Inputs) -> Tensor:
    positive, negative = ((x * m.items(ids)).sum(-1) for ids in (d.targets, d.negatives))
    return ((F.softplus(-positive) + F.softplus(negative)) * d.mask).sum()


def candidates(m: Small, x: Tensor, d: Inputs) -> Tensor:
    """Logits of the target and of three sampled negatives, [B, N, 4]."""
    ids = torch.cat([d.targets[..., None], (d.negatives[..., None] + torch.arange(3)) % (ITEMS + 1)], -1)
    return (m.items(ids) @ x.unsqueeze(-1)).squeeze(-1)


def sampled_softmax(m: Small, x: Tensor, d: Inputs) -> Tensor:
    logits = candidates(m, x, d) / 0.05
    losses = F.cross_entropy(logits.transpose(1, 2), torch.zeros_like(d.targets), reduction="none")
    return (losses * d.mask).sum() / d.mask.sum().clamp(min=1)


def sampled_softmax_with_swapped_columns(m: Small, x: Tensor, d: Inputs) -> Tensor:
    """RecTools: the target stands in column 1, so that label 0 can mean that a place is padded."""
    logits = candidates(m, x, d)
    logits[:, :, [0, 1]] = logits[:, :, [1, 0]]
    labels = (d.targets != 0).long()
    return F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=0, reduction="sum")


def sampled_softmax_with_hits_masked(m: Small, x: Tensor, d: Inputs) -> Tensor:
    """Negatives that are the target do not count; targets are masked last."""
    ids = (d.negatives[..., None] + torch.arange(3)) % (ITEMS + 1)
    logits = torch.einsum("bnd,bnkd->bnk", x, m.items(ids))
    logits = torch.where(ids == d.targets[..., None], -5e4, logits)
    logits = torch.cat([(x * m.items(d.targets)).sum(-1, keepdim=True), logits], -1)
    return -(F.log_softmax(logits, -1)[..., 0] * (d.targets != 0)).sum()


LOSSES: dict[str, Idiom] = {
    "cross entropy of logits[mask]": Idiom(reading(boolean_index)),
    "cross entropy of flattened logits[mask]": Idiom(reading(boolean_index_of_the_flattened)),
    "cross entropy of flattened states[mask]": Idiom(reading(boolean_index_of_states)),
    "cross entropy at indices": Idiom(shared("rows_of_the_flattened")),
    "ignore_index": Idiom(reading(ignore_index)),
    "ignore_index, the mean": Idiom(shared("cross_entropy")),
    "ignore_index, classes second": Idiom(shared("cross_entropy_classes_second")),
    "weights of tokens": Idiom(reading(token_weights)),
    "weights that are the mask": Idiom(shared("cross_entropy_masked")),
    "gathered log-softmax": Idiom(reading(gathered_log_softmax)),
    "labels shifted in the loss": Idiom(reading(shifted_labels), reads="left"),
    "labels shifted by a pad": Idiom(reading(padded_shifted_labels), reads="left"),
    "ids shifted as labels": Idiom(shared("cross_entropy_shifted"), reads="left"),
    "BPR": Idiom(shared("bpr")),
    "BPR of indexed places": Idiom(reading(bpr_of_indexed)),
    "BCE with sampled negatives": Idiom(reading(bce_with_negatives)),
    "BCE with sampled negatives, softplus": Idiom(reading(bce_with_negatives_by_softplus)),
    "BCE of flattened scores": Idiom(shared("bce")),
    "BCE at indices": Idiom(shared("bce_at_indices")),
    "sampled softmax": Idiom(reading(sampled_softmax)),
    "sampled softmax by log-softmax": Idiom(shared("sampled_softmax")),
    "sampled softmax with swapped columns": Idiom(reading(sampled_softmax_with_swapped_columns)),
    "sampled softmax with hits masked": Idiom(reading(sampled_softmax_with_hits_masked)),
}
