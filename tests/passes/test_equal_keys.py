"""Attention that masks no padded key: where padded keys are all one row they are one key, with the log of their number."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pass_bench import FUSE, PACK, PassBench, pair_values, run
from torch import Tensor, nn

ITEMS, DIM, HEADS, LONGEST = 20, 8, 2, 9
ONE_KEY = "padded keys taken for one"
Attend = Callable[["Model", Tensor, Tensor, Tensor, Tensor], Tensor]


def triangle(n: int) -> Tensor:
    """bool [N, N]: keys at or before their query."""
    return torch.ones(n, n, dtype=torch.bool).tril()


def infinite(n: int) -> Tensor:
    return torch.zeros(n, n, dtype=torch.float64).masked_fill(~triangle(n), -math.inf)


# ------------------------------------------------------------------- spellings: [B, H, N, d] each, and the ids
def sdpa_causal(m: Model, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def sdpa_boolean(m: Model, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=triangle(q.shape[2]))


def sdpa_additive(m: Model, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=infinite(q.shape[2]).to(q.dtype), scale=0.3)


def sdpa_all(m: Model, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def sdpa_grouped(m: Model, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], is_causal=True, enable_gqa=True)


def sdpa_folded(m: Model, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    flat = (x.flatten(0, 1) for x in (q, k, v))
    return F.scaled_dot_product_attention(*flat, is_causal=True).unflatten(0, (-1, HEADS))


def sdpa_dropout(m: Model, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=m.dropout)


def scores(q: Tensor, k: Tensor) -> Tensor:
    return torch.einsum("bhid,bhjd->bhij", q, k) / 2


def softmax_fill(m: Model, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    weights = torch.softmax(scores(q, k).masked_fill(~triangle(q.shape[2]), -1e9), -1)
    return torch.einsum("bhij,bhjd->bhid", weights, v)


def softmax_min(m: Model, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    hidden = (~triangle(q.shape[2])).to(q.dtype) * torch.finfo(q.dtype).min
    return torch.softmax(scores(q, k) + hidden, -1) @ v


def softmax_folded(m: Model, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    weights = torch.softmax(torch.baddbmm(infinite(q.shape[1]).to(q.dtype), q, k.mT), -1)
    return torch.bmm(weights, v).unflatten(0, (-1, HEADS))


def softmax_all(m: Model, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    return torch.softmax(scores(q, k), -1) @ v


def softmax_dropout(m: Model, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    weights = torch.softmax(scores(q, k).masked_fill(~triangle(q.shape[2]), -math.inf), -1)
    return F.dropout(weights, m.dropout, m.training) @ v


def by_query_bias(m: Model, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    temperature = 1 + ids.double().remainder(3)[:, None, :, None]
    return torch.softmax((scores(q, k) / temperature).masked_fill(~triangle(q.shape[2]), -math.inf), -1) @ v


def by_key_bias(m: Model, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    weight = torch.where(ids == 0, 0.5, ids.double() / 7)[:, None, None]
    return torch.softmax((scores(q, k) * weight).masked_fill(~triangle(q.shape[2]), -math.inf), -1) @ v


# ------------------------------------------------------------------------------------ near misses
def relative(m: Model, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    n = q.shape[2]
    bias = m.relative[torch.arange(n)[:, None] - torch.arange(n) + LONGEST]
    return torch.softmax((scores(q, k) + bias).masked_fill(~triangle(n), -math.inf), -1) @ v


def window(m: Model, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    near = triangle(q.shape[2]) & ~triangle(q.shape[2]).tril(-3)
    return torch.softmax(scores(q, k).masked_fill(~near, -math.inf), -1) @ v


def positions(m: Model, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    return sdpa_causal(m, q, k + m.positions.weight[: q.shape[2]].unflatten(-1, (HEADS, -1)).transpose(0, 1), v, ids)


def hidden_queries(m: Model, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    hidden = (ids % 3 == 0)[:, None, :, None].to(q.dtype) * -1e9
    return torch.softmax(scores(q, k) + hidden, -1) @ v


def times_of_queries(m: Model, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    shift = (1_600_000_000 + ids)[:, None, :, None].to(q.dtype)
    return torch.softmax((scores(q, k) - shift).masked_fill(~triangle(q.shape[2]), -math.inf), -1) @ v


def dropped_scores(m: Model, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    return torch.softmax(F.dropout(scores(q, k), m.dropout, m.training).masked_fill(~triangle(q.shape[2]), -1e9), -1) @ v


def dropped_twice(m: Model, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    weights = torch.softmax(scores(q, k).masked_fill(~triangle(q.shape[2]), -math.inf), -1)
    return F.dropout(F.dropout(weights, m.dropout, m.training), m.dropout, m.training) @ v


def dropped_values(m: Model, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    return softmax_dropout(m, q, k, F.dropout(v, m.dropout, m.training), ids)


def renormalised(m: Model, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
    weights = torch.softmax(scores(q, k).masked_fill(~triangle(q.shape[2]), -math.inf), -1)
    return (weights * weights) @ v


class Model(nn.Module):
    """SASRec as most people write it: x * mask between layers, attention behind a causal mask alone."""

    def __init__(self, attend: Attend, layers: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.attend, self.dropout = attend, dropout
        self.items, self.positions = nn.Embedding(ITEMS, DIM, padding_idx=0), nn.Embedding(LONGEST, DIM)
        self.qkv = nn.ModuleList(nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(3)) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(layers))
        self.feed = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(layers))
        self.relative = nn.Parameter(torch.randn(2 * LONGEST))

    def forward(self, ids: Tensor, targets: Tensor, features: Tensor) -> Tensor:
        mask = (ids != 0)[..., None]
        x = self.items(ids) + self.positions(torch.arange(ids.shape[1])) + features
        for qkv, norm, feed in zip(self.qkv, self.norms, self.feed):
            x = x * mask
            operands = (norm(x), x, x)
            q, k, v = (f(y).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f, y in zip(qkv, operands))
            x = operands[0] + self.attend(self, q, k, v, ids).transpose(1, 2).flatten(2)
            x = x + torch.relu(feed(x))
        logits = (x * mask) @ self.items.weight.T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=0, reduction="sum")


def batch(lengths: list[int], n: int, side: str = "left", seed: int = 0, holes: bool = False) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    places, given = torch.arange(n), torch.tensor(lengths)[:, None]
    mask = places >= n - given if side == "left" else places < given
    if holes:
        mask = mask & (torch.rand(mask.shape, generator=generator) > 0.3)
    ids, targets = (torch.randint(1, ITEMS, mask.shape, generator=generator) * mask for _ in range(2))
    return ids, targets, torch.randn(*mask.shape, DIM, generator=generator, dtype=torch.float64).requires_grad_()


BATCHES = [
    batch([3, 7, 0, 1], 7), batch([7, 7], 7, seed=1), batch([0, 0, 0], 5, seed=2), batch([2, 9, 4], 9, "right", 3),
    batch([5, 6, 3], 8, seed=4, holes=True),
]  # fmt: skip


@functools.cache
def compiled(attend: Attend, dynamic: bool = True) -> PassBench:
    torch._dynamo.reset()
    torch.manual_seed(0)
    return PassBench(Model(attend).double(), BATCHES, dynamic=dynamic)


def merged(made: PassBench) -> list[str]:
    return [match.detail for match in made.matches(PACK) if ONE_KEY in match.detail]


# ------------------------------------------------------------------------------------------------- it fires
FIRES = [
    sdpa_causal, sdpa_boolean, sdpa_additive, sdpa_all, sdpa_grouped, sdpa_folded, sdpa_dropout, softmax_fill,
    softmax_min, softmax_folded, softmax_all, softmax_dropout, by_query_bias, by_key_bias,
]  # fmt: skip


@pytest.mark.parametrize("attend", FIRES, ids=lambda f: f.__name__)
def test_padded_keys_become_one_and_numbers_stay(attend: Attend) -> None:
    made = compiled(attend).assert_fires(PACK, FUSE).assert_parity()
    for compilation in range(len(made.compilations)):
        assert made.operators_after(FUSE, compilation)["jagged_attention"] == 2
    assert merged(made), [match.detail for match in made.matches(PACK)]
    assert not made.misses(PACK), [str(miss) for miss in made.misses(PACK)]
    for n in {ids.shape[1] for ids, *_ in BATCHES}:
        assert not pair_values(made.graph(), n)


@pytest.mark.parametrize("attend", FIRES[:3] + FIRES[7:10], ids=lambda f: f.__name__)
def test_one_place_more_a_sequence_is_kept(attend: Attend) -> None:
    """The tokens that run: valid places, and the first padded one of each sequence that has one."""
    made = compiled(attend)
    (kept,) = {fact for name, fact in made.reports[-1].facts.items() if name.startswith("places kept")}
    assert "every place before" not in kept and "first_" in kept


@pytest.mark.parametrize("attend", [sdpa_causal, softmax_fill], ids=lambda f: f.__name__)
def test_it_does_nothing_twice(attend: Attend) -> None:
    made = compiled(attend)
    for record in made.run_again():
        assert record.name not in (PACK, FUSE) or not record.matches, record.name


@pytest.mark.parametrize("attend", [sdpa_causal, sdpa_all, softmax_folded], ids=lambda f: f.__name__)
def test_without_fusion_numbers_stay(attend: Attend) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    made = PassBench(Model(attend).double(), BATCHES, passes=f"canonicalize,{PACK}")
    made.assert_parity()
    assert bool(merged(made)) == (attend is not sdpa_folded)


@pytest.mark.parametrize("mode", ["bucket,multiple=16", "host"])
def test_size_modes(mode: str) -> None:
    """A bucket is filled with further padded places: they are counted already."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    made = PassBench(Model(sdpa_causal).double(), BATCHES, passes=f"canonicalize,{PACK}{{mode={mode}}},{FUSE}")
    made.assert_fires(PACK, FUSE).assert_parity()
    assert merged(made)


