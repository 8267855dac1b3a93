"""fuse-sampled-logits: cross entropy over all items of a table, in every spelling; what stays, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from loss_models import WHOLE, Recommender, batch
from pass_bench import PassBench
from torch import Tensor, nn

LOGITS = "fuse-sampled-logits"
ALONE = f"canonicalize,{LOGITS}"
SUMMED, BY_TOKEN = "linear_cross_entropy", "linear_cross_entropy_tokens"
B, N, D, V = 3, 5, 8, 40


class Catalogue(nn.Module):
    """`body(m, x, targets, mask)`: x [B, N, D], targets [B, N] int64, mask [B, N] bool."""

    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.items, self.head, self.body = nn.Embedding(V, D), nn.Linear(D, V), body

    def forward(self, x: Tensor, targets: Tensor, mask: Tensor) -> Any:
        return self.body(self, x, targets, mask)


def operands(dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(B, N, D, generator=generator, dtype=dtype).requires_grad_()
    return x, torch.randint(0, V, (B, N), generator=generator), torch.rand(B, N, generator=generator) < 0.6


def bench(body: Callable[..., Any]) -> PassBench:
    return PassBench(Catalogue(body).double(), [operands()], passes=ALONE)


def by_token(m: Catalogue, x: Tensor, t: Tensor) -> Tensor:
    return F.cross_entropy(m.head(x).flatten(0, 1), t.flatten(), reduction="none")


def chances(logits: Tensor) -> Tensor:
    return F.log_softmax(logits, -1)


def cosine(m: Catalogue, x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1) @ F.normalize(m.items.weight, dim=-1).T / 0.05


LOSSES: dict[str, tuple[Callable[..., Any], str]] = {
    "tied, ignore_index": (
        lambda m, x, t, k: F.cross_entropy((x @ m.items.weight.T).view(-1, V), t.view(-1), ignore_index=0), SUMMED),
    "tied, nothing ignored": (lambda m, x, t, k: F.cross_entropy(F.linear(x, m.items.weight).flatten(0, 1), t.flatten()), SUMMED),
    "untied, with a bias and a temperature": (
        lambda m, x, t, k: F.cross_entropy(m.head(x).flatten(0, 1) / 0.3, t.flatten(), reduction="sum"), SUMMED),
    "times a mask": (lambda m, x, t, k: (by_token(m, x, t) * k.flatten()).sum() / k.sum(), SUMMED),
    "times a mask of places": (lambda m, x, t, k: (by_token(m, x, t).view_as(t) * k).sum() / k.sum(), SUMMED),
    "factors and a mean": (lambda m, x, t, k: (-0.5 * by_token(m, x, t) * k.flatten() / 3).mean(), SUMMED),
    "by token": (lambda m, x, t, k: by_token(m, x, t), BY_TOKEN),
    "times weights with a gradient": (lambda m, x, t, k: (by_token(m, x, t) * x.sum(-1).flatten()).sum(), BY_TOKEN),
    "items second": (lambda m, x, t, k: F.cross_entropy(m.head(x).transpose(1, 2), t, ignore_index=0), SUMMED),
    "items second, by place": (
        lambda m, x, t, k: F.cross_entropy(m.head(x).mT, t, ignore_index=0, reduction="none"), BY_TOKEN),
    "negative log likelihood": (
        lambda m, x, t, k: F.nll_loss(chances(torch.einsum("bnd,vd->bnv", x, m.items.weight)).view(-1, V), t.view(-1)), SUMMED),
    "gathered": (lambda m, x, t, k: -(chances(x @ m.items.weight.T).gather(-1, t[..., None]).squeeze(-1) * k).sum(), SUMMED),
    "gathered, by place": (lambda m, x, t, k: -chances(m.head(x)).gather(-1, t[..., None]).squeeze(-1), BY_TOKEN),
    "the first items": (
        lambda m, x, t, k: F.cross_entropy(m.head(x)[..., :-1].flatten(0, 1), t.flatten() % (V - 1)), SUMMED),
    "the first items, gathered": (
        lambda m, x, t, k: -chances(m.head(x)[..., : V - 3]).gather(-1, (t % (V - 3))[..., None]).sum(), SUMMED),
    "the first items of chosen tokens": (
        lambda m, x, t, k: F.cross_entropy(
            m.head(x).flatten(0, 1).index_select(0, t[0] % B)[:, :-1], t[0] % (V - 1), reduction="none"), BY_TOKEN),
    "a division by nothing": (lambda m, x, t, k: (by_token(m, x, t) / 0).nan_to_num(2.0, 2.0).sum(), BY_TOKEN),
    "times a size": (lambda m, x, t, k: (by_token(m, x, t) * x.shape[1]).sum(), BY_TOKEN),
    "cosine": (lambda m, x, t, k: F.cross_entropy(cosine(m, x).flatten(0, 1), t.flatten(), ignore_index=0), SUMMED),
    "nothing counts": (
        lambda m, x, t, k: F.cross_entropy(m.head(x).flatten(0, 1), (t * 0).flatten(), ignore_index=0).nan_to_num(1.0) + x.sum(), SUMMED),
}  # fmt: skip


@pytest.mark.parametrize("spelling", LOSSES)
def test_losses_fire(spelling: str) -> None:
    body, operator = LOSSES[spelling]
    made = bench(body).assert_fires(LOGITS).assert_parity()
    assert made.operators_after("final")[operator] == 1
    assert not [n for n in made.graph().graph.nodes if is_logits(n)], "logits of the catalogue are left"
    assert not made.run_again(LOGITS)[0].changed


def is_logits(node: Any) -> bool:
    """A floating value that has a number for every token and item."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 2 and V in value.shape[1:]


