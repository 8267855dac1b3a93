"""Attention of torch's own modules, dense sides (seeds, memories), dropout, and what has no score program."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from padded_models import Parts, Recommender, data
from pass_bench import FUSE, PACK, PassBench
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

BATCHES = [data([3, 6, 1], 6), data([5, 2, 7, 1], 7, seed=1)]


class Encoder(nn.Module):
    """One attention module of torch between an embedding and a loss over valid places."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.items, self.positions = nn.Embedding(21, 8), nn.Embedding(16, 8)
        if kind.startswith("layer"):
            first = kind == "layer, norm first"
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=first)
        else:
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        n = ids.shape[1]
        x, padded = self.items(ids) + self.positions(torch.arange(n)), ids == 0
        causal = torch.ones(n, n, dtype=torch.bool).triu(1)
        if self.kind.startswith("layer"):
            x = self.layer(x, src_mask=causal, src_key_padding_mask=padded)
        elif self.kind == "with weights":
            x = x + self.attention(x, x, x, attn_mask=causal, key_padding_mask=padded, need_weights=True)[0]
        else:
            x = x + self.attention(x, x, x, attn_mask=causal, key_padding_mask=padded, need_weights=False)[0]
        return x * ~padded[..., None]


@pytest.mark.parametrize("kind", ["without weights", "with weights", "layer", "layer, norm first"])
def test_torchs_own_modules(kind: str) -> None:
    torch.manual_seed(0)
    made = PassBench(Encoder(kind).double(), [(b.ids,) for b in BATCHES])
    made.assert_fires(PACK, FUSE).assert_parity()


@pytest.mark.parametrize("kind", ["layer", "without weights"])
def test_torchs_own_modules_in_eval_mode(kind: str) -> None:
    torch.manual_seed(0)
    model = Encoder(kind).double().eval()
    made = PassBench(model, [(b.ids,) for b in BATCHES]).assert_fires(FUSE)
    with torch.no_grad():
        for batch in BATCHES:
            torch.testing.assert_close(made.fast(batch.ids), copy.deepcopy(model).train()(batch.ids))


# ------------------------------------------------------------------------------------------- dense sides
class SeedPooling(nn.Module):
    """Learned queries over a jagged sequence: a dense query side."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.items, self.seeds = nn.Embedding(21, 8), nn.Parameter(torch.randn(3, 8))
        self.key, self.value, self.activation = nn.Linear(8, 8), nn.Linear(8, 8), activation

    def forward(self, ids: Tensor) -> Tensor:
        x, valid = self.items(ids), ids != 0
        scores = torch.einsum("sd,bnd->bsn", self.seeds, self.key(x))
        if self.activation == "softmax":
            weights = torch.softmax(scores.masked_fill(~valid[:, None], torch.finfo(scores.dtype).min), -1)
        else:
            weights = F.silu(scores) * valid[:, None]
        return torch.einsum("bsn,bnd->bsd", weights, self.value(x))


class Memory(nn.Module):
    """Tokens attend to a dense memory of each sequence: a dense key side."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.query, self.value = nn.Embedding(21, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, ids: Tensor, memory: Tensor) -> Tensor:
        x = self.items(ids)
        weights = torch.softmax(torch.einsum("bnd,bmd->bnm", self.query(x), memory), -1)
        mixed = x + torch.einsum("bnm,bmd->bnd", weights, self.value(memory))
        return (F.gelu(self.query(mixed)) * (ids != 0)[..., None]).sum(1)


@pytest.mark.parametrize("activation", ["softmax", "silu"])
@pytest.mark.parametrize("empty", [False, True])
def test_dense_queries_over_a_jagged_sequence(activation: str, empty: bool) -> None:
    torch.manual_seed(0)
    batches = [data([0, 4, 2], 5, seed=3)] if empty else BATCHES
    PassBench(SeedPooling(activation).double(), [(b.ids,) for b in batches]).assert_parity()


def test_jagged_queries_over_a_dense_memory() -> None:
    torch.manual_seed(0)
    batches = [(b.ids, torch.randn(b.ids.shape[0], 5, 8, dtype=torch.float64)) for b in BATCHES]
    PassBench(Memory().double(), batches).assert_fires(PACK).assert_parity()


