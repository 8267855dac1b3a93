"""The cube core alone and beside its two vector cores: results, and every rule with its mutant."""

from __future__ import annotations

import pytest
import torch
from programs import MACHINE, PRODUCTS, mutants, program
from torch import Tensor

from gr_compile.lowering.ascendc.functional_model import Broken, In, Out, Tiling, Workspace

_KERNELS = {
    "half_to_float": (torch.float16, torch.float32),
    "half_to_half": (torch.float16, torch.float16),
    "bfloat16_to_bfloat16": (torch.bfloat16, torch.bfloat16),
    "float_to_float": (torch.float32, torch.float32),
}


def _product(
    kernel: str, m: int, n: int, k: int, k0: int, transposed: bool, mutant: str = "NOTHING"
) -> tuple[Tensor, Tensor]:
    source, target = _KERNELS[kernel]
    generator = torch.Generator().manual_seed(m)
    a, b = torch.randn(m, k, generator=generator).to(source), torch.randn(n, k, generator=generator).to(source)
    tiling = {"m": m, "n": n, "k": k, "k0": k0, "transposed": int(transposed), "mutant": mutants("cube")[mutant]}
    arguments = [In(a), In(b if transposed else b.T.contiguous()), Out((m, n), target), Tiling(tiling)]
    (c,) = program("cube", PRODUCTS).run(kernel, arguments, MACHINE, cores="cube")
    return c, (a.float() @ b.float().T).to(target)


@pytest.mark.parametrize(
    ("kernel", "m", "n", "k", "k0", "transposed"),
    [
        ("half_to_float", 16, 16, 16, 16, True),
        ("half_to_float", 37, 48, 50, 50, True),
        ("half_to_float", 37, 48, 64, 32, False),
        ("half_to_half", 64, 32, 48, 16, False),
        ("half_to_float", 30, 40, 70, 70, False),
        ("bfloat16_to_bfloat16", 20, 64, 30, 30, True),
        ("float_to_float", 33, 32, 40, 16, True),
        pytest.param("half_to_float", 128, 256, 64, 64, False, marks=pytest.mark.slow),
    ],
)
def test_products(kernel: str, m: int, n: int, k: int, k0: int, transposed: bool) -> None:
    c, expected = _product(kernel, m, n, k, k0, transposed)
    torch.testing.assert_close(c, expected)


@pytest.mark.parametrize(
    ("mutant", "rule"),
    [
        ("L1_OVERFLOW", "L1 overflows by 2048 bytes"),
        ("L0C_OVERFLOW", "L0C overflows by 32 bytes"),
        ("NO_L1_FLAG", r"LoadData on pipe MTE1 reads L1 .* pipe MTE2 wrote"),
        ("NO_L0_FLAG", r"Mmad on pipe M reads L0A .* pipe MTE1 wrote"),
        ("NO_FIX_FLAG", r"Fixpipe on pipe FIX reads L0C .* pipe M wrote"),
        ("TWICE_AT_ONCE", r"Mmad on pipe M reads L0C .* pipe M wrote"),
        ("ADDRESS", "not aligned to 32 bytes"),
        ("EMPTY_FRACTAL", "reads a fractal of L1 .* no one wrote|out of bounds"),
        ("MATRIX_VECTOR", "m = 1"),
        ("COLUMNS", "Fixpipe: .*out of bounds"),
        ("VECTOR_UNIT", "Duplicate is not an instruction of a cube core"),
        ("WRONG_BUFFER", "left matrix lies in L0B, not in L0A"),
        ("TYPES", "half times half into int32_t is not supported"),
        ("ROW_STEP", "out of its range"),
        ("UNIFIED_BUFFER", "the unified buffer overflows"),
    ],
)
def test_rules_of_the_cube_core(mutant: str, rule: str) -> None:
    with pytest.raises(Broken, match=rule):
        _product("half_to_float", 32, 32, 64, 32, False, mutant)


@pytest.mark.parametrize(("mutant", "m", "n"), [("TWICE", 32, 32), ("TWICE_AT_ONCE", 64, 48)])
def test_small_products_upon_each_other_need_a_barrier_and_large_ones_none(mutant: str, m: int, n: int) -> None:
    c, expected = _product("half_to_float", m, n, 16, 16, True, mutant)
    torch.testing.assert_close(c, 2 * expected)


