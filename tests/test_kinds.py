"""What is of one kind is the same to an operator; in doubt nothing is."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from gr_compile.kinds import kind, plain


@pytest.mark.parametrize(
    ("one", "other"), [(1, True), (1, 1.0), (0.0, -0.0), (None, 0), ("a", b"a"), ([1, 2], [2, 1]), (slice(1), slice(2))]
)
def test_constants_that_are_not_alike(one: object, other: object) -> None:
    assert plain(one) == plain(one) and plain(one) != plain(other)


def test_constants_that_are_alike() -> None:
    assert plain(math.nan) == plain(float("nan")) and plain([1, (2.5, None)]) == plain((1, [2.5, None]))
    assert hash(plain({"a": slice(None, 3)})) == hash(plain({"a": slice(None, 3)}))


def test_tensors() -> None:
    with FakeTensorMode() as mode:
        x = torch.empty(2, 3)
        alike, others = torch.empty(2, 3), [
            torch.empty(3, 2), torch.empty(3, 2).t(), torch.empty(2, 3, dtype=torch.int64), torch.empty(9)[3:].view(2, 3),
            torch.empty(2, 3, requires_grad=True), torch.nn.Parameter(torch.empty(2, 3), requires_grad=False),
        ]  # fmt: skip
    assert kind(x) == kind(alike) and all(kind(x) != kind(other) for other in others)
    literal = mode.from_tensor(torch.tensor(3), static_shapes=True)
    real = torch.empty(2, 3)
    assert kind(real) != kind(real)  # its values may matter
    assert kind(literal) == kind(literal) or literal.constant is not None
