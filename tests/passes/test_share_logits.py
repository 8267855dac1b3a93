"""share-logits: the losses that it changes are those of logits shared token by token; what it leaves, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loss_models import SAMPLED, Recommender, batch, mean, positive, sampled_softmax
from pass_bench import PassBench, assert_close, run
from shared_losses import MADE, drawn_seed, reference, shared
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gr_compile
from gr_compile.constants import Constants
from gr_compile.editor import GraphEditor
from gr_compile.graph_pass import GraphReport
from gr_compile.optimize import _compiled
from gr_compile.pipeline import PRESETS, PassContext, Pipeline, PipelineError, run_pipeline

SHARE, LOGITS = "share-logits", "fuse-sampled-logits"
LENGTHS, PLACES, R = [7, 3, 0, 1], 7, 5


def passes(expansion: int, start: str = "default") -> str:
    return f"{start},{SHARE}{{expansion={expansion}}}"


def bench(loss: Any, expansion: int = 3, batches: Any = None, **options: Any) -> PassBench:
    given = [batch(LENGTHS, PLACES, R)] if batches is None else batches
    return PassBench(Recommender(loss).double(), given, passes=passes(expansion), **options)


def assert_shared(made: PassBench, name: str, expansion: int, seed: int = 11, scale: float = 1.0) -> None:
    """Loss and gradients of every batch are those of the reference with the same order of tokens."""
    model = Recommender(reference(name, expansion, seed)).to(next(made.model.parameters()).dtype)
    for inputs in made.batches:
        want = run(model, inputs)
        torch.manual_seed(seed)
        got = run(made.fast, inputs)
        assert_close("loss", got.outputs[0], want.outputs[0], 1e-9 * scale)
        assert got.gradients.keys() == want.gradients.keys()
        least = 1e-3 * sum(float(gradient.norm()) ** 2 for gradient in want.gradients.values()) ** 0.5
        for parameter, gradient in want.gradients.items():
            assert_close(f"gradient of {parameter}", got.gradients[parameter], gradient, 1e-8 * scale, least)


# ------------------------------------------------------------------------------------- losses of models
@pytest.mark.parametrize("expansion", [1, 2, 4])
@pytest.mark.parametrize("name", MADE)
def test_losses_and_gradients_are_those_of_shared_logits(name: str, expansion: int) -> None:
    batches = [batch(LENGTHS, PLACES, R), batch([9, 2], 9, R + 1, seed=3), batch([4, 4, 4], 6, 2, seed=4)]
    made = bench(SAMPLED[name], expansion, batches)
    assert_shared(made, name, expansion)
    assert len(made.compilations) == 1, "a batch compiled anew"
    if expansion == 1:
        assert not made.matches(SHARE) and not made.misses(SHARE)
        made.assert_parity()


@pytest.mark.parametrize("name", MADE)
def test_it_fires_and_adds_no_lookup(name: str) -> None:
    made = bench(SAMPLED[name], 4).assert_fires("eliminate-padding", SHARE)
    before, after = made.operators_before(SHARE), made.operators_after(SHARE)
    for lookup in ("sampled_logits", "embedding", "linear", "mul"):
        assert after[lookup] == before[lookup]
    assert (after["other_tokens"], after["randint"]) == (1, 1)
    assert after["where"] - before["where"] == 3
    assert len(made.matches(SHARE)) == 1 and not made.misses(SHARE)
    again = made.run_again(passes(4, "canonicalize"))[-1]
    assert again.name == SHARE and not again.changed and not again.misses


@settings(max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(
    st.sampled_from(sorted(MADE)), st.lists(st.integers(0, 6), min_size=2, max_size=4), st.integers(1, 6),
    st.integers(1, 5), st.integers(2, 5), st.integers(0, 99),
)  # fmt: skip
def test_any_batch(name: str, lengths: list[int], places: int, negatives: int, expansion: int, seed: int) -> None:
    made = bench(SAMPLED[name], expansion, [batch(lengths, places, negatives, seed)])
    assert_shared(made.assert_fires(SHARE), name, expansion, seed)


@pytest.mark.parametrize("negatives", [1, 3])
def test_a_batch_of_one_sequence(negatives: int) -> None:
    inputs = [batch([4], 6, negatives)]
    assert_shared(bench(sampled_softmax, 3, inputs).assert_fires(SHARE), "sampled softmax", 3)
    bench(SAMPLED["by sequence"], 3, inputs).assert_fires(SHARE).assert_parity()  # all have the same negatives
    flat = bench(SAMPLED["cosine"], 3, inputs).assert_parity()  # one flattened sequence is not packed
    (miss,) = flat.misses(SHARE)
    assert "padded places among the tokens" in miss.reason and not flat.matches(SHARE)


@pytest.mark.parametrize("lengths", [[0, 0], [1, 0], [1, 1], [3, 0]])
def test_batches_with_fewer_tokens_than_the_expansion(lengths: list[int]) -> None:
    inputs = [batch(lengths, 4, R)]
    made = bench(sampled_softmax, 5, inputs)
    assert_shared(made, "sampled softmax", 5)
    if sum(lengths) == 1:
        made.assert_parity()  # nobody lends


def test_the_inductor_target_and_its_partitioner() -> None:
    inputs = [batch(LENGTHS, PLACES, R), batch([9, 2], 9, R, seed=3)]
    with torch._inductor.config.patch(fallback_random=True):  # the same numbers as eager torch
        model = Recommender(sampled_softmax)
        made = PassBench(model, inputs, passes=passes(4), target="inductor").assert_fires(SHARE)
        assert_shared(made, "sampled softmax", 4, scale=1e4)
    assert len(made.compilations) == 1


def test_a_checkpoint_makes_the_same_order_again() -> None:
    def loss(*operands: Any) -> Tensor:
        return checkpoint(sampled_softmax, *operands, use_reentrant=False)  # type: ignore[no-any-return]

    assert_shared(bench(loss, 4).assert_fires(SHARE), "sampled softmax", 4)


def test_orders_are_drawn_anew_and_reproduced_from_the_seed() -> None:
    made = bench(sampled_softmax)

    def three() -> list[float]:
        torch.manual_seed(5)
        return [float(made.fast(*made.batches[0])) for _ in range(3)]

    first = three()
    assert first == three() and len(set(first)) == 3


@pytest.mark.parametrize("start", ["default", "default,eliminate-padding{mode=bucket,multiple=8}"])
def test_padded_places_lend_nothing(start: str) -> None:
    ids, targets, negatives, drawn = batch(LENGTHS, PLACES, R)
    padded = ids == 0
    junk = torch.where(padded[..., None], (negatives + 7) % 60 + 1, negatives)
    made = PassBench(Recommender(sampled_softmax).double(), [(ids, targets, negatives, drawn)], passes=passes(4, start))
    made.assert_fires(SHARE)

    def of(*inputs: Tensor) -> Any:
        torch.manual_seed(2)
        return run(made.fast, inputs)

    want, got = of(ids, targets, negatives, drawn), of(ids, targets + padded * 9, junk, drawn)
    assert torch.equal(got.outputs[0], want.outputs[0])
    for name, gradient in want.gradients.items():
        assert torch.equal(got.gradients[name], gradient), name


# -------------------------------------------------------------------------------------- other spellings
D, V, T = 8, 50, 9


class Rows(nn.Module):
    """`body(m, x, ids, targets, weights)`: x [T, D], ids [T, R], targets [T], weights [T]."""

    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items, self.others = nn.Embedding(V, D), nn.Embedding(V, D)
        self.scale, self.body = nn.Parameter(torch.tensor(0.7)), body

    def forward(self, x: Tensor, ids: Tensor, targets: Tensor, weights: Tensor) -> Any:
        return self.body(self, x, ids, targets, weights)


def operands(items: int = V) -> tuple[Tensor, ...]:
    """Few items are hit often; two of three tokens have a weight."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(T, D, generator=generator, dtype=torch.float64).requires_grad_()
    ids, targets = (torch.randint(0, items, shape, generator=generator) for shape in ((T, R), (T,)))
    return x, ids, targets, (torch.arange(T) % 3).double()


