"""What a kernel is given: tensors that it reads, tensors that it writes, a workspace, the tiling's numbers."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

_CTYPES: Mapping[str, type[ctypes._SimpleCData[int]] | type[ctypes._SimpleCData[float]]] = {
    "int8_t": ctypes.c_int8,
    "uint8_t": ctypes.c_uint8,
    "int16_t": ctypes.c_int16,
    "uint16_t": ctypes.c_uint16,
    "int32_t": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
    "float": ctypes.c_float,
}
TilingFields = Sequence[tuple[str, str]]


@dataclass(frozen=True, eq=False)
class In:
    """A tensor that the kernel reads; writing to it is an error.

    `slack`: bytes behind its end that a device's allocation rounds up to. A copy may read them; what it reads there is
    junk, and an error where a result comes to depend on it.
    """

    tensor: torch.Tensor
    slack: int = 0


@dataclass(frozen=True, eq=False)
class Out:
    """A tensor that the kernel must write whole. Nothing is in it before: reading it then is an error."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class InOut:
    """A tensor that the kernel reads and writes (one that atomics add to, for example)."""

    tensor: torch.Tensor


@dataclass(frozen=True, eq=False)
class Listed:
    """Tensors that one parameter of the kernel lists: a dynamic input or output, read by ListTensorDesc."""

    items: Sequence[In | Out | InOut]


@dataclass(frozen=True)
class Workspace:
    """Global memory for the cores to exchange data in. Nothing is in it before."""

    size: int


@dataclass(frozen=True)
class Tiling:
    """The numbers of the tiling struct that the program was compiled with."""

    values: Mapping[str, int | float]


Single = In | Out | InOut | Workspace | Tiling
Argument = Single | Listed


def tiling_struct(tiling: TilingFields) -> str:
    """The C++ struct of a tiling's fields.

    Raises:
        ValueError: a field has a type that no tiling struct has.
    """
    unknown = [kind for _, kind in tiling if kind not in _CTYPES]
    if unknown:
        raise ValueError(f"unknown types in a tiling struct: {', '.join(unknown)}; known: {', '.join(_CTYPES)}")
    return "struct TilingData { " + " ".join(f"{kind} {name};" for name, kind in tiling) + " };\n"


def tiling_bytes(tiling: TilingFields, values: Mapping[str, int | float]) -> bytes:
    """The values laid out as the struct is.

    Raises:
        ValueError: fields without a value, or values without a field.
    """
    names = [name for name, _ in tiling]
    if set(names) != set(values):
        lacking, unknown = sorted(set(names) - set(values)), sorted(set(values) - set(names))
        raise ValueError(f"tiling: without a value {lacking}, without a field {unknown}")
    struct = type("TilingData", (ctypes.Structure,), {"_fields_": [(name, _CTYPES[kind]) for name, kind in tiling]})
    return bytes(struct(**values))


def content(argument: Single, tiling: TilingFields) -> bytes | None:
    """The bytes that an argument holds before the kernel runs, if it holds any."""
    if isinstance(argument, Tiling):
        return tiling_bytes(tiling, argument.values)
    if isinstance(argument, In | InOut):
        return argument.tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return None


def size_of(argument: Single, tiling: TilingFields) -> int:
    """Bytes of an argument."""
    if isinstance(argument, Workspace):
        return argument.size
    if isinstance(argument, Out):
        return torch.Size(argument.shape).numel() * argument.dtype.itemsize
    return len(content(argument, tiling) or b"")


def tensor_of(data: bytes, argument: Out | InOut) -> torch.Tensor:
    """What the kernel left in an argument."""
    dtype = argument.dtype if isinstance(argument, Out) else argument.tensor.dtype
    shape = argument.shape if isinstance(argument, Out) else argument.tensor.shape
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)
