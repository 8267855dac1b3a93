"""What the modelled instructions compute, beside torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from programs import MACHINE, VALUES, program
from torch import Tensor

from gr_compile.lowering.ascendc.functional_model import Broken, In, Out, Tiling

_OPERATIONS = [
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Max",
    "Min",
    "And",
    "Or",
    "Exp",
    "Ln",
    "Abs",
    "Sqrt",
    "Rsqrt",
    "Reciprocal",
    "Relu",
    "Not",
    "Adds",
    "Muls",
    "Maxs",
    "Mins",
    "ShiftLeft",
    "ShiftRight",
    "LeakyRelu",
    "Duplicate",
    "CreateVecIndex",
    "ArithProgression",
    "FusedMulAdd",
]
_N = 208
_KERNELS = {torch.float32: "on_float", torch.float16: "on_half", torch.int32: "on_int32", torch.int16: "on_int16"}


def _run(name: str, x: Tensor, y: Tensor, scalar: float = 0.0) -> Tensor:
    tiling = Tiling({"n": len(x), "op": _OPERATIONS.index(name), "scalar": scalar})
    arguments = [In(x), In(y), Out((len(x),), x.dtype), tiling]
    return program("values", VALUES).run(_KERNELS[x.dtype], arguments, MACHINE)[0]


def _values(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    if dtype.is_floating_point:
        return tuple((torch.rand(2, _N, generator=generator) * 4 + 0.1).to(dtype))  # type: ignore[return-value]
    return tuple(torch.randint(-300, 300, (2, _N), generator=generator).to(dtype))  # type: ignore[return-value]


_REAL = [torch.float32, torch.float16]
_ALL = [*_REAL, torch.int32, torch.int16]
_CASES: list[tuple[str, list[torch.dtype], Callable[[Tensor, Tensor], Tensor], float]] = [
    ("Add", _ALL, torch.add, 0),
    ("Sub", _ALL, torch.sub, 0),
    ("Mul", _ALL, torch.mul, 0),
    ("Div", _REAL, torch.div, 0),
    ("Max", _ALL, torch.maximum, 0),
    ("Min", _ALL, torch.minimum, 0),
    ("And", [torch.int16], torch.bitwise_and, 0),
    ("Or", [torch.int16], torch.bitwise_or, 0),
    ("Not", [torch.int16], lambda x, y: ~x, 0),
    ("Exp", _REAL, lambda x, y: x.float().exp(), 0),
    ("Ln", _REAL, lambda x, y: x.float().log(), 0),
    ("Abs", _REAL, lambda x, y: x.abs(), 0),
    ("Sqrt", _REAL, lambda x, y: x.float().sqrt(), 0),
    ("Rsqrt", _REAL, lambda x, y: x.float().rsqrt(), 0),
    ("Reciprocal", _REAL, lambda x, y: x.float().reciprocal(), 0),
    ("Relu", [*_REAL, torch.int32], lambda x, y: x.relu(), 0),
    ("Adds", _ALL, lambda x, y: x + 3, 3),
    ("Muls", _ALL, lambda x, y: x * 3, 3),
    ("Maxs", _ALL, lambda x, y: x.clamp(min=2), 2),
    ("Mins", _ALL, lambda x, y: x.clamp(max=2), 2),
    ("ShiftLeft", [torch.int32, torch.int16], lambda x, y: x << 3, 3),
    ("ShiftRight", [torch.int32, torch.int16], lambda x, y: x >> 3, 3),
    ("LeakyRelu", _REAL, lambda x, y: torch.nn.functional.leaky_relu(x, 0.25), 0.25),
    ("Duplicate", _ALL, lambda x, y: torch.full_like(x, 5), 5),
    ("CreateVecIndex", _ALL, lambda x, y: torch.arange(5, 5 + len(x)), 5),
    ("ArithProgression", _ALL, lambda x, y: torch.arange(5, 5 + 2 * len(x), 2), 5),
    ("FusedMulAdd", _REAL, lambda x, y: 2 * x.double() * x.double() + y.double(), 0),
]


@pytest.mark.parametrize(("name", "dtypes", "reference", "scalar"), _CASES, ids=[x[0] for x in _CASES])
def test_arithmetic(
    name: str, dtypes: list[torch.dtype], reference: Callable[[Tensor, Tensor], Tensor], scalar: float
) -> None:
    for dtype in dtypes:
        x, y = _values(dtype)
        expected = reference(x, y).to(dtype)
        rtol = 2e-7 if dtype == torch.float32 else 1e-3 if dtype.is_floating_point else 0
        torch.testing.assert_close(_run(name, x, y, scalar), expected, rtol=rtol, atol=0)


@pytest.mark.parametrize(("name", "dtype"), [("Exp", torch.int32), ("And", torch.float32), ("Abs", torch.int16), ("FusedMulAdd", torch.int32)])
def test_types_that_an_instruction_does_not_take(name: str, dtype: torch.dtype) -> None:
    with pytest.raises(Broken, match=f"{name} does not take"):
        _run(name, *_values(dtype))


_NONE, _RINT, _FLOOR, _CEIL, _ROUND, _TRUNC = range(6)
_HARD = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 1e-7, 65504, 65519, -3.25, 6e-8, 1e9, -2.5000002, 0, 3.7, -3.7, 100.4])
_CASTS: list[tuple[str, torch.dtype, torch.dtype, int, Callable[[Tensor], Tensor]]] = [
    ("float_to_half", torch.float32, torch.float16, _NONE, lambda x: x.half()),
    ("float_to_half", torch.float32, torch.float16, _RINT, lambda x: x.half()),
    ("float_to_half", torch.float32, torch.float16, _TRUNC, lambda x: _toward_zero(x, torch.float16)),
    ("float_to_bfloat16", torch.float32, torch.bfloat16, _RINT, lambda x: x.bfloat16()),
    ("float_to_bfloat16", torch.float32, torch.bfloat16, _TRUNC, lambda x: _toward_zero(x, torch.bfloat16)),
    ("float_to_float", torch.float32, torch.float32, _RINT, torch.round),
    (
        "float_to_float",
        torch.float32,
        torch.float32,
        _ROUND,
        lambda x: torch.trunc(x + torch.copysign(torch.tensor(0.5), x)),
    ),
    ("float_to_int32", torch.float32, torch.int32, _RINT, lambda x: x.round().int()),
    ("float_to_int32", torch.float32, torch.int32, _FLOOR, lambda x: x.floor().int()),
    ("float_to_int32", torch.float32, torch.int32, _CEIL, lambda x: x.ceil().int()),
    ("float_to_int32", torch.float32, torch.int32, _TRUNC, lambda x: x.trunc().int()),
    ("half_to_float", torch.float16, torch.float32, _NONE, lambda x: x.float()),
    ("bfloat16_to_float", torch.bfloat16, torch.float32, _NONE, lambda x: x.float()),
    ("half_to_int8", torch.float16, torch.int8, _RINT, lambda x: x.float().round().clamp(-128, 127).to(torch.int8)),
    ("int32_to_float", torch.int32, torch.float32, _RINT, lambda x: x.float()),
    ("int64_to_float", torch.int64, torch.float32, _RINT, lambda x: x.float()),
    ("int32_to_int64", torch.int32, torch.int64, _NONE, lambda x: x.long()),
]


def _toward_zero(x: Tensor, dtype: torch.dtype) -> Tensor:
    nearest = x.to(dtype)
    back = nearest.float()
    step = torch.where(back.abs() > x.abs(), -1, 0).to(torch.int16)
    return (nearest.view(torch.int16) + step).view(dtype)


@pytest.mark.parametrize(
    ("kernel", "source", "target", "mode", "reference"), _CASTS, ids=[f"{x[0]}-{x[3]}" for x in _CASTS]
)
def test_casts(
    kernel: str, source: torch.dtype, target: torch.dtype, mode: int, reference: Callable[[Tensor], Tensor]
) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.cat([_HARD, torch.randn(240, generator=generator) * 50])
    if source.is_floating_point:
        x = x.to(source)
    else:
        x = torch.cat(
            [x[:240].to(source), torch.tensor([2**24 + 1, 2**24 + 3, -(2**24) - 1, 2**31 - 1] * 4).to(source)]
        )
    tiling = Tiling({"n": 256, "op": mode, "scalar": 0})
    (z,) = program("values", VALUES).run(kernel, [In(x), Out((256,), target), tiling], MACHINE)
    torch.testing.assert_close(z, reference(x), rtol=0, atol=0)


def _shapes() -> tuple[Tensor, Tensor]:
    x = torch.rand(1024, generator=torch.Generator().manual_seed(3))
    tiling = Tiling({"n": 0, "op": 0, "scalar": 0})
    return x, program("values", VALUES).run("shapes", [In(x), Out((12, 64), torch.float32), tiling], MACHINE)[0]


def test_masks_strides_comparisons_reductions_and_moves() -> None:
    x, z = _shapes()
    rows, lane = x.view(16, 64), torch.arange(64)
    assert torch.equal(z[0], torch.where(lane % 2 == 1, rows[0], -1))
    blocks = z[1].view(8, 8)
    assert torch.equal(blocks[[0, 2]].flatten(), x[:16])
    assert (blocks[[1, 3, 4, 5, 6, 7]] == -1).all()
    assert torch.equal(z[2], torch.where(lane < 40, rows[0], -1))
    assert torch.equal(z[3], torch.where(rows[0] >= 0.5, rows[0], rows[1]))
    torch.testing.assert_close(z[4, 0], x[:1000].sum())
    assert z[4, 2] == x[:1000].max() and z[4, 3].view(torch.int32) == x[:1000].argmax() and z[4, 4] == x[:1000].min()
    torch.testing.assert_close(z[5, :8], rows[:8].sum(1))
    assert torch.equal(z[6, 0:16:2], rows[:8, :60].amax(1))
    assert torch.equal(z[6, 1:16:2].contiguous().view(torch.int32).long(), rows[:8, :60].argmax(1))
    torch.testing.assert_close(z[7], x[:512].view(64, 8).sum(1))
    assert torch.equal(z[8].view(8, 8), x[:8, None].expand(8, 8))
    assert torch.equal(z[9], rows[0].flip(0))
    assert torch.equal(z[10].view(8, 8), x[:8].expand(8, 8))
    torch.testing.assert_close(z[11], rows[:4].sum(0) - 1)


def test_transpose_of_a_matrix_that_comes_in_blocks() -> None:
    x = torch.randn(16, 16).half()
    tiling = Tiling({"n": 0, "op": 0, "scalar": 0})
    assert torch.equal(
        program("values", VALUES).run("transposed", [In(x), Out((16, 16), torch.float16), tiling], MACHINE)[0], x.T
    )


def test_rows_are_padded_as_they_are_copied() -> None:
    x = torch.randn(4, 13).half()
    tiling = Tiling({"n": 13, "op": 0, "scalar": 0})
    (z,) = program("values", VALUES).run("padded", [In(x), Out((4, 16), torch.float16), tiling], MACHINE)
    assert torch.equal(z, torch.nn.functional.pad(x[:, :10], (2, 4), value=7))
