"""The vector kernels on the functional model: torch's results for every dtype, odd sizes, empty and long sequences.

They run without the compiler's own synchronisation (auto_sync=False): every order that they need is their own.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from vector_kernels import run

from gr_compile.lowering.ascendc.machine import machine
from gr_compile.lowering.ascendc.operators import FLOATS, MOVED, OPERATORS
from gr_compile.lowering.ascendc.recipes import RECIPES
from gr_compile.lowering.ascendc.vector import vector_kernel

FEW = replace(machine("910b1"), vector_cores=3)  # cores that share, and few enough to be quick
SMALL = replace(FEW, unified_buffer=40 * 1024)  # tiles of 6 KiB: many of them, and rows that are wider
DTYPES = {name: getattr(torch, name) for name in MOVED}
LENGTHS = {
    "odd": [5, 1, 17, 33, 2],
    "one long among short": [0, 1, 700, 0, 3, 2, 0, 0],
    "all empty": [0, 0, 0],
    "no sequence": [],
    "one": [1],
}


def values(shape: tuple[int, ...], dtype: str, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype == "bool":
        return torch.rand(shape, generator=generator) < 0.5
    if dtype in FLOATS:
        return torch.randn(shape, generator=generator).to(DTYPES[dtype])
    return torch.randint(-(2**30), 2**30, shape, generator=generator).to(DTYPES[dtype])


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


def places(batch: int, length: int, fill: float) -> Tensor:
    mask = torch.rand(batch * length, generator=torch.Generator().manual_seed(1)) < fill
    return mask.nonzero()[:, 0]


ROWS = [
    ("float32", (3, 41), (33,), 0.6, FEW), ("float16", (3, 41), (33,), 0.6, FEW), ("bfloat16", (4, 9), (1,), 0.9, FEW),
    ("int32", (2, 5), (), 0.5, FEW), ("int64", (2, 70), (3, 2), 0.5, FEW), ("bool", (5, 64), (), 0.3, FEW),
    ("float32", (2, 30), (2, 901), 0.7, SMALL), ("float16", (5, 41), (512,), 0.9, SMALL),
    ("float32", (3, 4), (8,), 0.0, FEW), ("float32", (0, 4), (8,), 0.0, FEW), ("float32", (3, 4), (0,), 0.5, FEW),
    ("float32", (3, 40), (16,), 1.0, FEW),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "size", "rest", "fill", "on"), ROWS)
def test_rows_are_packed_and_unpacked(dtype, size, rest, fill, on):
    index = places(*size, fill)
    dense = values((*size, *rest), dtype)
    assert torch.equal(run("gr::pack", on, dense, index), torch.ops.gr.pack(dense, index))
    packed = values((len(index), *rest), dtype)
    number = {"bool": True, "int64": 2**40 + 3, "int32": -7}.get(dtype, -1.5)
    expected = torch.ops.gr.unpack(packed, index, *size, number)
    assert torch.equal(run("gr::unpack", on, packed, index, *size, number), expected)


def test_an_index_may_stand_in_any_order_and_a_lookup_is_a_pack():
    table, ids = values((1, 50, 7), "float32"), torch.tensor([49, 0, 1, 2, 0, 0, 48, 49, 3])
    assert torch.equal(run("gr::pack", FEW, table, ids), torch.nn.functional.embedding(ids, table[0]))
    order = torch.randperm(50)[:30]
    rows = values((30, 7), "float16")
    got = run("gr::unpack", FEW, rows, order, 1, 50, float("-inf"))
    assert torch.equal(got, torch.ops.gr.unpack(rows, order, 1, 50, float("-inf")))


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize(("dtype", "rest", "behind", "on"), [
    ("float32", (5,), 40, FEW), ("bool", (), 0, FEW), ("float16", (3001,), 2, SMALL), ("int64", (2,), 3000, SMALL),
])  # fmt: skip
def test_rows_are_expanded(lengths, dtype, rest, behind, on):
    rows, at = values((len(lengths), *rest), dtype), offsets(lengths)
    total = sum(lengths) + behind
    got = run("gr::segment_expand", on, rows, at, total)
    assert torch.equal(got, torch.ops.gr.segment_expand(rows, at, total))


def test_expanded_rows_may_end_before_their_sequences():
    rows, at = values((3, 4), "float32"), offsets([4, 0, 9])
    assert torch.equal(run("gr::segment_expand", FEW, rows, at, 6), torch.ops.gr.segment_expand(rows, at, 6))


SUMS = [("float32", (33,), FEW), ("float32", (700,), SMALL), ("float16", (33,), FEW), ("bool", (), FEW)]
MORE_SUMS = [(dtype, rest, on) for dtype in MOVED for rest in ((), (1,), (7, 11), (1000,)) for on in (FEW, SMALL)]


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize(
    ("dtype", "rest", "on"), SUMS + [pytest.param(*case, marks=pytest.mark.slow) for case in MORE_SUMS]
)
def test_rows_are_summed(lengths, dtype, rest, on):
    behind = 3  # rows of no sequence
    rows = values((sum(lengths) + behind, *rest), dtype)
    got = run("gr::segment_sum", on, rows, offsets(lengths))
    torch.testing.assert_close(got, torch.ops.gr.segment_sum(rows, offsets(lengths)), rtol=2e-3 if got.element_size() == 2 else 1e-5, atol=1e-4)


def test_a_sum_of_whole_numbers_takes_64_bits():
    rows = torch.full((300, 9), 2**31 - 1, dtype=torch.int32)
    got = run("gr::segment_sum", FEW, rows, offsets([299, 1]))
    assert got.dtype == torch.int64 and got[0, 0] == 299 * (2**31 - 1)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5])
@pytest.mark.parametrize(("size", "on"), [((5, 301), FEW), ((2, 5000), SMALL), ((1, 1), FEW), ((0, 7), FEW), ((3, 0), FEW)])
def test_suffixes(share, size, on):
    mask = torch.rand(size, generator=torch.Generator().manual_seed(2)) < share
    assert torch.equal(run("gr::suffix_any", on, mask), torch.ops.gr.suffix_any(mask))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("size", [(50, 301), (7,), (0, 5), (1, 8193)])
def test_true_places_are_counted_and_found(share, size):
    mask = torch.rand(size, generator=torch.Generator().manual_seed(3)) < share
    count = int(mask.sum())
    assert run("gr::count_true", FEW, mask).tolist() == [count]
    for wanted in (count, count // 2, count + 2000):
        assert torch.equal(run("gr::true_places", FEW, mask, wanted), torch.ops.gr.true_places(mask, wanted))


LOOKUPS = [("float32", torch.int64), ("bfloat16", torch.int32)]
MORE_LOOKUPS = [(getattr(torch, i), t) for t in FLOATS for i in ("int32", "int64")]


@pytest.mark.parametrize(
    ("dtype", "ids"), LOOKUPS + [pytest.param(t, i, marks=pytest.mark.slow) for i, t in MORE_LOOKUPS]
)
@pytest.mark.parametrize(("size", "rows", "features", "on"), [
    ((3, 101), 100, 33, FEW), ((400,), 3, 8, FEW), ((5, 9), 70, 901, SMALL), ((0,), 20, 4, FEW), ((6,), 0, 4, FEW),
])  # fmt: skip
def test_lookup_gradients(dtype, ids, size, rows, features, on):
    grad = values((*size, features), dtype)
    at = torch.randint(-1, rows + 1, size, generator=torch.Generator().manual_seed(4)).to(ids)
    got = run("gr::lookup_gradient", on, grad, at, rows, 2)
    expected = torch.ops.gr.lookup_gradient(grad, at, rows, 2)
    if dtype == "float32":
        assert torch.equal(got, expected)  # one after the other, in the order of the lookups
    torch.testing.assert_close(got, expected)


SAMPLED = (
    torch.empty(8000, 129, device="meta"), *(torch.empty(rows, 256, device="meta") for rows in (8000, 10**6)),
    torch.empty(8000, 129, dtype=torch.int64, device="meta"),
)  # fmt: skip


@pytest.mark.parametrize("name", RECIPES)
def test_every_kernel_fits_a_whole_machine(name):
    """The largest sizes ask for no more cores than there are; the reason names the numbers."""
    call = {
        "gr::pack": (torch.empty(512, 8192, 128, device="meta"), torch.empty(10**6, dtype=torch.int64, device="meta")),
        "gr::unpack": (torch.empty(10**6, 128, device="meta"), torch.empty(10**6, dtype=torch.int64, device="meta"), 512, 8192, 0),
        "gr::segment_sum": (torch.empty(10**6, 128, device="meta"), torch.empty(513, dtype=torch.int64, device="meta")),
        "gr::segment_expand": (torch.empty(512, 128, device="meta"), torch.empty(513, dtype=torch.int64, device="meta"), 10**6),
        "gr::suffix_any": (torch.empty(512, 8192, dtype=torch.bool, device="meta"),),
        "gr::count_true": (torch.empty(512, 8192, dtype=torch.bool, device="meta"),),
        "gr::true_places": (torch.empty(512, 8192, dtype=torch.bool, device="meta"), 10**6),
        "gr::lookup_gradient": (torch.empty(10**6, 128, device="meta"), torch.empty(10**6, dtype=torch.int64, device="meta"), 10**6, 0),
        "gr::norm_gate": (*[torch.empty(10**6, 128, device="meta")] * 2, torch.empty(128, device="meta"), None, 1e-6, True),
        "gr::norm_gate_backward": (*[torch.empty(10**6, 128, device="meta")] * 3, torch.empty(128, device="meta"), None, 1e-6, True),
        "gr::rms_norm": (torch.empty(10**6, 128, device="meta"), None, 1e-6),
        "gr::rms_norm_backward": (*[torch.empty(10**6, 128, device="meta")] * 2, None, 1e-6),
        "gr::silu_split": (torch.empty(10**6, 512, device="meta"), 128, 128, 128, 128, 15),
        "gr::silu_split_backward": (*[torch.empty(10**6, 128, device="meta")] * 4, torch.empty(10**6, 512, device="meta"), 15),
        "gr::sampled_logits": (*SAMPLED[1:], None, 1e-6, 0),
        "gr::sampled_logits_backward": (*SAMPLED, None, 1e-6, 0, False, True, True),
    }[name]  # fmt: skip
    names = [argument.name for argument in OPERATORS[name].overload._schema.arguments]
    kernel = vector_kernel(name, dict(zip(names, call)), machine("910b1"))
    assert kernel.blocks == 48 and "48 blocks" in kernel.reason
    assert [field for field, _ in kernel.tiling_fields] == list(kernel.tiling)


def test_a_dtype_that_no_kernel_takes_is_an_error():
    with pytest.raises(ValueError, match="gr::pack: dense is float64"):
        vector_kernel("gr::pack", {"dense": torch.ones(1, 1).double(), "index": torch.zeros(1).long()}, FEW)
