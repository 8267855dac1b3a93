"""Cutting a graph in two: what counts places runs on its own, and the rest asks nothing of the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.fx as fx
from torch import Tensor

from gr_compile.capture import capture
from gr_compile.host_sizes import COUNT, HostSizes, WithHostSizes, blocker, split

Mask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
DATA_DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
INDEXING = {torch.ops.aten.index.Tensor}  # tagged for boolean masks, which nothing here indexes with


def inputs(count: int, n: int, share: float = 0.5) -> tuple[Tensor, ...]:
    """ids int64 [B, N], lengths int64 [B] up to N + 2, x float32 [B, N], w float32 [B, N] that takes gradients."""
    torch.manual_seed(count)
    ids = torch.randint(1, 20, (count, n)) * (torch.rand(count, n) < share)
    return ids, torch.randint(0, n + 3, (count,)), torch.randn(count, n), torch.randn(count, n, requires_grad=True)


def packed_sum(mask_of: Mask) -> Callable[..., Tensor]:
    """Sum over the places of a mask, in packed form."""

    def function(ids: Tensor, lengths: Tensor, x: Tensor, w: Tensor) -> Tensor:
        mask = mask_of(ids, lengths, x, w)
        index = torch.ops.gr.true_places(mask, torch.ops.gr.count_true(mask))
        return torch.ops.gr.pack(x * w, index).square().sum()

    return function


class Cut:
    """A torch.compile backend that cuts every graph and runs its two parts."""

    def __init__(self) -> None:
        self.graphs: list[fx.GraphModule] = []
        self.parts: list[HostSizes | None] = []

    def __call__(self, graph_module: fx.GraphModule, example: list[Any]) -> Callable[..., Any]:
        self.graphs.append(capture(graph_module))
        self.parts.append(split(self.graphs[-1]))
        parts = self.parts[-1]
        return self.graphs[-1].forward if parts is None else WithHostSizes(parts.main.forward, parts)

    def compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        torch._dynamo.reset()
        settings = torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True)
        return settings(torch.compile(function, backend=self, fullgraph=True, dynamic=True))  # type: ignore[no-any-return]

    @property
    def count(self) -> fx.Node:
        return self.graphs[-1].graph.find_nodes(op="call_function", target=COUNT)[0]


def data_dependent(graph_module: fx.GraphModule) -> list[str]:
    """Operators whose answer needs the device's memory to be read."""
    return [
        str(node.target) for node in graph_module.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and DATA_DEPENDENT & set(node.target.tags)
        and node.target not in INDEXING
    ]  # fmt: skip


OUTSIDE: dict[str, Mask] = {
    "pad id": lambda ids, lengths, x, w: ids != 0,
    "lengths": lambda ids, lengths, x, w: torch.arange(ids.shape[1]) < lengths[:, None],
    "left padding": lambda ids, lengths, x, w: torch.arange(ids.shape[1]) >= ids.shape[1] - lengths[:, None],
    "logic and arithmetic of integers": lambda ids, lengths, x, w: ((ids * 3 + 1) % 4 > 1) & (ids.cumsum(1) > 5) | (ids == 0),
    "a window before the last place": lambda ids, lengths, x, w: torch.ops.gr.suffix_any(ids.roll(1, 1) > 3),
    "looked up": lambda ids, lengths, x, w: torch.tensor([True, False] * 10)[ids],
    "a comparison of floats": lambda ids, lengths, x, w: torch.where(ids == 0, -1.0, x) >= 0.25,
    "a comparison of what takes gradients": lambda ids, lengths, x, w: w > x,
    "integers as floats": lambda ids, lengths, x, w: (ids != 0).float() > 0.5,
}  # fmt: skip