def rows(body: Callable[..., Any], expansion: int = 3, items: int = V, start: str = f"canonicalize,{LOGITS}") -> PassBench:
    return PassBench(Rows(body).double(), [operands(items)], passes=passes(expansion, start))


def negatives(m: Rows, x: Tensor, ids: Tensor) -> Tensor:
    return torch.einsum("td,trd->tr", x, m.items(ids))


def logits(m: Rows, x: Tensor, i: Tensor, t: Tensor) -> Tensor:
    return torch.cat([(x * m.items(t)).sum(-1, keepdim=True), negatives(m, x, i)], 1)


def zeros(t: Tensor) -> Tensor:
    return torch.zeros_like(t)


def picked(m: Rows, x: Tensor, i: Tensor, t: Tensor) -> Tensor:
    return F.log_softmax(logits(m, x, i, t), -1).gather(1, zeros(t)[:, None])


def per_token(m: Rows, x: Tensor, i: Tensor, t: Tensor) -> Tensor:
    return -F.log_softmax(logits(m, x, i, t), 1)[:, 0]


def two_kinds(m: Rows, x: Tensor, i: Tensor, t: Tensor) -> Tensor:
    parts = [(x * m.items(t)).sum(-1, keepdim=True), negatives(m, x, i[:, :2]) * 2, negatives(m, x, i[:, 2:]) - 0.5]
    return torch.cat(parts, 1) / m.scale.exp()