class TokensOfTwoLengths(nn.Module):
    """Cross attention between two raggednesses."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.query, self.key = nn.Embedding(21, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, ids: Tensor, other: Tensor) -> Tensor:
        x, y = self.items(ids), self.items(other)
        scores = torch.einsum("bnd,bmd->bnm", self.query(x), self.key(y))
        weights = F.silu(scores) * (other != 0)[:, None]
        return (torch.einsum("bnm,bmd->bnd", weights, y) * (ids != 0)[..., None]).sum(1)


def test_two_raggednesses() -> None:
    torch.manual_seed(0)
    batches = [(data([3, 6, 1], 6).ids, data([4, 0, 2], 5, seed=9).ids)]
    PassBench(TokensOfTwoLengths().double(), batches).assert_parity()


# ------------------------------------------------------------------------------------------------- dropout
def test_dropout_of_attention_and_tokens_is_right_in_distribution_and_repeats_under_a_seed() -> None:
    torch.manual_seed(0)
    parts = Parts(masking="fill min", readout="last_by_gather", dropout=0.4)
    model, batch = Recommender(parts), BATCHES[0].args()
    made = PassBench(model, [batch]).assert_fires(PACK, FUSE)
    assert seeded(made.fast, batch, 3).equal(seeded(made.fast, batch, 3))
    assert not seeded(made.fast, batch, 3).equal(seeded(made.fast, batch, 4))
    samples = 600
    with torch.no_grad():
        got = torch.stack([made.fast(*batch) for _ in range(samples)])
        want = torch.stack([model(*batch) for _ in range(samples)])
    error = (got.mean(0) - want.mean(0)).abs() / ((got.var(0) + want.var(0)) / samples).sqrt().clamp(min=1e-9)
    assert float(error.max()) < 5.0
    ratio = got.std(0) / want.std(0).clamp(min=1e-9)
    assert float(ratio.min()) > 0.75 and float(ratio.max()) < 1.33


def seeded(model: nn.Module, batch: tuple[Tensor, ...], seed: int) -> Tensor:
    torch.manual_seed(seed)
    out: Tensor = model(*batch)
    return out.detach()


def test_dropout_gradients_belong_to_the_same_draw() -> None:
    """d/de f(x + e) by central differences under one seed."""
    torch.manual_seed(0)
    parts = Parts(masking="fill min", readout="last_by_gather", dropout=0.4)
    model, batch = Recommender(parts).double(), BATCHES[0].args()
    fast = PassBench(model, [batch]).fast
    weight = model.layers[0].value.weight
    torch.manual_seed(7)
    fast(*batch).square().sum().backward()
    slope, step = float(weight.grad[2, 3]), 1e-5
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[2, 3] += sign * step
        values.append(float(seeded(fast, batch, 7).square().sum()))
        with torch.no_grad():
            weight[2, 3] -= sign * step
    assert abs((values[0] - values[1]) / (2 * step) - slope) < 1e-5 * max(1.0, abs(slope))


def test_dropout_off_in_eval_mode() -> None:
    torch.manual_seed(0)
    parts = Parts(masking="fill min", dropout=0.4)
    PassBench(Recommender(parts).double().eval(), [BATCHES[0].args()]).assert_fires().assert_parity()


# -------------------------------------------------------------------------------------- no score program
class PairwiseNetwork(nn.Module):
    """DIN's MLP on [q, k, q - k, q * k]: a product of two pair values over features."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.first, self.second = nn.Embedding(21, 4), nn.Linear(16, 8), nn.Linear(8, 1)

    def forward(self, ids: Tensor) -> Tensor:
        x, valid = self.items(ids), ids != 0
        q, k = torch.broadcast_tensors(x[:, :, None], x[:, None])
        weights = self.second(F.relu(self.first(torch.cat([q, k, q - k, q * k], -1)))).squeeze(-1)
        weights = weights * valid[:, None] * valid[:, :, None]
        return (torch.einsum("bij,bjd->bid", weights, x) * valid[..., None]).sum(1)


class ForwardNetwork(nn.Module):
    """silu(x W) into an einsum with a weight: looks like attention, and is not."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(21, 8)
        self.first, self.second = nn.Parameter(torch.randn(8, 12)), nn.Parameter(torch.randn(12, 8))

    def forward(self, ids: Tensor) -> Tensor:
        hidden = F.silu(torch.einsum("bnd,dk->bnk", self.items(ids), self.first))
        return (torch.einsum("bnk,kd->bnd", hidden, self.second) * (ids != 0)[..., None]).sum(1)


def test_a_pairwise_network_is_a_miss_and_stays_right() -> None:
    torch.manual_seed(0)
    made = PassBench(PairwiseNetwork().double(), [(b.ids,) for b in BATCHES])
    assert not made.matches(FUSE)
    assert any("no score program" in m.reason and m.where is not None for m in made.misses(FUSE))
    made.assert_parity()


def test_a_feed_forward_network_is_no_attention() -> None:
    torch.manual_seed(0)
    made = PassBench(ForwardNetwork().double(), [(b.ids,) for b in BATCHES]).assert_fires(PACK)
    assert not made.matches(FUSE) and not made.misses(FUSE)
    made.assert_parity()


def test_the_math_backend_of_sdpa_is_what_we_are_compared_with() -> None:
    """A fully masked row of scaled_dot_product_attention is 0, and so is its gradient."""
    q = torch.randn(1, 1, 2, 4, requires_grad=True)
    with sdpa_kernel(SDPBackend.MATH):
        out = F.scaled_dot_product_attention(q, q, q, attn_mask=torch.tensor([[True, False], [False, False]]))
    assert not out[0, 0, 1].any()
