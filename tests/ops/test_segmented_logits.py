"""gr::segmented_logits: gr::sampled_logits whatever the segments, in every dtype, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampled_logits import DTYPES, EPS, FORMS, VIEWS, drawn, near, sample
from torch import Tensor

import gr_compile.lowering.inductor  # noqa: F401  (registers the CPU's kernels)
from gr_compile.lowering.cpu import kernels
from gr_compile.lowering.cpu.segment_kernels import entries
from gr_compile.ops.segmented_logits import segmented_logits_backward_reference, segmented_logits_reference

gr = torch.ops.gr


@pytest.fixture(autouse=True)
def _kernels_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(failure: object) -> None:
        raise AssertionError(failure)

    monkeypatch.setattr(kernels, "_warn_once", fail)


def compare(
    query: Tensor, table: Tensor, ids: Tensor, group: Tensor | None, eps: float | None, padding: int, segments: int
) -> None:
    """Logits and the table's gradient have the bits of gr::sampled_logits; the query's is summed in another order."""
    operands = (query, table, ids, group, eps, padding)
    assert torch.equal(gr.segmented_logits(*operands, segments), gr.sampled_logits(*operands))
    grad = drawn(query.shape[0], ids.shape[1], dtype=query.dtype, seed=2)
    got = gr.segmented_logits_backward(grad, *operands, segments, False, True, True)
    want = gr.sampled_logits_backward(grad, *operands, False, True, True)
    exact = gr.sampled_logits_backward(grad.double(), query.double(), table.double(), *operands[2:], False, True, False)
    near(got[0], exact[0], query.dtype)
    assert torch.equal(got[1], want[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", FORMS)
@pytest.mark.parametrize("eps", [None, EPS, 3.0])
def test_it_is_gr_sampled_logits(dtype: torch.dtype, groups: int | None, eps: float | None) -> None:
    for segments in (1, 2, 7, 1000):
        compare(*sample(33, 7, 11, 32, groups, dtype), eps, -1, segments)
        compare(*sample(70, 9, 300, 19, groups, dtype), eps, 0, segments)


@settings(deadline=None, max_examples=40, derandomize=True, database=None)
@given(
    tokens=st.integers(1, 70), samples=st.integers(1, 9), rows=st.integers(1, 40), width=st.integers(1, 40),
    groups=st.sampled_from([None, 1, 3, 30]), eps=st.sampled_from([None, 0.0, EPS, 2.0]), padding=st.integers(-1, 3),
    segments=st.integers(1, 50),
)  # fmt: skip
def test_any_sizes(
    tokens: int, samples: int, rows: int, width: int, groups: int | None, eps: float | None, padding: int, segments: int
) -> None:
    compare(*sample(tokens, samples, rows, width, groups), eps, min(padding, rows - 1), segments)


@pytest.mark.parametrize("view", VIEWS)
def test_any_strides(view: str) -> None:
    q, t, ids, _ = sample(11, 6, 9, 16)
    operands = [VIEWS[view](x) for x in (q, t, ids)]
    assert torch.equal(gr.segmented_logits(*operands, None, EPS, 1, 3), gr.sampled_logits(*operands, None, EPS, 1))
    grad = VIEWS[view](drawn(11, 6, seed=3))
    found = gr.segmented_logits_backward(grad, *operands, None, EPS, 1, 3, False, True, True)
    want = gr.sampled_logits_backward(grad, *operands, None, EPS, 1, False, True, True)
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize("shape", [(0, 3, 4, 8), (4, 0, 5, 8), (3, 2, 5, 0), (0, 0, 0, 4), (3, 0, 0, 4)])
def test_empty_operands(shape: tuple[int, int, int, int]) -> None:
    tokens, samples, rows, width = shape
    ids = torch.zeros(tokens, samples, dtype=torch.int64)
    compare(drawn(tokens, width), drawn(rows, width), ids, None, None, -1, 4)


def test_ids_of_32_bits() -> None:
    q, t, ids, group = sample(40, 6, 9, 24, 5)
    assert group is not None
    compare(q, t, ids.int(), group.int(), None, 1, 4)
    assert entries(torch.float32, torch.int32) is not None


@pytest.mark.parametrize("groups", FORMS)
def test_the_same_bits_whatever_the_threads(groups: int | None) -> None:
    q, t, ids, group = sample(700, 30, 400, 40, groups)
    grad, found = drawn(700, 30, seed=3), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        backward = gr.segmented_logits_backward(grad, q, t, ids, group, EPS, 0, 6, False, True, True)
        found.append((gr.segmented_logits(q, t, ids, group, EPS, 0, 6), *backward))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))


def test_without_kernels_the_reference_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    q, t, ids, _ = sample(9, 6, 9, 24)
    monkeypatch.setenv("GR_COMPILE_CPU_KERNELS", "0")
    operands = (q, t, ids, None, EPS, -1, 3)
    assert torch.equal(gr.segmented_logits(*operands), segmented_logits_reference(*operands))
    rest = (False, True, True)
    got = gr.segmented_logits_backward(torch.ones(9, 6), *operands, *rest)
    assert all(map(torch.equal, got, segmented_logits_backward_reference(torch.ones(9, 6), *operands, *rest)))


def test_only_needed_gradients_are_made() -> None:
    q, t, ids, _ = sample(20, 6, 9, 24)
    for need in ((True, False), (False, True)):
        found = gr.segmented_logits_backward(torch.ones(20, 6), q, t, ids, None, None, -1, 3, False, *need)
        assert tuple(made.numel() > 0 for made in found) == need


def test_gradients_accumulate() -> None:
    q, t, ids, _ = sample(20, 6, 9, 24)
    t.requires_grad_()
    for _ in range(3):
        gr.segmented_logits(q, t, ids, None, None, -1, 3).sum().backward()
    (once,) = torch.autograd.grad(gr.sampled_logits(q, t, ids, None, None, -1).sum(), t)
    torch.testing.assert_close(t.grad, 3 * once)


def samples_for_checks(dtype: torch.dtype) -> list[tuple[Any, ...]]:
    made = []
    for groups, eps, padding in ((None, None, -1), (2, None, 1), (None, EPS, -1), (3, 0.9, 0)):
        q, t, ids, group = sample(5, 3, 6, 4, groups, dtype)
        made.append((q.requires_grad_(), t.requires_grad_(), ids, group, eps, padding, 2))
    return made


def test_gradcheck() -> None:
    for *operands, _, segments in samples_for_checks(torch.float64):
        assert torch.autograd.gradcheck(gr.segmented_logits.default, (*operands, -1, segments))


def test_opcheck() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for operands in samples_for_checks(dtype):
            torch.library.opcheck(gr.segmented_logits.default, operands, rtol=1e-2, atol=1e-2)
            rest = tuple(x.detach() if isinstance(x, Tensor) else x for x in operands)
            torch.library.opcheck(
                gr.segmented_logits_backward.default, (torch.ones(5, 3, dtype=dtype), *rest, False, True, True),
                test_utils=("test_schema", "test_faketensor"),
            )  # fmt: skip


def test_no_second_derivative() -> None:
    q, t, ids, _ = sample(5, 3, 6, 4, None, torch.float64)
    made = gr.segmented_logits(q.requires_grad_(), t.requires_grad_(), ids, None, None, -1, 2)
    (grad,) = torch.autograd.grad(made.sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad.sum().backward()


# ------------------------------------------------------------------------------------------- bad operands
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ids_outside_the_table_are_named(dtype: torch.dtype) -> None:
    q, t, ids, _ = sample(40, 6, 9, 24, None, dtype)
    ids[31, 4], ids[38, 0] = 9, -7
    message = r"ids\[31, 4\] is 9, which is no row of a table of 9"
    with pytest.raises(IndexError, match=message):
        gr.segmented_logits(q, t, ids, None, None, -1, 2)
    grad = torch.ones(40, 6, dtype=dtype)
    with pytest.raises(IndexError, match=message):
        gr.segmented_logits_backward(grad, q, t, ids, None, None, -1, 2, False, True, True)


def test_groups_outside_the_ids_are_named() -> None:
    q, t, ids, group = sample(40, 6, 9, 24, 5)
    assert group is not None
    group[33] = 5
    with pytest.raises(IndexError, match=r"group\[33\] is 5, which is no row of ids \[5, R\]"):
        gr.segmented_logits(q, t, ids, group, None, -1, 2)


@pytest.mark.parametrize("segments", [0, -3])
def test_there_is_at_least_one_segment(segments: int) -> None:
    q, t, ids, _ = sample(4, 6, 9, 24)
    with pytest.raises(ValueError, match=f"segments must be at least 1, not {segments}"):
        gr.segmented_logits(q, t, ids, None, None, -1, segments)
    with pytest.raises(ValueError, match="segments must be at least 1"):
        gr.segmented_logits_backward(torch.ones(4, 6), q, t, ids, None, None, -1, segments, False, True, True)


def test_shapes_that_do_not_fit() -> None:
    q, t, ids, _ = sample(4, 6, 9, 24)
    with pytest.raises(ValueError, match="rows of query have 24 features, those of table 23"):
        gr.segmented_logits(q, t[:, :23], ids, None, None, -1, 2)
