"""Norms over the features of each token, with the gate that multiplies them, and their gradients.

    gr::norm_gate   x, u [*, D], weight, bias [D] -> [*, D]    u * (w * (x - m) / sqrt(mean((x - m)²) + eps) + b)
    gr::rms_norm    x [*, D], weight [D]          -> [*, D]    w * x / sqrt(mean(x²) + eps)

m is the mean of the row where `centered` (LayerNorm: Ba, Kiros and Hinton, arXiv 1607.06450), and 0 otherwise (RMSNorm:
Zhang and Sennrich, arXiv 1910.07467). The gate is HSTU's u (arXiv 2402.17152). The gradients are operators, too; they
keep nothing but the operands and normalise again. Halves are computed in float32 and rounded once. Dropout behind the
gate stays an operator of its own: its random numbers are the model's.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from gr_compile.ops.registry import LIBRARY, define_operator, require

_HALVES = (torch.float16, torch.bfloat16)


def _check(name: str, x: Tensor, rows: dict[str, Tensor | None], columns: dict[str, Tensor | None]) -> None:
    require(x.is_floating_point(), lambda: f"gr::{name}: x must be floating point, not {x.dtype}")
    require(x.dim() >= 1, lambda: f"gr::{name}: x must be [*, D], not a scalar")
    for what, value in {**rows, **columns}.items():
        if value is None:
            continue
        wanted = x.shape if what in rows else x.shape[-1:]
        _check_one(name, what, value, x.dtype, wanted)


def _check_one(name: str, what: str, value: Tensor, dtype: torch.dtype, shape: torch.Size) -> None:
    require(value.dtype == dtype, lambda: f"gr::{name}: {what} must be {dtype} as x is, not {value.dtype}")
    require(
        value.dim() == len(shape),
        lambda: f"gr::{name}: {what} must have {len(shape)} dimensions, not {value.dim()}",
    )
    for given, wanted in zip(value.shape, shape):
        require(given == wanted, lambda: f"gr::{name}: {what} must be {list(shape)}, not {list(value.shape)}")


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in _HALVES else x


def _normalized(x: Tensor, eps: float, centered: bool) -> tuple[Tensor, Tensor]:
    """(the normalised rows, 1 / their deviation [*, 1]), in the dtype that is computed in."""
    wide = _wide(x)
    if centered:
        wide = wide - wide.mean(-1, keepdim=True)
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return wide * scale, scale


def _affine(normed: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    made = normed if weight is None else normed * _wide(weight)
    return made if bias is None else made + _wide(bias)


def _norm_gradients(
    grad: Tensor, normed: Tensor, scale: Tensor, weight: Tensor | None, centered: bool
) -> tuple[Tensor, Tensor]:
    """Of x and of the weight, from the gradient of the affine norm, all in the dtype that is computed in."""
    flat = grad.reshape(-1, grad.shape[-1])
    grad_weight = (flat * normed.reshape(flat.shape)).sum(0)
    inner = grad if weight is None else grad * _wide(weight)
    grad_x = inner - normed * (inner * normed).mean(-1, keepdim=True)
    if centered:
        grad_x = grad_x - inner.mean(-1, keepdim=True)
    return grad_x * scale, grad_weight


def _like(made: Tensor, x: Tensor) -> Tensor:
    """In x's dtype, contiguous, in memory of its own."""
    return made.to(x.dtype).contiguous()


def _of(parameter: Tensor | None, made: Tensor, x: Tensor) -> Tensor:
    """The gradient of a parameter; of one that is not there, no elements."""
    return x.new_empty(0) if parameter is None else _like(made, x)


# ------------------------------------------------------------------------------------------- norm_gate
def _norm_gate_fake(
    x: Tensor, u: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, centered: bool
) -> Tensor:
    _check("norm_gate", x, {"u": u}, {"weight": weight, "bias": bias})
    return x.new_empty(x.shape)


def norm_gate_reference(
    x: Tensor, u: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, centered: bool
) -> Tensor:
    """u * norm(x): `x`, `u` [*, D], `weight`, `bias` [D] or None, all of one floating-point dtype -> [*, D].

    LayerNorm where `centered`, RMSNorm where not; over the last dimension.
    """
    _norm_gate_fake(x, u, weight, bias, eps, centered)
    return _like(_affine(_normalized(x, eps, centered)[0], weight, bias) * _wide(u), x)


