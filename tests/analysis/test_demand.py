"""Demand: which places must be kept, as an expression that holds on every batch, and what stays dense and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import Captured
from torch import Tensor

from gr_compile.analysis.demand import DemandAnalysis
from gr_compile.analysis.expr import FALSE, TRUE, Expr, cast, index, load
from gr_compile.analysis.region import RegionFinder

COUNT, N = 4, 5
LENGTHS = (2, 5, 0, 1)


def solved(body: Any, output_read: Expr = TRUE) -> tuple[Captured, DemandAnalysis, bool]:
    made = Captured(lambda m, ids, lengths, mask, x, p: body(m, m.items(ids), ids, lengths), COUNT, N, LENGTHS)
    layout = made.layout()
    regions = RegionFinder(made.graph_module, made.pull, made.dims).find(layout.batch)
    demand = DemandAnalysis(made.graph_module, made.pull, layout, made.places(), regions, output_read)
    return made, demand, demand.solve()


def kept(made: Captured, demand: DemandAnalysis) -> Tensor:
    """The mask on the batch; closures by their definition."""
    grid = made.grid(b=COUNT, n=N)
    for name, (kind, mask) in demand.kept.closures.items():
        inner = made.evaluate(mask, grid).expand(COUNT, N)
        whole = {
            "suffix": inner.flip(1).cummax(1)[0].flip(1), "rows": inner.any(1), "none": ~inner.any(1),
            "first": ~inner & ((~inner).cumsum(1) == 1),
        }[kind]  # fmt: skip
        made.values = {**made.values, _Named(name): whole}
    return made.evaluate(demand.kept.mask, grid).expand(COUNT, N)


class _Named:
    """Stands for the node of a derived mask."""

    def __init__(self, name: str) -> None:
        self.name, self.meta = name, {}


IDS_VALID = torch.arange(N) < torch.tensor(LENGTHS)[:, None]
FIRST = torch.arange(N) == torch.tensor(LENGTHS)[:, None]
LAST = torch.arange(N) == (torch.tensor(LENGTHS)[:, None] - 1).clamp(min=0)


def loss(m: Any, x: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((F.gelu(m.linear(x)) @ m.items.weight.T).flatten(0, 1), targets.flatten(), ignore_index=0)


def attend(m: Any, x: Tensor, seen: Tensor, silu: bool = True, least: float = -1e30) -> Tensor:
    scores = m.linear(x) @ m.linear(x + 1).mT
    weights = F.silu(scores) * seen if silu else torch.softmax(scores.masked_fill(~seen, least), -1)
    return x + weights @ x



def triangle(ids: Tensor) -> Tensor:
    n = ids.shape[1]
    return torch.ones(n, n, dtype=torch.bool).tril()[None]


KEPT: dict[str, tuple[Any, Tensor]] = {
    "a loss that ignores some targets": (lambda m, x, ids, lengths: loss(m, x, ids), IDS_VALID),
    "a loss over rows chosen by a mask": (
        lambda m, x, ids, lengths: F.cross_entropy((m.linear(x) @ m.items.weight.T)[ids != 0], ids[ids != 0]), IDS_VALID),
    "a masked sum": (lambda m, x, ids, lengths: (m.linear(x) * (ids != 0)[..., None]).sum(1), IDS_VALID),
    "a masked mean": (lambda m, x, ids, lengths: (m.linear(x) * (ids != 0)[..., None]).mean(1), IDS_VALID),
    "a masked output": (lambda m, x, ids, lengths: m.linear(x) * (ids != 0)[..., None], IDS_VALID),
    "the last place by gather": (
        lambda m, x, ids, lengths: m.linear(x).gather(1, (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, 8)), LAST),
    "the last place by index": (
        lambda m, x, ids, lengths: m.linear(x)[torch.arange(ids.shape[0]), (lengths - 1).clamp(min=0)], LAST),
    "the last column": (lambda m, x, ids, lengths: m.linear(x)[:, -1], (torch.arange(N) == N - 1).expand(COUNT, N)),
    "the first two columns": (
        lambda m, x, ids, lengths: m.linear(x)[:, :2].sum(1), (torch.arange(N) < 2).expand(COUNT, N)),
    "masked by lengths": (
        lambda m, x, ids, lengths: (m.linear(x) * (torch.arange(ids.shape[1]) < lengths[:, None])[..., None]).sum(1),
        IDS_VALID),
    "two readers": (
        lambda m, x, ids, lengths: (m.linear(x)[:, -1], loss(m, m.linear(x), ids)),
        IDS_VALID | (torch.arange(N) == N - 1)),
    "keys that a kept query reads": (
        lambda m, x, ids, lengths: attend(m, x, triangle(ids) & (ids != 0)[:, None]).gather(
            1, (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, 8)), IDS_VALID | LAST),
    "keys of a loss": (
        lambda m, x, ids, lengths: loss(m, attend(m, x, triangle(ids) & (ids != 0)[:, None]), ids), IDS_VALID),
    "causal attention without key mask": (
        lambda m, x, ids, lengths: loss(m, attend(m, x, triangle(ids)), ids), IDS_VALID),
    "causal softmax over shifted targets": (
        lambda m, x, ids, lengths: F.cross_entropy(
            (attend(m, x, triangle(ids), silu=False) @ m.items.weight.T)[:, :-1].flatten(0, 1), ids[:, 1:].flatten(),
            ignore_index=0), torch.zeros(COUNT, N, dtype=torch.bool)),
    "padded keys that are one row are one key": (
        lambda m, x, ids, lengths: loss(m, attend(m, x, triangle(ids), silu=False), ids), IDS_VALID | FIRST),
    "padded keys that everybody sees are one key": (
        lambda m, x, ids, lengths: loss(m, attend(m, x, torch.ones_like(triangle(ids)), silu=False), ids),
        IDS_VALID | FIRST),
    "a row that sees no key keeps its sequence": (
        lambda m, x, ids, lengths: attend(m, x, triangle(ids) & (ids != 0)[:, None], silu=False)[:, 0],
        torch.tensor([[False], [False], [True], [False]]) | (torch.arange(N) == 0)),
}  # fmt: skip


@pytest.mark.parametrize("case", KEPT)
def test_the_places_that_are_kept(case: str) -> None:
    body, expected = KEPT[case]
    made, demand, worth = solved(body)
    assert worth, [dense.reason for dense in demand.dense]
    found = kept(made, demand)
    assert bool((expected & ~found).sum() == 0), "a place that is read is not kept"
    if expected.any():
        assert torch.equal(found, expected), f"{demand.kept.mask} keeps more than is read"
    assert demand.kept.terms


DENSE: dict[str, tuple[Any, str]] = {
    "an output of every place": (lambda m, x, ids, lengths: m.linear(x) + torch.arange(x.shape[1])[:, None], "an output holds"),
    "an unmasked mean": (lambda m, x, ids, lengths: m.linear(x).mean(1), "may read every place"),
    "a cumulative sum": (lambda m, x, ids, lengths: loss(m, m.linear(x).cumsum(1), ids), "may read every place"),
    "a convolution": (lambda m, x, ids, lengths: loss(m, m.convolution(m.linear(x).mT).mT, ids), "may read every place"),
    "attention without a mask to keys that differ": (
        lambda m, x, ids, lengths: loss(
            m, attend(m, x + torch.arange(N)[:, None], torch.ones_like(triangle(ids)), silu=False), ids),
        "attention reads padded places"),
    "a mask by values": (
        lambda m, x, ids, lengths: (m.linear(x) * (m.linear(x) > 0)).sum(1), "may read every place"),
}  # fmt: skip


@pytest.mark.parametrize("case", DENSE)
def test_what_stays_dense_says_who_reads_all_of_it(case: str) -> None:
    body, reason = DENSE[case]
    _, demand, _ = solved(body)
    floating = [d for d in demand.dense if d.node.meta["val"].dtype.is_floating_point]
    assert any(reason in d.reason for d in floating), [d.reason for d in demand.dense]
    assert all(d.user is not None for d in floating)


def test_outputs_are_read_at_declared_places_only() -> None:
    declared = cast(load("l_ids_", (index("b"), index("n")), "i"), "b")
    made, demand, worth = solved(lambda m, x, ids, lengths: m.linear(x), declared)
    assert worth and torch.equal(kept(made, demand), IDS_VALID)


def test_outputs_that_nobody_reads_need_no_place() -> None:
    _, demand, worth = solved(lambda m, x, ids, lengths: m.linear(x), FALSE)
    assert not worth or demand.kept.mask is FALSE


def test_left_padding_without_key_mask_keeps_the_padding_in_front_of_a_kept_place() -> None:
    """Causal attention alone proves nothing under left padding: the padded keys in front are read."""
    made, demand, worth = solved(lambda m, x, ids, lengths: attend(m, x, triangle(ids))[:, -1])
    assert not worth or bool(kept(made, demand).all())


def test_keys_are_kept_for_dense_queries_too() -> None:
    """Seed pooling with a finite mask: an empty sequence averages over all its places."""

    def body(m: Any, x: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        keys, values = m.linear(x), m.linear(x + 1)
        scores = torch.einsum("sd,bnd->bsn", m.w[:3], keys).masked_fill((ids == 0)[:, None], -1e30)
        return torch.einsum("bsn,bnd->bsd", torch.softmax(scores, -1), values)

    made, demand, worth = solved(body)
    if worth:
        found = kept(made, demand)
        assert bool(found[2].all()) and torch.equal(found[[0, 1, 3]], IDS_VALID[[0, 1, 3]])


def test_places_that_depend_on_what_is_packed_are_not_kept_places() -> None:
    """A mask computed from packed values cannot say which places to pack."""
    _made, _demand, worth = solved(lambda m, x, ids, lengths: m.linear(x)[m.linear(x).sum(-1) > 0])
    assert not worth
