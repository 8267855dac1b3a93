"""Padded to packed and back, and sums over the sequences of a packed tensor.

    gr::pack          [B, N, *rest] -> [T, *rest]       the rows at flat places b * N + n
    gr::unpack        [T, *rest]    -> [B, N, *rest]    those rows back, `fill` elsewhere
    gr::segment_sum   [T, *rest]    -> [B, *rest]       one sum for each sequence
    gr::segment_expand [B, *rest]   -> [T, *rest]       each sequence's row repeated over its places
    gr::suffix_any    [B, N] bool   -> [B, N] bool      is a place at or after this one true?

All are functional; pack and unpack are each other's derivative, and so are segment_sum and segment_expand.
No reference synchronises with the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gr_compile.ops.registry import LIBRARY, define_operator, require

Number = bool | int | float


def _check_index(name: str, index: Tensor) -> None:
    require(index.dtype == torch.int64, lambda: f"gr::{name}: index must be int64, not {index.dtype}")
    require(index.dim() == 1, lambda: f"gr::{name}: index must be [T], not {index.dim()}-dimensional")


def _check_offsets(name: str, offsets: Tensor) -> None:
    require(offsets.dtype == torch.int64, lambda: f"gr::{name}: offsets must be int64, not {offsets.dtype}")
    require(offsets.dim() == 1, lambda: f"gr::{name}: offsets must be [B + 1], not {offsets.dim()}-d")


# ------------------------------------------------------------------------------------------------ pack


def _pack_fake(dense: Tensor, index: Tensor) -> Tensor:
    require(dense.dim() >= 2, lambda: f"gr::pack: dense must be [B, N, ...], not {dense.dim()}-dimensional")
    _check_index("pack", index)
    return dense.new_empty((index.shape[0], *dense.shape[2:]))


def pack_reference(dense: Tensor, index: Tensor) -> Tensor:
    """The rows of `dense` [B, N, *rest] at flat places `index` (int64 [T], b * N + n) -> [T, *rest].

    The places must be distinct: the derivative writes each of them once.
    """
    out = _pack_fake(dense, index)
    if out.numel() == 0:
        return out
    batch, length = dense.shape[:2]
    if batch == 1 or dense.stride(0) == length * dense.stride(1) or length == 1:
        rows = dense.reshape(batch * length, *dense.shape[2:])  # a view: the two leading dimensions merge
        return rows.index_select(0, index)
    row = torch.div(index, length, rounding_mode="floor")
    return dense[row, index - row * length].contiguous()


# ---------------------------------------------------------------------------------------------- unpack


def _unpack_fake(values: Tensor, index: Tensor, batch: int, length: int, fill: Number = 0) -> Tensor:
    require(values.dim() >= 1, lambda: "gr::unpack: values must be [T, ...], not a scalar")
    _check_index("unpack", index)
    require(
        values.shape[0] == index.shape[0],
        lambda: f"gr::unpack: {values.shape[0]} rows of values but {index.shape[0]} places in index",
    )
    return values.new_empty((batch, length, *values.shape[1:]))


def unpack_reference(values: Tensor, index: Tensor, batch: int, length: int, fill: Number = 0) -> Tensor:
    """`values` [T, *rest] at the flat places `index` of a [batch, length, *rest] tensor of `fill`.

    `fill` is converted to the dtype of `values`; it may be infinite for floating point. Places are distinct.
    """
    shape = _unpack_fake(values, index, batch, length, fill).shape
    flat = values.new_full((batch * length, *values.shape[1:]), fill)
    return flat.index_copy_(0, index, values).view(shape)


# --------------------------------------------------------------------------------------------- segments


def _segment_sum_fake(values: Tensor, offsets: Tensor) -> Tensor:
    require(values.dim() >= 1, lambda: "gr::segment_sum: values must be [T, ...], not a scalar")
    _check_offsets("segment_sum", offsets)
    whole = not (values.is_floating_point() or values.is_complex())
    dtype = torch.int64 if whole else values.dtype
    return values.new_empty((offsets.shape[0] - 1, *values.shape[1:]), dtype=dtype)


def segment_of_row(offsets: Tensor, total: int) -> Tensor:
    """The sequence of each of `total` packed rows, int64 [total]; B for rows behind the last sequence."""
    rows = torch.arange(total, device=offsets.device)
    return torch.searchsorted(offsets[1:].contiguous(), rows, right=True)


def segment_sum_reference(values: Tensor, offsets: Tensor) -> Tensor:
    """Sums of `values` [T, *rest] over the rows [offsets[b], offsets[b + 1]) of each sequence -> [B, *rest].

    Whole numbers and booleans are summed as int64, as torch.sum does. float32 is accumulated in float64 and
    half and bfloat16 in float32, so a sum is as accurate as torch.sum's pairwise one. Rows behind
    offsets[B] (a bucket's filling) belong to no sequence.
    """
    out = _segment_sum_fake(values, offsets)
    if out.numel() == 0 or values.numel() == 0:
        return out.zero_()
    if out.dtype == torch.int64:
        sums = out.new_zeros((offsets.shape[0], *values.shape[1:]))
        sums.index_add_(0, segment_of_row(offsets, values.shape[0]), values.to(torch.int64))
        return sums[:-1].clone()
    wide = torch.float64 if values.dtype in (torch.float32, torch.float64) else torch.float32
    sums = torch.segment_reduce(
        values.to(wide).contiguous(), "sum", offsets=offsets, axis=0, unsafe=True, initial=0
    )
    return sums.to(out.dtype)


def _segment_expand_fake(values: Tensor, offsets: Tensor, total: int) -> Tensor:
    require(values.dim() >= 1, lambda: "gr::segment_expand: values must be [B, ...], not a scalar")
    _check_offsets("segment_expand", offsets)
    require(
        offsets.shape[0] == values.shape[0] + 1,
        lambda: (
            f"gr::segment_expand: {values.shape[0]} rows of values need {values.shape[0] + 1} offsets, "
            f"not {offsets.shape[0]}"
        ),
    )
    return values.new_empty((total, *values.shape[1:]))


def segment_expand_reference(values: Tensor, offsets: Tensor, total: int) -> Tensor:
    """Row b of `values` [B, *rest] at each row of sequence b -> [total, *rest]; zero behind offsets[B]."""
    _segment_expand_fake(values, offsets, total)
    with_filling = torch.cat([values, values.new_zeros((1, *values.shape[1:]))])
    return with_filling.index_select(0, segment_of_row(offsets, total))


# -------------------------------------------------------------------------------------------- suffix_any


def _suffix_any_fake(mask: Tensor) -> Tensor:
    require(mask.dtype == torch.bool, lambda: f"gr::suffix_any: mask must be bool, not {mask.dtype}")
    require(mask.dim() == 2, lambda: f"gr::suffix_any: mask must be [B, N], not {mask.dim()}-dimensional")
    return mask.new_empty(mask.shape)


def suffix_any_reference(mask: Tensor) -> Tensor:
    """bool [B, N] -> bool [B, N]: true where a place at or after this one, in the same row, is true."""
    out = _suffix_any_fake(mask)
    if out.numel() == 0:
        return out
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    return places <= (mask * places).amax(1, keepdim=True)


pack = define_operator("pack(Tensor dense, Tensor index) -> Tensor", pack_reference, _pack_fake)
unpack = define_operator(
    "unpack(Tensor values, Tensor index, SymInt batch, SymInt length, Scalar fill=0) -> Tensor",
    unpack_reference,
    _unpack_fake,
)
segment_sum = define_operator(
    "segment_sum(Tensor values, Tensor offsets) -> Tensor", segment_sum_reference, _segment_sum_fake
)
segment_expand = define_operator(
    "segment_expand(Tensor values, Tensor offsets, SymInt total) -> Tensor",
    segment_expand_reference,
    _segment_expand_fake,
)
suffix_any = define_operator("suffix_any(Tensor mask) -> Tensor", suffix_any_reference, _suffix_any_fake)


def _pack_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    dense, index = inputs
    ctx.save_for_backward(index)
    ctx.batch, ctx.length = dense.shape[0], dense.shape[1]


def _pack_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (index,) = ctx.saved_tensors
    return unpack(grad, index, ctx.batch, ctx.length), None


def _unpack_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _unpack_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
    (index,) = ctx.saved_tensors
    return pack(grad, index), None, None, None, None


def _segment_sum_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, offsets = inputs
    ctx.save_for_backward(offsets)
    ctx.total = values.shape[0]


def _segment_sum_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (offsets,) = ctx.saved_tensors
    return segment_expand(grad, offsets, ctx.total), None


def _segment_expand_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _segment_expand_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (offsets,) = ctx.saved_tensors
    return segment_sum(grad, offsets), None, None


torch.library.register_autograd("gr::pack", _pack_backward, setup_context=_pack_setup, lib=LIBRARY)
torch.library.register_autograd("gr::unpack", _unpack_backward, setup_context=_unpack_setup, lib=LIBRARY)
torch.library.register_autograd(
    "gr::segment_sum", _segment_sum_backward, setup_context=_segment_sum_setup, lib=LIBRARY
)
torch.library.register_autograd(
    "gr::segment_expand", _segment_expand_backward, setup_context=_segment_expand_setup, lib=LIBRARY
)
