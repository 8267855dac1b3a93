"""vmap regions written out: masks as transformers builds them, gradients, sizes that vary, what stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import graphs, optimize, vectors
from torch import Tensor

import gr_compile


def mask_of(ids: Tensor) -> Tensor:
    """[B, 1, N, N]: nested vmaps over (batch, head, query, key) of a function of four places."""
    valid, places = ids != 0, torch.arange(ids.shape[1])

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return q.new_ones((), dtype=torch.bool) & (k <= q) & torch.ops.aten.index(valid, [b, k])

    function = visible
    for dims in ((None, None, None, 0), (None, None, 0, None), (None, 0, None, None), (0, None, None, None)):
        function = torch.func.vmap(function, in_dims=dims, out_dims=0)
    return function(torch.arange(ids.shape[0]), torch.arange(1), places, places)


def row_products(x: Tensor) -> Tensor:
    return torch.func.vmap(lambda row: (row @ row).sin() * row)(x * 2).sum(1)


def two_regions(x: Tensor) -> Tensor:
    once = torch.func.vmap(torch.sin)(x)
    return torch.func.vmap(lambda a, b: a * b.sum())(once, x) + once


def on_a_captured_tensor(x: Tensor) -> Tensor:
    y = x.cos()
    return torch.func.vmap(lambda i: y[i] * 2)(torch.arange(x.shape[0]))


def run(function: Any, *args: Tensor) -> None:
    fast = optimize(function)
    got, want = fast(*args), function(*args)
    assert graphs(fast) == 1 and gr_compile.report(fast)[0].not_captured is None
    torch.testing.assert_close(got, want)


def test_a_mask_of_transformers() -> None:
    run(mask_of, torch.tensor([[1, 2, 3, 0], [4, 0, 0, 0], [0, 0, 5, 6]]))


@pytest.mark.parametrize("function", [row_products, two_regions, on_a_captured_tensor])
def test_values_and_gradients(function: Any) -> None:
    run(function, vectors())
    fast, a, b = optimize(function), vectors().requires_grad_(), vectors().requires_grad_()
    fast(a).sum().backward()
    function(b).sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_sizes_that_vary() -> None:
    fast = optimize(mask_of, dynamic=True)
    for batch, n in ((3, 7), (5, 4), (2, 9)):
        ids = torch.randint(0, 3, (batch, n))
        assert torch.equal(fast(ids), mask_of(ids))
    assert graphs(fast) == 1 and gr_compile.report(fast)[0].not_captured is None


def test_a_region_with_a_mode_inside_stays_with_torch_compile() -> None:
    def body(row: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return row @ row

    def f(x: Tensor) -> Tensor:
        return torch.func.vmap(body)(x)

    fast = optimize(f)
    torch.testing.assert_close(fast(vectors()), f(vectors()))
    why = gr_compile.report(fast)[0].not_captured
    assert why is not None and "functorch" in why.reason