def one_call(m: Rows, x: Tensor, i: Tensor, t: Tensor) -> Tensor:
    return (m.items(torch.cat([t[:, None], i], 1)) @ x[:, :, None]).squeeze(-1)


def gated(m: Rows, x: Tensor, i: Tensor, t: Tensor) -> Tensor:
    made = one_call(m, x, i, t)
    return made * torch.sigmoid(made * 2)


def target_last(m: Rows, x: Tensor, i: Tensor, t: Tensor) -> Tensor:
    return (m.items(torch.cat([i, t[:, None]], 1)) @ x[:, :, None]).squeeze(-1).flip(1)


LossOf = Callable[[Tensor, Tensor], Tensor]
Spelled = tuple[Callable[..., Tensor], Callable[..., Tensor], LossOf]
"""The loss; its logits; what is made of -log_softmax(z')[:, 0] and the weights."""

SPELLINGS: dict[str, Spelled] = {
    "gather": (lambda m, x, i, t, w: -picked(m, x, i, t).mean(), logits, lambda n, w: n.mean()),
    "a slice": (
        lambda m, x, i, t, w: F.log_softmax(logits(m, x, i, t), -1)[:, :1].sum(), logits, lambda n, w: -n.sum()),
    "signs and factors first": (
        lambda m, x, i, t, w: (-2 * F.log_softmax(logits(m, x, i, t), -1)).view(3, 3, 1 + R)[..., 0].mean(),
        logits, lambda n, w: 2 * n.mean()),
    "nll_loss": (
        lambda m, x, i, t, w: F.nll_loss(F.log_softmax(logits(m, x, i, t), -1), zeros(t)), logits, lambda n, w: n.mean()),
    "cross entropy, a learned temperature, two kinds of negatives": (
        lambda m, x, i, t, w: F.cross_entropy(two_kinds(m, x, i, t), zeros(t)), two_kinds, lambda n, w: n.mean()),
    "one call for all": (
        lambda m, x, i, t, w: F.cross_entropy(one_call(m, x, i, t), zeros(t)), one_call, lambda n, w: n.mean()),
    "logits that are read twice": (
        lambda m, x, i, t, w: F.cross_entropy(gated(m, x, i, t), zeros(t)), gated, lambda n, w: n.mean()),
    "logsumexp": (
        lambda m, x, i, t, w: (lambda z: (torch.logsumexp(z / 2, -1) - z[:, 0] / 2).mean())(logits(m, x, i, t)),
        lambda *o: logits(*o) / 2, lambda n, w: n.mean()),
    "logsumexp, dimensions kept, the sign turned": (
        lambda m, x, i, t, w: (lambda z: (z[:, :1] - z.logsumexp(1, keepdim=True)).sum())(logits(m, x, i, t)),
        logits, lambda n, w: -n.sum()),
    "logsumexp of a sum": (
        lambda m, x, i, t, w: (lambda z: (-z[:, 0] + z.logsumexp(1)).sum())(one_call(m, x, i, t)),
        one_call, lambda n, w: n.sum()),
    "weighted": (
        lambda m, x, i, t, w: (per_token(m, x, i, t) * w).sum() / w.sum(), logits, lambda n, w: (n * w).sum() / w.sum()),
    "weighted as a grid": (
        lambda m, x, i, t, w: (per_token(m, x, i, t).view(3, 3) * w.view(3, 3)).sum(), logits, lambda n, w: (n * w).sum()),
    "selected": (
        lambda m, x, i, t, w: torch.where(w > 0, per_token(m, x, i, t), 0.0).sum(), logits,
        lambda n, w: n[w > 0].sum()),
    "filled": (
        lambda m, x, i, t, w: per_token(m, x, i, t).masked_fill(w == 0, 0.0).sum(), logits, lambda n, w: n[w > 0].sum()),
    "picked by a mask": (lambda m, x, i, t, w: per_token(m, x, i, t)[w > 0].mean(), logits, lambda n, w: n[w > 0].mean()),
    "picked by number": (
        lambda m, x, i, t, w: per_token(m, x, i, t)[(w > 0).nonzero().squeeze(1)].mean(), logits,
        lambda n, w: n[w > 0].mean()),
    "targets that are ignored": (
        lambda m, x, i, t, w: F.cross_entropy(logits(m, x, i, t), torch.where(w > 0, 0, -100)), logits,
        lambda n, w: n[w > 0].mean()),
}  # fmt: skip
WEIGHTED = ("weighted", "weighted as a grid", "selected", "filled", "picked by a mask", "picked by number",
            "targets that are ignored")  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(spelling: str) -> None:
    body, made_of, total = SPELLINGS[spelling]
    counted = spelling in WEIGHTED

    def want(m: Rows, x: Tensor, i: Tensor, t: Tensor, w: Tensor) -> Tensor:
        z = shared(made_of(m, x, i, t), torch.cat([t[:, None], i], 1), 3, 11, (w > 0) if counted else None)
        return total(-F.log_softmax(z, -1)[:, 0], w)

    made = rows(body, items=12).assert_fires(SHARE)
    wanted = run(Rows(want).double(), made.batches[0])
    torch.manual_seed(11)
    got = run(made.fast, made.batches[0])
    assert_close("loss", got.outputs[0], wanted.outputs[0], 1e-9)
    assert got.gradients.keys() == wanted.gradients.keys()
    for name, gradient in wanted.gradients.items():
        assert_close(name, got.gradients[name], gradient, 1e-8, 1e-9)


