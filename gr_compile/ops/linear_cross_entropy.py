"""Softmax cross entropy of a linear layer over a whole catalogue, without its [T, V] logits.

    gr::linear_cross_entropy            x [T, D], table [V, D], bias [V], target, weight [T] -> []   the sum over tokens
    gr::linear_cross_entropy_tokens     the same operands                                    -> [T]  token by token
    gr::linear_cross_entropy_gradients  the same operands            -> the sum, its gradients of x, table and bias

Token t counts weight[t] * (log sum_v exp(logit[t, v]) - logit[t, target[t]]), logit = scale * x @ table.T + bias. One
of weight 0 counts nothing, whatever its target and its x hold: it is left out before anything is computed.

Logits exist for a block of tokens at a time. While they do, the gradient of the sum is known but for one factor: a
forward pass that somebody differentiates calls the third operator instead of the first, and its backward pass
multiplies (Liger Kernel, arXiv 2410.10989). That is three products; a recomputation takes four. What the losses of the
second operator are multiplied by is known in the backward pass only: its derivative computes the logits again, by the
third operator with those weights (Cut Cross-Entropy, arXiv 2411.09009). Halves are computed in float32, and the
operators return losses and gradients in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gr_compile.ops.registry import LIBRARY, define_operator, outside_autocast, require

_NAME = "gr::linear_cross_entropy"
_BLOCK_BYTES = 128 << 20
_FEWEST_ROWS, _MOST_ROWS = 32, 2048
_HALVES = (torch.float16, torch.bfloat16)
_OPERANDS = "Tensor x, Tensor table, Tensor? bias, Tensor target, Tensor weight, float scale"


def wide_dtype(x: Tensor) -> torch.dtype:
    """What is computed in, and what losses and gradients have: float32 for halves."""
    return torch.float32 if x.dtype in _HALVES else x.dtype


def block_rows(items: int, element_bytes: int) -> int:
    """Tokens of a block: 128 MiB of logits, but at most 2048 tokens and at least 32.

    Threads wait for each other a few times a block, which shows on a busy machine where blocks are small; one of more
    tokens leaves the processor's cache for nothing. 32 rows of logits are 32 / D of the table, which the caller holds
    anyhow, so that a catalogue is not cut into blocks, however large it is.
    """
    return min(max(_FEWEST_ROWS, _BLOCK_BYTES // max(items * element_bytes, 1)), _MOST_ROWS)


def counted_blocks(target: Tensor, weight: Tensor, table: Tensor) -> tuple[Tensor, ...]:
    """The tokens whose weight is not 0, int64, in order, cut into blocks.

    Raises:
        IndexError: the target of one of them is no row of the table [V, D].
    """
    items = table.shape[0]
    rows = weight.nonzero()[:, 0]
    wanted = target[rows]
    bad = rows[(wanted < 0) | (wanted >= items)]
    if bad.numel():
        token = int(bad[0])
        raise IndexError(
            f"{_NAME}: token {token} has target {int(target[token])}, which is not in [0, {items}), the rows of the "
            "table; a token that is to be ignored needs weight 0"
        )
    width = torch.promote_types(table.dtype, torch.float32).itemsize
    return torch.split(rows, block_rows(items, width)) if rows.numel() else ()


# ----------------------------------------------------------------------------------------------- fakes
def check(x: Tensor, table: Tensor, bias: Tensor | None, target: Tensor, weight: Tensor) -> None:
    """Dtypes and shapes of the operands; ValueError names the one that does not fit."""
    require(x.is_floating_point(), lambda: f"{_NAME}: x must be floating point, not {x.dtype}")
    require(x.dim() == 2, lambda: f"{_NAME}: x must be [T, D], not {list(x.shape)}")
    require(table.dim() == 2, lambda: f"{_NAME}: table must be [V, D], not {list(table.shape)}")
    (tokens, _), (items, width) = x.shape, table.shape
    _check_one("x", x, x.dtype, (tokens, width))
    _check_one("table", table, x.dtype, (items, width))
    if bias is not None:
        _check_one("bias", bias, x.dtype, (items,))
    _check_one("target", target, torch.int64, (tokens,))
    _check_one("weight", weight, torch.float32 if weight.dtype == torch.float32 else x.dtype, (tokens,))


def _check_one(what: str, value: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    def message() -> str:
        return f"{_NAME}: {what} must be {list(shape)}, not {list(value.shape)}"

    require(value.dtype == dtype, lambda: f"{_NAME}: {what} must be {dtype}, not {value.dtype}")
    require(value.dim() == len(shape), message)
    for given, wanted in zip(value.shape, shape):
        require(given == wanted, message)


def _tokens_fake(x: Tensor, table: Tensor, bias: Tensor | None, target: Tensor, weight: Tensor, scale: float) -> Tensor:
    check(x, table, bias, target, weight)
    return x.new_empty(x.shape[0], dtype=wide_dtype(x))


def _fake(x: Tensor, table: Tensor, bias: Tensor | None, target: Tensor, weight: Tensor, scale: float) -> Tensor:
    return _tokens_fake(x, table, bias, target, weight, scale).new_empty(())


def _gradients_fake(
    x: Tensor, table: Tensor, bias: Tensor | None, target: Tensor, weight: Tensor, scale: float, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check(x, table, bias, target, weight)
    return (x.new_empty((), dtype=wide_dtype(x)), *new_gradients(x, table, bias, needs))


def new_gradients(
    x: Tensor, table: Tensor, bias: Tensor | None, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for the gradients of x, table and bias; of no elements where `needs` says no, or there is no bias."""
    require(len(needs) == 3, lambda: f"{_NAME}_gradients: needs_grad must tell x, table and bias, not {list(needs)}")
    grad_x, grad_table, grad_bias = (
        x.new_empty(y.shape if y is not None and need else 0, dtype=wide_dtype(x))
        for y, need in zip((x, table, bias), needs)
    )
    return grad_x, grad_table, grad_bias


