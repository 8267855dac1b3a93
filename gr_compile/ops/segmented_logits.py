"""Logits of sampled rows of a table that is read in segments: `gr::sampled_logits`, row by row of the table.

    gr::sampled_logits(query, table, ids, ...)   ->   gr::segmented_logits(query, table, ids, ..., segments)

Logits are independent of one another, so lookups are put in the order of `segments` ranges of rows; a kernel needs one
range at a time, the forward from the first on, the backward from the last. The table may then lie in a file that is
larger than memory (gr_compile.offload). Operands, results and errors are those of `gr::sampled_logits`; the gradient of
the query is summed in another order.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from gr_compile.ops.leaves import goes_into_leaf
from gr_compile.ops.registry import LIBRARY, define_operator, require
from gr_compile.ops.sampled_logits import (
    check_gradient,
    check_operands,
    sampled_logits_backward_reference,
    sampled_logits_reference,
)


def check_segments(segments: int) -> None:
    """ValueError where there is no segment."""
    require(segments >= 1, lambda: f"gr::segmented_logits: segments must be at least 1, not {segments}")


def _fake(
    query: Tensor, table: Tensor, ids: Tensor, group: Tensor | None, eps: float | None, padding: int, segments: int
) -> Tensor:
    check_operands(query, table, ids, group, eps, padding)
    check_segments(segments)
    return query.new_empty((query.shape[0], ids.shape[1]))


def segmented_logits_reference(
    query: Tensor, table: Tensor, ids: Tensor, group: Tensor | None, eps: float | None, padding: int, segments: int
) -> Tensor:
    """[T, R]: `sampled_logits_reference`, whatever the number of segments. ValueError: it is less than 1."""
    check_segments(segments)
    return sampled_logits_reference(query, table, ids, group, eps, padding)


def _backward_fake(
    grad: Tensor, query: Tensor, table: Tensor, ids: Tensor, group: Tensor | None, eps: float | None, padding: int,
    segments: int, into_leaf: bool, need_query: bool, need_table: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    check_operands(query, table, ids, group, eps, padding)
    check_segments(segments)
    check_gradient(grad, query, ids)
    return (
        query.new_empty(query.shape if need_query else 0),
        table.new_empty(table.shape if need_table else 0),
    )


def segmented_logits_backward_reference(
    grad: Tensor, query: Tensor, table: Tensor, ids: Tensor, group: Tensor | None, eps: float | None, padding: int,
    segments: int, into_leaf: bool, need_query: bool, need_table: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradients of query and table: `sampled_logits_backward_reference`.

    A table that takes no gradient and has an optimizer of gr_compile.offload is told, by the kernel, what its gradient
    is made of: lookups, the query, and `grad`.
    """
    check_segments(segments)
    operands = (query, table, ids, group, eps, padding)
    return sampled_logits_backward_reference(grad, *operands, into_leaf, need_query, need_table)


segmented_logits = define_operator(
    "segmented_logits(Tensor query, Tensor table, Tensor ids, Tensor? group, float? eps, int padding, int segments)"
    " -> Tensor",
    segmented_logits_reference,
    _fake,
)
segmented_logits_backward = define_operator(
    "segmented_logits_backward(Tensor grad, Tensor query, Tensor table, Tensor ids, Tensor? group, float? eps,"
    " int padding, int segments, bool into_leaf, bool need_query, bool need_table)"
    " -> (Tensor grad_query, Tensor grad_table)",
    segmented_logits_backward_reference,
    _backward_fake,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps, ctx.padding, ctx.segments = inputs
    ctx.save_for_backward(*tensors)
    ctx.into_leaf = goes_into_leaf(inputs[1])


def _derivative(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    needs = tuple(ctx.needs_input_grad[:2])
    into_leaf = ctx.into_leaf and not torch.is_grad_enabled()
    numbers = (ctx.eps, ctx.padding, ctx.segments)
    grads = segmented_logits_backward(grad, *ctx.saved_tensors, *numbers, into_leaf, *needs)
    return (*(made if need else None for made, need in zip(grads, needs)), None, None, None, None, None)


def _no_second_derivative(ctx: Any, *grads: Any) -> NoReturn:
    raise NotImplementedError("gr::segmented_logits has no second derivative: its backward is an operator")


torch.library.register_autograd("gr::segmented_logits", _derivative, setup_context=_setup, lib=LIBRARY)
torch.library.register_autograd("gr::segmented_logits_backward", _no_second_derivative, lib=LIBRARY)
