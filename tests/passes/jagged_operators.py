"""fbgemm's jagged operators in plain torch, for tests where fbgemm is not installed; in every floating dtype.

Its semantics (CPU, 1.8.0): rows of a sequence beyond the dense length are 0, a padded tensor leaves them out.
tests/corpus runs the same idiom with fbgemm's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_LIBRARY = torch.library.Library("fbgemm", "FRAGMENT")


def _cumsum(t_in: Tensor) -> Tensor:
    return F.pad(t_in.cumsum(0), (1, 0))


def _dense_to_jagged(
    dense: Tensor, x_offsets: Sequence[Tensor], total_L: int | None = None
) -> tuple[Tensor, list[Tensor]]:
    offsets, length = x_offsets[0], dense.shape[1]
    total = offsets[-1].item() if total_L is None else total_L
    torch._check(total >= 0)  # type: ignore[operator]
    rows = torch.arange(total)  # type: ignore[arg-type]
    sequence = torch.searchsorted(offsets[1:].contiguous(), rows, right=True)
    place = rows - offsets[sequence]
    found = dense[sequence, place.clamp(max=length - 1)]
    inside = (place < length).reshape(-1, *[1] * (dense.dim() - 2))
    return torch.where(inside, found, torch.zeros_like(found)), list(x_offsets)


def _jagged_to_padded_dense(
    values: Tensor, offsets: Sequence[Tensor], max_lengths: Sequence[int], padding_value: float = 0.0
) -> Tensor:
    starts, ends = offsets[0][:-1, None], offsets[0][1:, None]
    rows = starts + torch.arange(max_lengths[0])
    inside = (rows < ends).reshape(*rows.shape, *[1] * (values.dim() - 1))
    found = torch.cat([values, values.new_zeros((1, *values.shape[1:]))])[torch.where(rows < ends, rows, -1)]
    return torch.where(inside, found, torch.full_like(found, padding_value))


def define() -> None:
    """Make the operators known, unless they are."""
    if hasattr(torch.ops.fbgemm, "dense_to_jagged"):
        return
    for schema, function in (
        ("asynchronous_complete_cumsum(Tensor t_in) -> Tensor", _cumsum),
        ("dense_to_jagged(Tensor dense, Tensor[] x_offsets, SymInt? total_L=None) -> (Tensor, Tensor[])", _dense_to_jagged),
        (
            "jagged_to_padded_dense(Tensor values, Tensor[] offsets, SymInt[] max_lengths, float padding_value=0.) -> Tensor",
            _jagged_to_padded_dense,
        ),
    ):
        _LIBRARY.define(schema)
        _LIBRARY.impl(schema.partition("(")[0], function, "CompositeImplicitAutograd")
