"""fuse-sampled-logits: products of states with looked-up rows, in every spelling; what stays, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loss_models import ITEMS, SAMPLED, Recommender, batch, sampled_softmax
from pass_bench import PassBench, run
from torch import Tensor, nn

import gr_compile

LOGITS = "fuse-sampled-logits"
ALONE = f"canonicalize,{LOGITS}"
B, N, R, D, V = 3, 5, 4, 8, 50


class Rows(nn.Module):
    """`body(m, x, ids, targets, group)`: x [B, N, D], ids [B, N, R], targets [B, N], of_sequences [B, R]."""

    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.padded, self.plain = nn.Embedding(V, D, padding_idx=0), nn.Embedding(V, D)
        self.linear, self.body = nn.Linear(D, D), body

    def forward(self, x: Tensor, ids: Tensor, targets: Tensor, of_sequences: Tensor) -> Any:
        return self.body(self, x, ids, targets, of_sequences)


def operands() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(B, N, D, generator=generator, dtype=torch.float64).requires_grad_()
    return x, *(torch.randint(0, V, shape, generator=generator) for shape in ((B, N, R), (B, N), (B, R)))


def bench(body: Callable[..., Any], passes: str = ALONE) -> PassBench:
    return PassBench(Rows(body).double(), [operands()], passes=passes)


def norm(rows: Tensor) -> Tensor:
    return rows.norm(dim=-1, keepdim=True).clamp(min=1e-6)


PRODUCTS: dict[str, Callable[..., Any]] = {
    "einsum": lambda m, x, i, t, g: torch.einsum("bnd,bnrd->bnr", x, m.padded(i)),
    "einsum, transposed": lambda m, x, i, t, g: torch.einsum("bnrd,bnd->rbn", m.plain(i), x),
    "multiplied and summed": lambda m, x, i, t, g: (x.unsqueeze(-2) * m.padded(i)).sum(-1),
    "the rows first, dimensions kept": lambda m, x, i, t, g: (m.padded(i) * x[:, :, None]).sum(dim=-1, keepdim=True),
    "an expanded state": lambda m, x, i, t, g: (x.unsqueeze(2).expand(-1, -1, R, -1) * m.plain(i)).sum(-1),
    "matmul": lambda m, x, i, t, g: torch.matmul(m.padded(i), x.unsqueeze(-1)).squeeze(-1),
    "bmm": lambda m, x, i, t, g: torch.bmm(m.padded(i).view(-1, R, D), x.view(-1, D, 1)).view(B, N, R),
    "bmm, the state first": lambda m, x, i, t, g: (x.view(-1, 1, D) @ m.padded(i).view(-1, R, D).mT).squeeze(1),
    "flat tokens": lambda m, x, i, t, g: torch.einsum("td,trd->tr", x.flatten(0, 1), m.padded(i.flatten(0, 1))),
    "flattened rows": lambda m, x, i, t, g: torch.einsum("td,trd->tr", x.flatten(0, 1), m.padded(i).flatten(0, 1)),
    "ids that were turned": lambda m, x, i, t, g: torch.einsum("bnd,rnbd->bnr", x, m.plain(i.permute(2, 1, 0))),
    "the target in front": lambda m, x, i, t, g: (m.padded(torch.cat([t[..., None], i], -1)) @ x[..., None]).squeeze(-1),
    "a table by index": lambda m, x, i, t, g: (m.plain.weight[i] * x[:, :, None]).sum(-1),
    "ids from the end": lambda m, x, i, t, g: (m.plain.weight[i - V] * x[:, :, None]).sum(-1),
    "index_select": lambda m, x, i, t, g: (
        m.plain.weight.index_select(0, i.flatten()).view(B, N, R, D) * x[:, :, None]).sum(-1),
    "int32 ids": lambda m, x, i, t, g: (m.plain(i.int()) * x[:, :, None]).sum(-1),
    "scaled rows": lambda m, x, i, t, g: torch.einsum("bnd,bnrd->bnr", x, m.padded(i) * D**0.5 / 3),
    "normalised": lambda m, x, i, t, g: (F.normalize(x, dim=-1)[:, :, None] * F.normalize(m.padded(i), dim=-1)).sum(-1),
    "normalised by hand": lambda m, x, i, t, g: (lambda rows: (rows / norm(rows) @ x[..., None])[..., 0])(m.plain(i)),
    "cosine_similarity": lambda m, x, i, t, g: F.cosine_similarity(x.unsqueeze(2), m.plain(i), dim=-1) / 0.05,
    "normalised as Meta does": lambda m, x, i, t, g: (lambda rows: (
        rows / torch.clamp(torch.linalg.norm(rows, ord=None, dim=-1, keepdim=True), min=1e-6) * x[:, :, None]).sum(-1))(m.plain(i)),
    "states and targets of shifted places": lambda m, x, i, t, g: torch.einsum("bnd,bnrd->bnr", x[:, :-1], m.plain(i[:, 1:])),
    "some sequences": lambda m, x, i, t, g: (x[:2].unsqueeze(2) * m.plain(i[:2])).sum(-1),
    "of a computed table": lambda m, x, i, t, g: torch.einsum("bnd,bnrd->bnr", x, m.linear(m.plain.weight)[i]),
    "rows of the token's sequence": lambda m, x, i, t, g: torch.einsum(
        "td,trd->tr", x.flatten(0, 1), m.padded(g)[torch.arange(B).repeat_interleave(N)]),
    "both signs of a sequence's number": lambda m, x, i, t, g: torch.einsum(
        "td,tdr->tr", x.flatten(0, 1), m.padded(g).mT[torch.arange(B).repeat_interleave(N) - B]),
}  # fmt: skip


@pytest.mark.parametrize("spelling", PRODUCTS)
def test_products_fire(spelling: str) -> None:
    made = bench(PRODUCTS[spelling]).assert_fires(LOGITS).assert_parity()
    assert made.operators_after("final")["sampled_logits"] == 1
    assert not [n for n in made.graph().graph.nodes if ops_rows(n)], "rows of tokens are left"
    assert not made.run_again(LOGITS)[0].changed


def ops_rows(node: Any) -> bool:
    """A floating value of B * N * R * D elements."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    return value.dim() >= 3 and value.shape[-1] == D and R in [s for s in value.shape if isinstance(s, int)]


