"""share-logits: losses and logits that it leaves alone, with the reason and the line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loss_models import SAMPLED, Recommender, batch, mean, positive, sampled_softmax
from pass_bench import PassBench
from share_bench import LENGTHS, PLACES, SHARE, R, Rows, T, bench, logits, negatives, passes, per_token, rows, zeros
from torch import Tensor

from gr_compile.constants import Constants
from gr_compile.editor import GraphEditor
from gr_compile.graph_pass import GraphReport
from gr_compile.optimize import _compiled
from gr_compile.pipeline import PassContext, Pipeline, run_pipeline


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
