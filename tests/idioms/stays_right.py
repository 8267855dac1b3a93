"""What must stay right: programs that read padded places on purpose, or whose mask is not padding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from idiom import ITEMS, Idiom, Inputs, Small
from torch import Tensor

EVERY_PLACE = "may read every place"


def randomly_masked_items(m: Small, d: Inputs) -> Tensor:
    """BERT4Rec: a masked item is no padding: its place is what the loss reads, with items on both sides of it."""
    hidden = (d.negatives % 3 == 0) & d.mask
    ids = torch.where(hidden, ITEMS, d.ids)
    x = m.items(ids) + m.feature(d.features)
    x = m.attend(x, lambda scores: torch.softmax(scores.masked_fill(~d.mask[:, None, None], -1e9), -1))
    labels = torch.where(hidden, d.ids, -100)
    return F.cross_entropy((x @ m.items.weight.T).flatten(0, 1), labels.flatten(), reduction="sum")


def masked_keys_that_are_no_padding(m: Small, d: Inputs) -> Tensor:
    """Other places may not attend to items with odd ids; the loss reads them all the same."""
    keys = (d.mask & (d.ids % 2 == 0))[:, None] | torch.eye(d.ids.shape[1], dtype=torch.bool)
    x = m.attend(m.tokens(d), lambda scores: torch.softmax(scores.masked_fill(~keys[:, None], -1e9), -1))
    return m.loss(x, d)


def batch_norm(m: Small, d: Inputs) -> Tensor:
    x = m.states(d)
    mean, variance = x.mean((0, 1)), x.var((0, 1))
    return m.loss((x - mean) / (variance + 1e-5).sqrt(), d)


def torchs_batch_norm(m: Small, d: Inputs) -> Tensor:
    x = m.states(d)
    normed = F.batch_norm(x.flatten(0, 1), None, None, training=True).view_as(x)
    return m.loss(normed, d)


def convolution(m: Small, d: Inputs) -> Tensor:
    x = m.states(d).transpose(1, 2)
    weight = m.qkv.weight.view(8, 3, 8).permute(0, 2, 1)
    mixed = F.conv1d(x, weight, padding=1)
    return m.loss(mixed.transpose(1, 2), d)


def gru(m: Small, d: Inputs) -> Tensor:
    x, start = m.states(d), torch.zeros(1, d.ids.shape[0], 8, dtype=m.bias.dtype)
    weights = [m.qkv.weight, m.qkv.weight, m.qkv.bias, m.qkv.bias]
    states = torch.gru(x, start, weights, True, 1, 0.0, False, False, True)[0]
    return m.loss(states, d)


def recurrence(m: Small, d: Inputs) -> Tensor:
    """Written out, place by place; the last state counts, whatever stands there."""
    x, state = m.states(d), torch.zeros(d.ids.shape[0], 8, dtype=m.bias.dtype)
    for place in range(x.shape[1]):
        state = torch.tanh(m.out(state) + x[:, place])
    return state


def rolled(m: Small, d: Inputs) -> Tensor:
    x = torch.roll(m.states(d), 1, 1)
    return (x * d.mask[..., None]).sum(1)


def reversed_cumsum(m: Small, d: Inputs) -> Tensor:
    """A place reads all that stand behind it, padded ones first."""
    later = m.states(d).flip(1).cumsum(1).flip(1)
    return m.loss(later, d)


def complex_cumsum(m: Small, d: Inputs) -> Tensor:
    """Complex numbers are packed where they belong to one place; here they are summed along the sequence."""
    z = torch.view_as_complex(m.states(d).unflatten(-1, (-1, 2)))
    later = z.cumsum(1)
    return m.loss(torch.view_as_real(later).flatten(-2), d)


def column_of_every_place(m: Small, d: Inputs) -> Tensor:
    """An index along the sequence, not along features: the last place comes first."""
    x = m.states(d)
    moved = x[:, [6, 0, 1, 2, 3, 4, 5]]
    return m.loss(moved, d)


def masked_write_of_rows(m: Small, d: Inputs) -> Tensor:
    """x[mask] = rows: which row goes where depends on every place in front."""
    x = m.tokens(d)
    x[d.mask] = m.feed(x[d.mask])
    return m.loss(x, d)


def loss_of_padded_places(m: Small, d: Inputs) -> Tensor:
    """No ignore_index: the pad id is a class like any other."""
    logits = m.states(d) @ m.items.weight.T
    return F.cross_entropy(logits.flatten(0, 1), d.targets.flatten())


def regularised_states(m: Small, d: Inputs) -> Tensor:
    x = m.states(d)
    return m.loss(x, d) + 0.1 * x.square().mean()


def unmasked_mean(m: Small, d: Inputs) -> Tensor:
    x = m.states(d)
    return x.mean(1)


def softmax_over_the_whole_batch(m: Small, d: Inputs) -> Tensor:
    x = m.states(d)
    weights = torch.softmax(m.score(x).flatten(), 0).view_as(d.ids)
    return (weights[..., None] * x * d.mask[..., None]).sum(1)


def normalised_over_places(m: Small, d: Inputs) -> Tensor:
    x = m.states(d)
    return m.loss(x / x.norm(dim=1, keepdim=True), d)


def unmasked_attention(m: Small, d: Inputs) -> Tensor:
    return m.loss(m.attend(m.states(d), lambda scores: torch.softmax(scores, -1)), d)


def control_flow(m: Small, d: Inputs) -> Tensor:
    x = m.states(d)
    if d.ids.sum() > 100:
        x = x * 2
    return m.loss(x, d)


STAYS_RIGHT: dict[str, Idiom] = {
    "items masked at random": Idiom(randomly_masked_items, attentions=1),
    "masked keys that are no padding": Idiom(masked_keys_that_are_no_padding, attentions=1),
    "batch norm by hand": Idiom(batch_norm, misses=((EVERY_PLACE, "x.mean((0, 1))"),)),
    "batch norm": Idiom(torchs_batch_norm, misses=((EVERY_PLACE, "F.batch_norm("),)),
    "convolution": Idiom(convolution, misses=((EVERY_PLACE, "F.conv1d(x"),)),
    "GRU": Idiom(gru, misses=((EVERY_PLACE, "torch.gru("),)),
    "recurrence": Idiom(recurrence, reads="both"),
    "roll": Idiom(rolled, misses=((EVERY_PLACE, "torch.roll(m.states(d), 1, 1)"),)),
    "reversed cumsum": Idiom(reversed_cumsum, misses=((EVERY_PLACE, "flip(1).cumsum(1).flip(1)"),)),
    "cumsum of complex numbers": Idiom(complex_cumsum, misses=((EVERY_PLACE, "z.cumsum(1)"),)),
    "an index along the sequence": Idiom(column_of_every_place, misses=((EVERY_PLACE, "x[:, [6, 0"),)),
    "rows written at a mask": Idiom(masked_write_of_rows, misses=((EVERY_PLACE, "x[d.mask] = m.feed(x[d.mask])"),)),
    "a loss that reads padded places": Idiom(loss_of_padded_places, reads="both"),
    "a regulariser that reads padded places": Idiom(regularised_states, misses=((EVERY_PLACE, "x.square().mean()"),)),
    "unmasked mean": Idiom(unmasked_mean, misses=((EVERY_PLACE, "x.mean(1)"),)),
    "softmax over the whole batch": Idiom(
        softmax_over_the_whole_batch, misses=((EVERY_PLACE, "torch.softmax(m.score(x)"),)
    ),
    "norms over places": Idiom(normalised_over_places, misses=((EVERY_PLACE, "x.norm(dim=1"),)),
    "attention without a mask": Idiom(
        unmasked_attention, attentions=1, misses=(("attention reads padded places", ""),)
    ),
    "data-dependent control flow": Idiom(control_flow, breaks="if d.ids.sum() > 100:"),
}
