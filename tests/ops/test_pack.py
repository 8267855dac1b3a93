"""pack, unpack, segment sums: against padded torch, in every dtype, compiled, and at the edges."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from gr_compile.ops import pack as packing

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool]
LENGTHS = [[3, 0, 5, 1], [0, 0], [], [4], [0, 1, 0]]
RESTS = [(), (3,), (2, 3)]


def ragged(lengths: list[int], length: int = 5, left: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """(mask [B, N], flat index [T], offsets [B + 1]) of sequences padded on the right or on the left."""
    counts = torch.tensor(lengths, dtype=torch.int64)
    places = torch.arange(length)
    mask = places >= length - counts[:, None] if left else places < counts[:, None]
    index = mask.flatten().nonzero().flatten()
    return mask, index, torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def values_of(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    torch.manual_seed(len(shape))
    drawn = torch.randn(shape, dtype=torch.float64) * 4
    return drawn > 0 if dtype == torch.bool else drawn.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_against_padded_torch(dtype: torch.dtype) -> None:
    for lengths, rest, left in itertools.product(LENGTHS, RESTS, (False, True)):
        mask, index, offsets = ragged(lengths, left=left)
        dense = values_of((len(lengths), 5, *rest), dtype)
        packed = torch.ops.gr.pack(dense, index)
        assert torch.equal(packed, dense[mask]) and packed.dtype == dtype and packed.is_contiguous()
        for fill in (0, 1, float("-inf")) if dtype.is_floating_point else (0, 1):
            back = torch.ops.gr.unpack(packed, index, len(lengths), 5, fill)
            kept = mask.view(len(lengths), 5, *[1] * len(rest))
            assert torch.equal(back, torch.where(kept, dense, torch.tensor(fill).to(dtype)))
        sums = torch.ops.gr.segment_sum(packed, offsets)
        zeroed = torch.ops.gr.unpack(packed, index, len(lengths), 5)
        torch.testing.assert_close(sums, zeroed.sum(1))
        repeated = torch.ops.gr.segment_expand(dense[:, 0], offsets, index.shape[0])
        assert torch.equal(repeated, dense[:, :1].expand_as(dense)[mask])


@pytest.mark.parametrize("view", ["permuted", "sliced", "expanded", "channels"])
def test_pack_reads_strided_tensors(view: str) -> None:
    dense = {
        "permuted": lambda: torch.randn(5, 4, 3).transpose(0, 1),
        "sliced": lambda: torch.randn(4, 9, 3)[:, 2:7],
        "expanded": lambda: torch.randn(1, 5, 3).expand(4, 5, 3),
        "channels": lambda: torch.randn(4, 3, 5).transpose(1, 2),
    }[view]()
    mask, index, _ = ragged([3, 0, 5, 1])
    packed = torch.ops.gr.pack(dense, index)
    assert torch.equal(packed, dense[mask]) and packed.is_contiguous()


def test_segment_sum_is_as_accurate_as_a_padded_sum() -> None:
    torch.manual_seed(0)
    lengths = [4000, 1, 7000]
    offsets = torch.tensor([0, 4000, 4001, 11001])
    values = torch.randn(11001, 8) + 100.0
    exact = torch.stack([part.double().sum(0) for part in values.split(lengths)])
    padded = torch.nn.utils.rnn.pad_sequence(values.split(lengths), batch_first=True).sum(1)
    ours = torch.ops.gr.segment_sum(values, offsets)
    assert (ours - exact).abs().max() <= (padded - exact).abs().max()
    brain = values.to(torch.bfloat16)
    exact = torch.stack([part.double().sum(0) for part in brain.split(lengths)])
    torch.testing.assert_close(torch.ops.gr.segment_sum(brain, offsets).double(), exact, rtol=2**-8, atol=0)


def test_rows_behind_the_last_sequence_belong_to_nobody() -> None:
    values, offsets = torch.ones(8, 2), torch.tensor([0, 2, 5])
    assert torch.ops.gr.segment_sum(values, offsets).tolist() == [[2, 2], [3, 3]]
    assert torch.ops.gr.segment_sum(values.long(), offsets).tolist() == [[2, 2], [3, 3]]
    assert torch.ops.gr.segment_expand(torch.ones(2), offsets, 8).tolist() == [1] * 5 + [0] * 3


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (1, 1), (4, 7)])
def test_suffix_any(shape: tuple[int, int]) -> None:
    mask = torch.rand(shape) < 0.2
    want = [[any(row[n:]) for n in range(shape[1])] for row in mask.tolist()]
    assert torch.equal(torch.ops.gr.suffix_any(mask), torch.tensor(want, dtype=torch.bool).view(shape))


def samples(dtype: torch.dtype, grad: bool, lengths: list[int]) -> list[tuple[object, tuple[object, ...]]]:
    _, index, offsets = ragged(lengths)
    rows = len(lengths)

    def leaf(*shape: int) -> Tensor:
        return values_of(shape, dtype).requires_grad_(grad)

    return [
        (torch.ops.gr.pack.default, (leaf(rows, 5, 2), index)),
        (torch.ops.gr.unpack.default, (leaf(index.shape[0], 2), index, rows, 5, 0)),
        (torch.ops.gr.segment_sum.default, (leaf(index.shape[0], 2), offsets)),
        (torch.ops.gr.segment_expand.default, (leaf(rows, 2), offsets, index.shape[0])),
    ]


@pytest.mark.parametrize("lengths", [[3, 0, 5, 1], [0, 0]])
def test_gradcheck(lengths: list[int]) -> None:
    for operator, operands in samples(torch.float64, True, lengths):
        assert torch.autograd.gradcheck(operator, operands)
        assert torch.autograd.gradgradcheck(operator, operands)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64])
def test_opcheck(dtype: torch.dtype) -> None:
    for lengths in ([3, 0, 5, 1], [0, 0]):
        for operator, operands in samples(dtype, dtype.is_floating_point, lengths):
            torch.library.opcheck(operator, operands)
    torch.library.opcheck(torch.ops.gr.suffix_any.default, (torch.rand(3, 4) < 0.3,))
    torch.library.opcheck(torch.ops.gr.pack.default, (torch.rand(3, 4) < 0.3, torch.tensor([1, 5])))


def padded_mean(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A graph with an unbacked T: pack twice by one index, sum, expand, unpack with -inf."""
    batch, length = mask.shape
    index = mask.flatten().nonzero().flatten()
    lengths = mask.sum(1)
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    values = torch.ops.gr.pack(x, index)
    ids = torch.ops.gr.pack(mask, index)
    sums = torch.ops.gr.segment_sum(values, offsets)
    centred = values - torch.ops.gr.segment_expand(sums, offsets, index.shape[0]) * ids[:, None]
    out = torch.ops.gr.unpack(centred, index, batch, length, float("-inf"))
    return out, sums, torch.ops.gr.suffix_any(mask)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_one_graph_serves_every_batch(backend: str) -> None:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(padded_mean, backend=backend, fullgraph=True, dynamic=True)
        for turn, (lengths, length) in enumerate([([3, 1, 2], 5), ([0, 0, 0, 0], 6), ([4, 2], 4)]):
            mask, _, _ = ragged(lengths, length)
            x = torch.randn(*mask.shape, 7, requires_grad=True)
            with torch.compiler.set_stance("fail_on_recompile" if turn else "default"):
                got = compiled(x, mask)
            (grad,) = torch.autograd.grad(got[1].square().sum() + got[0][mask].sum(), x)
            want = padded_mean(x, mask)
            (expected,) = torch.autograd.grad(want[1].square().sum() + want[0][mask].sum(), x)
            torch.testing.assert_close(got, want)
            torch.testing.assert_close(grad, expected)


