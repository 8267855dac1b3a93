"""count_true and true_places: together what nonzero gives, and no size of data but the count's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gr_compile.ops import places as counting

SHAPES = [(0,), (7,), (3, 5), (0, 4), (3, 0), (1, 1), (2, 3, 4)]
SHARES = [0.0, 0.4, 1.0]


def mask_of(shape: tuple[int, ...], share: float) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) < share


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_nonzero(shape: tuple[int, ...], share: float) -> None:
    mask = mask_of(shape, share)
    want = mask.flatten().nonzero().flatten()
    count = torch.ops.gr.count_true(mask)
    assert count == want.shape[0]
    assert torch.equal(torch.ops.gr.true_places(mask, count), want)
    if mask.dim() > 1:
        turned = mask.transpose(0, 1)
        assert torch.equal(torch.ops.gr.true_places(turned, count), turned.flatten().nonzero().flatten())


def test_a_count_that_is_not_the_masks_gives_a_result_of_that_size() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    assert torch.ops.gr.true_places(mask, 2).tolist() == [0, 2]
    assert torch.ops.gr.true_places(mask, 5).tolist() == [0, 2, 3, 0, 0]


@pytest.mark.parametrize("share", SHARES)
def test_opcheck(share: float) -> None:
    mask = mask_of((3, 5), share)
    torch.library.opcheck(torch.ops.gr.count_true.default, (mask,))
    torch.library.opcheck(torch.ops.gr.true_places.default, (mask, int(mask.sum())))


def test_only_the_count_depends_on_data() -> None:
    data_dependent = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    assert data_dependent & set(counting.count_true.tags)
    assert not data_dependent & set(counting.true_places.tags)


def sums_of_true_rows(x: Tensor, mask: Tensor) -> Tensor:
    index = torch.ops.gr.true_places(mask, torch.ops.gr.count_true(mask))
    return torch.ops.gr.pack(x, index).sin().sum(0)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_one_graph_serves_every_count(backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(sums_of_true_rows, backend=backend, fullgraph=True, dynamic=True)
    for turn, (count, share) in enumerate([(3, 0.5), (4, 0.0), (5, 1.0)]):
        x, mask = torch.randn(count, 6, 2, requires_grad=True), mask_of((count, 6), share)
        with torch.compiler.set_stance("fail_on_recompile" if turn else "default"):
            got = compiled(x, mask)
        want = sums_of_true_rows(x, mask)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(*(torch.autograd.grad(y.sum(), x) for y in (got, want)))


ERRORS = [
    (lambda: torch.ops.gr.count_true(torch.ones(3)), "count_true: mask must be bool"),
    (lambda: torch.ops.gr.true_places(torch.ones(3), 1), "true_places: mask must be bool"),
    (lambda: torch.ops.gr.true_places(torch.ones(3) > 0, -1), "must not be negative"),
]


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_errors_name_the_operator_and_the_operand(number: int) -> None:
    call, words = ERRORS[number]
    with pytest.raises(ValueError, match=words):
        call()
