"""What a graph's inputs are: arguments of the model, or its parameters and buffers."""

from __future__ import annotations

import torch
import torch.fx as fx


def argument_name(placeholder: fx.Node) -> str:
    """`L['ids']` -> "ids"; "" for anything that is not an argument of the model."""
    source = str(placeholder.meta.get("gr_source", ""))
    return source[3:-2] if source.startswith("L['") and source.endswith("']") and source.count("[") == 1 else ""


def is_data(placeholder: fx.Node) -> bool:
    """An input that no gradient flows to and nothing trains: integers, masks, float features of a batch."""
    value = placeholder.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return not isinstance(value, torch.SymFloat)
    if not value.dtype.is_floating_point:
        return True
    return bool(argument_name(placeholder)) and not placeholder.meta.get("gr_requires_grad", True)
