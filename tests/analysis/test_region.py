"""Attention-like regions: what is found, what its score program is, and what is none."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import Body, Captured
from torch import Tensor

from gr_compile.analysis.expr import walk
from gr_compile.analysis.region import Operand, Region, RegionFinder


def found(body: Body, **sizes: Any) -> tuple[Captured, list[Region], RegionFinder]:
    made = Captured(lambda m, ids, *rest: (body(m, ids, *rest), ids + 0), **sizes)
    finder = RegionFinder(made.graph_module, made.pull, made.dims)
    return made, finder.find(), finder


def heads(x: Tensor, first: bool = True) -> Tensor:
    split = x.view(*x.shape[:2], 2, 4)
    return split.transpose(1, 2) if first else split


def seen(ids: Tensor) -> Tensor:
    n = ids.shape[1]
    return torch.ones(n, n, dtype=torch.bool).tril()[None] & (ids != 0)[:, None]


def einsum(m: Any, ids: Tensor, *_: Any) -> Tensor:
    x = heads(m.items(ids), False)
    weights = F.silu(torch.einsum("bihd,bjhd->bhij", x, x + 1)) / ids.shape[1] * seen(ids)[:, None]
    return torch.einsum("bhij,bjhd->bihd", weights, x * 2)


def matmul(m: Any, ids: Tensor, *_: Any) -> Tensor:
    x = heads(m.items(ids))
    scores = (x @ (x + 1).mT / math.sqrt(4)).masked_fill(~seen(ids)[:, None], torch.finfo(torch.float32).min)
    return torch.softmax(scores, -1) @ (x * 2)


def folded(m: Any, ids: Tensor, *_: Any) -> Tensor:
    x = heads(m.items(ids)).reshape(-1, ids.shape[1], 4)
    scores = torch.bmm(x, (x + 1).mT).view(ids.shape[0], 2, ids.shape[1], ids.shape[1])
    weights = torch.softmax(scores + (1.0 - seen(ids)[:, None].float()) * -1e4, -1)
    return torch.bmm(weights.view(-1, ids.shape[1], ids.shape[1]), x * 2)


def sdpa(m: Any, ids: Tensor, *_: Any) -> Tensor:
    x = heads(m.items(ids))
    return F.scaled_dot_product_attention(x, x + 1, x * 2, attn_mask=seen(ids)[:, None])


def sdpa_causal(m: Any, ids: Tensor, *_: Any) -> Tensor:
    x = heads(m.items(ids))
    return F.scaled_dot_product_attention(x, x + 1, x * 2, is_causal=True, scale=0.7)


def grouped(m: Any, ids: Tensor, *_: Any) -> Tensor:
    x = heads(m.items(ids))
    return F.scaled_dot_product_attention(x, (x + 1)[:, :1], (x * 2)[:, :1], attn_mask=seen(ids)[:, None], enable_gqa=True)


def repeated_keys(m: Any, ids: Tensor, *_: Any) -> Tensor:
    x = heads(m.items(ids))
    k, v = ((t[:, :1]).repeat_interleave(2, dim=1) for t in (x + 1, x * 2))
    return torch.softmax((x @ k.mT).masked_fill(~seen(ids)[:, None], -1e30), -1) @ v


def one_head(m: Any, ids: Tensor, *_: Any) -> Tensor:
    x = m.items(ids)
    return F.silu(x @ (x + 1).mT + m.bias[torch.arange(ids.shape[1])[None] - torch.arange(ids.shape[1])[:, None] + 9]) @ (x * 2)


def bias_alone(m: Any, ids: Tensor, *_: Any) -> Tensor:
    """FuXi's position channel: a map without scores."""
    place = torch.arange(ids.shape[1])
    return (m.bias[place[None] - place[:, None] + 9] * seen(ids)) @ m.items(ids)


def weighted_softmax(m: Any, ids: Tensor, *_: Any) -> Tensor:
    """A factor behind the softmax."""
    x = m.items(ids)
    weights = torch.softmax((x @ (x + 1).mT).masked_fill(~seen(ids), -1e30), -1) * seen(ids) / ids.shape[1]
    return weights @ (x * 2)


REGIONS: dict[str, tuple[Body, bool, int]] = {
    "einsum": (einsum, False, 1), "matmul": (matmul, True, 1), "folded heads": (folded, True, 1), "sdpa": (sdpa, True, 1),
    "sdpa, causal flag": (sdpa_causal, True, 1), "grouped heads": (grouped, True, 1), "repeated keys": (repeated_keys, True, 1),
    "one head": (one_head, False, 0), "a bias alone": (bias_alone, False, 0), "a factor after softmax": (weighted_softmax, True, 0),
}  # fmt: skip


@pytest.mark.parametrize("sizes", [{}, {"count": 2, "n": 4, "lengths": (4, 1)}], ids=["3 x 5", "sizes of the heads"])
@pytest.mark.parametrize("case", REGIONS)
def test_a_region_and_its_score_program(case: str, sizes: dict[str, Any]) -> None:
    body, softmax, count = REGIONS[case]
    made, regions, _ = found(body, **sizes)
    (region,) = regions
    assert region.softmax is softmax and len(region.heads) == count
    assert (region.query is None) is (case == "a bias alone")
    torch.testing.assert_close(attention_of(made, region), made.values[region.node].detach(), rtol=1e-5, atol=1e-5)
    assert_nothing_pairwise_is_loaded(made, region)