def test_one_negative_a_token_needs_no_call() -> None:
    def body(m: Rows, x: Tensor, i: Tensor, t: Tensor, w: Tensor) -> Tensor:
        other = (x * m.items.weight[i[:, 0] - V]).sum(-1, keepdim=True)
        return F.cross_entropy(torch.cat([(x * m.items(t)).sum(-1, keepdim=True), other], 1), zeros(t))

    def want(m: Rows, x: Tensor, i: Tensor, t: Tensor, w: Tensor) -> Tensor:
        z = shared(logits(m, x, i[:, :1], t), torch.cat([t[:, None], i[:, :1]], 1), 3, 11)
        return -F.log_softmax(z, -1)[:, 0].mean()

    made = rows(body, items=5).assert_fires(SHARE)
    assert made.operators_after("final")["sampled_logits"] == 0
    torch.manual_seed(11)
    got = float(made.fast(*made.batches[0]))
    assert got == pytest.approx(float(Rows(want).double()(*made.batches[0])), rel=1e-12)


def test_a_negative_that_is_the_borrowers_target_is_left_out() -> None:
    def body(m: Rows, x: Tensor, i: Tensor, t: Tensor, w: Tensor) -> Tensor:
        return (per_token(m, x, i, t) * torch.tensor([1.0, 0.0])).sum()

    def both(m: Rows, x: Tensor, i: Tensor, t: Tensor, w: Tensor) -> Tensor:
        return (per_token(m, x, i, t) * torch.tensor([1.0, 1e-9])).sum()

    x, _, _, w = (value[:2] for value in operands())
    hits = torch.tensor([[9, 8], [5, 5]])  # token 1 drew the target of token 0, twice
    misses = torch.tensor([[9, 8], [6, 6]])
    targets = torch.tensor([5, 7])
    for negative, changes in ((hits, False), (misses, True)):
        made = PassBench(Rows(both).double(), [(x, negative, targets, w)], passes=passes(2, f"canonicalize,{LOGITS}"))
        alone = Rows(body).double()(x, negative, targets, w)
        assert (abs(float(made.fast(*made.batches[0])) - float(alone)) > 1e-4) == changes
    assert not made.misses(SHARE)


