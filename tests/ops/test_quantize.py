"""gr::quantize and gr::dequantize: rounding, scales, overflow, and the gradient that passes them by."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gr_compile.lowering.decompositions import dequantize as decomposed
from gr_compile.ops.quantize import SCALES, STORED

gr = torch.ops.gr
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * 10


@settings(max_examples=60, deadline=None)
@given(
    shape=st.lists(st.integers(0, 7), min_size=1, max_size=3),
    dtype=st.sampled_from(FLOATS),
    stored=st.sampled_from(STORED),
    scale=st.sampled_from(SCALES),
)
def test_what_comes_back_is_rounded_once(
    shape: list[int], dtype: torch.dtype, stored: torch.dtype, scale: str
) -> None:
    x = drawn(*shape).to(dtype)
    kept, factor = gr.quantize(x, stored, scale)
    assert kept.dtype == stored and kept.shape == x.shape and factor.dtype == torch.float32
    back = gr.dequantize(kept, factor if scale != "none" else None, x)
    assert back.dtype == dtype and back.shape == x.shape
    unit = max(torch.finfo(stored).eps, torch.finfo(dtype).eps) / 2
    assert ((back.double() - x.double()).abs() <= 1.01 * unit * x.double().abs() + 1e-6).all()
    assert torch.equal(back, decomposed(kept, factor if scale != "none" else None, x))


def test_the_shapes_of_scales() -> None:
    x = drawn(4, 3, 5).float()
    assert [gr.quantize(x, torch.float16, scale)[1].shape for scale in SCALES] == [(0,), (4, 3, 1), (1,)]


def test_each_token_has_the_scale_of_its_own_values() -> None:
    x = torch.tensor([[1e30, 1.0], [1e-30, 2e-30], [0.0, 0.0], [torch.inf, 3.0]])
    stored, scale = gr.quantize(x, torch.float16, "per-token")
    assert torch.equal(scale.log2().round(), scale.log2()) and scale[2] == 1
    back = gr.dequantize(stored, scale, x)
    torch.testing.assert_close(back, torch.tensor([[1e30, 0.0], [1e-30, 2e-30], [0.0, 0.0], [torch.inf, 3.0]]), rtol=5e-4, atol=0)


def test_a_value_that_does_not_fit_is_named() -> None:
    x = torch.ones(2, 3)
    x[1, 2] = -7e4
    with pytest.raises(OverflowError, match=r"the value at \[1, 2\] is -70000.*float16 is 65504.*scale=per-table"):
        gr.quantize(x, torch.float16, "none")
    assert gr.quantize(x, torch.bfloat16, "none")[0].isfinite().all()


def test_the_gradient_goes_to_the_value_unchanged() -> None:
    x = drawn(3, 4).float().requires_grad_()
    back = gr.dequantize(*gr.quantize(x.detach(), torch.float16, "per-token"), x)
    grad = torch.full((3, 4), 1e-30)  # float16 has no such number
    assert torch.equal(torch.autograd.grad(back, x, grad)[0], grad)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: gr.quantize(x.long(), torch.float16, "none"), "values must be floating point"),
        (lambda x: gr.quantize(x, torch.float32, "none"), "dtype must be float16 or bfloat16"),
        (lambda x: gr.quantize(x, torch.float16, "per-row"), "scale must be one of none, per-token, per-table"),
        (lambda x: gr.quantize(x[0, 0], torch.float16, "none"), "not a scalar"),
        (lambda x: gr.dequantize(x[:1].half(), None, x), r"stored must be \[2, 3\] as `like` is, not \[1, 3\]"),
    ],
)
def test_operands_that_do_not_fit(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(torch.ones(2, 3))  # type: ignore[operator]


@pytest.mark.parametrize("scale", SCALES)
def test_opcheck(scale: str) -> None:
    for dtype in FLOATS:
        x = drawn(3, 4).to(dtype)
        torch.library.opcheck(gr.quantize.default, (x, torch.float16, scale))
        stored, factor = gr.quantize(x, torch.float16, scale)
        given = factor if scale != "none" else None
        torch.library.opcheck(gr.dequantize.default, (stored, given, x.clone().requires_grad_()))