def attention_of(made: Captured, region: Region) -> Tensor:
    """O by the region's own words, over a grid of b, heads, i, j."""
    sizes = {name: int(made.evaluate(extent, {})) for name, extent in region.extents.items()}
    names = ["b", *region.heads, "i", "j"]
    grid = made.grid(**{name: sizes[name] for name in names})
    if region.query is not None and region.key is not None:
        width = min(made.values[o.node].shape[o.indices.index(o.feature)] for o in (region.query, region.key))
        grid["s"] = sum(
            element(made, region.query, grid, k) * element(made, region.key, grid, k) for k in range(width)
        )  # type: ignore[assignment]
    weights = made.evaluate(region.score, grid)
    if region.post is not None:
        normed = torch.softmax(weights.expand(grid["b"].shape), -1)
        normed = normed.nan_to_num(0.0) if region.fully_masked == "zero" else normed
        weights = made.evaluate(region.post, {**grid, "sm": normed})
    output = torch.zeros_like(made.values[region.node])
    for d in range(sizes["d"]):
        summed = (weights * element(made, region.value, grid, d)).sum(-1)
        flat = {name: grid[name][..., 0] for name in names[:-1]}
        flat["d"] = torch.full_like(flat["b"], d)
        places = tuple(made.evaluate(place, flat).expand(flat["b"].shape) for place in region.out_places)
        output[places] = summed.to(output.dtype)
    return output


def element(made: Captured, operand: Operand, grid: dict[str, Tensor], feature: int) -> Tensor:
    here = {**grid, operand.feature.args[0]: torch.tensor(feature)}
    return made.values[operand.node][tuple(made.evaluate(place, here) for place in operand.indices)].detach()


def assert_nothing_pairwise_is_loaded(made: Captured, region: Region) -> None:
    nodes = {node.name: node for node in made.graph_module.graph.nodes}
    for part in walk(region.score):
        if part.op == "load" and nodes[part.args[0]].op == "call_function":
            assert not {"i", "j"} <= part.free, part


def test_where_a_fully_masked_row_gives_zero_and_where_it_does_not() -> None:
    assert found(sdpa)[1][0].fully_masked == "zero"
    assert found(matmul)[1][0].fully_masked == "natural"


def test_two_layers_are_two_regions() -> None:
    def body(m: Any, ids: Tensor, *_: Any) -> Tensor:
        x = m.items(ids)
        for _layer in range(2):
            x = x + torch.softmax((x @ x.mT).masked_fill(~seen(ids), -1e30), -1) @ x
        return x

    assert len(found(body)[1]) == 2


# ------------------------------------------------------------------------------------------- none of these
def feed_forward(m: Any, ids: Tensor, *_: Any) -> Tensor:
    return F.silu(m.items(ids) @ m.w) @ m.w


def gram(m: Any, ids: Tensor, *_: Any) -> Tensor:
    return torch.einsum("bnd,bne->bde", m.items(ids), m.items(ids))


def plain_product(m: Any, ids: Tensor, *_: Any) -> Tensor:
    return m.items(ids) @ m.w


def product_with_a_computed_table(m: Any, ids: Tensor, *_: Any) -> Tensor:
    return F.elu(m.items(ids)) @ (F.elu(m.w) + 1)


def mixing_features(m: Any, ids: Tensor, *_: Any) -> Tensor:
    x = m.items(ids)
    return torch.softmax(x.mT @ x, -1) @ x.mT


def fixed_mixing_of_positions(m: Any, ids: Tensor, *_: Any) -> Tensor:
    n = ids.shape[1]
    return torch.einsum("nm,bmd->bnd", m.noise[:n, :n], m.items(ids))


@pytest.mark.parametrize("body", [feed_forward, gram, plain_product, product_with_a_computed_table])
def test_no_region(body: Body) -> None:
    _, regions, finder = found(body)
    assert not regions and not finder.misses


@pytest.mark.parametrize("body", [mixing_features, fixed_mixing_of_positions])
def test_what_resembles_a_region_gives_the_right_numbers_if_it_is_taken_for_one(body: Body) -> None:
    made, regions, _ = found(body)
    for region in regions:
        torch.testing.assert_close(attention_of(made, region), made.values[region.node].detach(), rtol=1e-5, atol=1e-5)


def cumulative_scores(m: Any, ids: Tensor, *_: Any) -> Tensor:
    x = m.items(ids)
    running = (x @ x.mT).cumsum(-1)
    return running @ x


def two_products(m: Any, ids: Tensor, *_: Any) -> Tensor:
    x = m.items(ids)
    both = x @ x.mT + (x * 2) @ (x + 1).mT
    return torch.softmax(both, -1) @ x


def two_softmaxes(m: Any, ids: Tensor, *_: Any) -> Tensor:
    x = m.items(ids)
    return (torch.softmax(x @ x.mT, -1) + torch.softmax(x @ x.mT * 2, -1)) @ x


def softmax_over_queries(m: Any, ids: Tensor, *_: Any) -> Tensor:
    x = m.items(ids)
    return torch.softmax(x @ x.mT, 1) @ x


def pairwise_features(m: Any, ids: Tensor, *_: Any) -> Tensor:
    x = m.items(ids)
    weights = (F.relu(x[:, :, None] + x[:, None]) @ m.w[0]).squeeze(-1)
    return weights @ x


MISSES: dict[str, tuple[Body, str]] = {
    "cumulative scores": (cumulative_scores, "(x @ x.mT).cumsum(-1)"),
    "two products": (two_products, "torch.softmax(both, -1) @ x"),
    "two softmaxes": (two_softmaxes, ""),
    "a softmax over queries": (softmax_over_queries, ""),
    "a network over pairs": (pairwise_features, ""),
}


@pytest.mark.parametrize("case", MISSES)
def test_a_miss_says_why_and_where(case: str) -> None:
    body, line = MISSES[case]
    _, regions, finder = found(body)
    assert not regions
    assert finder.misses, "attention-like, and not a word about it"
    node, blocked = finder.misses[0]
    assert str(blocked)
    assert line in ((blocked.node or node).meta.get("stack_trace") or "")
