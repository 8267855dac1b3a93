"""What stands for operators whose code by TorchInductor is slow on the CPU; each gives what Inductor's gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp.decompositions import pw_cast_for_opmath
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

aten = torch.ops.aten

_HALF = {
    torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
    torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
}
_MOST_PRODUCTS = 64
_PRODUCTS = (aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Inductor's table with ours in it."""
    found = dict(select_decomp_table())
    found[aten.embedding_dense_backward.default] = _table_gradient(found[aten.embedding_dense_backward.default])
    found[aten.silu_backward.default] = silu_backward
    found[torch.ops.gr.dequantize.default] = dequantize
    for product in _PRODUCTS:
        found[product] = _half_product(product, found.get(product))
    found[aten.bmm.default] = _counted_rows(found[aten.bmm.default])
    return found


def _table_gradient(usual: Callable[..., Any]) -> Callable[..., Any]:
    """Inductor adds the rows of the gradient one by one, atomically, in any order."""

    def embedding_dense_backward(grad: Tensor, ids: Tensor, rows: int, padding: int, by_frequency: bool) -> Any:
        if by_frequency or grad.device.type != "cpu":
            return usual(grad, ids, rows, padding, by_frequency)
        return torch.ops.gr.lookup_gradient(grad, ids, rows, padding)

    return embedding_dense_backward


@pw_cast_for_opmath
def silu_backward(grad: Tensor, x: Tensor) -> Tensor:
    """grad · σ(x) · (1 + x · σ(-x)), for σ(-x) = 1 - σ(x): each σ is read once.

    On the CPU Inductor writes the value of an exp that is read twice to memory, as large as the activations.
    """
    return grad * torch.sigmoid(x) * (1 + x * torch.sigmoid(-x))


def dequantize(stored: Tensor, scale: Tensor | None, like: Tensor) -> Tensor:
    """In the loop that reads it; a backward makes it again from what is stored, and `like` is not kept for it."""
    if scale is None:
        return stored.to(like.dtype)
    wide = torch.promote_types(like.dtype, torch.float32)
    return (stored.to(wide) * scale.to(wide)).to(like.dtype)


def _counted_rows(usual: Callable[..., Any]) -> Callable[..., Any]:
    """Products with a size that only the data tells: Inductor asks whether it is 1, which nobody knows.

    einsum makes a batch of one of a plain product; an expert's or a head's weights make one of a few.
    """

    def bmm(left: Tensor, right: Tensor, **options: Any) -> Any:
        count = left.shape[0]
        told = usual(left, right, **options)
        if told is not NotImplemented or options or not isinstance(count, int) or not 0 < count <= _MOST_PRODUCTS:
            return told
        if not any(free_unbacked_symbols(size) for x in (left, right) for size in x.shape[1:]):
            return told
        products = [aten.mm(left[k], right[k]) for k in range(count)]
        return products[0].unsqueeze(0) if count == 1 else torch.stack(products)

    return bmm


def _half_product(product: Any, usual: Callable[..., Any] | None) -> Callable[..., Any]:
    """Products of 16-bit operands in float32, rounded once, where oneDNN has none for the processor.

    What torch falls back to there is a loop a hundred times slower; it accumulates in float32, too.
    """

    def in_float32(*operands: Any, **options: Any) -> Any:
        first = operands[0]
        if first.device.type == "cpu" and first.dtype in _HALF and not options and not _HALF[first.dtype]():
            wide = (x.float() if isinstance(x, Tensor) else x for x in operands)
            return product(*wide).to(first.dtype)
        return NotImplemented if usual is None else usual(*operands, **options)

    return in_float32
