"""What follows the linear of HSTU's u, v, q and k: SiLU on some of the parts, and the parts as tensors of their own.

    gr::silu_split   [*, Wu + Wv + Wq + Wk] -> [*, Wu], [*, Wv], [*, Wq], [*, Wk]      silu(x) = x / (1 + exp(-x))

The matrix product stays the device's own operator. `activated` has a bit a part: 1 for u alone (STU), 15 for all (HSTU,
FuXi-α). The gradient is an operator, too. Halves are computed in float32 and rounded once.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from gr_compile.ops.registry import LIBRARY, define_operator, require

PARTS = 4
Four = tuple[Tensor, Tensor, Tensor, Tensor]
_HALVES = (torch.float16, torch.bfloat16)


def _check_activated(name: str, activated: int) -> None:
    require(0 <= activated < 1 << PARTS, lambda: f"gr::{name}: activated has a bit a part, 0 to 15; it is {activated}")


def _silu_split_fake(x: Tensor, u_width: int, v_width: int, q_width: int, k_width: int, activated: int) -> Four:
    widths = (u_width, v_width, q_width, k_width)
    require(x.is_floating_point(), lambda: f"gr::silu_split: x must be floating point, not {x.dtype}")
    require(x.dim() >= 1, lambda: "gr::silu_split: x must be [*, D], not a scalar")
    require(min(widths) >= 0, lambda: f"gr::silu_split: widths must not be negative, they are {widths}")
    require(
        x.shape[-1] == sum(widths),
        lambda: f"gr::silu_split: {x.shape[-1]} features are not {' + '.join(map(str, widths))}",
    )
    _check_activated("silu_split", activated)
    return tuple(x.new_empty((*x.shape[:-1], width)) for width in widths)  # type: ignore[return-value]


def silu_split_reference(x: Tensor, u_width: int, v_width: int, q_width: int, k_width: int, activated: int) -> Four:
    """The four parts of the last dimension of `x` [*, D], floating point; part k through SiLU where bit k is set."""
    _silu_split_fake(x, u_width, v_width, q_width, k_width, activated)
    parts = torch.split(x, [u_width, v_width, q_width, k_width], dim=-1)
    silu = torch.nn.functional.silu
    made = (silu(part) if activated >> k & 1 else part for k, part in enumerate(parts))
    return tuple(part.clone(memory_format=torch.contiguous_format) for part in made)  # type: ignore[return-value]


def _silu_split_backward_fake(
    grad_u: Tensor, grad_v: Tensor, grad_q: Tensor, grad_k: Tensor, x: Tensor, activated: int
) -> Tensor:
    grads = (grad_u, grad_v, grad_q, grad_k)
    _check_activated("silu_split_backward", activated)
    require(
        x.shape[-1] == sum(grad.shape[-1] for grad in grads),
        lambda: f"gr::silu_split_backward: {x.shape[-1]} features are not those of the four gradients",
    )
    for grad in grads:
        require(
            grad.dtype == x.dtype and grad.dim() == x.dim(),
            lambda: f"gr::silu_split_backward: a gradient must be {x.dtype} as x is, of as many dimensions",
        )
    return x.new_empty(x.shape)


def silu_split_backward_reference(
    grad_u: Tensor, grad_v: Tensor, grad_q: Tensor, grad_k: Tensor, x: Tensor, activated: int
) -> Tensor:
    """The gradient of x [*, D], from those of the parts; `x` is what was split, before SiLU."""
    grads = (grad_u, grad_v, grad_q, grad_k)
    _silu_split_backward_fake(*grads, x, activated)
    wide = torch.float32 if x.dtype in _HALVES else x.dtype
    parts = torch.split(x, [grad.shape[-1] for grad in grads], dim=-1)
    made = (
        _silu_gradient(grad.to(wide), part.to(wide)).to(x.dtype) if activated >> k & 1 else grad
        for k, (grad, part) in enumerate(zip(grads, parts))
    )
    return torch.cat(list(made), dim=-1)


def _silu_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """grad · σ(x) · (1 + x · (1 - σ(x)))"""
    sigmoid = torch.sigmoid(x)
    return grad * sigmoid * (1 + x * (1 - sigmoid))


silu_split = define_operator(
    "silu_split(Tensor x, int u_width, int v_width, int q_width, int k_width, int activated)"
    " -> (Tensor u, Tensor v, Tensor q, Tensor k)",
    silu_split_reference,
    _silu_split_fake,
)
silu_split_backward = define_operator(
    "silu_split_backward(Tensor grad_u, Tensor grad_v, Tensor grad_q, Tensor grad_k, Tensor x, int activated)"
    " -> Tensor",
    silu_split_backward_reference,
    _silu_split_backward_fake,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Four) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.activated = inputs[-1]


def _derivative(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    (x,) = ctx.saved_tensors
    return (silu_split_backward(*grads, x, ctx.activated), *[None] * (PARTS + 1))


def _no_second_derivative(ctx: Any, grad: Tensor) -> NoReturn:
    raise NotImplementedError("gr::silu_split has no second derivative: its backward is an operator")


torch.library.register_autograd("gr::silu_split", _derivative, setup_context=_setup, lib=LIBRARY)
torch.library.register_autograd("gr::silu_split_backward", _no_second_derivative, lib=LIBRARY)