def test_the_target_and_its_negatives_share_a_call() -> None:
    def body(m: Rows, x: Tensor, i: Tensor, t: Tensor, g: Tensor) -> Any:
        return (x * m.padded(t)).sum(-1), torch.einsum("bnd,bnrd->bnr", x, m.padded(i)), (x * m.plain(t)).sum(-1)

    made = bench(body).assert_parity()
    assert [match.what for match in made.matches(LOGITS)] == ["logits of one looked-up row a token", "logits of looked-up rows"]
    counts = made.operators_after("final")
    assert (counts["sampled_logits"], counts["embedding"]) == (1, 1)


def test_logits_can_be_the_query_of_others() -> None:
    def body(m: Rows, x: Tensor, i: Tensor, t: Tensor, g: Tensor) -> Any:
        first = torch.einsum("bnd,bnrd->bnr", x, m.padded(i))
        return torch.einsum("bnr,bnkr->bnk", first, m.plain.weight[:, :R][i])

    assert bench(body).assert_parity().operators_after("final")["sampled_logits"] == 2


def test_negatives_that_earlier_logits_choose_have_a_call_of_their_own() -> None:
    def body(m: Rows, x: Tensor, i: Tensor, t: Tensor, g: Tensor) -> Any:
        first = torch.einsum("bnd,bnrd->bnr", x, m.padded(i))
        hardest = i.gather(-1, first.topk(2).indices)
        return first, torch.einsum("bnd,bnrd->bnr", x, m.padded(hardest))

    assert bench(body).assert_parity().operators_after("final")["sampled_logits"] == 2


def _read_twice(m: Rows, x: Tensor, i: Tensor, t: Tensor, g: Tensor) -> Tensor:
    rows = m.plain(i)
    return torch.einsum("bnd,bnrd->bnr", x, rows) + rows.square().mean(-1)


