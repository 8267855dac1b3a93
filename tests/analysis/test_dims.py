"""Dimensions by provenance: what is one index space, and what only has the same size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import Body, Captured
from torch import Tensor

CASES: dict[str, tuple[Body, str]] = {
    "an embedding": (lambda m, ids, *_: m.items(ids), "B N 8"),
    "a linear layer": (lambda m, ids, *_: m.linear(m.items(ids)), "B N 8"),
    "a norm": (lambda m, ids, *_: m.norm(m.items(ids)), "B N 8"),
    "broadcast over positions": (lambda m, ids, *_: m.items(ids) + m.items(torch.arange(ids.shape[1])), "B N 8"),
    "a column times rows": (lambda m, ids, lengths, *_: ids * lengths[:, None], "B N"),
    "flattened places": (lambda m, ids, *_: m.items(ids).view(-1, 8), "B*N 8"),
    "flattened and restored": (lambda m, ids, *_: m.items(ids).view(-1, 8).view(*ids.shape, 8), "B N 8"),
    "heads split": (lambda m, ids, *_: m.items(ids).view(*ids.shape, 2, 4), "B N 2 4"),
    "heads in front": (lambda m, ids, *_: m.items(ids).view(*ids.shape, 2, 4).transpose(1, 2), "B 2 N 4"),
    "heads folded into the batch": (
        lambda m, ids, *_: m.items(ids).view(*ids.shape, 2, 4).transpose(1, 2).reshape(-1, ids.shape[1], 4), "B*2 N 4"),
    "heads folded and restored": (
        lambda m, ids, *_: m.items(ids).view(*ids.shape, 2, 4).transpose(1, 2).reshape(-1, ids.shape[1], 4)
        .view(ids.shape[0], 2, ids.shape[1], 4), "B 2 N 4"),
    "pairs": (lambda m, ids, *_: m.items(ids) @ m.items(ids).mT, "B N N"),
    "pairs by einsum": (lambda m, ids, *_: torch.einsum("bid,bjd->bij", m.items(ids), m.items(ids)), "B N N"),
    "a softmax": (lambda m, ids, *_: torch.softmax(m.items(ids) @ m.items(ids).mT, -1), "B N N"),
    "attention": (lambda m, ids, *_: (m.items(ids) @ m.items(ids).mT) @ m.items(ids), "B N 8"),
    "a sum over the sequence": (lambda m, ids, *_: m.items(ids).sum(1), "B 8"),
    "a sum that keeps its dimension": (lambda m, ids, *_: m.items(ids).sum(1, keepdim=True), "B 1 8"),
    "the last place": (lambda m, ids, *_: m.items(ids)[:, -1], "B 8"),
    "a mask of lengths that meets the ids": (
        lambda m, ids, lengths, *_: (torch.arange(ids.shape[1]) < lengths[:, None]) & (ids != 0), "B N"),
    "concatenated features": (lambda m, ids, *_: torch.cat([m.items(ids), m.items(ids)], -1), "B N 16"),
    "split features": (lambda m, ids, *_: m.items(ids).split(4, -1)[0], "B N 4"),
    "stacked": (lambda m, ids, *_: torch.stack([m.items(ids), m.items(ids)]), "2 B N 8"),
    "a maximum with its place": (lambda m, ids, *_: m.items(ids).max(1)[0], "B 8"),
    "a boolean input that meets the ids": (lambda m, ids, lengths, mask, *_: m.items(ids) * mask[..., None], "B N 8"),
    "gathered": (lambda m, ids, lengths, *_: m.items(ids).gather(1, (lengths * 0)[:, None, None].expand(-1, 1, 8)), "B 1 8"),
    "scaled dot product attention": (
        lambda m, ids, *_: F.scaled_dot_product_attention(m.items(ids), m.items(ids), m.items(ids)), "B N 8"),
    "classes second": (lambda m, ids, *_: m.items(ids).transpose(1, 2), "B 8 N"),
    "a whole slice": (lambda m, ids, *_: m.items(ids)[:, :], "B N 8"),
    "places in another order": (lambda m, ids, *_: m.items(ids)[:, [1, 0]], "B 2 8"),
    "features in another order": (lambda m, ids, *_: m.items(ids)[..., [1, 0]], "B N 2"),
    "features written by index": (
        lambda m, ids, *_: torch.ops.aten.index_put(m.items(ids), [None, None, torch.tensor([0])], m.items(ids)[..., :1]), "B N 8"),
    "complex numbers": (lambda m, ids, *_: torch.view_as_complex(m.items(ids).unflatten(-1, (4, 2))), "B N 4"),
    "real numbers of complex ones": (
        lambda m, ids, *_: torch.view_as_real(torch.view_as_complex(m.items(ids).unflatten(-1, (4, 2)))), "B N 4 2"),
    "reversed": (lambda m, ids, *_: m.items(ids).flip(1), "B N 8"),
}  # fmt: skip
NOT_SHARED: dict[str, tuple[Body, str]] = {
    "a slice": (lambda m, ids, *_: m.items(ids)[:, 1:], "B ? 8"),
    "concatenated places": (lambda m, ids, *_: torch.cat([m.items(ids), m.items(ids)], 1), "B ? 8"),
    "a square of positions alone": (lambda m, ids, *_: torch.ones(ids.shape[1], ids.shape[1]), "? ?"),
    "another order of the same elements": (lambda m, ids, *_: ids.reshape(ids.shape[1], ids.shape[0]), "? ?"),
    "an arange that meets nothing": (lambda m, ids, *_: torch.arange(ids.shape[1]), "?"),
    "a repeated sequence": (lambda m, ids, *_: m.items(ids).repeat(1, 2, 1), "? ? ?"),
}  # fmt: skip


@pytest.mark.parametrize("case", [*CASES, *NOT_SHARED])
def test_dimensions(case: str) -> None:
    body, expected = {**CASES, **NOT_SHARED}[case]
    made = Captured(lambda *arguments: (body(*arguments), arguments[1] + 0))
    found = made.spelled(made.outputs[0])
    assert found == expected or (case in NOT_SHARED and not set("BN") & set(found.replace("B ?", "")))


COLLIDING = [(5, 5), (8, 8), (8, 5), (3, 8), (2, 4), (4, 2)]


@pytest.mark.parametrize(("count", "n"), COLLIDING)
def test_sizes_that_collide_do_not_merge_index_spaces(count: int, n: int) -> None:
    def body(m: Any, ids: Tensor, *_: Any) -> tuple[Tensor, ...]:
        x = m.items(ids)
        heads = x.view(*ids.shape, 2, 4).transpose(1, 2)
        return x @ m.w, x @ x.mT, heads, heads.flatten(0, 1), x.sum(1), x.sum(0)

    made = Captured(body, count, n, [k % (n + 1) for k in range(count)])
    found = [made.spelled(node) for node in made.outputs]
    assert found == ["B N 8", "B N N", "B 2 N 4", "B*2 N 4", "B 8", "N 8"]


def test_queries_and_keys_of_two_sequences_stay_apart() -> None:
    def body(m: Any, ids: Tensor, lengths: Tensor, mask: Tensor, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        return m.items(ids) @ x.mT, ids + 0

    made = Captured(body)
    assert made.spelled(made.outputs[0]) == "B N ?"
    assert made.spelled(made.outputs[0], "x") == "B ? N"


def test_a_weight_of_n_by_n_is_no_pair_of_places() -> None:
    def body(m: Any, ids: Tensor, *_: Any) -> Tensor:
        return torch.einsum("bnd,nm->bmd", m.items(ids), m.noise[: ids.shape[1], : ids.shape[1]])

    made = Captured(body)
    assert made.spelled(made.outputs[0]) == "B ? 8"


def test_targets_of_a_loss_have_the_places_of_the_logits() -> None:
    def body(m: Any, ids: Tensor, lengths: Tensor, mask: Tensor, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        logits = x @ m.items.weight.T
        return F.cross_entropy(logits.flatten(0, 1), ids.flatten()), logits

    made = Captured(body)
    assert made.spelled(made.outputs[1]) == "B N 21"


def test_packing_shares_its_places() -> None:
    def body(m: Any, ids: Tensor, *_: Any) -> tuple[Tensor, ...]:
        places = (ids != 0).flatten().nonzero().flatten()
        packed = torch.ops.gr.pack(m.items(ids), places)
        return packed, torch.ops.gr.unpack(packed * 2, places, ids.shape[0], ids.shape[1], 0), ids + 0

    made = Captured(body)
    assert made.spelled(made.outputs[1]) == "B N 8"
    assert made.spelled(made.outputs[0]).endswith(" 8")
