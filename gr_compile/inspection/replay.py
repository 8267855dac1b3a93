"""What a dumped program needs when it runs: rebuilt inputs, summaries, the comparison with another stage."""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch

from gr_compile.dropout import WithoutDropout

# Largest |a - b| / |b| (norms of whole tensors) that still counts as equal: of outputs, of gradients.
TOLERANCES: Mapping[torch.dtype, tuple[float, float]] = {
    torch.float64: (1e-12, 1e-10),
    torch.float32: (1e-5, 1e-4),
    torch.bfloat16: (2e-2, 5e-2),
    torch.float16: (4e-3, 1e-2),
}
# Gradients below this part of the largest one are held to the tolerance of a gradient of that size.
_NOISE = 1e-3
Forward = Callable[..., Any]


@dataclass(frozen=True)
class TensorInput:
    """A tensor input: shape, stride, dtype, and how to fill it (see `inspection.inputs.RecordedInput`)."""

    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: str = "cpu"
    low: int | None = None
    high: int | None = None
    mean: float = 0.0
    scale: float = 1.0
    pattern: str = ""
    lengths_of: str = ""
    file: str = ""


@dataclass(frozen=True)
class SizeInput:
    """An input that is a number: a size, mostly."""

    name: str
    value: int | float | bool | None


def unprintable(text: str) -> NoReturn:
    """Stands in a printed program for an argument that has no source form."""
    raise NotImplementedError(f"this argument could not be written as Python source: {text}")


def load_constant(program: str, name: str, device: str = "cpu") -> torch.Tensor:
    """A constant saved beside the program whose `__file__` is `program`."""
    loaded = torch.load(Path(program).resolve().parent / name, weights_only=True)
    assert isinstance(loaded, torch.Tensor)
    return loaded.to(device)


def make_inputs(inputs: Sequence[TensorInput | SizeInput], seed: int, program: str) -> list[Any]:
    """Inputs of the recorded shapes, strides, dtypes and ranges; the same seed gives the same inputs."""
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, Any] = {}
    for entry in inputs:
        made[entry.name] = entry.value if isinstance(entry, SizeInput) else _fill(entry, generator, program)
    for entry in inputs:
        if isinstance(entry, TensorInput) and entry.lengths_of:
            made[entry.name] = (made[entry.lengths_of] != 0).sum(1).to(entry.dtype)
    return [made[entry.name] for entry in inputs]


def _fill(entry: TensorInput, generator: torch.Generator, program: str) -> torch.Tensor:
    if entry.file:
        values = load_constant(program, entry.file)
    elif entry.low is not None and entry.high is not None:
        values = _whole_numbers(entry, entry.low, entry.high, generator)
    elif entry.dtype.is_floating_point or entry.dtype.is_complex:
        dtype = torch.complex128 if entry.dtype.is_complex else torch.float64
        values = torch.randn(entry.shape, generator=generator, dtype=dtype) * entry.scale + entry.mean
    else:
        values = torch.zeros(entry.shape)
    return _with_strides(values.to(entry.dtype), entry.stride).to(entry.device)


def _whole_numbers(entry: TensorInput, low: int, high: int, generator: torch.Generator) -> torch.Tensor:
    # torch.randint's `high` is exclusive, and must still fit an int64.
    values = torch.randint(low, max(low, min(high, 2**63 - 2)) + 1, entry.shape, generator=generator)
    if entry.pattern == "sorted":
        return values.sort(dim=-1).values
    if entry.pattern in ("right", "left"):
        rows, width = entry.shape[:-1], entry.shape[-1]
        lengths = torch.randint(1, max(width, 1) + 1, (*rows, 1), generator=generator)
        place = torch.arange(width)
        present = place < lengths if entry.pattern == "right" else place >= width - lengths
        values = torch.where(present, torch.where(values == 0, max(high, 1), values), 0)
    return values


def _with_strides(values: torch.Tensor, stride: tuple[int, ...]) -> torch.Tensor:
    if values.numel() == 0 or values.stride() == stride:
        return values
    shared = [size for size, step in zip(values.shape, stride) if step == 0 and size > 1]
    if shared:  # an expanded tensor: its equal places share memory
        first = [0 if step == 0 else slice(None) for step in stride]
        inner = _with_strides(values[tuple(first)], tuple(step for step in stride if step))
        return inner.as_strided(values.shape, stride)
    storage = 1 + sum((size - 1) * step for size, step in zip(values.shape, stride))
    if storage < values.numel():  # overlapping windows: any values do
        return values.reshape(-1)[:storage].as_strided(values.shape, stride)
    return torch.empty_strided(values.shape, stride, dtype=values.dtype).copy_(values)