def _counted(m: Rows, x: Tensor, i: Tensor, t: Tensor, g: Tensor) -> Tensor:
    return torch.einsum("bnd,bnrd->bnr", x, F.embedding(i, m.plain.weight, scale_grad_by_freq=True))


def _projected(m: Rows, x: Tensor, i: Tensor, t: Tensor, g: Tensor) -> Tensor:
    return torch.einsum("bnd,bnrd->bnr", x, m.linear(m.plain(i)))


def _detached(m: Rows, x: Tensor, i: Tensor, t: Tensor, g: Tensor) -> Tensor:
    return torch.einsum("bnd,bnrd->bnr", x, m.plain(i).detach())


def _cut(m: Rows, x: Tensor, i: Tensor, t: Tensor, g: Tensor) -> Tensor:
    return torch.einsum("bnd,bnrd->bnr", x, m.plain(i)[:, :, :2])


def _bound_below(m: Rows, x: Tensor, i: Tensor, t: Tensor, g: Tensor) -> Tensor:
    rows = m.plain(i)
    return torch.einsum("bnd,bnrd->bnr", x, rows / rows.norm(dim=-1, keepdim=True).clamp(min=-1.0))


MISSES = {
    "go through aten.div": (_bound_below, "clamp(min=-1.0)"),
    "a part of the rows": (_cut, "m.plain(i)"),
    "are read elsewhere": (_read_twice, "rows.square()"),
    "scaled by how often": (_counted, "F.embedding"),
    "go through aten.linear": (_projected, "m.linear"),
    "go through aten.detach": (_detached, "detach"),
}


@pytest.mark.parametrize("reason", MISSES)
def test_it_says_why_not_and_where(reason: str) -> None:
    body, line = MISSES[reason]
    made = bench(body).assert_parity()
    made.assert_misses(LOGITS, reason, line)
    assert made.operators_after("final")["sampled_logits"] == 0


QUIET: dict[str, Callable[..., Any]] = {
    "one row a token": lambda m, x, i, t, g: (x * m.plain(t)).sum(-1),
    "rows that all tokens share": lambda m, x, i, t, g: x @ m.plain(g[0]).T,
    "rows of a sequence, which are there once": lambda m, x, i, t, g: torch.einsum("bnd,brd->bnr", x, m.plain(g)),
    "attention over looked-up keys": lambda m, x, i, t, g: x @ m.plain(t).mT,
    "a linear layer on rows": lambda m, x, i, t, g: m.linear(m.plain(i)),
    "some features of both sides": lambda m, x, i, t, g: torch.einsum("bnd,bnrd->bnr", x[..., :4], m.plain(i)[..., :4]),
    "some tokens of a group": lambda m, x, i, t, g: torch.einsum(
        "td,trd->tr", x.flatten(0, 1)[:7], m.plain(g)[torch.arange(B).repeat_interleave(N)][:7]),
    "a cosine with a large eps": lambda m, x, i, t, g: F.cosine_similarity(x.unsqueeze(2), m.plain(i), dim=-1, eps=3.0),
    "norms of rows": lambda m, x, i, t, g: m.plain(i).square().sum(-1),
}


@pytest.mark.parametrize("case", QUIET)
def test_what_keeps_no_row_for_a_logit_needs_no_word(case: str) -> None:
    made = bench(QUIET[case]).assert_parity()
    assert not made.matches(LOGITS) and not made.misses(LOGITS)


# ------------------------------------------------------------------------------------- behind packing
@pytest.mark.parametrize("loss", SAMPLED)
def test_losses_of_padded_models_are_made_on_packed_tokens(loss: str) -> None:
    model = Recommender(SAMPLED[loss]).double()
    batches = [batch([7, 3, 0, 1], 7, 5), batch([9, 2], 9, 6, seed=3)]
    made = PassBench(model, batches).assert_fires("eliminate-padding", LOGITS).assert_parity()
    assert len(made.compilations) == 1
    calls = [n for n in made.graph().graph.nodes if n.target is torch.ops.gr.sampled_logits.default]
    assert len(calls) == 1 and str(calls[0].args[0].meta["val"].shape[0]).startswith("u")  # packed tokens


