"""The kernels of the token operators on the functional model, against float64: all dtypes, odd sizes, wide rows.

They run without the compiler's own synchronisation (auto_sync=False): every order that they need is their own.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from vector_kernels import run_all

from gr_compile.lowering.ascendc.functional_model import Broken, In, Out, Tiling, Workspace, compile_kernels
from gr_compile.lowering.ascendc.machine import machine
from gr_compile.lowering.ascendc.operators import FLOATS, OPERATORS
from gr_compile.lowering.ascendc.vector import vector_kernel

FEW = replace(machine("910b1"), vector_cores=3)  # cores that share, and few enough to be quick
SMALL = replace(FEW, unified_buffer=40 * 1024)  # rows of a few hundred columns are wider than a tile
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
NORMS = ("norm_gate", "norm_gate_backward", "rms_norm", "rms_norm_backward")
SPLITS = ("silu_split", "silu_split_backward")


def drawn(shape: tuple[int, ...], dtype: str, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale + 0.25).to(getattr(torch, dtype))


def norm_call(name: str, dtype: str, shape: tuple[int, ...], given: str, centered: bool) -> list[object]:
    """The arguments of a call of a norm; `given`: which of weight and bias there are."""
    grad, x, u = (drawn(shape, dtype, seed) for seed in range(3))
    weight = drawn(shape[-1:], dtype, 3) if "w" in given else None
    bias = drawn(shape[-1:], dtype, 4) if "b" in given else None
    gated = "gate" in name
    operands = [*([grad] if "backward" in name else []), x, *([u] if gated else []), weight, *([bias] if gated else [])]
    return [*operands, 1e-6, *([centered] if gated else [])]


def split_call(name: str, dtype: str, lead: tuple[int, ...], widths: tuple[int, ...], activated: int) -> list[object]:
    x = drawn((*lead, sum(widths)), dtype, 0, 4.0)
    if "backward" not in name:
        return [x, *widths, activated]
    return [*(drawn((*lead, width), dtype, k + 1) for k, width in enumerate(widths)), x, activated]


def check(name: str, on: object, dtype: str, args: list[object]) -> None:
    """Each result within the dtype's tolerance of float64's, relative to its largest number.

    Rows of few and nearly equal numbers have a norm that no float32 knows better: there the kernel may be twice
    as far from it as torch's operators in the same dtype are.
    """
    exact, plain = (listed(getattr(torch.ops.gr, name)(*map(form, args))) for form in (in_double, lambda value: value))
    got = run_all(f"gr::{name}", on, *args)
    assert len(got) == len(exact)
    for made, want, torchs in zip(got, exact, plain):
        assert made.shape == want.shape and str(made.dtype) == f"torch.{dtype}"
        if want.numel():
            allowed = max(TOLERANCE[dtype], 2 * gap(torchs, want) if dtype == "float32" else 0)
            assert gap(made, want) <= allowed, f"{name} {dtype} {list(want.shape)}: {gap(made, want):.1e}"


def gap(made: Tensor, want: Tensor) -> float:
    return float((made.double() - want).abs().max() / want.abs().max().clamp(min=1))


def listed(results: object) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)


def in_double(value: object) -> object:
    return value.double() if isinstance(value, Tensor) else value


TYPES = {"norm_gate": "float32", "norm_gate_backward": "float32", "rms_norm": "bfloat16", "rms_norm_backward": "float16",
         "silu_split": "bfloat16", "silu_split_backward": "float32"}  # fmt: skip
FIRST = [
    ((17, 33), "wb", True, FEW), ((3, 2, 64), "", False, FEW), ((4, 701), "wb", True, SMALL), ((2, 2100), "w", True, FEW),
    ((0, 8), "wb", True, FEW), ((1, 1), "b", False, FEW), ((70, 100), "wb", True, FEW), ((4, 1300), "w", False, SMALL),
]  # fmt: skip
SWEEP = [
    (dtype, (rows, width), given, centered, on)
    for dtype in FLOATS for rows, width in ((1, 7), (13, 1000), (1000, 3), (129, 255), (33, 64), (5, 5000), (48, 16), (2, 2041))
    for given in ("", "w", "b", "wb") for centered in (True, False) for on in (FEW, SMALL)
    if on is FEW or rows * width < 20000
]  # fmt: skip


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize(("shape", "given", "centered", "on"), FIRST)
def test_norms_are_float64s(name, shape, given, centered, on):
    check(name, on, TYPES[name], norm_call(name, TYPES[name], shape, given, centered))


@pytest.mark.slow
@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize(("dtype", "shape", "given", "centered", "on"), SWEEP)
def test_norms_are_float64s_in_all_sizes(name, dtype, shape, given, centered, on):
    check(name, on, dtype, norm_call(name, dtype, shape, given, centered))


PARTS = [
    ((19,), (33, 8, 5, 64), 15, FEW), ((3, 5), (700, 1, 16, 300), 1, SMALL), ((4,), (3, 0, 5, 1), 6, FEW),
    ((0,), (3, 4, 5, 6), 15, FEW), ((33,), (24, 40, 7, 16), 9, FEW),
]  # fmt: skip
MORE_PARTS = [
    (dtype, (rows,), widths, activated, on)
    for dtype in FLOATS for rows in (1, 130, 1000) for activated in (0, 1, 10, 15) for on in (FEW, SMALL)
    for widths in ((1, 1, 1, 1), (64, 64, 64, 64), (193, 65, 31, 17), (1000, 7, 0, 3)) if rows < 1000 or max(widths) < 100
]  # fmt: skip


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize(("lead", "widths", "activated", "on"), PARTS)
def test_splits_are_float64s(name, lead, widths, activated, on):
    check(name, on, TYPES[name], split_call(name, TYPES[name], lead, widths, activated))


@pytest.mark.slow
@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize(("dtype", "lead", "widths", "activated", "on"), MORE_PARTS)
def test_splits_are_float64s_in_all_sizes(name, dtype, lead, widths, activated, on):
    check(name, on, dtype, split_call(name, dtype, lead, widths, activated))


@pytest.mark.parametrize("large", [80.0, 1e4])
def test_silu_of_large_numbers_is_no_nan(large):
    x = torch.tensor([[large, -large, 0.0, 1.0]])
    ones = torch.ones_like(x).split(1, -1)
    (got,) = run_all("gr::silu_split_backward", FEW, *ones, x, 15)
    torch.testing.assert_close(got, torch.ops.gr.silu_split_backward(*ones, x, 15))


def test_the_same_call_gives_the_same_bits_and_the_blocks_sums_are_added_in_order():
    args = norm_call("norm_gate_backward", "float32", (300, 40), "wb", True)
    first, again = (run_all("gr::norm_gate_backward", FEW, *args) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again))


MUTANTS = {
    "sums are read before all blocks have met": ("norm_gate_backward", "    SyncAll();\n", ""),
    "a scale is used while it is made": ("norm_gate", "Div(variance, one, variance, Padded(rows));\n    Done();", "Div(variance, one, variance, Padded(rows));"),
    "padding takes part in a sum": ("norm_gate", "Least(LANES, tile.n - c), tile.rows, {1, 1, 1, 8, 8", "LANES, tile.rows, {1, 1, 1, 8, 8"),
}  # fmt: skip


@pytest.mark.parametrize(
    "mutant", [name if k == 0 else pytest.param(name, marks=pytest.mark.slow) for k, name in enumerate(MUTANTS)]
)
def test_the_model_refuses_mutants(mutant):
    """A kernel with this defect does not pass: it breaks a rule."""
    name, old, new = MUTANTS[mutant]
    args = norm_call(name, "float32", (300, 37), "wb", True)
    row = OPERATORS[f"gr::{name}"]
    kernel = vector_kernel(f"gr::{name}", dict(zip((a.name for a in row.overload._schema.arguments), args)), FEW)
    assert old in kernel.source
    results = row.overload(*args)
    outputs = [results] if isinstance(results, Tensor) else results
    arguments = [
        *(In(a) for a in args if isinstance(a, Tensor)), *(Out(tuple(o.shape), o.dtype) for o in outputs),
        Workspace(kernel.workspace_bytes), Tiling(kernel.tiling),
    ]  # fmt: skip
    program = compile_kernels(kernel.source.replace(old, new), [kernel.name], tiling=kernel.tiling_fields)
    with pytest.raises(Broken):
        program.run(kernel.name, arguments, FEW, blocks=kernel.blocks, auto_sync=False)
