"""What stands for operators without a converter gives what torch's operator gives."""

import pytest
import torch

from gr_compile.lowering.torchair.decompositions import OURS, decompositions, randint, roll

aten = torch.ops.aten
X = torch.tensor([[3.0, -1.0, 0.5], [2.0, 7.0, float("nan")]])
PLACES = torch.tensor([1, 0, -1, 1])
WHOLE = torch.tensor([0, -1, 2**62 + 5, -(2**63), 12345678901234567, -77])
CALLS = {
    "shift": (aten.__rshift__.Scalar, (PLACES * 1000 - 1, 3)),
    "shift, all but the sign": (aten.__rshift__.Scalar, (WHOLE, 62)),
    "and": (aten.bitwise_and.Scalar, (WHOLE, 0xFFFFFFFF)),
    "xor": (aten.bitwise_xor.Tensor, (WHOLE, WHOLE.flip(0) * 7)),
    "xor, of booleans": (aten.bitwise_xor.Tensor, (PLACES > 0, PLACES < 1)),
    "xor, broadcast": (aten.bitwise_xor.Tensor, (WHOLE, torch.tensor(-5))),
    "amax, all": (aten.amax.default, (X[:1],)),
    "amax, two dimensions": (aten.amax.default, (X[:1, :, None], [0, -2])),
    "amax, kept": (aten.amax.default, (X, [1], True)),
    "bucketize": (aten.bucketize.Tensor, (X[:, :2], torch.tensor([-1.0, 0.5, 2.0]))),
    "bucketize, right": (aten.bucketize.Tensor, (X[:, :2], torch.tensor([-1.0, 0.5, 2.0])), {"right": True}),
    "clamp_max": (aten.clamp_max.default, (X, 1.0)),
    "clamp_max, tensor": (aten.clamp_max.Tensor, (X, torch.tensor(1.0))),
    "clamp_min, tensor": (aten.clamp_min.Tensor, (X, torch.tensor([0.0, 1.0, 2.0]))),
    "div, floor": (aten.div.Scalar_mode, (PLACES, 2), {"rounding_mode": "floor"}),
    "div, trunc": (aten.div.Scalar_mode, (X[:1], 0.3), {"rounding_mode": "trunc"}),
    "embedding": (aten.embedding_dense_backward.default, (torch.randn(4, 3), torch.tensor([1, 0, 1, 2]), 4, 2, False)),
    "floor_divide": (aten.floor_divide.Scalar, (PLACES, 2)),
    "index_put": (aten.index_put.default, (torch.zeros(3, 2), [torch.tensor([2, 0])], torch.ones(2, 2))),
    "index_put, added": (aten.index_put.default, (torch.ones(3, 2), [PLACES], torch.arange(8.0).view(4, 2), True)),
    "index_put, pairs": (
        aten.index_put.default, (torch.zeros(2, 3), [PLACES, torch.tensor([2, 0, -3, 2])], torch.arange(4.0), True)
    ),
    "index_put, broadcast": (
        aten.index_put.default,
        (torch.zeros(2, 3, 2), [torch.tensor([[0], [1]]), torch.tensor([0, 2])], torch.tensor([5.0, 6.0]), True),
    ),
    "isnan": (aten.isnan.default, (X,)),
    "repeat_interleave": (aten.repeat_interleave.Tensor, (torch.tensor([2, 0, 3]),), {"output_size": 5}),
    "roll": (aten.roll.default, (X, [1], [1])),
    "roll, back and far": (aten.roll.default, (X, [-1, 5], [0, 1])),
    "roll, all elements": (aten.roll.default, (X, [2])),
    "roll, nothing": (aten.roll.default, (X[:0], [1], [0])),
    "softplus": (aten.softplus.default, (torch.linspace(-200, 200, 999),)),
    "softplus, halves": (aten.softplus.default, (torch.linspace(-30, 30, 99).half(),)),
    "softplus, steep": (aten.softplus.default, (torch.linspace(-30, 30, 99).double(), 2.5, 8.0)),
    "sub": (aten.sub.Scalar, (X, 2)),
    "sub, scaled": (aten.sub.Scalar, (X, 2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_it_is_what_torch_computes(name):
    operator, args, *rest = CALLS[name]
    kwargs = rest[0] if rest else {}
    torch.testing.assert_close(OURS[operator](*args, **kwargs), operator(*args, **kwargs), equal_nan=True)


def test_every_decomposition_is_tested():
    assert {call[0] for call in CALLS.values()} | {aten.randint.low} == set(OURS)


@pytest.mark.parametrize(("low", "high"), [(0, 2**62), (-5, 7), (10, 10 + 2**22), (0, 2**40 + 1), (-(2**62), 2**61)])
def test_random_numbers_fill_their_range(low, high):
    torch.manual_seed(0)
    drawn = randint(low, high, [4000])
    shares = (drawn.double() - low) / (high - low)
    assert drawn.dtype == torch.int64 and low <= int(drawn.min()) and int(drawn.max()) < high
    assert float(shares.min()) < 0.1 and float(shares.max()) > 0.9 and abs(float(shares.mean()) - 0.5) < 0.05
    assert len(drawn.unique()) > min(high - low, 3900) - 1
    assert len((drawn % 64).unique()) == min(high - low, 64)


@pytest.mark.parametrize(
    ("operator", "args"),
    [
        (aten.index_put.default, (torch.zeros(3, 2), [None, torch.tensor([1])], torch.ones(3, 1))),
        (aten.index_put.default, (torch.zeros(3), [torch.tensor([True, False, True])], torch.ones(2))),
        (aten.repeat_interleave.Tensor, (torch.tensor([1, 2]),)),
        (aten.embedding_dense_backward.default, (torch.randn(2, 3), torch.tensor([0, 0]), 2, -1, True)),
        (aten.__rshift__.Scalar, (PLACES, 63)),
        (aten.__rshift__.Scalar, (PLACES, -1)),
        (aten.bitwise_and.Scalar, (PLACES > 0, 1)),
        (aten.bitwise_xor.Tensor, (PLACES > 0, PLACES)),
    ],
)
def test_other_forms_are_left_alone(operator, args):
    assert OURS[operator](*args) is NotImplemented


def test_torchs_own_are_taken_where_there_is_no_converter():
    table = decompositions(lambda op: op is aten.native_batch_norm.default)
    assert aten.silu_backward.default in table and aten.native_batch_norm.default not in table
    assert aten.roll.default in table and table[aten.roll.default] is roll
    assert aten.prod.default not in table  # torch has it in prims alone