def _memory(m: Recommender, x: Tensor, mask: Tensor, t: Tensor, _: Tensor, drawn: Tensor) -> Tensor:
    rows = m.items(drawn)
    return ((x + (x @ rows.mT).softmax(-1) @ rows).square().sum(-1) * mask).sum()


def _values(m: Recommender, x: Tensor, mask: Tensor, t: Tensor, _: Tensor, drawn: Tensor) -> Tensor:
    """A sum over rows, not over features."""
    return ((m.head(x)[..., : drawn.shape[1]] @ m.items(drawn)).square().sum(-1) * mask).sum()


def _weighted(m: Recommender, x: Tensor, mask: Tensor, t: Tensor, _: Tensor, drawn: Tensor) -> Tensor:
    return ((x @ (m.items(drawn) * m.norm.weight).mT).square().sum(-1) * mask).sum()


def _by_head(m: Recommender, x: Tensor, mask: Tensor, t: Tensor, _: Tensor, drawn: Tensor) -> Tensor:
    heads, rows = x.unflatten(-1, (2, 4)), m.items(drawn).unflatten(-1, (2, 4))
    return (torch.einsum("bnhd,brhd->bnhr", heads, rows).square().sum((-1, -2)) * mask).sum()


@pytest.mark.parametrize("loss", [_memory, _values, _weighted, _by_head])
def test_rows_of_a_sequence_that_stay_are_not_copied_for_each_token(loss: Any) -> None:
    made = PassBench(Recommender(loss).double(), [batch([7, 3, 0, 1], 7, 5)]).assert_parity()
    copied = [
        n.name for n in made.graph().graph.nodes
        if isinstance(value := n.meta.get("val"), Tensor) and value.is_floating_point() and value.dim() >= 3
        and str(value.shape[0]).startswith("u") and 5 in value.shape[1:3]
    ]  # fmt: skip
    assert not copied


def test_no_negative_of_a_padded_place_is_looked_up() -> None:
    ids, targets, negatives, of_sequences = batch([7, 3, 0, 1], 7, 5)
    junk = negatives.masked_fill((ids == 0)[..., None], ITEMS + 1000)
    made = PassBench(Recommender(sampled_softmax).double(), [(ids, targets, negatives, of_sequences)])
    want = run(made.fast, made.batches[0])
    got = run(made.fast, (ids, targets, junk, of_sequences))
    assert torch.equal(got.outputs[0], want.outputs[0])
    assert all(torch.equal(got.gradients[name], want.gradients[name]) for name in want.gradients)


def test_it_is_in_the_default_preset_and_can_be_left_out() -> None:
    inputs = [batch([7, 3], 7, 5)]
    without = PassBench(Recommender(sampled_softmax).double(), inputs, passes=f"default,-{LOGITS}").assert_parity()
    assert without.operators_after("final")["sampled_logits"] == 0
    assert PassBench(Recommender(sampled_softmax).double(), inputs).operators_after("final")["sampled_logits"] == 1


@settings(max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(sorted(SAMPLED)), st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(1, 6),
    st.integers(1, 5), st.integers(0, 99),
)  # fmt: skip
def test_any_batch_keeps_its_numbers(loss: str, lengths: list[int], places: int, negatives: int, seed: int) -> None:
    inputs = [batch(lengths, places, negatives, seed)]
    PassBench(Recommender(SAMPLED[loss]).double(), inputs).assert_parity()


def test_without_gradients_inductor_makes_no_rows_itself() -> None:
    def body(m: Rows, x: Tensor, i: Tensor, t: Tensor, g: Tensor) -> Any:
        return (x.unsqueeze(-2) * m.padded(i)).sum(-1), torch.einsum("bnd,bnrd->bnr", x, m.plain(i))

    fast = gr_compile.optimize(Rows(body), passes=ALONE, dynamic=True)
    x, *ids = operands()
    with torch.no_grad():
        fast(x.detach().float(), *ids)
    (record,) = [r for r in gr_compile.report(fast)[0].passes if r.name == LOGITS]
    assert len(record.matches) == 1 and [miss.reason[:17] for miss in record.misses] == ["without gradients"]