# ------------------------------------------------------------------------------------------- references
def tokens_reference(
    x: Tensor, table: Tensor, bias: Tensor | None, target: Tensor, weight: Tensor, scale: float
) -> Tensor:
    """What each token counts, [T]: weight * cross entropy of scale * x @ table.T + bias.

    `x` [T, D], `table` [V, D] and `bias` [V] or None of one floating-point dtype, `target` int64 [T], `weight` [T] of
    that dtype or float32.
    """
    losses = _tokens_fake(x, table, bias, target, weight, scale).zero_()
    for rows in counted_blocks(target, weight, table):
        with outside_autocast(x.device):
            logits = _logits(x[rows], table, bias, scale)
            losses[rows] = weight[rows].to(losses.dtype) * F.cross_entropy(logits, target[rows], reduction="none")
    return losses


def _logits(x: Tensor, table: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    wide = wide_dtype(x)
    logits = x.to(wide) @ table.to(wide).T * scale
    return logits if bias is None else logits + bias.to(wide)


def _reference(x: Tensor, table: Tensor, bias: Tensor | None, target: Tensor, weight: Tensor, scale: float) -> Tensor:
    """The sum of what the tokens count, by whatever the device has for one token's."""
    return total(linear_cross_entropy_tokens(x, table, bias, target, weight, scale))


def total(losses: Tensor) -> Tensor:
    """The sum of the losses [T], in float64: the order in which threads add them does not show."""
    return losses.sum(dtype=torch.float64).to(losses.dtype, copy=True)


def gradients_reference(
    x: Tensor, table: Tensor, bias: Tensor | None, target: Tensor, weight: Tensor, scale: float, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sum over tokens, and its gradients of x, table and bias: [0] where `needs` says no, or there is no bias."""
    losses = tokens_reference(x, table, bias, target, weight, scale)
    grads = new_gradients(x, table, bias, needs)
    for grad in grads:
        grad.zero_()
    for rows in counted_blocks(target, weight, table):
        with outside_autocast(x.device):
            slopes = _logits(x[rows], table, bias, scale).softmax(-1)
            slopes[torch.arange(rows.shape[0], device=x.device), target[rows]] -= 1
            slopes *= weight[rows, None].to(slopes.dtype)
            if needs[0]:
                grads[0][rows] = scale * slopes @ table.to(slopes.dtype)
            if needs[1]:
                grads[1].add_(scale * slopes.T @ x[rows].to(slopes.dtype))
            if needs[2] and bias is not None:
                grads[2].add_(slopes.sum(0))
    return total(losses), *grads


linear_cross_entropy = define_operator(f"linear_cross_entropy({_OPERANDS}) -> Tensor", _reference, _fake)
linear_cross_entropy_tokens = define_operator(
    f"linear_cross_entropy_tokens({_OPERANDS}) -> Tensor", tokens_reference, _tokens_fake
)
linear_cross_entropy_gradients = define_operator(
    f"linear_cross_entropy_gradients({_OPERANDS}, bool[] needs_grad)"
    " -> (Tensor loss, Tensor grad_x, Tensor grad_table, Tensor grad_bias)",
    gradients_reference,
    _gradients_fake,
)


# ------------------------------------------------------------------------------------------- derivatives
def _differentiable(
    keys: torch._C.DispatchKeySet,
    x: Tensor,
    table: Tensor,
    bias: Tensor | None,
    target: Tensor,
    weight: Tensor,
    scale: float,
) -> Tensor:
    """`linear_cross_entropy` as autograd sees it: the operator that makes the gradients where somebody wants them."""
    operands = (x, table, bias, target, weight, scale)
    needs = [y is not None and y.requires_grad for y in (x, table, bias)]
    if torch.is_grad_enabled() and (any(needs) or weight.requires_grad):
        loss: Tensor = linear_cross_entropy_gradients(*operands, needs)[0]
        return loss
    with torch._C._AutoDispatchBelowAutograd():
        below: Tensor = linear_cross_entropy.redispatch(keys & torch._C._after_autograd_keyset, *operands)
        return below


def _gradients_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.dtype, ctx.needs = inputs[0].dtype, inputs[6]
    # As outputs they are saved with their history, so that a second derivative ends in _gradients_derivative.
    ctx.save_for_backward(*output[1:])
    ctx.set_materialize_grads(False)


def _gradients_derivative(ctx: Any, grad: Tensor | None, *second: Tensor | None) -> tuple[Any, ...]:
    if any(x is not None for x in second):
        raise NotImplementedError(f"{_NAME} has no second derivative")
    _refuse_weights(ctx)
    made = [None if grad is None or not need else (grad * saved).to(ctx.dtype)
            for saved, need in zip(ctx.saved_tensors, ctx.needs)]  # fmt: skip
    return (*made, None, None, None, None)


def _tokens_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _tokens_derivative(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    _refuse_weights(ctx)
    x, table, bias, target, weight = ctx.saved_tensors
    needs = list(ctx.needs_input_grad[:3])
    slopes = linear_cross_entropy_gradients(
        x, table, bias, target, grad * weight.to(grad.dtype), ctx.scale, needs
    )[1:]
    return (*(made.to(x.dtype) if need else None for made, need in zip(slopes, needs)), None, None, None)


def _refuse_weights(ctx: Any) -> None:
    if ctx.needs_input_grad[4]:
        raise NotImplementedError(
            f"{_NAME} has no derivative of its weights: multiply what gr::linear_cross_entropy_tokens returns"
        )


LIBRARY.impl("linear_cross_entropy", _differentiable, "Autograd", with_keyset=True)
for _operator, _derivative, _setup in (
    ("gradients", _gradients_derivative, _gradients_setup),
    ("tokens", _tokens_derivative, _tokens_setup),
):
    torch.library.register_autograd(f"{_NAME}_{_operator}", _derivative, setup_context=_setup, lib=LIBRARY)
