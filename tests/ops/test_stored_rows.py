"""gr::stored_rows: which rows it copies, what they are rounded to, what it refuses; on the kernels and without."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import gr_compile.lowering.inductor  # noqa: F401  (registers the CPU's kernels)
from gr_compile.lowering.cpu import kernels
from gr_compile.lowering.cpu.stored_rows import kernel
from gr_compile.ops.quantize import SCALES, STORED
from gr_compile.ops.stored_rows import stored_rows_reference

gr = torch.ops.gr
TABLES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def _kernels_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(failure: object) -> None:
        raise AssertionError(failure)

    monkeypatch.setattr(kernels, "_warn_once", fail)


def drawn(rows: int, width: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    return normal * torch.exp(spread * torch.randn(rows, 1, generator=generator, dtype=torch.float64))


def restored(stored: Tensor, scale: Tensor) -> Tensor:
    """What the copy stands for, in float64."""
    if not scale.numel():
        return stored.double()
    return stored.double() * (scale.double() if scale.numel() == 1 else scale.double().unsqueeze(-1))


def same(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> None:
    for one, other in zip(got, want):
        assert one.dtype == other.dtype and one.is_contiguous()
        assert torch.equal(one.nan_to_num(7, 8, 9), other.nan_to_num(7, 8, 9))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 70),
    places=st.integers(0, 90),
    table=st.sampled_from(TABLES),
    dtype=st.sampled_from(STORED),
    scale=st.sampled_from(("per-token", "per-table")),
    seed=st.integers(0, 99),
)
def test_named_rows_are_rounded_once_and_others_are_zeros(
    rows: int, width: int, places: int, table: torch.dtype, dtype: torch.dtype, scale: str, seed: int
) -> None:
    values = drawn(rows, width, seed).clamp(-6e4, 6e4).to(table)
    ids = torch.randint(rows, (places,), generator=torch.Generator().manual_seed(seed))
    stored, factor = gr.stored_rows(values, ids, dtype, scale)
    same((stored, factor), stored_rows_reference(values, ids, dtype, scale))
    named = torch.zeros(rows, dtype=torch.bool).index_fill_(0, ids, True)
    assert not stored[~named].any()
    exact, found = values.double()[named], restored(stored, factor)[named]
    unit = torch.finfo(dtype).eps / 2
    largest = exact.abs().amax(-1, keepdim=True) if scale == "per-token" else exact.abs().max() if len(exact) else exact
    assert ((found - exact).abs() <= unit * exact.abs() + largest * 2.0**-38).all()  # 2^-38: below float16's smallest


@pytest.mark.parametrize("dtype", STORED, ids=str)
@pytest.mark.parametrize("table", TABLES[1:], ids=str)
def test_what_is_infinite_or_nan_stays_so_and_counts_for_no_scale(table: torch.dtype, dtype: torch.dtype) -> None:
    values = drawn(20, 37).clamp(-1e3, 1e3).to(table)
    values[3, 1], values[4, 36], values[5] = torch.inf, torch.nan, 0
    for scale in SCALES:
        stored, factor = gr.stored_rows(values, torch.arange(20), dtype, scale)
        same((stored, factor), stored_rows_reference(values, torch.arange(20), dtype, scale))
        assert stored[3, 1] == torch.inf and stored[4, 36].isnan() and not stored[5].any()
        assert factor.isfinite().all() and int((~stored.isfinite()).sum()) == 2


def test_scales_are_powers_of_two_that_leave_room_below() -> None:
    values = drawn(50, 16).float()
    stored, factor = gr.stored_rows(values, torch.arange(50), torch.float16, "per-token")
    assert (torch.frexp(factor).mantissa == 0.5).all()
    largest = stored.abs().amax(-1).double()
    assert ((largest >= 2**14) & (largest <= 2**15)).all()


@pytest.mark.parametrize("kernels_on", ["1", "0"])
def test_a_value_that_does_not_fit_is_named(kernels_on: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GR_COMPILE_CPU_KERNELS", kernels_on)
    values = torch.ones(9, 20)
    values[7, 3], values[7, 18], values[2, 2] = 1e6, -1e6, 65519
    with pytest.raises(OverflowError, match=r"table\[7, 3\] is 1e\+06.*float16 is 65504.*scale=per-table.*bfloat16"):
        gr.stored_rows(values, torch.tensor([[8, 7], [2, 2]]), torch.float16, "none")
    stored, _ = gr.stored_rows(values, torch.tensor([8, 2]), torch.float16, "none")  # nobody reads row 7
    assert stored[2, 2] == 65504
    for dtype, scale in ((torch.bfloat16, "none"), (torch.float16, "per-table"), (torch.float16, "per-token")):
        assert gr.stored_rows(values, torch.tensor([7]), dtype, scale)[0].isfinite().all()


@pytest.mark.parametrize("kernels_on", ["1", "0"])
@pytest.mark.parametrize("bad", [-1, 9])
def test_an_id_that_is_no_row_is_named(kernels_on: str, bad: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GR_COMPILE_CPU_KERNELS", kernels_on)
    ids = torch.zeros(4, 3, dtype=torch.int32)
    ids[2, 1] = bad
    with pytest.raises(IndexError, match=rf"ids\[2, 1\] is {bad}, which is no row of a table of 9"):
        gr.stored_rows(torch.ones(9, 20), ids, torch.float16, "per-table")


@pytest.mark.parametrize(
    ("table", "ids", "dtype", "scale", "message"),
    [
        (torch.ones(3, 2, dtype=torch.int64), torch.zeros(1).long(), torch.float16, "none", "floating point"),
        (torch.ones(3), torch.zeros(1).long(), torch.float16, "none", r"table must be \[V, D\], not of 1"),
        (torch.ones(3, 2), torch.zeros(1), torch.float16, "none", "ids must be int64 or int32, not torch.float32"),
        (torch.ones(3, 2), torch.zeros(1).long(), torch.float32, "none", "dtype must be float16 or bfloat16"),
        (torch.ones(3, 2), torch.zeros(1).long(), torch.float16, "per-row", "scale must be one of none, per-token"),
    ],
)
def test_operands_that_do_not_fit(table: Tensor, ids: Tensor, dtype: torch.dtype, scale: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gr.stored_rows(table, ids, dtype, scale)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("shape", [(0, 4), (5, 0), (5, 4)])
def test_empty_operands(shape: tuple[int, int], scale: str) -> None:
    stored, factor = gr.stored_rows(torch.ones(shape), torch.zeros(0, 3, dtype=torch.int64), torch.float16, scale)
    assert stored.shape == shape and not stored.any()
    assert torch.equal(factor, torch.ones({"none": 0, "per-table": 1, "per-token": shape[0]}[scale]))


def test_any_strides_and_any_number_of_threads() -> None:
    values, ids = drawn(30, 17).float(), torch.randint(30, (40, 2))
    want = gr.stored_rows(values, ids, torch.float16, "per-token")
    apart = torch.stack([values, values], -1)[..., 0]
    same(gr.stored_rows(apart, ids.t().contiguous().t(), torch.float16, "per-token"), want)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        same(gr.stored_rows(values, ids, torch.float16, "per-token"), want)
    finally:
        torch.set_num_threads(before)


def test_there_is_a_kernel_for_every_dtype_that_is_not_64_bits() -> None:
    assert all(kernel(table, ids, to) for table in TABLES[1:] for ids in (torch.int64, torch.int32) for to in STORED)


@pytest.mark.parametrize("scale", SCALES)
def test_opcheck(scale: str) -> None:
    for table in TABLES:
        operands = (drawn(6, 5, spread=0).to(table), torch.tensor([[1, 4, 1]]), torch.float16, scale)
        torch.library.opcheck(gr.stored_rows.default, operands)