def test_bfloat16_counts_in_float32() -> None:
    """log(count) has no digits in bfloat16: 300 equal keys would weigh a few percent more or less."""
    torch.manual_seed(0)
    n = 300
    model = Model(lambda m, q, k, v, ids: F.scaled_dot_product_attention(q, k, v), layers=1)
    model.positions = nn.Embedding(n, DIM)
    ids, targets, features = batch([3, n, 1], n)
    given = (ids, targets, features.detach().bfloat16())
    made = PassBench(model.bfloat16(), [given])
    want = run(model.double(), (ids, targets, given[2].double()))
    model.bfloat16()
    got = run(made.fast, given)
    assert merged(made)
    assert float(got.outputs[0]) == pytest.approx(float(want.outputs[0]), rel=2e-2)


# --------------------------------------------------------------------------------------------- it does not
@dataclass(frozen=True)
class NearMiss:
    attend: Attend
    reason: str


NEAR_MISSES = {
    "a bias by position": NearMiss(relative, "differs from one padded place to another"),
    "a window": NearMiss(window, "its mask hides some padded places from some queries"),
    "positions in the keys": NearMiss(positions, "differs from one padded place to another"),
    "queries hidden by a large number": NearMiss(hidden_queries, "attention reads padded places"),
    "queries shifted by data": NearMiss(times_of_queries, "large numbers may be added"),
    "weights that are squared": NearMiss(renormalised, "its scores, or weights, differ"),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_other_keys_stay_and_the_reason_is_given(name: str) -> None:
    case = NEAR_MISSES[name]
    torch._dynamo.reset()
    torch.manual_seed(0)
    made = PassBench(Model(case.attend, layers=1).double(), BATCHES)
    made.assert_parity()
    assert not merged(made)
    said = [*(miss.reason for miss in made.misses(PACK)), *made.reports[-1].facts.values()]
    assert any(case.reason in text for text in said), said


@pytest.mark.parametrize("attend", [dropped_scores, dropped_twice, dropped_values], ids=lambda f: f.__name__)
def test_keys_that_are_drawn_one_by_one_stay(attend: Attend) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    made = PassBench(Model(attend, layers=1, dropout=0.3).double(), BATCHES)
    assert not merged(made)


def test_keys_that_are_one_row_but_for_their_position_stay() -> None:
    """0 at place 0 alone is no padding: nothing would be left out."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Model(lambda m, q, k, v, ids: sdpa_causal(m, q, k + torch.arange(q.shape[2])[:, None] / 8, v, ids), layers=1)
    made = PassBench(model.double(), BATCHES)
    made.assert_parity()
    assert not merged(made)


def test_keys_stay_where_no_padded_one_is_read() -> None:
    """The first places of causal attention read no others."""

    class FirstPlaces(Model):
        def forward(self, ids: Tensor, targets: Tensor, features: Tensor) -> Tensor:
            x = (self.items(ids) + features) * (ids != 0)[..., None]
            q, k, v = (f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in self.qkv[0])
            return (x + self.attend(self, q, k, v, ids).transpose(1, 2).flatten(2))[:, :2].sum()

    torch._dynamo.reset()
    torch.manual_seed(0)
    made = PassBench(FirstPlaces(sdpa_causal, layers=1).double(), BATCHES)
    made.assert_fires(PACK, FUSE).assert_parity()
    assert not merged(made)


def test_weights_that_are_read_elsewhere_stay() -> None:
    """Who looks at the weights sees one for each key."""

    class Watched(Model):
        def forward(self, ids: Tensor, targets: Tensor, features: Tensor) -> Any:
            seen: list[Tensor] = []

            def attend(m: Model, q: Tensor, k: Tensor, v: Tensor, ids: Tensor) -> Tensor:
                weights = torch.softmax(scores(q, k).masked_fill(~triangle(q.shape[2]), -math.inf), -1)
                seen.append(weights.amax())
                return weights @ v

            self.attend = attend
            return super().forward(ids, targets, features), seen[0]

    torch.manual_seed(0)
    made = PassBench(Watched(sdpa_causal, layers=1).double(), BATCHES)
    made.assert_parity()
    assert not merged(made)


def test_right_padding_by_lengths_needs_no_key_more() -> None:
    """Behind a causal mask no valid query sees a place that follows the last one."""

    class ByLengths(Model):
        def forward(self, ids: Tensor, targets: Tensor, features: Tensor) -> Tensor:
            mask = (torch.arange(ids.shape[1]) < targets[:, :1])[..., None]
            x = (self.items(ids) + features) * mask
            q, k, v = (f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in self.qkv[0])
            x = x + self.attend(self, q, k, v, ids).transpose(1, 2).flatten(2)
            return (x * mask).sum()

    torch.manual_seed(0)
    ids, _, features = batch([3, 6, 0, 1], 6, "right")
    lengths = torch.tensor([3, 6, 0, 1])[:, None].expand(-1, 6)
    made = PassBench(ByLengths(sdpa_causal).double(), [(ids, lengths, features)])
    made.assert_fires(PACK, FUSE).assert_parity()
    assert not merged(made)


# -------------------------------------------------------------------------------------------- any batch
@st.composite
def drawn(draw: st.DrawFn) -> tuple[Tensor, ...]:
    count, n = draw(st.integers(2, 5)), draw(st.integers(2, LONGEST))
    lengths = draw(st.lists(st.integers(0, n + 2), min_size=count, max_size=count))
    return batch(lengths, n, draw(st.sampled_from(["left", "right"])), draw(st.integers(0, 99)), draw(st.booleans()))


@pytest.mark.parametrize("attend", [sdpa_causal, softmax_all, softmax_folded], ids=lambda f: f.__name__)
def test_any_batch_is_right_with_one_graph(attend: Attend) -> None:
    made = compiled(attend)

    @settings(max_examples=25, deadline=None, derandomize=True, database=None,
              suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
    @given(drawn())
    def check(found: tuple[Tensor, ...]) -> None:
        made._compare(found, True, 1.0)

    check()
    assert len(made.compilations) <= 3


@pytest.mark.parametrize("attend", [sdpa_causal, sdpa_all], ids=lambda f: f.__name__)
def test_junk_at_padded_places_and_other_sequences_change_nothing(attend: Attend) -> None:
    made = compiled(attend)
    ids, targets, features = batch([3, 7, 0, 1], 7)
    other = torch.where((ids != 0)[..., None], features.detach(), 1e3)
    other[1] = torch.randn(7, DIM, dtype=torch.float64)
    clean, dirty = (run(made.fast, (ids[[0, 2, 3]], targets[[0, 2, 3]], x[[0, 2, 3]].detach().requires_grad_()))
                    for x in (features, other))  # fmt: skip
    assert torch.equal(clean.outputs[0], dirty.outputs[0])
    for name, gradient in clean.gradients.items():
        assert torch.equal(gradient, dirty.gradients[name]), name


# ---------------------------------------------------------------------------------------------- dropout
@pytest.mark.parametrize("attend", [sdpa_dropout, softmax_dropout], ids=lambda f: f.__name__)
def test_dropout_has_the_distribution_of_many_keys(attend: Attend) -> None:
    """Means, spreads and the share of outputs that lost every key, over draws of one batch; z-scores of both."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Model(attend, layers=1, dropout=0.4).double()
    given = batch([2, 1, 3, 0], 6)
    made = PassBench(model, [given])
    assert merged(made)
    assert made.operators_after(FUSE)["jagged_attention"] == 1 and not made.operators_after(FUSE)["dropout"]
    draws = 1500
    want, got = (torch.tensor([float(m(*given).detach()) for _ in range(draws)]) for m in (model, made.fast))
    error = math.sqrt(float(want.var() + got.var()) / draws)
    assert abs(float(want.mean() - got.mean())) < 4 * error
    assert 0.9 < float(got.std() / want.std()) < 1.1
