"""Parameters out of their ranges, tensors in wrong places: what the other kernels of the tests have no room for."""

from __future__ import annotations

import re

import pytest
import torch
from programs import KERNELS, MACHINE, mutants, program

from gr_compile.lowering.ascendc.functional_model import Broken, In, Out, Tiling, Workspace

X = torch.rand(512, generator=torch.Generator().manual_seed(4))


def _on_vector(case: str) -> torch.Tensor:
    tiling = Tiling({"n": 0, "mutant": mutants("parameters")[case]})
    arguments = [In(X[:256]), Out((256,), torch.float32), Workspace(2048), tiling]
    return program("parameters").run("on_vector", arguments, MACHINE)[0]


def _flags(case: str) -> None:
    tiling = Tiling({"n": 0, "mutant": mutants("parameters")[case]})
    program("parameters").run("flags", [tiling], MACHINE, blocks=2, cores="mix")


def _cube_cases() -> list[str]:
    found = re.search(r"enum CubeCase \{(.*?)\}", (KERNELS / "parameters.cpp").read_text(), re.DOTALL)
    assert found is not None
    return [x.strip() for x in found[1].strip().rstrip(",").split(",")]


def _on_cube(case: str) -> torch.Tensor:
    tiling = Tiling({"n": 0, "mutant": _cube_cases().index(case)})
    arguments = [In(X.half()), Out((32, 16), torch.float32), Workspace(2048), tiling]
    return program("parameters").run("on_cube", arguments, MACHINE, cores="cube")[0]


def test_parameters_at_the_ends_of_their_ranges() -> None:
    z = _on_vector("NOTHING")
    assert torch.equal(z[8:], X[8:256]) and torch.equal(z[:8], 2 * X[:8])
    _flags("NOTHING")
    a = X.half().view(32, 16).float()
    torch.testing.assert_close(_on_cube("CUBE_NOTHING"), 2 * a @ a[:16].T)


_VECTOR = [
    ("FOREIGN_ADDRESS", "lies in no argument"),
    ("ODD_ADDRESS", "address is not aligned to float"),
    ("NO_ADDRESS", "a GlobalTensor without SetGlobalBuffer"),
    ("NO_BUFFER", "a LocalTensor that no buffer gave"),
    ("OFFSET", "offset 1025 of 1024 elements"),
    ("SIZE", "1025 elements do not fit the buffer"),
    ("BUFFER_OFFSET", "offset 16 is not aligned to 32 bytes"),
    ("PADDING_64", "padding value of a 64-bit type must be 0"),
    ("BLOCK_LENGTH", "blockLen 2097152 is not in 0 to 2097151"),
    ("MANY_BLOCKS", "more than 65535 blocks"),
    ("NEGATIVE_COUNT", "count -1 is negative"),
    ("COPY_REPEAT", "a repeat size above 4095"),
    ("BRCB_STRIDE", "Brcb: a block stride of 0"),
    ("GATHER_JUNK", "Gather: offset 1 is junk"),
    ("HALF_INDEX", "a half's index ends at 65535"),
    ("SELECT_TENSOR", "mode 1 takes a scalar"),
    ("FETCH_EVENT", "FetchEventID: all 8 ids of V_S"),
    ("ENQUEUED_TWICE", "in the queue already"),
    ("LEFT_IN_QUEUE", "left in a queue"),
    ("UNBUFFERED", "TBuf: no InitBuffer"),
    ("GLOBAL_POSITION", "cannot lie at this TPosition"),
    ("BEYOND_ALLOCATION", "argument 1 at bytes 1024 to 1056 of 1024 .out of bounds"),
    ("ATOMIC_JUNK", "DataCopy adds junk to argument 1"),
    ("SCALAR_PIPE", "pipe S is not supported"),
    ("WAIT_RANGE", "CrossCoreWaitFlag: flag 16"),
    ("SOME_CORES", "only a synchronisation of all cores"),
]


@pytest.mark.parametrize(("case", "rule"), _VECTOR, ids=[x[0] for x in _VECTOR])
def test_on_a_vector_core(case: str, rule: str) -> None:
    with pytest.raises(Broken, match=rule):
        _on_vector(case)


@pytest.mark.parametrize(
    ("case", "rule"),
    [("FLAG_MODE", "flag 1 is in use by mode 1"), ("NEVER_JOINED", "flag 1, mode 0, that the others never joined")],
)
def test_cross_core_flags(case: str, rule: str) -> None:
    with pytest.raises(Broken, match=rule):
        _flags(case)


_CUBE = [
    ("COPY_BETWEEN", "no path from L1 to L1"),
    ("COPY_OUT_OF_L0C", "no path from L0C to global memory"),
    ("ADDRESS_MODE", "addrMode 1 is not supported"),
    ("LARGE", "a size above 4095"),
    ("UNIT_FLAG", "Mmad: unitFlag"),
    ("BIAS", "the bias table are not modelled"),
    ("ADDS_JUNK", "Mmad adds to junk"),
    ("FIX_TYPE", "from float to int32_t is not modelled"),
    ("FIX_COLUMNS", "nSize 4096 is above 4095"),
    ("FIX_ROWS", "mSize 8193 is above 8192"),
    ("FIX_UNIT", "Fixpipe: unitFlag"),
    ("FIX_STRIDE", "dstStride is 0"),
    ("FIX_MATRICES", "srcNdStride 513 is above 512"),
    ("FIX_ATOMIC_UNWRITTEN", "Fixpipe updates argument 2 at byte 0, which no one wrote"),
    ("FIX_BEYOND", "Fixpipe writes argument 1 at byte 2048 of 2048"),
    ("LOAD_SOURCE", "the source lies in L0B, not in L1"),
    ("SYNC_VECTORS", "SyncAll<true> on a cube core"),
]


@pytest.mark.parametrize(("case", "rule"), _CUBE, ids=[x[0] for x in _CUBE])
def test_on_a_cube_core(case: str, rule: str) -> None:
    with pytest.raises(Broken, match=rule):
        _on_cube(case)


def test_every_case_has_its_row() -> None:
    of_flags = {"FLAG_MODE", "NEVER_JOINED"}
    assert set(mutants("parameters")) - {"NOTHING"} == {x[0] for x in _VECTOR} | of_flags
    assert set(_cube_cases()) - {"CUBE_NOTHING"} == {x[0] for x in _CUBE}