def test_a_state_is_pushed_off_its_own_negatives_by_all_who_read_them() -> None:
    """The gradient of docs/losses.md."""
    made = rows(lambda m, x, i, t, w: F.cross_entropy(logits(m, x, i, t), zeros(t), reduction="sum"), items=12)
    x, ids, targets, _ = made.batches[0]
    torch.manual_seed(11)
    (got,) = torch.autograd.grad(made.fast(*made.batches[0]), [x])
    z, table = logits(made.model, x, ids, targets).detach(), made.model.items.weight.detach()  # type: ignore[arg-type,union-attr]
    wide = shared(z, torch.cat([targets[:, None], ids], 1), 3, 11)
    others, totals = torch.ops.gr.other_tokens(drawn_seed(11), T, 2), wide.exp().sum(1)
    pushes = (1 / totals)[:, None].repeat(1, R)
    for reader in range(T):
        for lender in others[:, reader]:
            pushes[lender] += (ids[lender] != targets[reader]) / totals[reader]
    pulls = 1 - wide.softmax(1)[:, :1]
    want = torch.einsum("tr,trd->td", z[:, 1:].exp() * pushes, table[ids]) - pulls * table[targets]
    assert_close("gradient of states", got, want, 1e-10)
    assert float((z[:, 1:].exp() * pushes).sum()) == pytest.approx(float(pulls.sum()))


def test_halves_keep_their_dtype() -> None:
    def body(m: Rows, x: Tensor, i: Tensor, t: Tensor, w: Tensor) -> Tensor:
        return F.cross_entropy(logits(m, x, i, t), zeros(t))

    x, *others = operands()
    made = PassBench(Rows(body).bfloat16(), [(x.detach().bfloat16(), *others)], passes=passes(3, f"canonicalize,{LOGITS}"))
    made.assert_fires(SHARE)
    result = made.fast(*made.batches[0])
    assert result.dtype == torch.bfloat16 and bool(result.isfinite())


# ------------------------------------------------------------------------------------------------ misses
def _entropy(z: Tensor, t: Tensor, **options: Any) -> Tensor:
    return F.cross_entropy(z, zeros(t), **options)


def _dustbin(m: Rows, x: Tensor, i: Tensor, t: Tensor, w: Tensor) -> Tensor:
    return _entropy(torch.cat([logits(m, x, i, t), w[:, None]], 1), t)


def _shared_by_all(m: Rows, x: Tensor, i: Tensor, t: Tensor, w: Tensor) -> Tensor:
    own = (x * m.items(t)).sum(-1, keepdim=True)
    return _entropy(torch.cat([own, x @ m.items(i[0]).T], 1), t)


