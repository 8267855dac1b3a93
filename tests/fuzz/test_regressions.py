"""Models that once came out wrong, each reduced to what mattered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from fuzzing.check import Outcome, check
from torch import Tensor, nn

from gr_compile.analysis.operators import is_pointwise

aten = torch.ops.aten
Body = Callable[["Layers", Tensor, Tensor, Tensor], Any]


class Layers(nn.Module):
    """x: [B, N, 4] from ids by token-wise layers; a body makes the output of it."""

    body: Body
    frozen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.item = nn.Embedding(20, 4)
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)
        self.query, self.key, self.value = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.key2, self.value2 = nn.Linear(4, 2), nn.Linear(4, 2)
        self.relative = nn.Embedding(20, 1)
        self.register_buffer("frozen", torch.randn(20, 1))
        self.slope = nn.Parameter(torch.randn(()))

    def forward(self, ids: Tensor, lengths: Tensor, *rest: Tensor) -> tuple[Tensor]:
        valid = ids != 0
        x = self.down(F.gelu(self.up(self.item(ids))))
        return (type(self).body(self, x, valid, lengths) * valid[..., None],)


def batch(sequences: int, length: int, fill: str = "random", side: str = "right") -> dict[str, Any]:
    return {
        "B": sequences, "N": length, "D": 4, "M": 3, "fill": fill, "side": side, "targets": "same",
        "mask_dtype": "bool", "float_grad": False, "seed": 11,
    }  # fmt: skip


BATCHES = [batch(3, 5), batch(4, 6, "some_empty", "holes"), batch(4, 4, "half", "left")]


def outcome(
    body: Body, batches: list[dict[str, Any]] = BATCHES, mode: str = "train", dynamic: bool | None = None
) -> Outcome:
    found = check(type("Model", (Layers,), {"body": body}), batches, dynamic, mode, dynamo=False)
    assert not found.invalid, found.invalid
    assert found.failure is None, str(found.failure)
    return found


def heads(x: Tensor, count: int = 2) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


# --------------------------------------------------------------------------------------- softmax and its weights
def masked_afterwards(self: Layers, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
    """The sum under the softmax has every key in it, whatever its weights are multiplied with."""
    weights = (self.query(x) @ self.key(x).mT).softmax(-1) * valid[:, None]
    return weights @ self.value(x)


def normalised_again(self: Layers, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
    """x / 0 at places that nobody reads must not reach a gradient."""
    weights = (self.query(x) @ self.key(x).mT).softmax(-1) * valid[:, None]
    return (weights / (weights.sum(-1, keepdim=True) + 1e-9)) @ self.value(x)


def smoothed(self: Layers, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
    """A masked key has a weight of 0 under the softmax, and 0.1 in the product."""
    scores = (self.query(x) @ self.key(x).mT).masked_fill(~valid[:, None], -1e9)
    return (scores.softmax(-1) + 0.1) @ self.value(x)


def grouped_without_key_mask(self: Layers, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
    """Behind repeat_interleave nothing says that keys have the places of the queries: all of them are read."""
    q, k, v = heads(self.query(x)), heads(self.key2(x), 1), heads(self.value2(x), 1)
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def bias_for_all_heads(self: Layers, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
    """Weights of size 1 along the heads are read by every head."""
    places = torch.arange(x.shape[1])
    keep = valid[:, None, None] & (places[:, None] >= places)[None, None]
    scores = (self.slope * (places[:, None] - places))[None, None].masked_fill(~keep, -1e9)
    return (scores.softmax(-1) @ heads(self.value(x))).transpose(1, 2).flatten(2)


def folded_repeat(self: Layers, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
    """With one sequence the folded batch of B * H rows is all heads."""
    B, N, _ = x.shape
    q, k, v = heads(self.query(x)), heads(self.key2(x), 1).repeat(1, 2, 1, 1), heads(self.value2(x), 1).repeat(1, 2, 1, 1)
    weights = torch.where(valid[:, None, :, None], torch.sigmoid(q @ k.mT), 0.0)
    product = torch.bmm(weights.reshape(B * 2, N, N), v.reshape(B * 2, N, 2))
    return product.view(B, 2, N, 2).transpose(1, 2).flatten(2)


def scaled(self: Layers, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
    """A Python float is a double: 0.1 in a float64 model is not float32's."""
    return (F.silu(self.query(x) @ self.key(x).mT * 0.1) * valid[:, None]) @ self.value(x)


