"""A padded recommender with a loss written in plain torch, and the losses: sampled, pairwise, over the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ITEMS, WIDTH = 61, 8
Loss = Callable[["Recommender", Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class Recommender(nn.Module):
    """One causal attention block over items; `loss(model, states, mask, targets, negatives, of_sequences)`.

    ids, targets [B, N] int64 with 0 for padding, negatives [B, N, R], of_sequences [B, R].
    """

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items = nn.Embedding(ITEMS, WIDTH, padding_idx=0)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm, self.loss = nn.LayerNorm(WIDTH), loss
        self.head = nn.Linear(WIDTH, ITEMS)

    def forward(self, ids: Tensor, targets: Tensor, negatives: Tensor, of_sequences: Tensor) -> Tensor:
        mask = ids != 0
        later = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
        x = self.items(ids)
        scores = self.q(x) @ self.k(x).transpose(1, 2) / WIDTH**0.5
        scores = scores.masked_fill(~mask[:, None, :] | later, float("-inf"))
        x = x + torch.nan_to_num(scores.softmax(-1)) @ self.v(x)
        x = self.norm(x + F.relu(self.o(x)))
        return self.loss(self, x, mask, targets, negatives, of_sequences)


def batch(lengths: Sequence[int], places: int, negatives: int, seed: int = 1) -> tuple[Tensor, ...]:
    """Sequences of `lengths` (more than `places`: cut), right padded; their targets; items that are drawn."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(places) < torch.tensor(lengths)[:, None]

    def drawn(*shape: int) -> Tensor:
        return torch.randint(1, ITEMS, shape, generator=generator)

    count = len(lengths)
    return (
        drawn(count, places) * mask, drawn(count, places) * mask, drawn(count, places, negatives), drawn(count, negatives),
    )  # fmt: skip


def positive(m: Recommender, x: Tensor, targets: Tensor) -> Tensor:
    return (x * m.items(targets)).sum(-1, keepdim=True)


def mean(losses: Tensor, mask: Tensor) -> Tensor:
    return (losses * mask).sum() / mask.sum().clamp(min=1)


def sampled_softmax(m: Recommender, x: Tensor, mask: Tensor, t: Tensor, negatives: Tensor, _: Tensor) -> Tensor:
    drawn = torch.einsum("bnd,bnrd->bnr", x, m.items(negatives))
    return mean(-F.log_softmax(torch.cat([positive(m, x, t), drawn], -1), -1)[..., 0], mask)


def cosine(m: Recommender, x: Tensor, mask: Tensor, t: Tensor, negatives: Tensor, _: Tensor) -> Tensor:
    """Meta's generative-recommenders: both sides normalised, a temperature."""
    rows = F.normalize(m.items(torch.cat([t[..., None], negatives], -1)), dim=-1, eps=1e-6)
    logits = (F.normalize(x, dim=-1, eps=1e-6).unsqueeze(2) * rows).sum(-1) / 0.05
    losses = F.cross_entropy(logits.flatten(0, 1), torch.zeros_like(t).flatten(), reduction="none")
    return mean(losses.view_as(t), mask)


def of_sequences(m: Recommender, x: Tensor, mask: Tensor, t: Tensor, _: Tensor, drawn: Tensor) -> Tensor:
    logits = torch.cat([positive(m, x, t), torch.einsum("bnd,brd->bnr", x, m.items(drawn))], -1)
    return mean(-F.log_softmax(logits, -1)[..., 0], mask)


def products_of_sequences(m: Recommender, x: Tensor, mask: Tensor, t: Tensor, _: Tensor, drawn: Tensor) -> Tensor:
    return mean(F.softplus(x @ m.items(drawn).transpose(1, 2)).sum(-1) - positive(m, x, t)[..., 0], mask)


def binary(m: Recommender, x: Tensor, mask: Tensor, t: Tensor, negatives: Tensor, _: Tensor) -> Tensor:
    drawn = (m.items(negatives) @ x.unsqueeze(-1)).squeeze(-1)
    return mean(F.softplus(-positive(m, x, t)[..., 0]) + F.softplus(drawn).sum(-1), mask)


