"""What stands for operators that torchair has no converter of; each gives what the operator gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table

from gr_compile.lowering.torchair.composed import COMPOSED

aten = torch.ops.aten


def decompositions(has_converter: Callable[[Any], bool]) -> dict[Any, Callable[..., Any]]:
    """Ours, those of gr:: operators without a node, and torch's own where an ATen operator has one in terms of ATen
    there, and no converter here."""
    table: Mapping[Any, Callable[..., Any]] = decomposition_table
    theirs = {
        op: formula for op, formula in table.items()
        if isinstance(op, torch._ops.OpOverload) and op.namespace == "aten" and not has_converter(op)
        and formula.__module__ == "torch._decomp.decompositions"  # those of torch._refs end in prims
    }  # fmt: skip
    composed = {getattr(torch.ops.gr, name.removeprefix("gr::")).default: made for name, made in COMPOSED.items()}
    return {**theirs, **OURS, **composed}


def bucketize(values: Tensor, boundaries: Tensor, *, out_int32: bool = False, right: bool = False) -> Any:
    """The bucket of each value: a search in the boundaries, one row of values in one row of boundaries."""
    found = aten.searchsorted.Tensor(boundaries, values.reshape(-1), out_int32=out_int32, right=right)
    return found.reshape(values.shape)


def embedding_dense_backward(grad: Tensor, ids: Tensor, rows: int, padding: int, by_frequency: bool) -> Any:
    """The gradient of a table by `gr::lookup_gradient`: summed in a fixed order."""
    if by_frequency:
        return NotImplemented
    return torch.ops.gr.lookup_gradient(grad, ids, rows, padding)


def repeat_interleave(repeats: Tensor, *, output_size: int | None = None) -> Any:
    """Number k, repeats[k] times: row k of an arange at the places of sequence k."""
    if output_size is None:
        return NotImplemented  # how many there are is known to the data alone
    offsets = aten.constant_pad_nd.default(repeats.to(torch.int64).cumsum(0), [1, 0])
    numbers = torch.arange(repeats.shape[0], device=repeats.device)
    return torch.ops.gr.segment_expand(numbers, offsets, output_size).to(repeats.dtype)


def index_put(self: Tensor, indices: Sequence[Tensor | None], values: Tensor, accumulate: bool = False) -> Any:
    """Elements at places of the leading dimensions: rows of a flattened tensor, written or added.

    Only for integer indices of the first dimensions; others are left as they are. Where two places are equal and
    nothing is added, torch promises neither value.
    """
    given = [index for index in indices if index is not None]
    if len(given) < len(indices) or not given or any(index.dtype == torch.bool for index in given):
        return NotImplemented
    sizes, rest = self.shape[: len(given)], self.shape[len(given) :]
    shape: Any = torch.broadcast_shapes(*(index.shape for index in given))  # type: ignore[no-untyped-call]
    place = torch.zeros((), dtype=torch.int64, device=self.device)
    rows: Any = 1
    for index, size in zip(given, sizes):
        place = place * size + torch.where(index < 0, index + size, index)
        rows = rows * size
    flat, places = self.reshape(rows, *rest), place.expand(shape).reshape(-1)
    written = values.expand(*shape, *rest).reshape(places.shape[0], *rest)
    made = flat.index_add(0, places, written) if accumulate else _index_copy(flat, places, written)
    return made.reshape(self.shape)


def _index_copy(flat: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    """Written row by row: scatter along the first dimension."""
    wide = places.reshape(-1, *[1] * (flat.dim() - 1)).expand(rows.shape)
    return flat.scatter(0, wide, rows)


def amax(x: Tensor, dims: Sequence[int] = (), keepdim: bool = False) -> Any:
    """The maximum over one dimension after the other."""
    over = sorted({dim % x.dim() for dim in dims} if dims else range(x.dim()), reverse=True)
    for dim in over:
        x = aten.max.dim(x, dim, keepdim)[0]
    return x


_DIGIT = 22  # bits: torchair draws a whole number as a float32 in [0, 1) times the bound


def randint(low: int, high: int, size: Sequence[int], *, dtype: Any = torch.int64, device: Any = None, **_: Any) -> Any:
    """Numbers in [low, high), in digits of 22 bits: seeds of attention's dropout have 62."""
    if not isinstance(low, int) or not isinstance(high, int):
        return NotImplemented
    span = rest = high - low
    value, shift = aten.randint.default(min(rest, 1 << _DIGIT), size, dtype=torch.int64, device=device), 0
    while rest > 1 << _DIGIT:
        shift, rest = shift + _DIGIT, -(-rest >> _DIGIT)
        digit = aten.randint.default(min(rest, 1 << _DIGIT), size, dtype=torch.int64, device=device)
        value = value + digit * (1 << shift)
    return (value % span + low if shift else value + low).to(dtype or torch.int64)