def _returned(m: Catalogue, x: Tensor, t: Tensor, k: Tensor) -> Any:
    logits = m.head(x)
    return F.cross_entropy(logits.flatten(0, 1), t.flatten()), logits


def _smoothed(m: Catalogue, x: Tensor, t: Tensor, k: Tensor) -> Tensor:
    return F.cross_entropy(m.head(x).flatten(0, 1), t.flatten(), label_smoothing=0.1)


def _by_class(m: Catalogue, x: Tensor, t: Tensor, k: Tensor) -> Tensor:
    return F.cross_entropy(m.head(x).flatten(0, 1), t.flatten(), weight=torch.arange(1, V + 1, dtype=x.dtype))


def _moved(m: Catalogue, x: Tensor, t: Tensor, k: Tensor) -> Tensor:
    return F.cross_entropy(m.head(x)[:, :-1].flatten(0, 1), t[:, 1:].flatten())


MISSES = {
    "read elsewhere": (_returned, ""),
    "smoothed labels": (_smoothed, "label_smoothing"),
    "class weights": (_by_class, "weight="),
    "no reshape of the states": (_moved, "m.head"),
}


@pytest.mark.parametrize("reason", MISSES)
def test_it_says_why_not_and_where(reason: str) -> None:
    body, line = MISSES[reason]
    made = bench(body).assert_parity()
    if line:
        made.assert_misses(LOGITS, reason, line)
    assert any(reason in miss.reason for miss in made.misses(LOGITS))
    counts = made.operators_after("final")
    assert counts[SUMMED] == counts[BY_TOKEN] == 0


QUIET: dict[str, Callable[..., Any]] = {
    "an item that is masked": lambda m, x, t, k: F.cross_entropy(
        m.head(x).index_fill(-1, torch.tensor([0]), -1e9).flatten(0, 1), t.flatten()),
    "all items but the first": lambda m, x, t, k: F.cross_entropy(m.head(x)[..., 1:].flatten(0, 1), t.flatten() % (V - 1)),
    "chances of all items as targets": lambda m, x, t, k: F.cross_entropy(
        m.head(x).flatten(0, 1), torch.full((B * N, V), 1 / V, dtype=x.dtype)),
    "a classifier of as many classes as features": lambda m, x, t, k: F.cross_entropy(
        (x @ m.items.weight[:D].T).flatten(0, 1), t.flatten() % D),
    "logits that are no product": lambda m, x, t, k: F.cross_entropy(F.gelu(m.head(x)).flatten(0, 1), t.flatten()),
}  # fmt: skip


@pytest.mark.parametrize("case", QUIET)
def test_other_losses_stay(case: str) -> None:
    made = bench(QUIET[case]).assert_parity()
    assert not made.matches(LOGITS)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_what_it_says(dtype: torch.dtype) -> None:
    """The product is of halves, the loss in float32: eager's own logits are rounded once more."""
    x, t, k = operands(torch.float32)

    def body(m: Catalogue, x: Tensor, t: Tensor, k: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            return F.cross_entropy(m.head(x).flatten(0, 1), t.flatten())

    made = PassBench(Catalogue(body), [(x, t, k)], passes=ALONE).assert_fires(LOGITS)
    want, got = made.model(x, t, k), made.fast(x, t, k)
    assert got.dtype == want.dtype and abs((got - want).item()) < 0.02


@pytest.mark.parametrize("loss", WHOLE)
def test_losses_of_padded_models_are_made_on_packed_tokens(loss: str) -> None:
    batches = [batch([7, 3, 0, 1], 7, 5), batch([9, 2], 9, 6, seed=3)]
    made = PassBench(Recommender(WHOLE[loss]).double(), batches).assert_fires("eliminate-padding", LOGITS).assert_parity()
    assert len(made.compilations) == 1
    calls = [n for n in made.graph().graph.nodes if n.target is torch.ops.gr.linear_cross_entropy.default]
    assert len(calls) == 1 and str(calls[0].args[0].meta["val"].shape[0]).startswith("u")