def generalised_binary(m: Recommender, x: Tensor, mask: Tensor, t: Tensor, negatives: Tensor, _: Tensor) -> Tensor:
    """gBCE of gSASRec (arXiv 2308.07192), as RecTools writes it."""
    ids = torch.cat([t.unsqueeze(-1), negatives], -1)
    logits = (m.items(ids) @ x.unsqueeze(-1)).squeeze(-1)
    chance = torch.sigmoid(logits[..., :1].double()).clamp(1e-10, 1 - 1e-10).pow(-0.7)
    logits = torch.cat([torch.log(1 / (chance - 1)).to(x.dtype), logits[..., 1:]], -1)
    wanted = torch.zeros_like(logits)
    wanted[..., 0] = 1
    return mean(F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1), mask)


def pairwise(m: Recommender, x: Tensor, mask: Tensor, t: Tensor, negatives: Tensor, _: Tensor) -> Tensor:
    """BPR against each of R negatives."""
    drawn = torch.einsum("bnd,bnrd->bnr", x, m.items(negatives))
    return mean(-F.logsigmoid(positive(m, x, t) - drawn).mean(-1), mask)


def corrected(m: Recommender, x: Tensor, mask: Tensor, t: Tensor, negatives: Tensor, _: Tensor) -> Tensor:
    """Logits less the logarithm of how often an item is drawn; a negative that is the target does not count."""
    drawn = torch.einsum("bnd,bnrd->bnr", x, m.items(negatives)) - torch.log((negatives + 1).to(x.dtype))
    drawn = drawn.masked_fill(negatives == t[..., None], -torch.inf)
    return mean(-F.log_softmax(torch.cat([positive(m, x, t), drawn], -1), -1)[..., 0], mask)


def of_valid_tokens(m: Recommender, x: Tensor, mask: Tensor, t: Tensor, negatives: Tensor, _: Tensor) -> Tensor:
    """Indexed by the mask first, as Meta's research code does after its dense-to-jagged."""
    states = x[mask]
    drawn = torch.einsum("td,trd->tr", states, m.items(negatives[mask]))
    logits = torch.cat([positive(m, states, t[mask]), drawn], -1)
    return F.cross_entropy(logits, torch.zeros(states.shape[0], dtype=torch.long), reduction="sum")


def whole_catalogue(m: Recommender, x: Tensor, mask: Tensor, t: Tensor, _: Tensor, __: Tensor) -> Tensor:
    return F.cross_entropy((x @ m.items.weight.T).view(-1, ITEMS), (t * mask).view(-1), ignore_index=0)


def whole_catalogue_masked(m: Recommender, x: Tensor, mask: Tensor, t: Tensor, _: Tensor, __: Tensor) -> Tensor:
    losses = F.cross_entropy(m.head(x).flatten(0, 1), t.flatten(), reduction="none")
    return mean(losses.view_as(t), mask)


def whole_catalogue_shifted(m: Recommender, x: Tensor, mask: Tensor, t: Tensor, _: Tensor, __: Tensor) -> Tensor:
    """The labels are the next items themselves."""
    labels = torch.where(mask, t, -100)[:, 1:]
    return F.cross_entropy(m.head(x)[:, :-1].reshape(-1, ITEMS), labels.reshape(-1), reduction="sum")


SAMPLED: dict[str, Loss] = {
    "sampled softmax": sampled_softmax, "cosine": cosine, "by sequence": of_sequences,
    "by sequence, a product": products_of_sequences, "BCE": binary, "gBCE": generalised_binary, "BPR": pairwise,
    "log-Q and accidental hits": corrected, "of valid tokens": of_valid_tokens,
}  # fmt: skip
WHOLE: dict[str, Loss] = {
    "ignore_index": whole_catalogue, "masked": whole_catalogue_masked, "shifted": whole_catalogue_shifted,
}  # fmt: skip
