"""Values in 16 bits with a scale, and back: what is stored is half as wide, what is computed with is not.

    gr::quantize     x [*, D] -> stored [*, D] of 16 bits, scale             stored * scale is x, rounded once
    gr::dequantize   stored, scale, like -> [*, D] of like's dtype           the gradient goes to `like`, as it is

A scale is a power of two, so that it rounds nothing itself; it brings the largest finite magnitude that it is for to
2^14 .. 2^15, which leaves float16 the most room below. Infinities and NaN stay what they are. A pass puts the two
around a value x: `dequantize(*quantize(x.detach()), x)`. The gradient is then never of 16 bits, whatever its size: a
loss scale, or none, changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

from gr_compile.ops.registry import LIBRARY, define_operator, require

SCALES = ("none", "per-token", "per-table")
STORED = (torch.float16, torch.bfloat16)
_TOP = 15  # magnitudes below 2^15 fit in float16, rounded up or not


def check_request(operator: str, x: Tensor, dtype: torch.dtype, scale: str) -> None:
    """ValueError where a value cannot be stored as it is asked."""
    require(x.is_floating_point(), lambda: f"{operator}: values must be floating point, not {x.dtype}")
    require(dtype in STORED, lambda: f"{operator}: dtype must be float16 or bfloat16, not {dtype}")
    require(scale in SCALES, lambda: f"{operator}: scale must be one of {', '.join(SCALES)}, not {scale!r}")


def raise_overflow(operator: str, where: str, value: float, dtype: torch.dtype) -> NoReturn:
    """OverflowError: a finite value is none in 16 bits."""
    raise OverflowError(
        f"{operator}: {where} is {value:.6g}, and the largest number of {dtype} is {torch.finfo(dtype).max:.6g}; "
        f"store with scale=per-table or per-token, or as bfloat16"
    )


def scale_of(x: Tensor, scale: str) -> Tensor:
    """What the values [*, D] are divided by, float32: [*, 1] by token, [1] for all, [0] for none."""
    if scale == "none":
        return x.new_empty(0, dtype=torch.float32)
    finite = torch.where(x.isfinite(), x, 0).abs()
    if scale == "per-table":
        return power_of_two(finite.amax().reshape(1) if x.numel() else finite.new_zeros(1))
    return power_of_two(finite.amax(-1, keepdim=True) if x.shape[-1] else finite.new_zeros((*x.shape[:-1], 1)))


def power_of_two(largest: Tensor) -> Tensor:
    """The scale that brings a magnitude to 2^14 .. 2^15; 1 for 0."""
    known = largest.to(torch.float64).clamp(max=torch.finfo(torch.float32).max).to(torch.float32)
    exponent = (torch.frexp(known).exponent - _TOP).clamp(-126, 127)
    return torch.where(known > 0, torch.ldexp(torch.ones_like(known), exponent), 1.0)


def _quantize_fake(x: Tensor, dtype: torch.dtype, scale: str) -> tuple[Tensor, Tensor]:
    check_request("gr::quantize", x, dtype, scale)
    require(x.dim() >= 1, lambda: "gr::quantize: values must be [*, D], not a scalar")
    shapes = {"none": (0,), "per-table": (1,), "per-token": (*x.shape[:-1], 1)}
    return x.new_empty(x.shape, dtype=dtype), x.new_empty(shapes[scale], dtype=torch.float32)


def quantize_reference(x: Tensor, dtype: torch.dtype, scale: str) -> tuple[Tensor, Tensor]:
    """(`x` [*, D] divided by its scale and rounded to `dtype`, the scale).

    Scales are float32: [*, 1], one for each row of features, with "per-token"; [1] with "per-table"; no elements with
    "none".

    Raises:
        ValueError: x is not floating point, dtype not of 16 bits, scale unknown.
        OverflowError: on the CPU: a finite value would be stored as an infinity; the first is named. Elsewhere the
            device's own assertion fails.
    """
    _quantize_fake(x, dtype, scale)
    factor = scale_of(x, scale)
    stored = rounded(x, factor, dtype)

    def name(place: tuple[int, ...]) -> NoReturn:
        raise_overflow("gr::quantize", f"the value at {[*place]}", float(x[place]), dtype)

    check_overflow(x, stored, name)
    return stored, factor


def rounded(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` divided by what `scale_of` found, in `dtype`."""
    wide = x if x.dtype == torch.float64 else x.float()
    scaled = wide * (1 / scale).to(wide.dtype) if scale.numel() else wide
    return scaled.to(dtype, copy=True, memory_format=torch.contiguous_format)


def check_overflow(x: Tensor, stored: Tensor, name: Callable[[tuple[int, ...]], NoReturn]) -> None:
    """Calls `name` with the place of the first finite value that is stored as an infinity, if there is one."""
    lost = stored.isinf() & x.isfinite()
    if x.device.type != "cpu":
        torch._assert_async(~lost.any(), f"a value is too large for {stored.dtype}")
    elif bool(lost.any()):
        name(tuple(int(k) for k in lost.nonzero()[0]))


def _dequantize_fake(stored: Tensor, scale: Tensor | None, like: Tensor) -> Tensor:
    for given, wanted in zip(stored.shape, like.shape):
        require(
            given == wanted,
            lambda: f"gr::dequantize: stored must be {[*like.shape]} as `like` is, not {[*stored.shape]}",
        )
    return like.new_empty(like.shape)


def dequantize_reference(stored: Tensor, scale: Tensor | None, like: Tensor) -> Tensor:
    """`stored` [*, D] times `scale` (None: 1), in the dtype of `like` [*, D], to which the gradient goes unchanged."""
    _dequantize_fake(stored, scale, like)
    if scale is None:
        return stored.to(like.dtype, copy=True, memory_format=torch.contiguous_format)
    wide = torch.promote_types(like.dtype, torch.float32)
    return (stored.to(wide) * scale.to(wide)).to(like.dtype, memory_format=torch.contiguous_format)


quantize = define_operator(
    "quantize(Tensor x, ScalarType dtype, str scale) -> (Tensor stored, Tensor scale)",
    quantize_reference,
    _quantize_fake,
)
dequantize = define_operator(
    "dequantize(Tensor stored, Tensor? scale, Tensor like) -> Tensor", dequantize_reference, _dequantize_fake
)


def _derivative(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return None, None, grad


torch.library.register_autograd("gr::dequantize", _derivative, lib=LIBRARY)
