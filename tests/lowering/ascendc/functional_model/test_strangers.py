"""Kernels that others wrote run on the model unmodified and give torch's results.

Their tiling functions are closed; the numbers here follow from how the kernels read them.
"""

from __future__ import annotations

import functools

import pytest
import torch
from fbgemm_ascend import kernel_source
from programs import MACHINE
from torch import Tensor

from gr_compile.lowering.ascendc.functional_model import Broken, In, Out, Program, Tiling, Workspace, compile_kernels

_CPP = {
    torch.float32: "float",
    torch.float16: "half",
    torch.bfloat16: "bfloat16_t",
    torch.int32: "int32_t",
    torch.int64: "int64_t",
}
_TILINGS: dict[str, tuple[str, ...]] = {
    "segment_sum_csr": (
        *("int64_t batchSize", "int64_t remainedSegments", "int64_t baseCoreSegments", "int64_t formerCoreSegments"),
        *("int64_t segmentNums", "int64_t csrSegLength", "int64_t totalLength", "int64_t maxSegmentLen"),
    ),
    "asynchronous_complete_cumsum": (
        "int64_t totalLength",
        "int64_t totalBlocks",
        "int64_t blocksPerCore",
        "int64_t remainderBlocks",
    ),
    "dense_to_jagged": (
        *(
            "int32_t denseDim1",
            "int32_t denseDim2",
            "int32_t left",
            "int32_t singleCoreBatch",
            "int32_t singleLoopSize",
        ),
        *("int64_t denseTotal", "int64_t jaggedTotal"),
    ),
    "jagged_to_padded_dense": (
        *(
            "int64_t totalBatch",
            "int64_t baseBatchLen",
            "int64_t tailSplitIndex",
            "int64_t valuesDim0",
            "int64_t valuesDim1",
        ),
        *(
            "int64_t offsetDim0",
            "int64_t outDim1",
            "int64_t ubCanUsed",
            "float paddingValueFp32",
            "int64_t paddingValueInt64",
        ),
    ),
}


@functools.lru_cache
def _program(name: str, **types: torch.dtype) -> Program:
    fields = [(x.split()[1], x.split()[0]) for x in _TILINGS[name]]
    defines = {f"DTYPE_{key.upper()}": _CPP[dtype] for key, dtype in types.items()}
    if torch.int64 in types.values() and "values" in types:
        defines["INT64_TYPE_USED_COPY_PADDING_UB"] = "1"  # their switch: Duplicate takes no 64-bit type on Atlas A2
    return compile_kernels(kernel_source(name), [name], tiling=fields, defines=defines)


def _jagged(batch: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    lengths = torch.randint(0, n + 1, (batch,), generator=torch.Generator().manual_seed(seed))
    lengths[batch // 2] = 0
    return lengths, torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])