def test_autocast_and_inference_mode_change_nothing() -> None:
    mask, _, _ = ragged([3, 0, 5, 1])
    x = torch.randn(4, 5, 3)
    want = padded_mean(x, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = padded_mean(x, mask)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(got, want))
    with torch.inference_mode():
        got = padded_mean(x, mask)
    assert all(torch.equal(a, b) for a, b in zip(got, want))


INDEX, OFFSETS = torch.tensor([0, 1]), torch.tensor([0, 2])
ERRORS = [
    (lambda: torch.ops.gr.pack(torch.ones(4), INDEX), "must be \\[B, N"),
    (lambda: torch.ops.gr.pack(torch.ones(4, 2), INDEX.int()), "int64"),
    (lambda: torch.ops.gr.pack(torch.ones(4, 2), INDEX.view(1, 2)), "must be \\[T\\]"),
    (lambda: torch.ops.gr.unpack(torch.ones(3), INDEX, 1, 4), "3 rows of values but 2 places"),
    (lambda: torch.ops.gr.segment_sum(torch.ones(3), OFFSETS.int()), "int64"),
    (lambda: torch.ops.gr.segment_expand(torch.ones(3), OFFSETS, 2), "need 4 offsets"),
    (lambda: torch.ops.gr.suffix_any(torch.ones(2, 2)), "must be bool"),
    (lambda: torch.ops.gr.suffix_any(torch.ones(2) > 0), "must be \\[B, N\\]"),
]


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_errors_name_the_operator_and_the_operand(number: int) -> None:
    call, words = ERRORS[number]
    with pytest.raises(ValueError, match=words):
        call()


def test_names_are_exported() -> None:
    assert packing.pack is torch.ops.gr.pack.default
