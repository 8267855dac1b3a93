"""share-logits: the losses that it changes are those of logits shared token by token; what it leaves, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loss_models import SAMPLED, Recommender, batch, sampled_softmax
from pass_bench import PassBench, assert_close, run
from share_bench import (
    LENGTHS,
    LOGITS,
    PLACES,
    SHARE,
    R,
    Rows,
    T,
    V,
    bench,
    logits,
    negatives,
    operands,
    passes,
    per_token,
    rows,
    zeros,
)
from shared_losses import MADE, drawn_seed, reference, shared
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gr_compile
from gr_compile.pipeline import PRESETS, Pipeline, PipelineError


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
def picked(m: Rows, x: Tensor, i: Tensor, t: Tensor) -> Tensor:
    return F.log_softmax(logits(m, x, i, t), -1).gather(1, zeros(t)[:, None])


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