def sub_scalar(x: Tensor, other: Any, alpha: Any = 1) -> Any:
    """The form for tensors takes numbers, too."""
    return aten.sub.Tensor(x, other, alpha=alpha)


def div_scalar_mode(x: Tensor, other: Any, *, rounding_mode: str | None = None) -> Any:
    """The form for tensors takes numbers, too."""
    return aten.div.Tensor_mode(x, other, rounding_mode=rounding_mode)


def shift_right(x: Tensor, bits: Any) -> Any:
    """A shift of a whole number is a division that is rounded down."""
    if x.dtype == torch.bool or not isinstance(bits, int) or not 0 <= bits <= x.element_size() * 8 - 2:
        return NotImplemented
    return aten.floor_divide.default(x, 1 << bits)


def bitwise_and_scalar(x: Tensor, other: Any) -> Any:
    """The form for two tensors, of one dtype."""
    if x.dtype == torch.bool or not isinstance(other, int):
        return NotImplemented
    return aten.bitwise_and.Tensor(x, torch.full((), other, dtype=x.dtype, device=x.device))


def bitwise_xor(x: Tensor, y: Tensor) -> Any:
    """What is in one of the two: what is in either, less what is in both; of booleans, whether they differ."""
    if torch.bool in (x.dtype, y.dtype):
        return x.ne(y) if x.dtype == y.dtype else NotImplemented
    return aten.bitwise_or.Tensor(x, y) - aten.bitwise_and.Tensor(x, y)


def roll(x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Any:
    """The last places in front of the others, a dimension after the other; without dimensions, of all elements."""
    if not dims:
        return roll(x.reshape(-1), shifts, [0]).reshape(x.shape)
    for shift, dim in zip(shifts, dims):
        size = x.shape[dim]
        split = (size - shift) % size if isinstance(size, torch.SymInt) or size else 0
        x = torch.cat([x.narrow(dim, split, size - split), x.narrow(dim, 0, split)], dim)
    return x


def softplus(x: Tensor, beta: Any = 1, threshold: Any = 20) -> Any:
    """log(1 + exp(beta x)) / beta, in float32 for halves; x itself where that differs from it by nothing."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    scaled = wide * beta
    large = scaled > threshold
    return torch.where(large, wide, torch.log1p(torch.exp(scaled.masked_fill(large, 0))) / beta).to(x.dtype)


OURS: Mapping[Any, Callable[..., Any]] = {
    aten.__rshift__.Scalar: shift_right,
    aten.amax.default: amax,
    aten.bitwise_and.Scalar: bitwise_and_scalar,
    aten.bitwise_xor.Tensor: bitwise_xor,
    aten.bucketize.Tensor: bucketize,
    aten.clamp_max.default: lambda x, most: aten.clamp.default(x, None, most),
    aten.clamp_max.Tensor: lambda x, most: aten.minimum.default(x, most),
    aten.clamp_min.Tensor: lambda x, least: aten.maximum.default(x, least),
    aten.div.Scalar_mode: div_scalar_mode,
    aten.embedding_dense_backward.default: embedding_dense_backward,
    aten.floor_divide.Scalar: lambda x, other: aten.floor_divide.default(x, other),
    aten.index_put.default: index_put,
    aten.isnan.default: lambda x: aten.ne.Tensor(x, x),
    aten.randint.low: randint,
    aten.repeat_interleave.Tensor: repeat_interleave,
    aten.roll.default: roll,
    aten.softplus.default: softplus,
    aten.sub.Scalar: sub_scalar,
}