@pytest.mark.parametrize("dtype", [torch.int32, pytest.param(torch.int64, marks=pytest.mark.slow)])
def test_asynchronous_complete_cumsum(dtype: torch.dtype) -> None:
    program = _program("asynchronous_complete_cumsum", x=dtype)
    for n in (1, 255, 256, 257, 3000):
        x = torch.randint(0, 100, (n,)).to(dtype)
        blocks = -(-n // 256)
        cores = min(5, blocks)
        tiling = {
            "totalLength": n,
            "totalBlocks": blocks,
            "blocksPerCore": blocks // cores,
            "remainderBlocks": blocks % cores,
        }
        arguments = [In(x), Out((n + 1,), dtype), Workspace(blocks * 64), Tiling(tiling)]
        (y,) = program.run("asynchronous_complete_cumsum", arguments, MACHINE, blocks=cores)
        assert torch.equal(y, torch.cat([torch.zeros(1, dtype=dtype), x.cumsum(0).to(dtype)]))


def _dense_to_jagged(dtype: torch.dtype, batch: int, n: int, d: int, slack: int = 32) -> tuple[Tensor, Tensor]:
    lengths, offsets = _jagged(batch, n, batch)
    x = torch.randn(batch, n, d).to(dtype)
    total, cores = int(lengths.sum()), min(5, batch)
    tiling: dict[str, int | float] = {
        "denseDim1": n,
        "denseDim2": d,
        "left": batch % cores,
        "singleCoreBatch": batch // cores,
    }
    tiling |= {"singleLoopSize": 1024, "denseTotal": x.numel(), "jaggedTotal": total * d}
    arguments = [In(x, slack=slack), In(offsets), Out((total, d), dtype), Workspace(32), Tiling(tiling)]
    (y,) = _program("dense_to_jagged", dense=dtype, offset=torch.int64).run(
        "dense_to_jagged", arguments, MACHINE, blocks=cores
    )
    return y, torch.cat([row[:length] for row, length in zip(x, lengths.tolist())])


@pytest.mark.parametrize(
    "dtype", [torch.float32, *(pytest.param(x, marks=pytest.mark.slow) for x in (torch.float16, torch.bfloat16))]
)
def test_dense_to_jagged(dtype: torch.dtype) -> None:
    for batch, n, d in ((3, 4, 5), (7, 10, 16), (23, 40, 33)):
        y, expected = _dense_to_jagged(dtype, batch, n, d)
        assert torch.equal(y, expected)


def test_a_read_behind_the_last_row_counts_on_the_allocation() -> None:
    # The kernel copies whole blocks of 32 bytes and drops the rest; a device's allocation has room for it.
    with pytest.raises(Broken, match=r"DataCopy: .* \(out of bounds\) in argument 0"):
        for batch in range(2, 9):
            _dense_to_jagged(torch.float32, batch, 1, 5, slack=0)


def test_empty_results() -> None:
    y, expected = _dense_to_jagged(torch.float32, 1, 4, 5)
    assert y.shape == expected.shape == (0, 5)


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, *(pytest.param(x, marks=pytest.mark.slow) for x in (torch.float16, torch.bfloat16, torch.int64))],
)
def test_jagged_to_padded_dense(dtype: torch.dtype) -> None:
    program = _program("jagged_to_padded_dense", values=dtype, offsets=torch.int64)
    for batch, n, d in ((3, 4, 5), (7, 10, 16), (23, 40, 34)):
        lengths, offsets = _jagged(batch, n, batch)
        values = torch.randint(-9, 9, (int(lengths.sum()), d)).to(dtype)
        cores = min(5, batch)
        tiling: dict[str, int | float] = {
            "totalBatch": batch,
            "baseBatchLen": batch // cores,
            "tailSplitIndex": batch % cores,
        }
        tiling |= {
            "valuesDim0": len(values),
            "valuesDim1": d,
            "offsetDim0": batch,
            "outDim1": n,
            "ubCanUsed": 24 * 1024,
        }
        tiling |= {"paddingValueFp32": 7.0, "paddingValueInt64": 7}
        arguments = [In(values), In(offsets), Out((batch, n, d), dtype), Workspace(32), Tiling(tiling)]
        (y,) = program.run("jagged_to_padded_dense", arguments, MACHINE, blocks=cores)
        expected = torch.full((batch, n, d), 7).to(dtype)
        for b, length in enumerate(lengths.tolist()):
            expected[b, :length] = values[offsets[b] : offsets[b + 1]]
        assert torch.equal(y, expected)


def _segment_sum(dtype: torch.dtype, lengths: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    values = torch.rand(int(offsets[-1]) * batch, generator=torch.Generator().manual_seed(5)).to(dtype)
    segments, cores = len(lengths), min(3, len(lengths))
    tiling: dict[str, int | float] = {"batchSize": batch, "remainedSegments": segments % cores, "segmentNums": segments}
    tiling |= {"baseCoreSegments": segments // cores, "formerCoreSegments": segments // cores + 1}
    tiling |= {"csrSegLength": segments + 1, "totalLength": len(values), "maxSegmentLen": 4096}
    arguments = [In(offsets), In(values), Out((segments,), dtype), Workspace(32), Tiling(tiling)]
    key = {torch.float32: 4, torch.float16: 5, torch.bfloat16: 6}[dtype]
    (y,) = _program("segment_sum_csr").run("segment_sum_csr", arguments, MACHINE, blocks=cores, tiling_key=key)
    return y, torch.stack([x.double().sum() for x in values.split((lengths * batch).tolist())])


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_segment_sum_csr(dtype: torch.dtype, rtol: float) -> None:
    y, expected = _segment_sum(dtype, torch.tensor([3, 64, 65, 1, 700, 129, 2]), 3)
    torch.testing.assert_close(y.double(), expected, rtol=rtol, atol=0)


def test_a_sum_over_nothing_is_what_was_there_before() -> None:
    # The kernel reduces with a mask of 0 elements, which writes nothing, and takes the first element.
    with pytest.raises(Broken, match=r"GetValue reads the unified buffer .* no one wrote"):
        _segment_sum(torch.float32, torch.tensor([0, 5]), 1)