def sink(self: Layers, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
    """A column that takes its share of the sum, and is cut off."""
    scores = (self.query(x) @ self.key(x).mT).masked_fill(~valid[:, None], -1e9)
    weights = torch.cat([scores, self.slope.expand(*scores.shape[:-1], 1)], -1).softmax(-1)
    return weights[..., : x.shape[1]] @ self.value(x)


def one_query_for_all(self: Layers, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
    """Queries that all sequences share: only the result has the batch."""
    queries = heads(self.query(self.relative.weight[:3].expand(-1, 4))[None])
    mixed = F.scaled_dot_product_attention(queries, heads(self.key(x)), heads(self.value(x)), valid[:, None, None])
    return x + mixed.transpose(1, 2).flatten(2).sum(1, keepdim=True)


@pytest.mark.parametrize(
    "body",
    [masked_afterwards, normalised_again, smoothed, grouped_without_key_mask, bias_for_all_heads, scaled, sink,
     one_query_for_all],
)  # fmt: skip
def test_attention(body: Body) -> None:
    assert outcome(body).packed


# ------------------------------------------------------------------------------- gradients that stop, or are counted
def scores_without_gradient(self: Layers, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
    return (F.silu((self.query(x) @ self.key(x).mT).detach()) * valid[:, None]) @ self.value(x)


def bias_without_gradient(self: Layers, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
    places = torch.arange(x.shape[1])
    bias = self.relative(places[:, None] - places + 9)[..., 0].detach()
    return (F.silu(self.query(x) @ self.key(x).mT + bias) * valid[:, None]) @ self.value(x)


def weights_without_gradient(self: Layers, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
    scores = (self.query(x) @ self.key(x).mT).masked_fill(~valid[:, None], -1e9)
    return scores.softmax(-1).detach() @ self.value(x)


def straight_through(self: Layers, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
    scores = self.query(x) @ self.key(x).mT
    return ((scores + F.relu(scores).detach() - scores.detach()) * valid[:, None]) @ self.value(x)


def bias_with_a_padding_row(self: Layers, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
    places = torch.arange(x.shape[1])
    bias = F.embedding((places[:, None] - places).abs(), self.relative.weight, padding_idx=1)[..., 0]
    return (F.silu(self.query(x) @ self.key(x).mT + bias) * valid[:, None]) @ self.value(x)


def bias_by_frequency(self: Layers, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
    places = torch.arange(x.shape[1])
    bias = F.embedding((places[:, None] - places).abs(), self.relative.weight, scale_grad_by_freq=True)[..., 0]
    return (F.silu(self.query(x) @ self.key(x).mT + bias) * valid[:, None]) @ self.value(x)


@pytest.mark.parametrize(
    "body",
    [
        scores_without_gradient, bias_without_gradient, weights_without_gradient, straight_through,
        bias_with_a_padding_row, bias_by_frequency,
    ],
)  # fmt: skip
def test_a_gradient_that_is_no_derivative_of_the_score_is_not_fused(body: Body) -> None:
    found = outcome(body)
    assert found.packed and not found.fused


def masks_without_gradient(self: Layers, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
    """Nothing flows to a mask, nor to a table that is not trained: these are fused."""
    places = torch.arange(x.shape[1])
    keep = (valid[:, None] & (places[:, None] >= places)).detach()
    bias = F.embedding((places[:, None] - places).abs(), self.frozen, padding_idx=1)[..., 0]
    return (F.silu(self.query(x) @ self.key(x).mT + bias) * keep) @ self.value(x)


@pytest.mark.parametrize("dynamic", [None, True])
def test_what_takes_no_gradient_is_fused(dynamic: bool | None) -> None:
    """Nor does a size: with symbolic ones the places are counted along a value that has a gradient."""
    assert outcome(masks_without_gradient, BATCHES[:1], dynamic=dynamic).fused


class CountedLookups(nn.Module):
    """Rows that are also looked up at padded places: their gradients are divided by all of these."""

    def __init__(self) -> None:
        super().__init__()
        self.item, self.layer = nn.Embedding(20, 4, scale_grad_by_freq=True), nn.Linear(4, 4)

    def forward(self, ids: Tensor, lengths: Tensor, *rest: Tensor) -> tuple[Tensor]:
        negatives = rest[3]
        return (torch.tanh(self.layer(self.item(negatives))) * (ids != 0)[..., None],)


def test_lookups_that_are_counted_are_made_at_all_places() -> None:
    found = check(CountedLookups, BATCHES, dynamo=False)
    assert found.failure is None, str(found.failure)
    assert found.packed


def test_one_sequence_with_a_folded_batch() -> None:
    outcome(folded_repeat, [batch(1, 4), batch(3, 4)])


class TwoAttentions(nn.Module):
    """With N = 1 the rows of the second one have a dimension that provenance does not find in its output."""

    def __init__(self) -> None:
        super().__init__()
        self.item, self.norm = nn.Embedding(20, 4), nn.LayerNorm(4)
        self.query, self.key, self.value = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.relative = nn.Parameter(torch.randn(20))

    def forward(self, ids: Tensor, lengths: Tensor, *rest: Tensor) -> tuple[Tensor]:
        B, N = ids.shape
        places = torch.arange(N)
        valid = places[None] < lengths[:, None]
        q, k, v = self.projected(self.item(ids))
        scores = torch.einsum("bhid,bhjd->bhij", q, k) + self.relative[places[:, None] - places + N]
        causal = torch.ones(N, N, dtype=torch.bool).tril()[None, None]
        scores = scores * ((causal.float() * valid[:, None, None].float()) > 0)
        mixed = (v.mT @ scores.mT).mT.transpose(1, 2).reshape(B, N, 4)
        q, k, v = self.projected(self.norm(mixed))
        weights = F.relu((q @ k.mT) * valid[:, None, :, None])
        product = torch.bmm(weights.reshape(B, N, N), v.reshape(B, N, 4))
        return (product.view(B, 1, N, 4).transpose(1, 2).reshape(B, N, 4) * valid[..., None],)

    def projected(self, x: Tensor) -> list[Tensor]:
        return [layer(x).view(*x.shape[:2], 1, 4).transpose(1, 2) for layer in (self.query, self.key, self.value)]


def test_one_place_between_two_attentions() -> None:
    found = check(TwoAttentions, [batch(2, 1)], dynamo=False)
    assert found.failure is None, str(found.failure)
    assert found.fused


class OneOfEverything(nn.Module):
    """One sequence, one place, one candidate, one head: index spaces meet, and a value has one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.item, self.layer = nn.Embedding(20, 4), nn.Linear(5, 4)
        self.query, self.key, self.value = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, ids: Tensor, lengths: Tensor, mask: Tensor, times: Tensor, *rest: Tensor) -> tuple[Tensor]:
        (B, N), context = ids.shape, rest[-1]
        M = context.shape[1]
        x = self.layer(torch.cat([self.item(ids), times[..., None] / 50], -1))
        q = self.query(x).view(B, N, 1, 4).transpose(1, 2)
        k, v = (layer(self.item(context)).view(B, M, 1, 4).transpose(1, 2) for layer in (self.key, self.value))
        weights = F.silu(q @ k.mT) * (context != 0)[:, None, None, :].to(x.dtype)
        mixed = torch.einsum("bhij,bhjd->bhid", weights.expand(B, 1, N, M), v).transpose(1, 2).flatten(2)
        return (torch.stack([(x + mixed) * (ids != 0)[..., None], x + mixed], 1)[:, 0],)


def test_an_index_space_that_a_value_has_twice() -> None:
    found = check(OneOfEverything, [{**batch(1, 1), "M": 1}], dynamo=False)
    assert found.failure is None, str(found.failure)
    assert found.packed


class RowBehindADenseReader(nn.Module):
    """The row of padded places goes through a layer that reads one of the packed values densely."""

    def __init__(self) -> None:
        super().__init__()
        self.item, self.table, self.mix = nn.Embedding(20, 4), nn.Parameter(torch.randn(24, 4)), nn.Linear(9, 4)

    def forward(self, ids: Tensor, lengths: Tensor, mask: Tensor, times: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        valid = ~(ids == 0)
        x = (self.item(ids) + self.table[: ids.shape[1]]) * mask[..., None]
        x = self.mix(torch.cat([x, x * x, times[..., None] / 50], dim=-1))
        return x.sigmoid().sum(-1).masked_select(valid), torch.stack([x * valid[..., None], x], 1)[:, 0]


def test_a_row_is_what_the_graph_made_before_it_was_rewritten() -> None:
    found = check(RowBehindADenseReader, BATCHES, dynamo=False)
    assert found.failure is None, str(found.failure)
    assert found.packed


class OnlyTheMeanIsRead(nn.Module):
    """What eliminate-padding makes of the mean needs no N: the node that held it was gone when the attention asked."""

    def __init__(self) -> None:
        super().__init__()
        self.item, self.value = nn.Embedding(20, 4), nn.Linear(4, 2)
        self.distance = nn.Parameter(torch.randn(47))

    def forward(self, ids: Tensor, *rest: Tensor) -> tuple[Tensor]:
        (b, n), valid, x = ids.shape, ids != 0, self.item(ids)
        place = torch.arange(n)
        causal = (place[None] <= place[:, None]) & valid[:, None, None]
        weights = F.silu(self.distance[place[None] - place[:, None] + 23]) * causal
        values = self.value(x).view(b, n, 1, 2).transpose(1, 2).repeat(1, 2, 1, 1)
        x = x + (weights @ values).transpose(1, 2).reshape(b, n, 4)
        return ((x * valid[..., None]).mean(1),)


def test_sizes_of_the_packed_index_are_those_of_its_mask() -> None:
    found = check(OnlyTheMeanIsRead, BATCHES, True, dynamo=False)
    assert found.failure is None, str(found.failure)
    assert found.packed and found.fused


# ------------------------------------------------------------------------------------------------------ operators
@pytest.mark.parametrize(
    "operator", [lambda y: y.roll(1, -1), lambda y: y.logsumexp(-1, keepdim=True), lambda y: y.cummax(-1).values]
)
def test_operators_that_ask_how_many_rows_there_are_stay_dense(operator: Callable[[Tensor], Tensor]) -> None:
    def body(self: Layers, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        return x + operator(self.value(x))

    outcome(body)


def test_dropping_whole_channels_is_not_pointwise() -> None:
    """[B, N, D] is dropped by (b, n), packed [T, D] would be dropped by element."""
    assert not is_pointwise(aten.feature_dropout.default)


@pytest.mark.parametrize("target", [aten.__and__.Tensor, aten.__or__.Tensor, aten.__xor__.Scalar])
def test_python_spellings_of_logic_are_pointwise(target: Any) -> None:
    assert is_pointwise(target)


def test_an_einsum_over_two_dtypes_under_autocast() -> None:
    def body(self: Layers, x: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        weights = torch.softmax(x @ x.mT, -1, dtype=torch.float32)
        return torch.einsum("bij,bjd->bid", weights, self.value(x))

    outcome(body, mode="autocast")