def flatten(value: Any, name: str = "output") -> Iterator[tuple[str, Any]]:
    """The leaves of nested outputs with their names (`output[1]`)."""
    if isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from flatten(item, f"{name}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from flatten(item, f"{name}[{key!r}]")
    else:
        yield name, value


def summary(value: Any) -> str:
    """One line about an output."""
    if not isinstance(value, torch.Tensor):
        return repr(value)
    text = f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if value.numel() == 0:
        return text + " empty"
    flat = value.detach().to("cpu").reshape(-1)
    flat = flat.abs() if flat.is_complex() else flat
    finite = flat.double()[flat.double().isfinite()]
    if finite.numel():
        text += (
            f" mean {float(finite.mean()):.6g} min {float(finite.min()):.6g} max {float(finite.max()):.6g}"
        )
    missing = flat.numel() - finite.numel()
    return text + (f" ({missing} inf or nan)" if missing else "")


def difference(ours: Any, theirs: Any, ignore_zeros: bool = False, floor: float = 0.0) -> float:
    """|ours - theirs| / max(|theirs|, floor), norms of whole tensors.

    inf when shapes, dtypes, or the places of inf and nan differ. `ignore_zeros`: places where ours is exactly
    zero do not count, unless all of it is.
    """
    if not isinstance(ours, torch.Tensor) or not isinstance(theirs, torch.Tensor):
        return 0.0 if type(ours) is type(theirs) and (ours == theirs or ours != ours) else math.inf
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return math.inf
    a, b = ours.detach().cpu().to(_wide(ours)), theirs.detach().cpu().to(_wide(theirs))
    if ignore_zeros and bool(a.any()):  # nothing but zeros is no padding: it would be equal to everything
        b = torch.where(a == 0, torch.zeros_like(b), b)
    same = (a == b) | ((a != a) & (b != b))
    if bool(same.all()):
        return 0.0
    if bool(((~a.isfinite() | ~b.isfinite()) & ~same).any()):
        return math.inf
    finite = a.isfinite() & b.isfinite()
    # Scaled first: a float32 minimum (a mask's value) squared would overflow.
    scale = float(b[finite].abs().max()) or float(a[finite].abs().max())
    norm = max(float((b[finite] / scale).norm()), floor / scale)
    gap = float(((a[finite] - b[finite]) / scale).norm())
    return gap / norm if norm else math.inf


def _wide(value: torch.Tensor) -> torch.dtype:
    return torch.complex128 if value.is_complex() else torch.float64


def load_program(path: Path) -> ModuleType:
    """Another stage's program as a module, kept out of `sys.modules`."""
    spec = importlib.util.spec_from_file_location(f"gr_compile_stage_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _gradients(
    outputs: Any, leaves: Mapping[str, torch.Tensor], places: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Gradients of the outputs, summed with fixed uneven weights: a plain sum hides errors behind softmax.

    `places` holds, by output, which of its places count.
    """
    total: Any = 0.0
    for name, value in flatten(outputs):
        if isinstance(value, torch.Tensor) and value.requires_grad and not value.is_complex():
            weights = torch.cos(torch.arange(value.numel(), dtype=torch.float64)).reshape(value.shape)
            weights = torch.where(places[name], weights, 0.0) if name in places else weights
            total = total + (value * weights.to(value)).sum()
    if not isinstance(total, torch.Tensor):
        return {}
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    filled = (torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves.values(), found))
    return dict(zip(leaves, filled))


@dataclass(frozen=True)
class Program:
    """A dumped program: what `main` runs.

    `exact`: outputs must be bitwise equal to the previous stage's. `precision`: the coarsest float type
    inside; its tolerance holds for finer outputs too. `ignore_zeros`: see `difference`.
    """

    file: str
    forward: Forward
    make_inputs: Callable[[int], list[Any]]
    names: tuple[str, ...]
    previous: str = ""
    exact: bool = False
    precision: torch.dtype | None = None
    ignore_zeros: bool = False

    def run(self, seed: int, grad: bool) -> tuple[Any, dict[str, torch.Tensor]]:
        """Outputs on rebuilt inputs, and the inputs that gradients can be taken of."""
        values = self.make_inputs(seed)
        leaves: dict[str, torch.Tensor] = {}
        for name, value in zip(self.names, values):
            if grad and isinstance(value, torch.Tensor) and value.is_floating_point():
                leaves[name] = value.requires_grad_()
        torch.manual_seed(seed)
        with torch.set_grad_enabled(grad):
            return self.forward(*values), leaves


def main(program: Program, arguments: Sequence[str] | None = None) -> int:
    """Run a dumped program and print its outputs; `--check` compares with the stage before. 0: all well."""
    parser = argparse.ArgumentParser(description=f"One stage of a compiled graph: {Path(program.file).name}")
    check_help = "compare outputs and gradients with the stage before, dropout off; exit code 1 if unequal"
    parser.add_argument("--check", action="store_true", help=check_help)
    parser.add_argument(
        "--against", default=program.previous, help="the program to compare with (same folder)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the rebuilt inputs (default 0)")
    options = parser.parse_args(arguments)
    if options.check:
        return _check(program, options.against, options.seed)
    outputs, _ = program.run(options.seed, grad=False)
    for name, value in flatten(outputs):
        print(f"{name}: {summary(value)}")
    return 0


def _check(program: Program, against: str, seed: int) -> int:
    if not against:
        program.run(seed, grad=False)
        print(
            f"{Path(program.file).name} runs; it is the first stage, so there is nothing to compare it with"
        )
        return 0
    module = load_program(Path(program.file).resolve().parent / against)
    other: Program = module.PROGRAM
    if other.names != program.names:
        print(f"DIFFERENT from {against}: inputs {program.names} against {other.names}")
        return 1
    # The other stage is run on this stage's inputs, so that only the two programs differ.
    other = Program(other.file, other.forward, program.make_inputs, program.names)
    with WithoutDropout():
        ours, theirs = program.run(seed, grad=False)[0], other.run(seed, grad=False)[0]
        equal = _compare_outputs(program, ours, theirs)
        equal = _compare_gradients(program, other, seed, ours) and equal
    print(f"{'equal to' if equal else 'DIFFERENT from'} {against}")
    return 0 if equal else 1


def _compare_outputs(program: Program, ours: Any, theirs: Any) -> bool:
    left, right = dict(flatten(ours)), dict(flatten(theirs))
    if left.keys() != right.keys():
        print(f"outputs {list(left)} against {list(right)}")
        return False
    good = True
    for name, value in left.items():
        limit = 0.0 if program.exact else _tolerance(program, value)[0]
        gap = difference(value, right[name], program.ignore_zeros)
        good = _line(name, gap, limit, value, right[name]) and good
    return good


def _compare_gradients(program: Program, other: Program, seed: int, ours: Any) -> bool:
    """`ours`: this stage's outputs, which say which places count under `ignore_zeros`."""
    places = {n: v != 0 for n, v in flatten(ours) if program.ignore_zeros and isinstance(v, torch.Tensor)}
    try:
        reference = _gradients(*other.run(seed, grad=True), places)
    except (RuntimeError, NotImplementedError) as error:
        print(f"gradients: not compared, the stage before has none ({str(error).splitlines()[0]})")
        return True
    if not reference:
        print("gradients: none, no output depends on a float input")
        return True
    try:
        found = _gradients(*program.run(seed, grad=True), places)
    except (RuntimeError, NotImplementedError) as error:
        print(f"gradients: DIFFERENT, only the stage before has any ({str(error).splitlines()[0]})")
        return False
    # A gradient that is zero in exact arithmetic is rounding noise in both; noise has no relative error.
    norms = (float(g.double().norm()) for g in reference.values())
    floor = _NOISE * max((norm for norm in norms if math.isfinite(norm)), default=0.0)
    good = True
    for name, expected in reference.items():
        limit = _tolerance(program, expected)[1]
        ours_here = found.get(name, torch.zeros_like(expected))
        gap = difference(ours_here, expected, floor=floor)
        good = _line(f"gradient of {name}", gap, limit, ours_here, expected) and good
    return good


def _tolerance(program: Program, value: Any) -> tuple[float, float]:
    """For outputs and for gradients; zero for whole numbers."""
    if not isinstance(value, torch.Tensor) or value.dtype not in TOLERANCES:
        return 0.0, 0.0
    inside = TOLERANCES[program.precision] if program.precision is not None else (0.0, 0.0)
    return max(TOLERANCES[value.dtype], inside)


def _line(name: str, gap: float, limit: float, ours: Any, theirs: Any) -> bool:
    verdict = "equal" if gap <= limit else "DIFFERENT"
    print(f"{name}: {verdict} (relative difference {gap:.3g}, tolerance {limit:g})")
    if gap > limit:
        print(f"    here   {summary(ours)}\n    before {summary(theirs)}")
    return gap <= limit
