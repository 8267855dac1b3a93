"""Declared padding: cheap checks of every call's data against what the user declared."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gr_compile.config import Config, Padding


class PaddingError(ValueError):
    """The data of a call contradicts the declared padding. Says which argument and which row."""


def as_padding(declared: int | str | Padding, value: Any, named: Any) -> Padding:
    """The declaration in full: a name is a lengths argument when that argument is [B], a mask when [B, N]."""
    if isinstance(declared, Padding):
        return declared
    if isinstance(declared, str):
        if declared == "self":
            return Padding(mask="self")
        rank = getattr(named, "ndim", None)
        return Padding(lengths=declared) if rank == 1 else Padding(mask=declared)
    return Padding(pad_id=declared)


def check_declared_lengths(
    config: Config, signature: inspect.Signature | None, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Lengths are integers [B] on the argument's device, and 0 <= length <= N.

    Raises:
        PaddingError: they are not.
    """
    if signature is None:
        return
    try:
        arguments = signature.bind(*args, **kwargs).arguments
    except TypeError:
        return  # the call itself will fail, with Python's own message
    for name, declared in config.declared.items():
        if name not in arguments:
            continue
        named = arguments.get(declared) if isinstance(declared, str) else None
        padding = as_padding(declared, arguments[name], named)
        value = arguments[name]
        if not isinstance(value, torch.Tensor):
            raise PaddingError(f"padding declares {name!r}, which is {type(value).__name__}, not a tensor")
        if padding.lengths is not None:
            _check_lengths(name, value, padding.lengths, arguments.get(padding.lengths))
        if padding.mask is not None:
            mask_name = name if padding.mask == "self" else padding.mask
            _check_mask(name, value, mask_name, arguments.get(mask_name))


def _check_lengths(name: str, value: torch.Tensor, lengths_name: str, lengths: Any) -> None:
    if not isinstance(lengths, torch.Tensor):
        raise PaddingError(f"the lengths of {name!r}, {lengths_name!r}, are {type(lengths).__name__}, not a tensor")
    if lengths.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8):
        raise PaddingError(f"{lengths_name!r} has dtype {lengths.dtype}; lengths are integers")
    if value.dim() < 2:
        raise PaddingError(f"{name!r} has shape {tuple(value.shape)}; a padded argument is [B, N, ...]")
    if lengths.shape != value.shape[:1]:
        raise PaddingError(f"{lengths_name!r} has shape {tuple(lengths.shape)}; {name!r} needs ({value.shape[0]},)")
    if lengths.device != value.device:
        raise PaddingError(f"{lengths_name!r} is on {lengths.device}, {name!r} on {value.device}")
    if lengths.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(lengths))
    if low < 0 or high > value.shape[1]:
        row = int((lengths < 0).nonzero()[0] if low < 0 else (lengths > value.shape[1]).nonzero()[0])
        raise PaddingError(f"{lengths_name}[{row}] = {int(lengths[row])}; a length of {name!r} is in [0, {value.shape[1]}]")


def _check_mask(name: str, value: torch.Tensor, mask_name: str, mask: Any) -> None:
    if not isinstance(mask, torch.Tensor):
        raise PaddingError(f"the mask of {name!r}, {mask_name!r}, is {type(mask).__name__}, not a tensor")
    if mask.dtype != torch.bool and mask.numel() and not bool(((mask == 0) | (mask == 1)).all()):
        raise PaddingError(f"{mask_name!r} is a mask: its elements are 0 or 1 (true or 1 = valid)")
    if mask.shape[:2] != value.shape[:2]:
        raise PaddingError(f"{mask_name!r} has shape {tuple(mask.shape)}; {name!r} has {tuple(value.shape)}")