def _norm_gate_backward_fake(
    grad: Tensor, x: Tensor, u: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, centered: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check("norm_gate_backward", x, {"grad": grad, "u": u}, {"weight": weight, "bias": bias})
    columns = (x.new_empty(0 if parameter is None else x.shape[-1]) for parameter in (weight, bias))
    return (x.new_empty(x.shape), x.new_empty(x.shape), *columns)  # type: ignore[return-value]


def norm_gate_backward_reference(
    grad: Tensor, x: Tensor, u: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, centered: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, u [*, D], weight and bias [D] ([0] where there is none), from that of the result."""
    _norm_gate_backward_fake(grad, x, u, weight, bias, eps, centered)
    normed, scale = _normalized(x, eps, centered)
    gated = _wide(grad) * _wide(u)
    grad_u = _wide(grad) * _affine(normed, weight, bias)
    grad_x, grad_weight = _norm_gradients(gated, normed, scale, weight, centered)
    grad_bias = gated.reshape(-1, x.shape[-1]).sum(0)
    return _like(grad_x, x), _like(grad_u, x), _of(weight, grad_weight, x), _of(bias, grad_bias, x)


# -------------------------------------------------------------------------------------------- rms_norm
def _rms_norm_fake(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    _check("rms_norm", x, {}, {"weight": weight})
    return x.new_empty(x.shape)


def rms_norm_reference(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMSNorm over the last dimension: `x` [*, D], `weight` [D] or None, of one floating-point dtype -> [*, D]."""
    _rms_norm_fake(x, weight, eps)
    return _like(_affine(_normalized(x, eps, False)[0], weight, None), x)


def _rms_norm_backward_fake(grad: Tensor, x: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    _check("rms_norm_backward", x, {"grad": grad}, {"weight": weight})
    return x.new_empty(x.shape), x.new_empty(0 if weight is None else x.shape[-1])


def rms_norm_backward_reference(
    grad: Tensor, x: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """The gradients of x [*, D] and weight [D] ([0] where there is none), from that of the result."""
    _rms_norm_backward_fake(grad, x, weight, eps)
    grad_x, grad_weight = _norm_gradients(_wide(grad), *_normalized(x, eps, False), weight, False)
    return _like(grad_x, x), _of(weight, grad_weight, x)


norm_gate = define_operator(
    "norm_gate(Tensor x, Tensor u, Tensor? weight, Tensor? bias, float eps, bool centered) -> Tensor",
    norm_gate_reference,
    _norm_gate_fake,
)
norm_gate_backward = define_operator(
    "norm_gate_backward(Tensor grad, Tensor x, Tensor u, Tensor? weight, Tensor? bias, float eps, bool centered)"
    " -> (Tensor grad_x, Tensor grad_u, Tensor grad_weight, Tensor grad_bias)",
    norm_gate_backward_reference,
    _norm_gate_backward_fake,
)
rms_norm = define_operator(
    "rms_norm(Tensor x, Tensor? weight, float eps) -> Tensor", rms_norm_reference, _rms_norm_fake
)
rms_norm_backward = define_operator(
    "rms_norm_backward(Tensor grad, Tensor x, Tensor? weight, float eps) -> (Tensor grad_x, Tensor grad_weight)",
    rms_norm_backward_reference,
    _rms_norm_backward_fake,
)


def _norm_gate_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps, ctx.centered = inputs
    ctx.save_for_backward(*tensors)


def _norm_gate_derivative(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors
    grads = norm_gate_backward(grad, *tensors, ctx.eps, ctx.centered)
    return (*(None if given is None else made for given, made in zip(tensors, grads)), None, None)


def _rms_norm_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _rms_norm_derivative(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    tensors = ctx.saved_tensors
    grads = rms_norm_backward(grad, *tensors, ctx.eps)
    return (*(None if given is None else made for given, made in zip(tensors, grads)), None)


def _no_second_derivative(ctx: Any, *grads: Any) -> NoReturn:
    raise NotImplementedError("a fused norm has no second derivative: its backward is an operator")


torch.library.register_autograd("gr::norm_gate", _norm_gate_derivative, setup_context=_norm_gate_setup, lib=LIBRARY)
torch.library.register_autograd("gr::rms_norm", _rms_norm_derivative, setup_context=_rms_norm_setup, lib=LIBRARY)
torch.library.register_autograd("gr::norm_gate_backward", _no_second_derivative, lib=LIBRARY)
torch.library.register_autograd("gr::rms_norm_backward", _no_second_derivative, lib=LIBRARY)
