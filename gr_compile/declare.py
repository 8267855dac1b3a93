"""Declared padding: cheap checks of every call's data against what the user declared."""

from __future__ import annotations

import inspect
import itertools
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


def check_declared_padding(
    config: Config, signature: inspect.Signature | None, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Declared arguments are [B, N, ...]; lengths are integers [B] in 0..N, masks are 0 or 1 and [B, N].

    Under verify="numerics" declared lengths and masks must also call the same places valid.

    Raises:
        PaddingError: they are not.
    """
    arguments = _bound(signature, args, kwargs)
    places: dict[str, torch.Tensor] = {}
    for name, declared in config.declared.items():
        value = arguments.get(name)
        if value is None:
            continue  # left out of the call, or wrong arguments, of which Python's own message will tell
        if not isinstance(value, torch.Tensor):
            raise PaddingError(f"padding declares {name!r}, which is {type(value).__name__}, not a tensor")
        if value.dim() < 2:
            raise PaddingError(f"{name!r} has shape {tuple(value.shape)}; a padded argument is [B, N, ...]")
        padding = as_padding(declared, value, arguments.get(declared) if isinstance(declared, str) else None)
        if padding.lengths is not None:
            _check_lengths(name, value, padding.lengths, arguments.get(padding.lengths))
        if padding.mask is not None:
            mask_name = name if padding.mask == "self" else padding.mask
            _check_mask(name, value, mask_name, arguments.get(mask_name))
        if config.verify == "numerics" and padding.pad_id is None:
            places[name] = _places(padding, name, arguments)
    _check_agreement(places)


def _bound(
    signature: inspect.Signature | None, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The call's arguments by name; those that Python collects (**fields) too."""
    if signature is None:
        return {}
    try:
        bound = signature.bind(*args, **kwargs).arguments
    except TypeError:
        return {}
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            bound.update(bound.pop(name, {}))
    return bound


def _check_lengths(name: str, value: torch.Tensor, lengths_name: str, lengths: Any) -> None:
    if not isinstance(lengths, torch.Tensor):
        kind = type(lengths).__name__
        raise PaddingError(f"the lengths of {name!r}, {lengths_name!r}, are {kind}, not a tensor")
    if lengths.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8):
        raise PaddingError(f"{lengths_name!r} has dtype {lengths.dtype}; lengths are integers")
    if lengths.shape != value.shape[:1]:
        shape = tuple(lengths.shape)
        raise PaddingError(f"{lengths_name!r} has shape {shape}; {name!r} needs ({value.shape[0]},)")
    if lengths.device != value.device:
        raise PaddingError(f"{lengths_name!r} is on {lengths.device}, {name!r} on {value.device}")
    if lengths.numel() == 0:
        return
    longest = value.shape[1]
    low, high = (int(bound) for bound in torch.aminmax(lengths))
    if low < 0 or high > longest:
        row = int((lengths < 0).nonzero()[0] if low < 0 else (lengths > longest).nonzero()[0])
        found = f"{lengths_name}[{row}] = {int(lengths[row])}"
        raise PaddingError(f"{found}; a length of {name!r} is in [0, {longest}]")


def _check_mask(name: str, value: torch.Tensor, mask_name: str, mask: Any) -> None:
    if not isinstance(mask, torch.Tensor):
        kind = type(mask).__name__
        raise PaddingError(f"the mask of {name!r}, {mask_name!r}, is {kind}, not a tensor")
    if mask.shape[:2] != value.shape[:2]:
        raise PaddingError(f"{mask_name!r} has shape {tuple(mask.shape)}; {name!r} has {tuple(value.shape)}")
    if mask.device != value.device:
        raise PaddingError(f"{mask_name!r} is on {mask.device}, {name!r} on {value.device}")
    if mask.dtype != torch.bool and mask.numel() and not bool(((mask == 0) | (mask == 1)).all()):
        raise PaddingError(f"{mask_name!r} is a mask: its elements are 0 or 1 (true or 1 = valid)")


def _places(padding: Padding, name: str, arguments: Mapping[str, Any]) -> torch.Tensor:
    """bool [B, N]: the places that lengths or a mask call valid."""
    if padding.mask is not None:
        mask: torch.Tensor = arguments[name if padding.mask == "self" else padding.mask]
        return mask.bool().flatten(2).any(-1) if mask.dim() > 2 else mask.bool()
    lengths, longest = arguments[str(padding.lengths)][:, None], arguments[name].shape[1]
    place = torch.arange(longest, device=lengths.device)
    valid: torch.Tensor = place < lengths if padding.side == "right" else place >= longest - lengths
    return valid


def _check_agreement(places: Mapping[str, torch.Tensor]) -> None:
    """Declared arguments of one [B, N] have the same valid places."""
    for (first, ours), (second, theirs) in itertools.combinations(places.items(), 2):
        if ours.shape != theirs.shape or torch.equal(ours, theirs):
            continue
        row = int((ours != theirs).any(1).nonzero()[0])
        raise PaddingError(
            f"the declarations of {first!r} and {second!r} disagree: in row {row} they call "
            f"{int(ours[row].sum())} and {int(theirs[row].sum())} places valid, not the same ones"
        )
