"""norm_gate, rms_norm and silu_split: against torch's own operators in every dtype, their gradients, bad operands."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import gr_compile.ops  # noqa: F401  (registers them)

gr = torch.ops.gr
DTYPES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
SHAPES = [(5, 7), (2, 3, 33), (4,), (0, 8), (3, 1)]
EPS = 1e-6


def drawn(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * 2 + 0.5).to(dtype)


def columns(shape: tuple[int, ...], dtype: torch.dtype, given: str) -> tuple[Tensor | None, Tensor | None]:
    made = (drawn(shape[-1], dtype=dtype, seed=seed) if name in given else None for seed, name in ((2, "w"), (3, "b")))
    return tuple(made)


def near(got: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """Within a few roundings of the largest result."""
    assert got.dtype == dtype and got.is_contiguous()
    scale = exact.abs().max().clamp(min=1).item() if exact.numel() else 1.0
    torch.testing.assert_close(got.double(), exact, rtol=DTYPES[dtype], atol=DTYPES[dtype] * scale)


def normed(x: Tensor, weight: Tensor | None, bias: Tensor | None, centered: bool) -> Tensor:
    if centered:
        return F.layer_norm(x, x.shape[-1:], weight, bias, EPS)
    made = F.rms_norm(x, x.shape[-1:], weight, EPS)
    return made if bias is None else made + bias


def wide(values: list[Tensor | None]) -> list[Tensor | None]:
    return [None if value is None else value.double().requires_grad_() for value in values]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("centered", [True, False])
def test_norm_gate_is_torchs_norm_times_u_and_so_are_its_gradients(dtype: torch.dtype, centered: bool) -> None:
    for shape, given in itertools.product(SHAPES, ("", "w", "wb", "b")):
        operands = [drawn(*shape, dtype=dtype), drawn(*shape, dtype=dtype, seed=1), *columns(shape, dtype, given)]
        exact = wide(operands)
        expected = normed(exact[0], *exact[2:], centered) * exact[1]
        near(gr.norm_gate(*operands, EPS, centered), expected.detach(), dtype)
        grad = drawn(*shape, dtype=dtype, seed=4)
        got = gr.norm_gate_backward(grad, *operands, EPS, centered)
        wanted = torch.autograd.grad(expected, [value for value in exact if value is not None], grad.double())
        for value, made in zip(operands, got):
            assert (made.numel() == 0) if value is None else made.shape == value.shape
        for made, want in zip((made for value, made in zip(operands, got) if value is not None), wanted):
            near(made, want, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rms_norm_is_torchs_and_so_are_its_gradients(dtype: torch.dtype) -> None:
    for shape, given in itertools.product(SHAPES, ("", "w")):
        operands = [drawn(*shape, dtype=dtype), columns(shape, dtype, given)[0]]
        exact = wide(operands)
        expected = normed(*exact, None, False)
        near(gr.rms_norm(*operands, EPS), expected.detach(), dtype)
        grad = drawn(*shape, dtype=dtype, seed=4)
        got = gr.rms_norm_backward(grad, *operands, EPS)
        wanted = torch.autograd.grad(expected, [value for value in exact if value is not None], grad.double())
        assert got[1].numel() == 0 if given == "" else got[1].shape == shape[-1:]
        for made, want in zip(got, wanted):
            near(made, want, dtype)


WIDTHS = [(3, 5, 2, 4), (1, 1, 1, 1), (0, 6, 0, 1)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activated", [15, 1, 0, 6])
def test_silu_split_is_torchs_and_so_is_its_gradient(dtype: torch.dtype, activated: int) -> None:
    for widths, lead in itertools.product(WIDTHS, [(4,), (2, 3), (0,), ()]):
        x = drawn(*lead, sum(widths), dtype=dtype)
        exact = x.double().requires_grad_()
        parts = exact.split(list(widths), -1)
        expected = [F.silu(part) if activated >> k & 1 else part for k, part in enumerate(parts)]
        got = gr.silu_split(x, *widths, activated)
        for made, want in zip(got, expected):
            near(made, want.detach(), dtype)
        grads = [drawn(*lead, width, dtype=dtype, seed=k) for k, width in enumerate(widths)]
        (wanted,) = torch.autograd.grad(expected, exact, [grad.double() for grad in grads])
        near(gr.silu_split_backward(*grads, x, activated), wanted, dtype)


def samples(dtype: torch.dtype, grad: bool) -> list[tuple[object, tuple[object, ...]]]:
    def leaf(*shape: int, seed: int = 0) -> Tensor:
        return drawn(*shape, dtype=dtype, seed=seed).requires_grad_(grad)

    x, u, w, b = leaf(2, 3, 5), leaf(2, 3, 5, seed=1), leaf(5, seed=2), leaf(5, seed=3)
    return [
        (gr.norm_gate.default, (x, u, w, b, EPS, True)),
        (gr.norm_gate.default, (x, u, None, None, EPS, False)),
        (gr.norm_gate.default, (x, u, w, None, EPS, True)),
        (gr.rms_norm.default, (x, w, EPS)),
        (gr.rms_norm.default, (leaf(0, 4), None, EPS)),
        (gr.norm_gate.default, (x, u, None, b, EPS, False)),
        (gr.silu_split.default, (leaf(3, 7), 1, 2, 3, 1, 5)),
    ]


def test_gradcheck() -> None:
    for operator, operands in samples(torch.float64, True):
        assert torch.autograd.gradcheck(operator, operands)


def test_opcheck() -> None:
    kept = samples(torch.bfloat16, True)
    for number, (operator, operands) in enumerate(kept):
        tests = {"test_utils": ("test_schema", "test_faketensor", "test_autograd_registration")} if number % 6 else {}
        torch.library.opcheck(operator, operands, **tests)
    x, w = drawn(3, 4, dtype=torch.bfloat16), drawn(4, dtype=torch.bfloat16)
    plain = ("test_schema", "test_faketensor")
    torch.library.opcheck(gr.norm_gate_backward.default, (x, x, x, w, None, EPS, True), test_utils=plain)
    torch.library.opcheck(gr.rms_norm_backward.default, (x, x, w, EPS), test_utils=plain)
    wide = drawn(3, 16, dtype=torch.bfloat16)
    torch.library.opcheck(gr.silu_split_backward.default, (x, x, x, x, wide, 9), test_utils=plain)


def test_operands_of_any_strides() -> None:
    x = drawn(5, 3, 4).transpose(0, 1)
    assert torch.equal(gr.norm_gate(x, x, None, None, EPS, True), gr.norm_gate(*[x.contiguous()] * 2, None, None, EPS, True))
    for made, want in zip(gr.silu_split(x, 1, 1, 1, 1, 3), gr.silu_split(x.contiguous(), 1, 1, 1, 1, 3)):
        assert torch.equal(made, want) and made.is_contiguous()


def test_no_second_derivative() -> None:
    for operator, operands in samples(torch.float64, True):
        results = operator(*operands)
        first = results if isinstance(results, Tensor) else results[0]
        (grad,) = torch.autograd.grad(first.square().sum(), operands[0], create_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivative"):
            grad.sum().backward()


X, W = torch.ones(2, 3), torch.ones(3)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: gr.norm_gate(X.long(), X, None, None, EPS, True), "x must be floating point"),
    (lambda: gr.norm_gate(X, torch.ones(2, 4), None, None, EPS, True), r"u must be \[2, 3\], not \[2, 4\]"),
    (lambda: gr.norm_gate(X, W, None, None, EPS, True), "u must have 2 dimensions, not 1"),
    (lambda: gr.norm_gate(X, X, W.double(), None, EPS, True), "weight must be torch.float32"),
    (lambda: gr.norm_gate(X, X, None, torch.ones(2), EPS, True), r"bias must be \[3\], not \[2\]"),
    (lambda: gr.rms_norm(torch.ones(()), None, EPS), "not a scalar"),
    (lambda: gr.silu_split(X, 1, 1, 1, 1, 15), r"3 features are not 1 \+ 1 \+ 1 \+ 1"),
    (lambda: gr.silu_split(X, 4, -1, 0, 0, 15), "widths must not be negative"),
    (lambda: gr.silu_split(X, 3, 0, 0, 0, 16), "activated has a bit a part"),
    (lambda: gr.silu_split_backward(X, X, X, X, X, 1), "3 features are not those"),
])  # fmt: skip
def test_bad_operands(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
