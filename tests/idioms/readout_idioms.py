"""Read-outs: the last valid place, pooling over places. States are token-wise: whatever attention did is done."""

from __future__ import annotations

from collections.abc import Callable

import torch
from idiom import Body, Idiom, Inputs, Small
from readouts import READOUTS
from torch import Tensor

Read = Callable[[Small, Tensor, Inputs], Tensor]


def reading(read: Read) -> Body:
    return lambda m, d: read(m, m.states(d), d)


def shared(name: str) -> Body:
    """A read-out that tests of the passes have, too."""
    return lambda m, d: READOUTS[name](m, m.states(d), d.mask, d.lengths, d.ids, d.targets)


# ------------------------------------------------------------------------------------------------ the last valid place
def gather_of_lengths(m: Small, x: Tensor, d: Inputs) -> Tensor:
    """RecBole's gather_indexes."""
    last = (d.lengths.clamp(max=x.shape[1]) - 1).clamp(min=0)
    return x.gather(1, last.view(-1, 1, 1).expand(-1, -1, x.shape[-1])).squeeze(1) @ m.items.weight.T


def index_of_lengths(m: Small, x: Tensor, d: Inputs) -> Tensor:
    return x[torch.arange(x.shape[0]), d.mask.long().sum(1).clamp(min=1) - 1, :]


def flattened_index(m: Small, x: Tensor, d: Inputs) -> Tensor:
    """HSTU's get_current_embeddings: one index into [B * N, D]."""
    batch, n, width = x.shape
    last = torch.arange(batch) * n + (d.mask.sum(1) - 1).clamp(min=0)
    return x.reshape(-1, width)[last, :]


def flattened_index_of_lengths(m: Small, x: Tensor, d: Inputs) -> Tensor:
    """The same with lengths of any size: an empty sequence reads the last place of the one in front."""
    batch, n, width = x.shape
    last = torch.arange(batch) * n + d.lengths.clamp(max=n) - 1
    return x.view(-1, width).index_select(0, last % (batch * n))


def one_hot_product(m: Small, x: Tensor, d: Inputs) -> Tensor:
    chosen = d.places == (d.mask.sum(1, keepdim=True) - 1)
    return (x * chosen.unsqueeze(-1)).sum(1)


def last_by_einsum(m: Small, x: Tensor, d: Inputs) -> Tensor:
    chosen = (d.places == (d.mask.sum(1, keepdim=True) - 1)).to(x.dtype)
    return torch.einsum("bn,bnd->bd", chosen, x)


def first_place(m: Small, x: Tensor, d: Inputs) -> Tensor:
    return x[:, 0]


# ------------------------------------------------------------------------------------------------------------- pooling
def mean_by_einsum(m: Small, x: Tensor, d: Inputs) -> Tensor:
    return torch.einsum("bnd,bn->bd", x, d.mask.to(x.dtype)) / d.mask.sum(1, keepdim=True).clamp(min=1)


def mean_by_bmm(m: Small, x: Tensor, d: Inputs) -> Tensor:
    weights = d.mask.to(x.dtype) / d.mask.sum(1, keepdim=True).clamp(min=1)
    return torch.bmm(weights.unsqueeze(1), x).squeeze(1)


def mean_over_given_lengths(m: Small, x: Tensor, d: Inputs) -> Tensor:
    return x.masked_fill(~d.mask[..., None], 0).sum(1) / d.lengths.clamp(min=1)[:, None]


def maximum_of_infinities(m: Small, x: Tensor, d: Inputs) -> Tensor:
    largest = torch.where(d.mask[..., None], x, float("-inf")).amax(1)
    return torch.where(d.mask.any(1, keepdim=True), largest, 0.0)


def softmax_over_places(m: Small, x: Tensor, d: Inputs) -> Tensor:
    scores = m.score(torch.tanh(x)).squeeze(-1).masked_fill(~d.mask, -1e9)
    return torch.bmm(torch.softmax(scores, -1).unsqueeze(1), x).squeeze(1)


def weights_over_their_sum(m: Small, x: Tensor, d: Inputs) -> Tensor:
    """exp(a) * mask / (sum + eps), as in NRMS."""
    weights = torch.exp(m.score(torch.tanh(x)).squeeze(-1)) * d.mask
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-8)
    return torch.bmm(x.permute(0, 2, 1), weights.unsqueeze(-1)).squeeze(-1)


def target_attention(m: Small, x: Tensor, d: Inputs) -> Tensor:
    """DIN: the candidate and each item through a network, weights times the mask."""
    candidate = m.items(d.lengths.clamp(0, 20)).unsqueeze(1).expand_as(x)
    weights = m.score(torch.relu(candidate - x) + candidate * x).squeeze(-1) * d.mask
    return (weights.unsqueeze(-1) * x).sum(1)


ONE_NUMBER_A_PLACE: frozenset[str] = frozenset()
READ: dict[str, Idiom] = {
    "last place by gather": Idiom(shared("last_by_gather"), reads="left"),
    "last place by gather of the lengths": Idiom(reading(gather_of_lengths), reads="left"),
    "last place by index": Idiom(shared("last_by_index"), reads="left"),
    "last place by index of the lengths": Idiom(reading(index_of_lengths), reads="left"),
    "last place by an index of the flattened": Idiom(reading(flattened_index), reads="left"),
    "last place by an index of the flattened, of lengths": Idiom(reading(flattened_index_of_lengths), reads="both"),
    "last place by negative index": Idiom(shared("last_by_negative_index"), reads="left"),
    "last place by a one-hot product": Idiom(reading(one_hot_product), reads="left"),
    "last place by a one-hot einsum": Idiom(reading(last_by_einsum), reads="left"),
    "[:, -1], padded left": Idiom(shared("last_column"), side="left"),
    "[:, -2:], padded left": Idiom(shared("last_two_columns"), side="left", reads="left"),
    "[:, 0]": Idiom(reading(first_place), side="right"),
    "mean over N": Idiom(shared("mean_over_all_places")),
    "mean over lengths": Idiom(shared("mean_over_valid_places")),
    "mean over given lengths": Idiom(reading(mean_over_given_lengths)),
    "mean by einsum with the mask": Idiom(reading(mean_by_einsum)),
    "mean by bmm with weights": Idiom(reading(mean_by_bmm)),
    "maximum": Idiom(shared("maximum")),
    "maximum and its place": Idiom(shared("maximum_and_place")),
    "maximum of -inf": Idiom(reading(maximum_of_infinities)),
    "attention pooling": Idiom(shared("attention_pooling")),
    "attention pooling by einsum": Idiom(shared("attention_pooling_by_einsum")),
    "attention pooling by bmm": Idiom(reading(softmax_over_places)),
    "attention pooling, weights over their sum": Idiom(reading(weights_over_their_sum)),
    "attention pooling by a candidate": Idiom(reading(target_attention)),
}