INSIDE: dict[str, tuple[Mask, str]] = {
    "arithmetic of floats": (lambda ids, lengths, x, w: x * 3.0 > 0.1, "floating-point arithmetic (aten.mul.Tensor)"),
    "a sum of floats": (lambda ids, lengths, x, w: x > x.sum(1, keepdim=True), "floating-point arithmetic (aten.sum"),
    "half precision": (lambda ids, lengths, x, w: x.bfloat16() > 0, "half precision"),
    "rounded to half precision": (lambda ids, lengths, x, w: x.bfloat16().float() > 0.3, "half precision"),
    "random": (lambda ids, lengths, x, w: torch.rand(ids.shape) < 0.5, "random numbers"),
    "ties": (lambda ids, lengths, x, w: ids.argsort(1) > 2, "not known to give the same"),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_count_of_inputs_is_computed_before_the_graph(name: str) -> None:
    function, cut = packed_sum(OUTSIDE[name]), Cut()
    compiled = cut.compile(function)
    for count, n, share in [(3, 6, 0.5), (5, 9, 0.0), (4, 7, 1.0)]:
        data = inputs(count, n, share)
        got, want = compiled(*data), function(*data)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(*(torch.autograd.grad(y, data[-1]) for y in (got, want)))
    assert len(cut.parts) == 1
    assert blocker(cut.count) is None
    (parts,) = cut.parts
    assert parts is not None and len(parts.sizes) == 1
    assert data_dependent(cut.graphs[0]) == ["gr.count_true.default"] and data_dependent(parts.main) == []


@pytest.mark.parametrize("name", INSIDE)
def test_a_count_that_may_differ_outside_stays_inside_and_is_right(name: str) -> None:
    mask_of, words = INSIDE[name]
    function, cut = packed_sum(mask_of), Cut()
    data = inputs(3, 6)
    torch.manual_seed(0)
    got = cut.compile(function)(*data)
    torch.manual_seed(0)
    torch.testing.assert_close(got, function(*data))
    assert cut.parts == [None]
    blocked = blocker(cut.count)
    assert blocked is not None and words in blocked.reason, blocked


def test_the_prelude_reads_no_more_than_the_mask_needs() -> None:
    cut = Cut()
    cut.compile(packed_sum(OUTSIDE["pad id"]))(*inputs(3, 6))
    (parts,) = cut.parts
    assert parts is not None and len(parts.positions) == 1
    operators = [str(node.target) for node in parts.prelude.graph.nodes if node.op == "call_function"]
    assert operators == ["aten.ne.Scalar", "gr.count_true.default"]


def test_several_counts_are_several_inputs() -> None:
    def function(ids: Tensor, lengths: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return packed_sum(OUTSIDE["pad id"])(ids, lengths, x, w) + packed_sum(OUTSIDE["lengths"])(ids, lengths, x, w)

    cut, data = Cut(), inputs(4, 7)
    torch.testing.assert_close(cut.compile(function)(*data), function(*data))
    (parts,) = cut.parts
    assert parts is not None and len(set(map(str, parts.sizes))) == 2 and data_dependent(parts.main) == []


def test_one_count_may_stay_inside_while_another_leaves() -> None:
    def function(ids: Tensor, lengths: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return packed_sum(OUTSIDE["pad id"])(ids, lengths, x, w) + packed_sum(INSIDE["arithmetic of floats"][0])(ids, lengths, x, w)

    cut, data = Cut(), inputs(4, 7)
    torch.testing.assert_close(cut.compile(function)(*data), function(*data))
    (parts,) = cut.parts
    assert parts is not None and len(parts.sizes) == 1
    assert data_dependent(parts.main) == ["gr.count_true.default"]


def test_a_size_that_the_model_reads_for_its_mask_becomes_an_input_too() -> None:
    def function(ids: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        index = torch.ops.gr.true_places(mask, torch.ops.gr.count_true(mask))
        return torch.ops.gr.pack((mask * 2).unsqueeze(-1).float(), index).sum()

    cut = Cut()
    compiled = cut.compile(function)
    for seed in range(3):
        data = inputs(3 + seed, 6)[:2]
        torch.testing.assert_close(compiled(*data), function(*data))
    (parts,) = cut.parts
    assert parts is not None and len(parts.sizes) == 2 and data_dependent(parts.main) == []


def test_a_graph_that_counts_nothing_is_not_cut() -> None:
    cut, data = Cut(), inputs(3, 6)
    cut.compile(lambda ids, lengths, x, w: (x * w).sum())(*data)
    assert cut.parts == [None]
