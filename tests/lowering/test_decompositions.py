"""What stands for slow operators gives what they give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code

import gr_compile
from gr_compile.lowering import decompositions
from gr_compile.lowering.decompositions import silu_backward

aten = torch.ops.aten
HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
def test_silu_backward(dtype: torch.dtype) -> None:
    x = torch.cat([torch.randn(200) * 4, torch.tensor([0.0, -0.0, 90, -90, 1e4, -1e4, 1e-30])]).to(dtype)
    grad = torch.randn(len(x)).to(dtype)
    found = silu_backward(grad, x)
    assert found.dtype == dtype
    torch.testing.assert_close(found, aten.silu_backward(grad, x))


def test_silu_backward_has_the_right_derivative() -> None:
    x = torch.linspace(-9, 9, 19, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: silu_backward(torch.ones_like(y), y), x)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_silu_backward_of_what_is_not_finite(value: float) -> None:
    x = torch.tensor([value])
    torch.testing.assert_close(silu_backward(x.sign(), x), aten.silu_backward(x.sign(), x), equal_nan=True)


PRODUCTS: dict[str, tuple[Any, list[tuple[int, ...]]]] = {
    "mm": (aten.mm.default, [(5, 7), (7, 3)]),
    "addmm": (aten.addmm.default, [(3,), (5, 7), (7, 3)]),
    "bmm": (aten.bmm.default, [(2, 5, 7), (2, 7, 3)]),
    "baddbmm": (aten.baddbmm.default, [(2, 5, 3), (2, 5, 7), (2, 7, 3)]),
}


def unsupported(monkeypatch: pytest.MonkeyPatch, supported: bool = False) -> None:
    """A processor for which oneDNN has half-precision products, or has none."""
    monkeypatch.setattr(decompositions, "_HALF", dict.fromkeys(HALVES, lambda: supported))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", PRODUCTS)
def test_half_precision_products_are_summed_in_float32(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsupported(monkeypatch)
    product, shapes = PRODUCTS[name]
    operands = [torch.randn(x).to(dtype) for x in shapes]
    found = decompositions.decompositions()[product](*operands)
    assert torch.equal(found, product(*(x.float() for x in operands)).to(dtype))


@pytest.mark.parametrize("name", PRODUCTS)
def test_other_products_are_inductors(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    product, shapes = PRODUCTS[name]
    in_float32 = [torch.randn(x) for x in shapes]
    in_half = [x.bfloat16() for x in in_float32]
    unsupported(monkeypatch)
    assert decompositions.decompositions()[product](*in_float32) is NotImplemented
    unsupported(monkeypatch, supported=True)
    assert decompositions.decompositions()[product](*in_half) is NotImplemented


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.items, self.project = nn.Embedding(20, 8), nn.Linear(8, 8)

    def forward(self, ids: Tensor) -> Tensor:
        valid = (ids != 0)[..., None]
        return (torch.nn.functional.silu(self.project(self.items(ids))) * valid).sum(1)


def test_a_model_in_bfloat16_multiplies_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    unsupported(monkeypatch)
    torch.manual_seed(0)
    model = Layer().bfloat16()
    ids = torch.tensor([[1, 2, 0, 0], [3, 0, 0, 0]])
    with torch.no_grad(), torch._inductor.config.patch(force_disable_caches=True):
        found, codes = run_and_get_code(gr_compile.optimize(model), ids)
    torch.testing.assert_close(found, model(ids), rtol=2e-2, atol=2e-2)
    code = "".join(codes)
    assert "mm(" in code and "torch.float32" in code


def test_the_backward_of_silu_writes_no_sigmoid() -> None:
    """An exp that is read twice is a buffer as large as the activations."""
    torch.manual_seed(0)
    model = Layer()
    ids = torch.tensor([[1, 2, 0, 0], [3, 0, 0, 0]])

    def step() -> None:
        model.zero_grad()
        compiled(ids).sum().backward()

    compiled = gr_compile.optimize(model)
    with torch._inductor.config.patch(force_disable_caches=True):
        _, codes = run_and_get_code(step)
    kernels = [part for part in codes[-1].split("extern \"C\"") if "exp()" in part]
    assert kernels
    for kernel in kernels:
        names = [line.split("=")[0].split()[-1] for line in kernel.splitlines() if ".neg().exp())" in line]
        assert not [x for x in names if f"{x}.store(" in kernel]


class Products(nn.Module):
    """Token-wise products by einsum and by addmm on flattened tokens, and one with weights for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(20, 8)
        self.wide, self.bias = nn.Parameter(torch.randn(8, 12)), nn.Parameter(torch.randn(12))
        self.heads, self.back = nn.Parameter(torch.randn(3, 4, 5)), nn.Parameter(torch.randn(15, 8))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.items(ids)
        x = torch.addmm(self.bias, x.view(-1, 8), self.wide).view(*ids.shape, 3, 4)
        x = torch.einsum("bnhd,hde->bnhe", torch.tanh(x), self.heads).flatten(2)
        x = torch.einsum("bnd,df->bnf", x, self.back)
        return (x * (ids != 0)[..., None]).sum(1)


def test_products_with_a_number_of_rows_that_only_the_data_tells() -> None:
    torch.manual_seed(0)
    model = Products()
    weights = list(model.parameters())
    fast = gr_compile.optimize(model)
    with torch._inductor.config.patch(force_disable_caches=True):
        for ids in (torch.tensor([[1, 2, 0], [3, 0, 0], [4, 5, 6]]), torch.tensor([[1, 0, 0], [0, 0, 0], [0, 0, 0]])):
            found, wanted = fast(ids), model(ids)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
            for got, want in zip(
                torch.autograd.grad(found.square().sum(), weights), torch.autograd.grad(wanted.square().sum(), weights)
            ):
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    (report,) = gr_compile.report(fast)
    assert not report.passes_failed and any(record.changed for record in report.passes)