@pytest.mark.parametrize(
    ("mutant", "kernel", "size", "rule"),
    [
        ("QUANTISATION", "half_to_half", (32, 32, 64, 64, True), "quantPre 0 does not give half"),
        ("TRANSPOSED_TYPE", "float_to_float", (32, 32, 16, 16, True), "only 16-bit types are transposed"),
        ("EDGE_READ", "half_to_float", (37, 48, 47, 47, False), "multiplies junk inside|no one wrote"),
    ],
)
def test_rules_of_types_and_edges(mutant: str, kernel: str, size: tuple[int, int, int, int, bool], rule: str) -> None:
    with pytest.raises(Broken, match=rule):
        _product(kernel, *size, mutant)


def _attend(mutant: str, blocks: int = 2, n: int = 64) -> tuple[Tensor, Tensor]:
    q, k, v = torch.randn(3, blocks, n, 16, generator=torch.Generator().manual_seed(7)).half()
    tiling = Tiling({"n": n, "mutant": mutants("mixed")[mutant]})
    arguments = [In(q), In(k), In(v), Out((blocks, n, 16), torch.float32), Workspace(blocks * 32 * n * 6), tiling]
    (out,) = program("mixed").run("attend", arguments, MACHINE, blocks=blocks, cores="mix")
    weights = ((q.float() @ k.float().mT).relu() * 0.25).half()
    return out, weights.float() @ v.float()


@pytest.mark.parametrize("blocks", [1, 3])
def test_cube_and_vector_cores_exchange_scores_and_weights(blocks: int) -> None:
    out, expected = _attend("NOTHING", blocks)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("mutant", "rule"),
    [
        (
            "SCORES_UNFLAGGED",
            r"vector core .*: DataCopy .*(no one wrote|cube core of block . wrote .* no flag between the cores)",
        ),
        (
            "WEIGHTS_UNFLAGGED",
            r"cube core .*: DataCopy\(Nd2Nz\) .*(no one wrote|vector core . .* no flag between the cores)",
        ),
        (
            "WRONG_PIPE",
            r"vector core .*: DataCopy .* cube core of block . wrote on pipe FIX; no flag between the cores",
        ),
        (
            "SCORES_AGAIN",
            r"vector core .*: DataCopy .* cube core of block . wrote on pipe FIX; no flag between the cores",
        ),
        (
            "VECTOR_WAITS_FOREVER",
            r"deadlock: cube core of block 0 waits for CrossCoreWaitFlag\(2\); vector core 0 .* waits for CrossCoreWaitFlag\(1\)",
        ),
        ("CUBE_WAITS_FOREVER", r"deadlock: .*cube core of block 0 waits for CrossCoreWaitFlag\(9\)"),
        ("ONE_VECTOR_SILENT", r"deadlock: .*cube core of block 0 waits for CrossCoreWaitFlag\(2\)"),
        ("COUNTER_OVERFLOW", r"counter of flag 7 of vector core 0 .* exceeds 15"),
        ("FLAG_LEFT", "CrossCoreSetFlag of flag 7 without a CrossCoreWaitFlag"),
        ("MODE_FOUR", "mode 4 is not supported"),
    ],
)
def test_rules_between_cube_and_vector_cores(mutant: str, rule: str) -> None:
    with pytest.raises(Broken, match=rule):
        _attend(mutant)


def test_sync_all_of_both_kinds() -> None:
    tiling = Tiling({"n": 0, "mutant": 0})
    (out,) = program("mixed").run(
        "meet_all", [Out((9,), torch.int32), Workspace(36), tiling], MACHINE, blocks=3, cores="mix"
    )
    assert (out == 45).all()


def test_sync_all_of_vector_cores_does_not_wait_for_cube_cores() -> None:
    tiling = Tiling({"n": 0, "mutant": 1})
    with pytest.raises(Broken, match="SyncAll<true> in a kernel with cube cores"):
        program("mixed").run(
            "meet_all", [Out((9,), torch.int32), Workspace(36), tiling], MACHINE, blocks=3, cores="mix"
        )
