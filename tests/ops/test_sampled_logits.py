"""gr::sampled_logits: against the plain spelling, in every dtype and on the CPU's kernels, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import gr_compile.lowering.inductor  # noqa: F401  (registers the CPU's kernels)
from gr_compile.lowering.cpu import kernels
from gr_compile.lowering.cpu.sampled_logits import kernel
from gr_compile.ops.sampled_logits import sampled_logits_backward_reference, sampled_logits_reference

gr = torch.ops.gr
DTYPES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
EPS = 1e-12


@pytest.fixture(autouse=True)
def _kernels_are_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(failure: object) -> None:
        raise AssertionError(failure)

    monkeypatch.setattr(kernels, "_warn_once", fail)


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def plain(query: Tensor, table: Tensor, ids: Tensor, group: Tensor | None, eps: float | None, padding: int) -> Tensor:
    """As a user writes it."""
    places = ids.long() if group is None else ids.long()[group.long()]
    rows = F.embedding(places, table, padding_idx=padding if padding >= 0 else None)
    rows = rows if eps is None else F.normalize(rows, dim=-1, eps=eps)
    return (rows * query.unsqueeze(-2)).sum(-1)


def sample(
    tokens: int, samples: int, rows: int, width: int, groups: int | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(tokens * 31 + samples)
    ids = torch.randint(rows, (tokens if groups is None else groups, samples), generator=generator)
    group = None if groups is None else torch.randint(groups, (tokens,), generator=generator)
    return drawn(tokens, width, dtype=dtype), drawn(rows, width, dtype=dtype, seed=1), ids, group


def near(got: Tensor, exact: Tensor, dtype: torch.dtype) -> None:
    """Within a few roundings of the largest result."""
    assert got.dtype == dtype and got.is_contiguous()
    scale = exact.abs().max().clamp(min=1).item() if exact.numel() else 1.0
    torch.testing.assert_close(got.double(), exact.double(), rtol=DTYPES[dtype], atol=2 * DTYPES[dtype] * scale)


def compare(query: Tensor, table: Tensor, ids: Tensor, group: Tensor | None, eps: float | None, padding: int) -> None:
    """The operator and its gradients are those of the plain spelling in float64."""
    q, t = (x.detach().clone().requires_grad_() for x in (query, table))
    exact_q, exact_t = (x.detach().double().requires_grad_() for x in (query, table))
    made = gr.sampled_logits(q, t, ids, group, eps, padding)
    exact = plain(exact_q, exact_t, ids, group, eps, padding)
    near(made.detach(), exact.detach(), query.dtype)
    grad = drawn(*made.shape, dtype=query.dtype, seed=2)
    got = torch.autograd.grad(made, (q, t), grad)
    for one, want in zip(got, torch.autograd.grad(exact, (exact_q, exact_t), grad.double())):
        near(one, want, t.dtype if one is got[1] else query.dtype)


FORMS = [None, 1, 5, 40]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("groups", FORMS)
@pytest.mark.parametrize("eps", [None, EPS, 3.0])
def test_it_is_the_plain_spelling_and_so_are_its_gradients(
    dtype: torch.dtype, groups: int | None, eps: float | None
) -> None:
    for shape in ((33, 7, 11, 32), (70, 9, 300, 19), (3, 1, 1, 48), (50, 13, 4, 1)):
        compare(*sample(*shape, groups, dtype), eps, -1)
        compare(*sample(*shape, groups, dtype), eps, 0)


@pytest.mark.parametrize("query", DTYPES, ids=str)
@pytest.mark.parametrize("table", DTYPES, ids=str)
@pytest.mark.parametrize("eps", [None, 0.5])
def test_query_and_table_may_differ_in_dtype(query: torch.dtype, table: torch.dtype, eps: float | None) -> None:
    q, t, ids, _ = sample(20, 6, 9, 24)
    compare(q.to(query), t.to(table), ids, None, eps, 2)


@pytest.mark.parametrize("groups", FORMS)
def test_ids_and_groups_of_32_bits(groups: int | None) -> None:
    q, t, ids, group = sample(40, 6, 9, 24, groups)
    compare(q, t, ids.int(), None if group is None else group.int(), None, 1)


@pytest.mark.parametrize("shape", [(0, 3, 4, 8), (4, 0, 5, 8), (3, 2, 5, 0), (0, 0, 0, 4), (3, 0, 0, 4)])
@pytest.mark.parametrize("eps", [None, EPS])
def test_empty_operands(shape: tuple[int, int, int, int], eps: float | None) -> None:
    tokens, samples, rows, width = shape
    ids = torch.zeros(tokens, samples, dtype=torch.int64)
    compare(drawn(tokens, width), drawn(rows, width), ids, None, eps, -1)


def test_a_group_without_tokens_and_tokens_of_one_group_apart() -> None:
    q, t, ids, _ = sample(50, 8, 12, 32, 4)
    compare(q, t, ids, torch.arange(50) % 2 * 3, EPS, -1)


def test_many_tokens_of_one_group_and_many_samples() -> None:
    compare(*sample(300, 70, 50, 80, 1), None, 3)


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.t().contiguous().t(),
    "rows of a wider value": lambda x: torch.cat([x, x], -1)[:, : x.shape[1]],
    "columns apart": lambda x: torch.stack([x, x], -1)[..., 0],
    "one row for all": lambda x: x[:1].expand(x.shape),
    "misaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("width", [16, 13])
def test_any_strides(view: str, width: int) -> None:
    q, t, ids, _ = sample(11, 6, 9, width)
    operands = [VIEWS[view](x) for x in (q, t, ids)]
    grad = VIEWS[view](drawn(11, 6, seed=3))
    whole = [x.contiguous() for x in operands]
    assert torch.equal(gr.sampled_logits(*operands, None, EPS, 1), gr.sampled_logits(*whole, None, EPS, 1))
    found = gr.sampled_logits_backward(grad, *operands, None, EPS, 1, False, True, True)
    want = gr.sampled_logits_backward(grad.contiguous(), *whole, None, EPS, 1, False, True, True)
    assert all(torch.equal(a, b) and a.is_contiguous() for a, b in zip(found, want))


@settings(deadline=None, max_examples=60)
@given(
    tokens=st.integers(1, 70), samples=st.integers(1, 9), rows=st.integers(1, 40), width=st.integers(1, 40),
    groups=st.sampled_from([None, 1, 3, 30]), eps=st.sampled_from([None, 0.0, EPS, 2.0]), padding=st.integers(-1, 3),
)  # fmt: skip
def test_any_sizes(
    tokens: int, samples: int, rows: int, width: int, groups: int | None, eps: float | None, padding: int
) -> None:
    compare(*sample(tokens, samples, rows, width, groups), eps, min(padding, rows - 1))


def test_repeated_ids_count_as_often() -> None:
    q, t, ids, _ = sample(200, 6, 1000, 32)
    ids[:, 2] = ids[:, 0]
    ids[50:, :3] = 7
    compare(q, t, ids, None, None, -1)


@pytest.mark.parametrize("rows", [2047, 2048, 2049, 5_000_000])
def test_lookups_are_sorted_over_several_digits(rows: int) -> None:
    ids = torch.tensor([[0, rows - 1, rows // 2], [rows - 1, 2047 % rows, 0]])
    q, table = drawn(2, 1), torch.zeros(rows, 1)
    grad = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])
    _, found = gr.sampled_logits_backward(grad, q, table, ids, None, None, -1, False, False, True)
    want = torch.zeros(rows, 1).index_add_(0, ids.flatten(), (grad * q).reshape(-1, 1))
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("groups", FORMS)
def test_rows_of_zeros_have_the_gradient_of_normalize(dtype: torch.dtype, groups: int | None) -> None:
    q, t, ids, group = sample(20, 6, 5, 24, groups, dtype)
    t[2] = 0
    t[3] = 0.01
    eps = 0.125  # exact in halves, whose plain spelling rounds it
    compare(q, t, ids, group, eps, -1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("eps", [None, EPS])
@pytest.mark.parametrize("groups", [None, 2])
@pytest.mark.parametrize("width", [32, 19])
def test_bad_rows_reach_those_who_read_them_only(bad: float, eps: float | None, groups: int | None, width: int) -> None:
    q, t, ids, group = sample(12, 5, 9, width, groups)
    ids[:] = ids % 7
    ids[0, 4] = 7
    t[7, 3] = t[8, 0] = bad
    t.requires_grad_(), q.requires_grad_()
    exact = plain(q, t, ids, group, eps, -1)
    made = gr.sampled_logits(q, t, ids, group, eps, -1)
    torch.testing.assert_close(made, exact, equal_nan=True, rtol=1e-5, atol=1e-5)
    grad = drawn(12, 5, seed=3)
    for one, want in zip(torch.autograd.grad(made, (q, t), grad), torch.autograd.grad(exact, (q, t), grad)):
        torch.testing.assert_close(one, want, equal_nan=True, rtol=1e-4, atol=1e-4)


def test_a_bad_query_reaches_its_rows_only() -> None:
    q, t, ids, _ = sample(12, 5, 60, 19)
    q[3, 2] = float("nan")
    grad = torch.ones(12, 5)
    _, found = gr.sampled_logits_backward(grad, q, t, ids, None, None, -1, False, False, True)
    reached = found.isnan().any(-1).nonzero().flatten()
    assert torch.equal(reached, ids[3].unique())


def test_halves_are_rounded_once() -> None:
    q, t, ids, _ = sample(30, 20, 3, 160)
    q, t = q.half(), t.half()
    exact = plain(q.double(), t.double(), ids, None, None, -1)
    assert torch.equal(gr.sampled_logits(q, t, ids, None, None, -1), sampled_logits_reference(q, t, ids, None, None, -1))
    assert (gr.sampled_logits(q, t, ids, None, None, -1).double() - exact).abs().max() <= 2**-11 * exact.abs().max() * 1.01


@pytest.mark.parametrize("groups", FORMS)
@pytest.mark.parametrize("eps", [None, EPS])
def test_the_same_bits_whatever_the_threads(groups: int | None, eps: float | None) -> None:
    q, t, ids, group = sample(700, 30, 400, 40, groups)
    grad, found = drawn(700, 30, seed=3), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        backward = gr.sampled_logits_backward(grad, q, t, ids, group, eps, 0, False, True, True)
        found.append((gr.sampled_logits(q, t, ids, group, eps, 0), *backward))
    torch.set_num_threads(1)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other))


def test_only_needed_gradients_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    q, t, ids, _ = sample(20, 6, 9, 24)
    for need in ((True, False), (False, True)):
        found = gr.sampled_logits_backward(torch.ones(20, 6), q, t, ids, None, None, -1, False, *need)
        assert tuple(made.numel() > 0 for made in found) == need
    asked: list[tuple[bool, bool]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is gr.sampled_logits_backward.default:
                asked.append(args[-2:])
            return function(*args, **(kwargs or {}))

    for x in (q, t):
        x.requires_grad_()
        with Watch():
            gr.sampled_logits(q, t, ids, None, None, -1).sum().backward()
        x.requires_grad_(False)
    assert asked == [(True, False), (False, True)]


def test_float64_and_no_kernels_take_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    q, t, ids, _ = sample(9, 6, 9, 24)
    with_kernels = gr.sampled_logits(q, t, ids, None, EPS, -1)
    monkeypatch.setenv("GR_COMPILE_CPU_KERNELS", "0")
    assert torch.equal(gr.sampled_logits(q, t, ids, None, EPS, -1), sampled_logits_reference(q, t, ids, None, EPS, -1))
    torch.testing.assert_close(gr.sampled_logits(q, t, ids, None, EPS, -1), with_kernels)


def test_there_is_a_kernel_for_every_dtype_that_is_not_64_bits() -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert all(kernel(dtype, dtype, ids, backward) for ids in (torch.int64, torch.int32) for backward in (False, True))


def test_autocast_leaves_it_alone() -> None:
    q, t, ids, _ = sample(9, 6, 9, 24)
    q, t = q.double(), t.double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gr.sampled_logits(q, t, ids, None, None, -1)
    torch.testing.assert_close(found, plain(q, t, ids, None, None, -1))


def test_no_token_times_sample_times_feature_is_allocated() -> None:
    tokens, samples, width = 256, 64, 256
    q, t, ids, _ = sample(tokens, samples, 300, width)
    q.requires_grad_(), t.requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        gr.sampled_logits(q, t, ids, None, EPS, -1).sum().backward()
    sizes = [event.cpu_memory_usage for event in profile.events()]
    assert 0 < max(sizes) < tokens * samples * width * 4 / 8


# ------------------------------------------------------------------------------------- torch's own checks
def samples_for_checks(dtype: torch.dtype, grad: bool) -> list[tuple[Any, ...]]:
    made = []
    for groups, eps, padding in ((None, None, -1), (2, None, 1), (None, EPS, -1), (3, 0.9, 0)):
        q, t, ids, group = sample(5, 3, 6, 4, groups, dtype)
        made.append((q.requires_grad_(grad), t.requires_grad_(grad), ids, group, eps, padding))
    return made


def test_gradcheck() -> None:
    for *operands, _ in samples_for_checks(torch.float64, True):
        assert torch.autograd.gradcheck(gr.sampled_logits.default, (*operands, -1))  # a padding row has no gradient


def test_opcheck() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for operands in samples_for_checks(dtype, True):
            torch.library.opcheck(gr.sampled_logits.default, operands, rtol=1e-2, atol=1e-2)
            rest = tuple(x.detach() if isinstance(x, Tensor) else x for x in operands)
            torch.library.opcheck(
                gr.sampled_logits_backward.default, (torch.ones(5, 3, dtype=dtype), *rest, False, True, True),
                test_utils=("test_schema", "test_faketensor"),
            )  # fmt: skip


def test_no_second_derivative() -> None:
    q, t, ids, _ = sample(5, 3, 6, 4, None, torch.float64)
    (grad,) = torch.autograd.grad(gr.sampled_logits(q.requires_grad_(), t.requires_grad_(), ids, None, None, -1).sum(), q,
                                  create_graph=True)  # fmt: skip
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("groups", [None, 2])
def test_compiled_with_any_number_of_tokens(groups: int | None) -> None:
    def loss(mask: Tensor, query: Tensor, table: Tensor, ids: Tensor, group: Tensor | None) -> Tensor:
        kept = mask.nonzero().squeeze(1)
        ids, group = (ids[kept], None) if group is None else (ids, group[kept])
        logits = gr.sampled_logits(query[kept], table, ids, group, EPS, 0)
        return F.cross_entropy(logits, torch.zeros_like(kept), reduction="sum")

    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        fast = torch.compile(loss, fullgraph=True)
        for tokens in (9, 30, 17):
            q, t, ids, group = sample(tokens, 4, 20, 24, groups)
            mask = torch.arange(tokens) % 3 != 0
            found = [x.clone().requires_grad_() for x in (q, t)]
            want = [x.clone().requires_grad_() for x in (q, t)]
            fast(mask, *found, ids, group).backward()
            loss(mask, *want, ids, group).backward()
            for one, other in zip(found, want):
                torch.testing.assert_close(one.grad, other.grad)


# ------------------------------------------------------------------------------------------- bad operands
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [-1, 9, 2**40])
def test_ids_outside_the_table_are_named(dtype: torch.dtype, bad: int) -> None:
    q, t, ids, _ = sample(40, 6, 9, 24, None, dtype)
    ids[31, 4], ids[38, 0] = bad, -7
    message = rf"ids\[31, 4\] is {bad}, which is no row of a table of 9"
    with pytest.raises(IndexError, match=message):
        gr.sampled_logits(q, t, ids, None, None, -1)
    with pytest.raises(IndexError, match=message):
        gr.sampled_logits_backward(torch.ones(40, 6, dtype=dtype), q, t, ids, None, None, -1, False, True, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [-1, 5])
def test_groups_outside_the_ids_are_named(dtype: torch.dtype, bad: int) -> None:
    q, t, ids, group = sample(40, 6, 9, 24, 5, dtype)
    assert group is not None
    group[33] = bad
    with pytest.raises(IndexError, match=rf"group\[33\] is {bad}, which is no row of ids \[5, R\]"):
        gr.sampled_logits(q, t, ids, group, None, -1)


def test_a_table_without_rows() -> None:
    with pytest.raises(IndexError, match=r"ids\[0, 0\] is 0"):
        gr.sampled_logits(torch.ones(1, 2), torch.ones(0, 2), torch.zeros(1, 1, dtype=torch.int64), None, None, -1)


Q, TABLE, IDS = torch.ones(2, 3), torch.ones(4, 3), torch.zeros(2, 5, dtype=torch.int64)


@pytest.mark.parametrize(("operands", "message"), [
    ((Q.long(), TABLE, IDS, None, None, -1), "query must be floating point"),
    ((Q[0], TABLE, IDS, None, None, -1), r"query must be \[T, D\], not of 1 dimensions"),
    ((Q, TABLE[:, :2], IDS, None, None, -1), "rows of query have 3 features, those of table 2"),
    ((Q, TABLE, IDS.float(), None, None, -1), "ids must be int64 or int32"),
    ((Q, TABLE, IDS[0], None, None, -1), r"ids must be \[G, R\]"),
    ((Q, TABLE, IDS[:1], None, None, -1), "ids without group must have a row for each of the 2 tokens, not 1"),
    ((Q, TABLE, IDS, IDS[0], None, -1), "group must have a row for each of the 2 tokens, not 5"),
    ((Q, TABLE, IDS, Q[:, 0], None, -1), "group must be int64 or int32"),
    ((Q, TABLE, IDS, IDS[:, :1], None, -1), r"group must be \[T\]"),
    ((Q, TABLE, IDS, None, -1.0, -1), "eps must be finite and not negative"),
    ((Q, TABLE, IDS, None, None, -2), "padding must be an id, or -1 for none, not -2"),
])  # fmt: skip
def test_bad_operands(operands: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gr.sampled_logits(*operands)
    with pytest.raises(ValueError, match=message):
        sampled_logits_backward_reference(torch.ones(2, 5), *operands, False, True, True)


def test_a_gradient_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"grad must be \[2, 5\], not \[2, 4\]"):
        gr.sampled_logits_backward(torch.ones(2, 4), Q, TABLE, IDS, None, None, -1, False, True, True)


# -------------------------------------------------------------------------------- rows that are read from a copy
STORED = [(dtype, scale) for dtype in (torch.float16, torch.bfloat16) for scale in ("none", "per-token", "per-table")]


def copied(table: Tensor, ids: Tensor, dtype: torch.dtype, scale: str) -> tuple[Tensor, Tensor | None, Tensor]:
    """(the copy, its scale, the table that it stands for in float64)."""
    stored, factor = gr.stored_rows(table.detach(), ids, dtype, scale)
    if scale == "none":
        return stored, None, stored.double()
    return stored, factor, stored.double() * factor.double().unsqueeze(-1 if scale == "per-token" else 0)


@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("groups", [None, 5])
@pytest.mark.parametrize("eps", [None, EPS, 3.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_a_copy_stand_for_the_tables_and_gradients_go_to_the_table(
    stored: tuple[torch.dtype, str], groups: int | None, eps: float | None, dtype: torch.dtype
) -> None:
    for shape in ((33, 7, 11, 32), (20, 9, 300, 19)):
        q, t, ids, group = sample(*shape, groups, dtype)
        t = t * torch.linspace(0.01, 30, len(t), dtype=dtype).unsqueeze(-1)
        copy, scale, exact = copied(t, ids, *stored)
        q, t, exact = q.requires_grad_(), t.requires_grad_(), exact.requires_grad_()
        made = gr.sampled_logits(q, t, ids, group, eps, 1, copy, scale)
        exact_q = q.detach().double().requires_grad_()
        wanted = plain(exact_q, exact, ids, group, eps, 1)
        near(made.detach(), wanted.detach(), dtype)
        grad = drawn(*made.shape, dtype=dtype, seed=2)
        got = torch.autograd.grad(made, (q, t), grad)
        for one, want in zip(got, torch.autograd.grad(wanted, (exact_q, exact), grad.double())):
            near(one, want, dtype)


def test_opcheck_and_gradcheck_of_the_query_with_a_copy() -> None:
    for operands in samples_for_checks(torch.float32, True):
        for stored in STORED:
            copy, scale, _ = copied(operands[1], operands[2], *stored)
            torch.library.opcheck(gr.sampled_logits.default, (*operands, copy, scale), rtol=1e-2, atol=1e-2)
    for query, table, ids, group, eps, padding in samples_for_checks(torch.float64, True):
        copy, scale, _ = copied(table, ids, torch.float16, "per-token")
        operands = (query, table.detach(), ids, group, eps, padding, copy, scale)
        assert torch.autograd.gradcheck(gr.sampled_logits.default, operands)


@pytest.mark.parametrize(
    ("stored", "scale", "message"),
    [
        (None, torch.ones(1), "scale is that of stored rows"),
        (torch.zeros(9, 24, dtype=torch.int8), None, "stored must be floating point, not torch.int8"),
        (torch.zeros(24), None, r"stored must be \[V, D\], not of 1"),
        (torch.zeros(8, 24), None, r"stored must be \[9, 24\] as the table is, not \[8, 24\]"),
        (torch.zeros(9, 24), torch.ones(9).double(), "scale must be torch.float32"),
        (torch.zeros(9, 24), torch.ones(9, 1), r"scale must be \[1\] or \[V\]"),
        (torch.zeros(9, 24), torch.ones(4), r"scale must be \[1\] or \[9\], not \[4\]"),
    ],
)
def test_copies_that_do_not_fit(stored: Tensor | None, scale: Tensor | None, message: str) -> None:
    q, t, ids, _ = sample(20, 6, 9, 24)
    with pytest.raises(ValueError, match=message):
        gr.sampled_logits(q, t, ids, None, None, -1, stored, scale)


def test_only_the_copy_is_read_where_there_is_one() -> None:
    q, t, ids, _ = sample(20, 6, 9, 24)
    copy, scale, _ = copied(t, ids, torch.float16, "per-table")
    first = gr.sampled_logits(q, t, ids, None, EPS, -1, copy, scale)
    assert torch.equal(first, gr.sampled_logits(q, torch.full_like(t, torch.nan), ids, None, EPS, -1, copy, scale))