def _two_weights(m: Rows, x: Tensor, i: Tensor, t: Tensor, w: Tensor) -> Tensor:
    losses = per_token(m, x, i, t)
    return (losses * w).sum() + (losses * w.flip(0)).sum()


def _two_tables(m: Rows, x: Tensor, i: Tensor, t: Tensor, w: Tensor) -> Tensor:
    own = (x * m.others(t)).sum(-1, keepdim=True)
    return _entropy(torch.cat([own, negatives(m, x, i)], 1), t)


def _two_products(m: Rows, x: Tensor, i: Tensor, t: Tensor, w: Tensor) -> Tensor:
    ids = torch.cat([t[:, None], i], 1)
    return _entropy(negatives(m, x, ids) + torch.einsum("td,trd->tr", x.flip(0), m.others(ids)), t)


def _broadcast(m: Rows, x: Tensor, i: Tensor, t: Tensor, w: Tensor) -> Tensor:
    return _entropy((x * m.items(t)).sum(-1, keepdim=True) * w, t)


def _exponentials(m: Rows, x: Tensor, i: Tensor, t: Tensor, w: Tensor) -> Tensor:
    weights = logits(m, x, i, t).exp()
    return -(weights[:, 0] / weights.sum(-1)).log().mean()


def _of_negatives(m: Rows, x: Tensor, i: Tensor, t: Tensor, w: Tensor) -> Tensor:
    z = logits(m, x, i, t)
    return (z[:, 1:].logsumexp(-1) - z[:, 0]).mean()


def _all_columns(m: Rows, x: Tensor, i: Tensor, t: Tensor, w: Tensor) -> Tensor:
    return -F.log_softmax(logits(m, x, i, t), -1).mean()


def _across_tokens(m: Rows, x: Tensor, i: Tensor, t: Tensor, w: Tensor) -> Tensor:
    return -F.log_softmax(logits(m, x, i, t), 0)[:, 0].mean()


MISSES: dict[str, tuple[Callable[..., Any], str]] = {
    "they go into aten.softplus": (lambda m, x, i, t, w: F.softplus(negatives(m, x, i)).sum(), "softplus"),
    "they go into aten.exp": (_exponentials, "exp()"),
    "they are an output": (lambda m, x, i, t, w: negatives(m, x, i) * 2, ""),
    "whose logarithm is taken later": (
        lambda m, x, i, t, w: -logits(m, x, i, t).softmax(-1)[:, 0].log().mean(), "softmax"),
    "does not run over a token's logits": (_across_tokens, "log_softmax"),
    "other columns than the target's are read": (_all_columns, "mean()"),
    "smoothed labels": (lambda m, x, i, t, w: _entropy(logits(m, x, i, t), t, label_smoothing=0.1), "_entropy"),
    "class weights": (lambda m, x, i, t, w: _entropy(logits(m, x, i, t), t, weight=w[: 1 + R]), "_entropy"),
    "not known to be 0": (lambda m, x, i, t, w: F.cross_entropy(logits(m, x, i, t), zeros(t) + R), "cross_entropy"),
    "not one column for each token": (
        lambda m, x, i, t, w: F.cross_entropy(logits(m, x, i, t), logits(m, x, i, t).softmax(-1)), "cross_entropy"),
    "not taken off the logit in column 0": (_of_negatives, "logsumexp"),
    "whose items are not known": (_dustbin, ""),
    "all tokens have these negatives already": (_shared_by_all, "x @ m.items"),
    "rows of two tables": (_two_tables, ""),
    "a number of several logits": (_two_products, "negatives(m, x, ids) +"),
    "several numbers of a logit": (_broadcast, "keepdim=True) * w"),
    "not known which tokens the loss counts": (lambda m, x, i, t, w: per_token(m, x, i, t), ""),
    "summed with several weights": (_two_weights, "log_softmax"),
    "picked after their losses are weighted": (
        lambda m, x, i, t, w: (per_token(m, x, i, t) * w)[t[:4] % T].mean(), "w)[t[:4]"),
    "there are no negatives": (lambda m, x, i, t, w: _entropy((x * m.items(t)).sum(-1, keepdim=True), t), "_entropy"),
    "the logits have 3 dimensions": (
        lambda m, x, i, t, w: -F.log_softmax(logits(m, x, i, t).view(3, 3, -1), -1)[..., 0].mean(), "log_softmax"),
}  # fmt: skip


