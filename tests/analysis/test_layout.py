"""Layouts of values over places (b, n), and which operators read only their own place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import Body, Captured
from torch import Tensor

from gr_compile.analysis.layout import Layout


def x_of(m: Any, ids: Tensor) -> Tensor:
    return m.items(ids)


LAYOUTS: dict[str, tuple[Body, Layout]] = {
    "ids": (lambda m, ids, *_: ids + 1, Layout.TOKENS),
    "embeddings": (lambda m, ids, *_: x_of(m, ids), Layout.TOKENS),
    "embeddings, sequence first": (lambda m, ids, *_: x_of(m, ids).transpose(0, 1) + 0, Layout.TOKENS),
    "flattened": (lambda m, ids, *_: x_of(m, ids).flatten(0, 1) + 0, Layout.TOKENS),
    "a pooled state": (lambda m, ids, *_: x_of(m, ids).sum(1), Layout.SEQUENCE),
    "a sum over the batch": (lambda m, ids, *_: x_of(m, ids).sum(0), Layout.POSITION),
    "a weight": (lambda m, ids, *_: m.w * 2, Layout.DENSE),
    "a total": (lambda m, ids, *_: x_of(m, ids).sum(), Layout.DENSE),
    "pairs of places": (lambda m, ids, *_: x_of(m, ids) @ x_of(m, ids).mT, Layout.OTHER),
    "pairs of sequences": (lambda m, ids, *_: torch.einsum("and,bnd->abn", x_of(m, ids), x_of(m, ids)), Layout.OTHER),
}  # fmt: skip


@pytest.mark.parametrize("case", LAYOUTS)
def test_layouts(case: str) -> None:
    body, expected = LAYOUTS[case]
    made = Captured(lambda m, ids, *rest: (body(m, ids, *rest), ids + 0))
    assert made.layout().of(made.outputs[0]) is expected


LOCAL: dict[str, Body] = {
    "linear": lambda m, x, ids: m.linear(x),
    "matmul with a weight": lambda m, x, ids: x @ m.w,
    "einsum with a weight": lambda m, x, ids: torch.einsum("bnd,de->bne", x, m.w),
    "product of two tokens": lambda m, x, ids: torch.einsum("bnd,bnd->bn", x, x * 2),
    "layer norm": lambda m, x, ids: m.norm(x),
    "gelu": lambda m, x, ids: F.gelu(x),
    "masked": lambda m, x, ids: x * (ids != 0)[..., None],
    "filled": lambda m, x, ids: x.masked_fill((ids == 0)[..., None], 3.0),
    "chosen": lambda m, x, ids: torch.where((ids == 0)[..., None], x, -x),
    "a sum over features": lambda m, x, ids: x.sum(-1),
    "a softmax over features": lambda m, x, ids: torch.softmax(x, -1),
    "heads": lambda m, x, ids: x.view(*ids.shape, 2, 4),
    "heads in front": lambda m, x, ids: x.view(*ids.shape, 2, 4).transpose(1, 2),
    "features concatenated": lambda m, x, ids: torch.cat([x, x * 2], -1),
    "features stacked": lambda m, x, ids: torch.stack([x, x * 2], -1),
    "a part of the features": lambda m, x, ids: x[..., 2:5],
    "one feature": lambda m, x, ids: x[..., 2],
    "split features": lambda m, x, ids: x.split([3, 5], -1)[1],
    "features chosen by index": lambda m, x, ids: x.gather(-1, (ids % 8)[..., None]),
    "features in another order": lambda m, x, ids: x[..., [1, 0, 2]],
    "features selected": lambda m, x, ids: x.index_select(2, torch.tensor([3, 1])),
    "features repeated": lambda m, x, ids: x.repeat_interleave(2, dim=-1),
    "features written by index": lambda m, x, ids: torch.ops.aten.index_put(x, [None, None, torch.tensor([0, 1])], x[..., 2:4]),
    "constants written by index": lambda m, x, ids: torch.ops.aten.index_put(x, [None, None, torch.tensor([0])], torch.zeros(())),
    "filled with a tensor at a mask": lambda m, x, ids: x.masked_fill((ids > 3)[..., None], torch.tensor(0.5)),
    "complex numbers turned": lambda m, x, ids: torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (4, 2))) * 1j),
    "an embedding of a token": lambda m, x, ids: m.items(ids + 0),
    "sorted features": lambda m, x, ids: x.sort(-1)[0],
    "positions added": lambda m, x, ids: x + torch.arange(ids.shape[1])[:, None],
    "the row's total subtracted": lambda m, x, ids: x - x.sum(1, keepdim=True),
    "dropout": lambda m, x, ids: F.dropout(x, 0.3, True),
    "loss of every place": lambda m, x, ids: F.cross_entropy(x.flatten(0, 1), ids.flatten() % 8, reduction="none"),
    "loss of every place, classes second": lambda m, x, ids: F.cross_entropy(x.mT, ids % 8, reduction="none"),
}
MIXING: dict[str, Body] = {
    "cumulative": lambda m, x, ids: x.cumsum(1),
    "a softmax over places": lambda m, x, ids: torch.softmax(x, 1),
    "sorted places": lambda m, x, ids: x.sort(1)[0],
    "reversed": lambda m, x, ids: x.flip(1),
    "rolled": lambda m, x, ids: torch.roll(x, 1, 1),
    "convolution": lambda m, x, ids: m.convolution(x.mT),
    "attention": lambda m, x, ids: (x @ x.mT) @ x,
    "a mix of positions": lambda m, x, ids: torch.einsum(
        "bnd,mn->bmd", x, m.noise[: ids.shape[1], : ids.shape[1]]) + 0 * x,
    "batch statistics": lambda m, x, ids: F.batch_norm(x.flatten(0, 1), None, None, training=True),
    "places chosen by index": lambda m, x, ids: x.gather(1, (ids % 2)[..., None].expand(-1, -1, 8)),
    "places in another order": lambda m, x, ids: x[:, [1, 0, 2, 4, 3]],
    "places selected": lambda m, x, ids: x.index_select(1, torch.arange(ids.shape[1]).flip(0)),
    "places repeated": lambda m, x, ids: x.repeat_interleave(2, dim=1),
    "places written by index": lambda m, x, ids: torch.ops.aten.index_put(x, [None, torch.tensor([0])], x[:, 1:2]),
    "places written by a mask": lambda m, x, ids: x.index_put((ids != 0,), x[ids != 0] * 2),
    "the other places written": lambda m, x, ids: torch.ops.aten.index_put(x, [None, None, torch.tensor([0])], x.flip(1)[..., :1]),
    "complex numbers over places": lambda m, x, ids: torch.view_as_complex(x[:, :4].unflatten(1, (2, 2)).mT.contiguous()),
    "sequences crossed": lambda m, x, ids: torch.einsum("ab,bnd->and", m.noise[: ids.shape[0], : ids.shape[0]], x) + 0 * x,
    "an opaque operator": lambda m, x, ids: torch.fft.fft(x, dim=1).real,
    "layer norm over places": lambda m, x, ids: F.layer_norm(x.mT, [x.shape[1]]),
}  # fmt: skip
LAST_IS_POINTWISE = {"a mix of positions", "sequences crossed", "the row's total subtracted"}


@pytest.mark.parametrize("case", LOCAL)
def test_local_operators(case: str) -> None:
    made = Captured(lambda m, ids, *rest: LOCAL[case](m, m.items(ids), ids))
    layout, node = made.layout(), made.outputs[0]
    assert layout.of(node) is Layout.TOKENS
    assert layout.is_local(node), layout.why_not_local(node)


@pytest.mark.parametrize("case", MIXING)
def test_operators_that_mix_places(case: str) -> None:
    made = Captured(lambda m, ids, *rest: MIXING[case](m, m.items(ids), ids))
    layout, computing = made.layout(), [n for n in made.graph_module.graph.nodes if n.op == "call_function"]
    blocking = [n for n in computing if not layout.is_local(n) and reads_places(layout, n)]
    assert blocking, [str(n.target) for n in computing]
    assert all(layout.why_not_local(node) for node in blocking)


def reads_places(layout: Any, node: Any) -> bool:
    floating = [n for n in node.all_input_nodes if getattr(n.meta.get("val"), "is_floating_point", lambda: False)()]
    return any(layout.of(n) is Layout.TOKENS for n in floating)


@pytest.mark.parametrize("count_and_n", [(5, 5), (8, 8), (8, 3)])
def test_a_square_batch_does_not_make_a_transposition_local(count_and_n: tuple[int, int]) -> None:
    count, n = count_and_n
    made = Captured(lambda m, ids, *_: m.items(ids) + m.items(ids).transpose(0, 1) if count == n else m.items(ids) + 0,
                    count, n, [1] * count)  # fmt: skip
    if count == n:
        assert not made.layout().is_local(made.outputs[0])
