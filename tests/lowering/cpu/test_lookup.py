"""The gradient of a table on the CPU: right, in a fixed order, and what the inductor target trains with."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code

import gr_compile
from gr_compile.lowering.cpu import kernels, lookup
from gr_compile.ops.lookup import lookup_gradient_reference


@pytest.fixture(autouse=True)
def _the_kernel_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(failure: object) -> None:
        raise AssertionError(failure)

    monkeypatch.setattr(kernels, "_warn_once", fail)


@settings(deadline=None, max_examples=60)
@given(
    places=st.lists(st.integers(0, 6), min_size=1, max_size=3), rows=st.integers(0, 9), width=st.integers(0, 19),
    padding=st.integers(-1, 3), seed=st.integers(0, 99),
)  # fmt: skip
def test_it_is_the_sum_of_the_lookups(places: list[int], rows: int, width: int, padding: int, seed: int) -> None:
    torch.manual_seed(seed)
    grad, ids = torch.randn(*places, width), torch.randint(-1, rows + 2, tuple(places))
    found = lookup.lookup_gradient(grad, ids, rows, padding)
    torch.testing.assert_close(found, lookup_gradient_reference(grad.double(), ids, rows, padding).float())


@pytest.mark.parametrize(("dtype", "digits"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_halves_are_summed_in_float32_and_rounded_once(dtype: torch.dtype, digits: float) -> None:
    torch.manual_seed(0)
    grad, ids = torch.randn(4000, 24).to(dtype), torch.randint(0, 5, (4000,))
    exact = lookup_gradient_reference(grad.double(), ids, 5, 0)
    found = lookup.lookup_gradient(grad, ids, 5, 0)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=digits, atol=digits)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "rows of a wider value": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "columns apart": lambda x: torch.stack([x, x], -1)[..., 0],
    "one row for all": lambda x: x[:1, :1].expand(x.shape),
    "misaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("ids_dtype", [torch.int64, torch.int32])
def test_any_strides(view: str, ids_dtype: torch.dtype) -> None:
    grad, ids = VIEWS[view](torch.randn(5, 7, 12)), torch.randint(0, 9, (7, 5)).t().to(ids_dtype)
    want = lookup_gradient_reference(grad.contiguous(), ids.contiguous(), 9, 2)
    torch.testing.assert_close(lookup.lookup_gradient(grad, ids, 9, 2), want)


def test_the_same_bits_whatever_the_threads() -> None:
    grad, ids = torch.randn(3000, 40), torch.randint(0, 50, (3000,))
    found = []
    for threads in (1, 2, 5, 2):
        torch.set_num_threads(threads)
        found.append(lookup.lookup_gradient(grad, ids, 50, 0))
    torch.set_num_threads(1)
    assert all(torch.equal(found[0], other) for other in found)


def test_the_operator_passes_opcheck() -> None:
    grad, ids = torch.randn(2, 6, 4), torch.randint(0, 5, (2, 6))
    torch.library.opcheck(torch.ops.gr.lookup_gradient.default, (grad, ids, 5, 0))


@pytest.mark.parametrize(("grad", "ids"), [((3, 4), (2, 3)), ((2, 3, 4), (3,))])
def test_shapes_that_do_not_fit_are_refused(grad: tuple[int, ...], ids: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one more than ids"):
        lookup_gradient_reference(torch.zeros(grad), torch.zeros(ids, dtype=torch.int64), 5, 0)


class Table(nn.Module):
    def __init__(self, **options: bool) -> None:
        super().__init__()
        self.items, self.head = nn.Embedding(30, 12, padding_idx=0, **options), nn.Linear(12, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return (self.head(self.items(ids)).square() * (ids != 0)[..., None]).sum()


@pytest.mark.parametrize(("options", "used"), [({}, True), ({"scale_grad_by_freq": True}, False)])
def test_training_by_inductor_sums_its_tables_so(options: dict[str, bool], used: bool) -> None:
    torch.manual_seed(0)
    model = Table(**options)
    ids = torch.tensor([[1, 2, 2, 0], [7, 0, 0, 0], [29, 2, 1, 4]])
    model(ids).backward()
    want, model.items.weight.grad = model.items.weight.grad, None
    fast = gr_compile.optimize(model)
    _, codes = run_and_get_code(lambda: fast(ids).backward())
    torch.testing.assert_close(model.items.weight.grad, want)
    assert ("gr.lookup_gradient" in "".join(codes)) == used
    assert not used or "atomic_add" not in "".join(codes)
