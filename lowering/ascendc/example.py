"""Values of a graph as they were in the call that it is lowered with: sizes as numbers, tensors without content."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy
import torch

from gr_compile.inspection.values import size_hint
from gr_compile.sizes import size_expr

Sizes = Mapping[sympy.Symbol, int]
"""What symbols were that no input's shape tells: the number of packed tokens."""


def at_example(value: Any, counts: Sizes) -> Any:
    """The value, or each of a list; what is neither a size nor a tensor stays."""
    if isinstance(value, (list, tuple)):
        return [at_example(x, counts) for x in value]
    if isinstance(value, torch.Tensor):
        return torch.empty([_size(size, counts) for size in value.shape], dtype=value.dtype, device="meta")
    return _size(value, counts) if isinstance(value, torch.SymInt) else value


def _size(size: int | torch.SymInt, counts: Sizes) -> int:
    if isinstance(size, int):
        return size
    values = {**size.node.shape_env.backed_var_to_val, **counts}
    known = size_expr(size).xreplace({symbol: sympy.Integer(int(value)) for symbol, value in values.items()})
    return int(known) if known.is_Integer else size_hint(size)
