"""Masks: how they reach the scores, how they are made, which keys they admit."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from idiom import HEADS, Idiom, Inputs, Small, Weigh, weighing
from torch import Tensor


# ------------------------------------------------------------------------------------ how a mask reaches the scores
def multiplication(scores: Tensor, d: Inputs) -> Tensor:
    return F.silu(scores) / scores.shape[-1] * d.seen


def masked_fill(scores: Tensor, d: Inputs) -> Tensor:
    return torch.softmax(scores.masked_fill(~d.seen, -math.inf), -1)


def masked_fill_of_weights(scores: Tensor, d: Inputs) -> Tensor:
    return F.gelu(scores).masked_fill(~d.seen, 0.0)


def where(scores: Tensor, d: Inputs) -> Tensor:
    return torch.softmax(torch.where(d.seen, scores, -math.inf), -1)


def where_of_weights(scores: Tensor, d: Inputs) -> Tensor:
    return torch.where(d.seen, F.silu(scores), torch.zeros_like(scores))


def adding(least: float) -> Weigh:
    def weigh(scores: Tensor, d: Inputs) -> Tensor:
        return torch.softmax(scores + (1.0 - d.seen.to(scores.dtype)) * least, -1)

    return weigh


def adding_infinity(scores: Tensor, d: Inputs) -> Tensor:
    added = torch.zeros(d.seen.shape, dtype=scores.dtype).masked_fill(~d.seen, -math.inf)
    return torch.softmax(scores + added, -1)


def adding_finfo_min(scores: Tensor, d: Inputs) -> Tensor:
    return torch.softmax(scores + (1.0 - d.seen.to(scores.dtype)) * torch.finfo(scores.dtype).min, -1)


def clamped(scores: Tensor) -> Tensor:
    return 3 * scores.clamp(-50, 50)


def silu_of_added(least: float, bound: Callable[[Tensor], Tensor] = torch.clone) -> Weigh:
    def weigh(scores: Tensor, d: Inputs) -> Tensor:
        return F.silu(bound(scores) + (1.0 - d.seen.to(scores.dtype)) * least)

    return weigh


def gelu_of_filled(least: float) -> Weigh:
    def weigh(scores: Tensor, d: Inputs) -> Tensor:
        return F.gelu(scores.masked_fill(~d.seen, least))

    return weigh


def silu_of_filled(least: float) -> Weigh:
    def weigh(scores: Tensor, d: Inputs) -> Tensor:
        return F.silu(scores.masked_fill(~d.seen, least))

    return weigh


def nan_to_num(scores: Tensor, d: Inputs) -> Tensor:
    """Rows without a key are NaN, and become 0."""
    return torch.nan_to_num(torch.softmax(scores.masked_fill(~d.seen, -math.inf), -1))


def nan_to_num_of_finite_masks(scores: Tensor, d: Inputs) -> Tensor:
    """Nothing is NaN: rows without a key, here the first of each sequence, are the mean over all keys."""
    seen = (d.places[:, None] > d.places) & d.mask[:, None, None]
    return torch.nan_to_num(torch.softmax(scores.masked_fill(~seen, -1e9), -1))


def nan_to_num_of_shifted(scores: Tensor, d: Inputs) -> Tensor:
    """A row without a key is -inf less its maximum, -inf: NaN, and becomes 0."""
    logits = scores.masked_fill(~d.seen, -math.inf)
    return torch.nan_to_num(torch.softmax(logits - logits.amax(-1, keepdim=True), -1))


def nan_to_num_of_shifted_biases(m: Small, d: Inputs) -> Tensor:
    """The same of weights that read positions alone, and a first place, valid or not, without a key."""
    n = d.ids.shape[1]
    before = (d.places[:, None] > d.places) & d.mask[:, None, None]
    bias = m.bias[torch.arange(n) - torch.arange(n)[:, None] + n].masked_fill(~before, -math.inf)
    weights = torch.nan_to_num(torch.softmax(bias - bias.amax(-1, keepdim=True), -1))
    return m.loss(m.attend(m.tokens(d), lambda scores: weights.expand_as(scores)), d)


def nan_to_num_of_a_bias(m: Small, d: Inputs) -> Tensor:
    """A bias of queries that may be -inf: -inf - -inf is no logit that is masked out, but NaN all the same."""
    x = m.tokens(d)
    bias = torch.logsumexp(m.feature(d.features).masked_fill(~d.mask[..., None], -math.inf), -1)[:, None, :, None]
    return m.loss(
        m.attend(x, lambda s: torch.nan_to_num(torch.softmax(s.masked_fill(~d.seen, -math.inf) - bias, -1))), d
    )


def over_their_sum(scores: Tensor, d: Inputs) -> Tensor:
    weights = torch.exp(scores - scores.amax(-1, keepdim=True)) * d.seen
    return weights / weights.sum(-1, keepdim=True)


def over_their_sum_and_more(scores: Tensor, d: Inputs) -> Tensor:
    """Rows without a key are 0."""
    scores = scores.masked_fill(~d.seen, -1e9)
    weights = torch.exp(scores - scores.max(-1, keepdim=True).values) * d.seen.to(scores.dtype)
    return weights / (weights.sum(-1, keepdim=True) + 1e-17)


def over_their_sum_and_too_much(scores: Tensor, d: Inputs) -> Tensor:
    weights = torch.exp(scores - scores.amax(-1, keepdim=True)) * d.seen
    return weights / (weights.sum(-1, keepdim=True) + 1e-3)


def elu_of_scores(scores: Tensor, d: Inputs) -> Tensor:
    return (F.elu(scores) + 1) * d.seen


def relu6_of_scores(scores: Tensor, d: Inputs) -> Tensor:
    return F.relu6(scores + 3) * F.hardtanh(scores, -2.0, 2.0) * d.seen


def decayed(scores: Tensor, d: Inputs) -> Tensor:
    """A retention: weights fall with the distance."""
    apart = (d.places[:, None] - d.places).clamp(min=0)
    return scores * (0.9 ** apart.to(scores.dtype) * d.causal) * d.mask[:, None, None]


# -------------------------------------------------------------------------------------------------- which keys, how
def softmax(scores: Tensor, admitted: Tensor) -> Tensor:
    return torch.softmax(scores.masked_fill(~admitted, torch.finfo(scores.dtype).min), -1)


def nested_logic(scores: Tensor, d: Inputs) -> Tensor:
    first, padded = d.places == 0, d.ids.eq(0)
    admitted = torch.logical_and(d.causal | (first & d.causal), ~(padded | ~d.mask)[:, None])
    return softmax(scores, torch.logical_not(torch.logical_or(~admitted, padded[:, None]))[:, None])


def inverted(scores: Tensor, d: Inputs) -> Tensor:
    padded = ~d.mask
    ahead = ~d.causal
    return torch.softmax(scores.masked_fill((padded[:, None] | ahead)[:, None], -math.inf), -1)


def of_floats(scores: Tensor, d: Inputs) -> Tensor:
    valid = (d.ids > 0).to(scores.dtype)
    pairs = valid.unsqueeze(2) * valid.unsqueeze(1)
    return F.silu(scores) * pairs.unsqueeze(1)


def of_floats_by_bmm(scores: Tensor, d: Inputs) -> Tensor:
    valid = (d.ids > 0).to(scores.dtype)
    pairs = torch.bmm(valid.unsqueeze(2), valid.unsqueeze(1))
    return F.silu(scores) * pairs.unsqueeze(1)


def expanded(scores: Tensor, d: Inputs) -> Tensor:
    batch, n = d.ids.shape
    admitted = d.mask.view(batch, 1, 1, n).expand(batch, HEADS, n, n) & d.causal.expand(batch, HEADS, n, n)
    return torch.softmax(torch.where(admitted, scores, torch.full_like(scores, -1e9)), -1)


def repeated(scores: Tensor, d: Inputs) -> Tensor:
    n = d.ids.shape[1]
    keys = d.mask.unsqueeze(1).repeat(1, n, 1).unsqueeze(1).repeat(1, HEADS, 1, 1)
    return torch.softmax(scores.masked_fill(keys.logical_not(), -1e9), -1)


def tril(scores: Tensor, d: Inputs) -> Tensor:
    n = d.ids.shape[1]
    return softmax(scores, torch.tril(torch.ones(n, n)).bool() & d.mask[:, None, None])


def triu(scores: Tensor, d: Inputs) -> Tensor:
    n = d.ids.shape[1]
    ahead = torch.triu(torch.ones(n, n, dtype=torch.bool), diagonal=1)
    return softmax(scores, ~(ahead | ~d.mask[:, None, None]))


def triu_of_infinities(scores: Tensor, d: Inputs) -> Tensor:
    n = d.ids.shape[1]
    ahead = torch.full((n, n), -math.inf, dtype=scores.dtype).triu(1)
    return torch.softmax((scores + ahead).masked_fill(~d.mask[:, None, None], -math.inf), -1)


def comparison(scores: Tensor, d: Inputs) -> Tensor:
    place = torch.arange(scores.shape[-1])
    return softmax(scores, (place.view(1, -1) <= place.view(-1, 1)) & d.mask[:, None, None])


def sliced_buffer(m: Small, d: Inputs) -> Tensor:
    n = d.ids.shape[1]
    return m.loss(m.attend(m.tokens(d), lambda s: softmax(s, m.triangle[:n, :n] & d.mask[:, None, None])), d)


def causal_alone(scores: Tensor, d: Inputs) -> Tensor:
    return softmax(scores, d.causal)


def window(scores: Tensor, d: Inputs) -> Tensor:
    apart = d.places[:, None] - d.places
    return softmax(scores, ((apart >= 0) & (apart < 3)) & d.mask[:, None, None])


UNPROVED = (("its mask does not keep queries from reading padded keys", ""),)
"""SiLU and GELU of a large negative number are 0; that of a small one, or of one beside a score without bounds, is not."""

MASKS: dict[str, Idiom] = {
    "mask by multiplication": Idiom(weighing(multiplication), attentions=1),
    "mask by masked_fill": Idiom(weighing(masked_fill), attentions=1),
    "mask by masked_fill of weights": Idiom(weighing(masked_fill_of_weights), attentions=1),
    "mask by where": Idiom(weighing(where), attentions=1),
    "mask by where of weights": Idiom(weighing(where_of_weights), attentions=1),
    "mask by adding -inf": Idiom(weighing(adding_infinity), attentions=1),
    "mask by adding -1e4": Idiom(weighing(adding(-1e4)), attentions=1),
    "mask by adding -1e9": Idiom(weighing(adding(-1e9)), attentions=1),
    "mask by adding finfo.min": Idiom(weighing(adding_finfo_min), attentions=1),
    "NaN of rows without a key made 0": Idiom(weighing(nan_to_num), attentions=1),
    "NaN made 0 where masks are finite": Idiom(weighing(nan_to_num_of_finite_masks), attentions=1, reads="both"),
    "NaN of rows less their maximum made 0": Idiom(weighing(nan_to_num_of_shifted), attentions=1),
    "NaN of rows less their maximum made 0, positions alone": Idiom(nan_to_num_of_shifted_biases, attentions=1),
    "NaN made 0 of logits less a number that may be -inf": Idiom(
        nan_to_num_of_a_bias, dense=frozenset({"linear", "matmul", "embedding", "softmax"}), reads="both",
        misses=(("a softmax whose logits a computed number is added to", ""),),
    ),
    "weights over their sum": Idiom(weighing(over_their_sum), attentions=1),
    "weights over their sum and what vanishes beside it": Idiom(weighing(over_their_sum_and_more), attentions=1),
    "weights over their sum and a number that counts": Idiom(
        weighing(over_their_sum_and_too_much), attentions=1, reads="both",
        misses=(("a number is added to the sum of the weights", "weights.sum(-1, keepdim=True) + 1e-3"),),
    ),
    "mask of elu": Idiom(weighing(elu_of_scores), attentions=1),
    "mask of relu6 and hardtanh": Idiom(weighing(relu6_of_scores), attentions=1),
    "mask with a decay by distance": Idiom(weighing(decayed), attentions=1),
    "silu of scores with -1e9 added": Idiom(
        weighing(silu_of_added(-1e9)), 1, reads="both", misses=UNPROVED
    ),
    "silu of bounded scores with -1e9 added": Idiom(weighing(silu_of_added(-1e9, torch.tanh)), attentions=1),
    "silu of clamped scores with -1e4 added": Idiom(weighing(silu_of_added(-1e4, clamped)), attentions=1),
    "silu of scores with -20 added": Idiom(
        weighing(silu_of_added(-20.0)), 1, reads="both", misses=UNPROVED
    ),
    "silu of scores filled with -1e9": Idiom(weighing(silu_of_filled(-1e9)), attentions=1),
    "silu of scores filled with -20": Idiom(
        weighing(silu_of_filled(-20.0)), 1, reads="both", misses=UNPROVED
    ),
    "gelu of scores filled with -1e4": Idiom(weighing(gelu_of_filled(-1e4)), attentions=1),
    "gelu of scores filled with -3": Idiom(
        weighing(gelu_of_filled(-3.0)), 1, reads="both", misses=UNPROVED
    ),
    "nested logical operations": Idiom(weighing(nested_logic), attentions=1),
    "~mask": Idiom(weighing(inverted), attentions=1),
    "float masks": Idiom(weighing(of_floats), attentions=1),
    "float masks by bmm": Idiom(weighing(of_floats_by_bmm), attentions=1),
    "mask expanded to B x H x N x N": Idiom(weighing(expanded), attentions=1),
    "mask repeated to B x H x N x N": Idiom(weighing(repeated), attentions=1),
    "causal by tril": Idiom(weighing(tril), attentions=1),
    "causal by triu": Idiom(weighing(triu), attentions=1),
    "causal by triu of infinities": Idiom(weighing(triu_of_infinities), attentions=1),
    "causal by comparison of arange": Idiom(weighing(comparison), attentions=1),
    "causal by a slice of a buffer": Idiom(sliced_buffer, attentions=1),
    "causal alone, padded right": Idiom(weighing(causal_alone), attentions=1, side="right"),
    "causal alone, padded left": Idiom(weighing(causal_alone), attentions=1, side="left", reads="left"),
    "sliding window": Idiom(weighing(window), attentions=1),
}
