"""The gradient of a table of embeddings, summed in a fixed order.

    gr::lookup_gradient   [*places, D], ids [*places] -> [rows, D]   the sum of the gradients of each row's lookups
"""

from __future__ import annotations

import torch
from torch import Tensor

from gr_compile.ops.registry import define_operator, require


def _lookup_gradient_fake(grad: Tensor, ids: Tensor, rows: int, padding: int) -> Tensor:
    require(
        not ids.is_floating_point() and ids.dtype != torch.bool,
        lambda: f"gr::lookup_gradient: ids must be whole numbers, not {ids.dtype}",
    )
    require(
        grad.dim() == ids.dim() + 1,
        lambda: f"gr::lookup_gradient: grad must have {ids.dim() + 1} dimensions, one more than ids, not {grad.dim()}",
    )
    return grad.new_empty((rows, grad.shape[-1]))


def lookup_gradient_reference(grad: Tensor, ids: Tensor, rows: int, padding: int) -> Tensor:
    """For each row of a table [rows, D] the sum of `grad` [*places, D] over the places whose id it is.

    Lookups of `padding` (-1: none) and ids outside the table count nothing. Halves are accumulated in float32.
    """
    out = _lookup_gradient_fake(grad, ids, rows, padding)
    wide = torch.float32 if out.dtype in (torch.float16, torch.bfloat16) else out.dtype
    flat = ids.reshape(-1).to(torch.int64)
    counts = (flat >= 0) & (flat < rows) & (flat != padding)
    sums = torch.zeros((rows + 1, out.shape[1]), dtype=wide, device=grad.device)
    sums.index_add_(0, torch.where(counts, flat, rows), grad.reshape(ids.numel(), out.shape[1]).to(wide))
    return sums[:-1].to(out.dtype, copy=True)


lookup_gradient = define_operator(
    "lookup_gradient(Tensor grad, Tensor ids, SymInt rows, SymInt padding) -> Tensor",
    lookup_gradient_reference,
    _lookup_gradient_fake,
)