@pytest.mark.parametrize("reason", MISSES)
def test_it_says_why_not_and_where(reason: str) -> None:
    body, line = MISSES[reason]
    made = rows(body).assert_parity()
    found = [miss for miss in made.misses(SHARE) if reason in miss.reason]
    assert found and not made.matches(SHARE), [str(miss) for miss in made.misses(SHARE)]
    if line:
        assert found[0].where is not None and line in found[0].where.code, str(found[0])


def test_negatives_whose_rows_are_kept_are_for_another_pass() -> None:
    made = rows(lambda m, x, i, t, w: _entropy(logits(m, x, i, t), t), start="canonicalize").assert_parity()
    miss = made.assert_misses(SHARE, "no gr::sampled_logits", "einsum")
    assert "fuse-sampled-logits" in miss.hint


def _flat(m: Recommender, x: Tensor, mask: Tensor, t: Tensor, drawn: Tensor, _: Tensor) -> Tensor:
    z = torch.cat([positive(m, x, t), torch.einsum("bnd,bnrd->bnr", x, m.items(drawn))], -1)
    losses = F.cross_entropy(z.flatten(0, 1), zeros(t).flatten(), reduction="none")
    return mean(losses, mask.flatten())


@pytest.mark.parametrize("loss", [_flat, sampled_softmax])
def test_padded_tokens_are_packed_first(loss: Any) -> None:
    start = f"default,-eliminate-padding,{SHARE}"
    made = PassBench(Recommender(loss).double(), [batch(LENGTHS, PLACES, R)], passes=start).assert_parity()
    assert not made.matches(SHARE)
    (miss,) = made.misses(SHARE)
    assert ("padded places among the tokens" if loss is _flat else "not packed") in miss.reason
    assert "eliminate-padding packs" in miss.hint
    assert PassBench(Recommender(loss).double(), made.batches, passes=passes(3)).matches(SHARE)


@pytest.mark.parametrize("name", ["BCE", "gBCE", "BPR", "by sequence, a product"])
def test_other_losses_stay(name: str) -> None:
    made = bench(SAMPLED[name]).assert_parity()
    assert not made.matches(SHARE)
    (miss,) = made.misses(SHARE)
    assert "not those of a sampled softmax" in miss.reason


def test_a_target_without_the_operator_keeps_the_loss() -> None:
    made = bench(sampled_softmax, 1)
    graph_module, session = made.graph(), _compiled(made.fast).session
    pipeline = Pipeline.parse(SHARE)
    context = PassContext(
        GraphEditor(graph_module), session.config, Constants(), GraphReport("", "", 0, "eager", ""),
        supports=lambda operator: operator != "gr::other_tokens",
    )  # fmt: skip
    run_pipeline(pipeline, graph_module, context)
    (record,) = context.report.passes
    assert not record.changed and ["no kernel" in miss.reason for miss in record.misses] == [True]


# --------------------------------------------------------------------------------------------- the option
@pytest.mark.parametrize("preset", PRESETS)
def test_no_preset_has_it(preset: str) -> None:
    assert SHARE not in Pipeline.parse(preset).text()


def test_it_runs_behind_what_makes_its_logits() -> None:
    order = [item.name for item in Pipeline.parse([f"{SHARE}{{expansion=2}}", "default"]).passes]
    assert order.index(SHARE) > max(order.index(LOGITS), order.index("eliminate-padding"))


@pytest.mark.parametrize("expansion", ["0", "-3", "many"])
def test_an_expansion_is_a_number_of_at_least_1(expansion: str) -> None:
    with pytest.raises(PipelineError, match="expansion"):
        gr_compile.optimize(nn.Linear(1, 1), passes=f"{SHARE}{{expansion={expansion}}}")
