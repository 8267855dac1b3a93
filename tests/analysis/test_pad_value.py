"""Pad values: where a value holds one known constant, and where nothing may be claimed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import Captured
from torch import Tensor

from gr_compile.analysis.pad_value import PadValues


def pads_of(made: Captured) -> PadValues:
    return PadValues(made.pull, made.layout(), made.places(), {})


def valid(ids: Tensor) -> Tensor:
    return (ids != 0).unsqueeze(-1)


def masked(m: Any, ids: Tensor) -> Tensor:
    return m.items(ids) * valid(ids)


KNOWN: dict[str, tuple[Any, float]] = {
    "a product with the mask": (masked, 0.0),
    "a masked fill": (lambda m, ids: m.items(ids).masked_fill(~valid(ids), 3.5), 3.5),
    "a where": (lambda m, ids: torch.where(valid(ids), m.items(ids), -2.0), -2.0),
    "a where, mirrored": (lambda m, ids: torch.where(ids.unsqueeze(-1) == 0, 7.0, m.items(ids)), 7.0),
    "a matmul without bias": (lambda m, ids: masked(m, ids) @ m.w, 0.0),
    "a linear without bias": (lambda m, ids: F.linear(masked(m, ids), m.w), 0.0),
    "relu": (lambda m, ids: F.relu(masked(m, ids)), 0.0),
    "gelu": (lambda m, ids: F.gelu(masked(m, ids)), 0.0),
    "exp is one": (lambda m, ids: torch.exp(masked(m, ids)), 1.0),
    "sigmoid is a half": (lambda m, ids: torch.sigmoid(masked(m, ids)), 0.5),
    "one more": (lambda m, ids: masked(m, ids) + 1.0, 1.0),
    "a sum of two": (lambda m, ids: masked(m, ids) + masked(m, ids) * 2, 0.0),
    "a product with anything": (lambda m, ids: masked(m, ids) * m.items(ids), 0.0),
    "heads": (lambda m, ids: masked(m, ids).view(*ids.shape, 2, 4).transpose(1, 2), 0.0),
    "a sum over features": (lambda m, ids: masked(m, ids).sum(-1), 0.0),
    "a maximum over features": (lambda m, ids: m.items(ids).masked_fill(~valid(ids), -9.0).amax(-1), -9.0),
    "concatenated features": (lambda m, ids: torch.cat([masked(m, ids), masked(m, ids)], -1), 0.0),
    "dropout": (lambda m, ids: F.dropout(masked(m, ids), 0.5, True), 0.0),
    "a quotient": (lambda m, ids: masked(m, ids) / 3, 0.0),
    "the mask itself": (lambda m, ids: (ids != 0).float(), 0.0),
    "an integer to the power": (lambda m, ids: masked(m, ids).pow(2), 0.0),
    "split features": (lambda m, ids: masked(m, ids).split([3, 5], -1)[1], 0.0),
    "features in another order": (lambda m, ids: masked(m, ids)[..., [1, 0]], 0.0),
    "features written by index": (
        lambda m, ids: torch.ops.aten.index_put(masked(m, ids), [None, None, torch.tensor([0])], masked(m, ids)[..., 2:3]), 0.0),
    "a loss of every place that ignores padding": (
        lambda m, ids: F.cross_entropy((m.items(ids) @ m.w).mT, ids.clamp(max=3), ignore_index=0, reduction="none"), 0.0),
    "a mask of lengths": (
        lambda m, ids: m.items(ids) * (torch.arange(ids.shape[1]) < (ids != 0).sum(1, True)).unsqueeze(-1), 0.0),
}  # fmt: skip


@pytest.mark.parametrize("case", KNOWN)
def test_known_pad_values(case: str) -> None:
    body, fill = KNOWN[case]
    made = Captured(lambda m, ids, *_: body(m, ids))
    node = made.outputs[0]
    pad = pads_of(made).of(node)
    assert pad.known and pad.fill == fill
    assert_true_of_the_batch(made, node)


UNKNOWN: dict[str, Any] = {
    "embeddings": lambda m, ids: m.items(ids),
    "a linear with bias": lambda m, ids: m.linear(masked(m, ids)),
    "a norm of zeros with bias": lambda m, ids: m.norm(masked(m, ids)),
    "a sum with something unknown": lambda m, ids: masked(m, ids) + m.items(ids),
    "a filled value after a product": lambda m, ids: m.items(ids).masked_fill(~valid(ids), 3.5) * m.items(ids),
    "a sum of fills": lambda m, ids: m.items(ids).masked_fill(~valid(ids), 3.5) @ m.w,
    "a loss of every place": lambda m, ids: F.cross_entropy((m.items(ids) @ m.w).mT, ids.clamp(max=3), reduction="none"),
    "random": lambda m, ids: torch.rand_like(masked(m, ids)),
    "another mask by data": lambda m, ids: m.items(ids) * (m.items(ids) > 0),
    "a quotient by zeros": lambda m, ids: m.items(ids) / (1 + masked(m, ids)),
    "a mean of fills over features with another part": lambda m, ids: torch.cat(
        [m.items(ids).masked_fill(~valid(ids), 3.5), masked(m, ids)], -1),
    "places in another order": lambda m, ids: masked(m, ids)[:, torch.arange(ids.shape[1]).flip(0)],
    "something unknown written by index": lambda m, ids: torch.ops.aten.index_put(masked(m, ids), [None, None, torch.tensor([0])], m.items(ids)[..., 2:3]),
    "filled at valid places": lambda m, ids: m.items(ids).masked_fill(valid(ids), 0.0),
}  # fmt: skip


@pytest.mark.parametrize("case", UNKNOWN)
def test_nothing_is_claimed(case: str) -> None:
    made = Captured(lambda m, ids, *_: UNKNOWN[case](m, ids))
    node = made.outputs[0]
    pad = pads_of(made).of(node)
    padded = ~made.values[made.argument("ids")].bool()
    if pad.known:  # something may be known of other places than the padded ones
        assert not bool((~support(made, node) & padded).any())
    assert_true_of_the_batch(made, node)


@pytest.mark.parametrize("case", [*KNOWN, *UNKNOWN])
def test_every_value_on_the_way_is_what_is_claimed(case: str) -> None:
    body = KNOWN[case][0] if case in KNOWN else UNKNOWN[case]
    made = Captured(lambda m, ids, *_: body(m, ids))
    for node in made.graph_module.graph.nodes:
        if node.op == "call_function" and isinstance(node.meta.get("val"), Tensor):
            assert_true_of_the_batch(made, node)


def support(made: Captured, node: Any) -> Tensor:
    count, n = made.values[made.argument("ids")].shape
    expr = pads_of(made).of(node).support
    return made.evaluate(expr, made.grid(b=count, n=n)).expand(count, n)


def assert_true_of_the_batch(made: Captured, node: Any) -> None:
    """Outside the support every element of the value is the fill."""
    pads, layout = pads_of(made), made.layout()
    if not made.dims.known(node) or not pads.of(node).known:
        return
    dims = made.dims.of(node)
    batch_at = next(d for d, dim in enumerate(dims) if layout.batch in dim)
    sequence_at = next(d for d, dim in enumerate(dims) if layout.sequence in dim)
    if batch_at == sequence_at or len(dims[batch_at]) > 1 or len(dims[sequence_at]) > 1:
        return
    value = made.values[node].movedim((batch_at, sequence_at), (0, 1)).double()
    outside = value[~support(made, node)]
    assert bool((outside == pads.of(node).fill).all()), node
