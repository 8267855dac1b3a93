"""The kernels of sampled logits on the functional model, against float64: all dtypes, odd sizes, wide rows, shared ids.

They run without the compiler's own synchronisation (auto_sync=False): every order that they need is their own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from vector_kernels import compiled, run, run_all

from gr_compile.lowering.ascendc.functional_model import Broken, In, Out, Tiling, Workspace
from gr_compile.lowering.ascendc.machine import machine
from gr_compile.lowering.ascendc.operators import FLOATS, OPERATORS
from gr_compile.lowering.ascendc.vector import vector_kernel

FEW = replace(machine("910b1"), vector_cores=3)  # cores that share, and few enough to be quick
SMALL = replace(FEW, unified_buffer=40 * 1024)  # rows of a few hundred columns are wider than a tile
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
FORWARD, BACKWARD = "gr::sampled_logits", "gr::sampled_logits_backward"


def drawn(shape: tuple[int, ...], dtype: str, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator) * scale).to(getattr(torch, dtype))


def call(
    size: tuple[int, int, int, int], query: str, table: str, ids: str = "int64", eps: float | None = None, groups: int = 0,
    group: str = "int64",
) -> list[Any]:  # fmt: skip
    """query, table, ids, group, eps and padding of T tokens, R samples, V rows and D features."""
    tokens, samples, rows, features = size
    generator = torch.Generator().manual_seed(5)
    number = torch.randint(0, max(rows, 1), (groups or tokens, samples), generator=generator).to(getattr(torch, ids))
    shared = torch.randint(0, groups, (tokens,), generator=generator).to(getattr(torch, group)) if groups else None
    return [drawn((tokens, features), query, 1), drawn((rows, features), table, 2), number, shared, eps, 1]


def backward_of(args: list[Any], query: bool = True, table: bool = True) -> list[Any]:
    dtype = str(args[0].dtype).removeprefix("torch.")
    return [drawn((len(args[0]), args[2].shape[1]), dtype, 3), *args, False, query, table]


def in_double(args: list[Any]) -> list[Any]:
    return [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args]


def launched(operator: str, args: list[Any], defect: tuple[str, str] = ("", "")) -> list[Tensor]:
    """The results of a call that torch's operator may refuse, by a kernel of which a part is another."""
    kernel = vector_kernel(operator, named(operator, args), FEW)
    assert defect[0] in kernel.source
    if operator == FORWARD:
        results = [Out((args[0].shape[0], args[2].shape[1]), args[0].dtype)]
    else:
        results = [Out(tuple(x.shape), x.dtype) for x in args[1:3]]
    group = args[3 if operator == FORWARD else 4]
    given = [x for x in args if isinstance(x, Tensor)] + ([torch.empty(0)] if group is None else [])
    arguments = [*map(In, given), *results, Workspace(kernel.workspace_bytes), Tiling(kernel.tiling)]
    program = compiled(kernel.source.replace(*defect) if defect[0] else kernel.source, kernel.name, kernel.tiling_fields)
    return list(program.run(kernel.name, arguments, FEW, blocks=kernel.blocks, auto_sync=False))


def named(operator: str, args: list[Any]) -> dict[str, Any]:
    return dict(zip((argument.name for argument in OPERATORS[operator].arguments), args))


def check(operator: str, on: Any, args: list[Any]) -> None:
    """Each result within its dtype's tolerance of float64's, relative to its largest number."""
    exact = OPERATORS[operator].overload(*in_double(args))
    plain = OPERATORS[operator].overload(*args)
    wanted, like = ([x] if isinstance(x, Tensor) else list(x) for x in (exact, plain))
    for got, want, torchs in zip(run_all(operator, on, *args), wanted, like, strict=True):
        assert got.shape == want.shape and got.dtype == torchs.dtype
        if want.numel():
            gap = float((got.double() - want).abs().max() / want.abs().max().clamp(min=1))
            assert gap <= TOLERANCE[str(got.dtype).removeprefix("torch.")], f"{operator} {list(want.shape)}: {gap:.1e}"


CALLS = [
    (((7, 5, 11, 33), "float32", "float32"), FEW),
    (((3, 130, 50, 64), "float16", "float16", "int32", 1e-6), FEW),
    (((9, 1, 50, 7), "bfloat16", "bfloat16", "int64", None, 4), FEW),
    (((40, 2, 9, 16), "float32", "float32", "int32", 1e-6, 5, "int32"), FEW),
    (((2, 600, 50, 16), "float32", "float32", "int32", None, 2), FEW),  # a row of ids that is longer than a block of them
    (((2, 3, 9, 3001), "float32", "float32", "int64", 1e-3), FEW),
    (((4, 3, 9, 901), "float16", "float32", "int64", 1e-3), SMALL),
    (((3, 2, 9, 700), "float32", "bfloat16", "int32", None, 2), SMALL),
    (((0, 3, 9, 8), "float32", "float32"), FEW),
    (((4, 0, 9, 8), "float32", "float16"), FEW),
    (((5, 3, 9, 0), "float32", "float32", "int64", 1e-6), FEW),
    (((1, 1, 1, 1), "float32", "float32"), FEW),
]  # fmt: skip
SWEEP = [
    ((size, query, table, ids, eps, groups), on)
    for query in FLOATS for table in FLOATS for ids in ("int32", "int64") for eps in (None, 1e-12, 5.0) for groups in (0, 3)
    for size in ((19, 7, 40, 24), (5, 70, 300, 130), (2, 3, 20, 2100)) for on in (FEW, SMALL) if on is FEW or size[3] < 200
    if ids == "int64" or query == table
]  # fmt: skip
each = pytest.mark.parametrize(("given", "on"), CALLS)
each_of_many = pytest.mark.parametrize(("given", "on"), SWEEP)


@each
def test_logits_are_float64s(given, on):
    check(FORWARD, on, call(*given))


@each
def test_gradients_are_float64s(given, on):
    check(BACKWARD, on, backward_of(call(*given)))


@pytest.mark.slow
@each_of_many
def test_logits_are_float64s_in_all_sizes(given, on):
    check(FORWARD, on, call(*given))


@pytest.mark.slow
@each_of_many
def test_gradients_are_float64s_in_all_sizes(given, on):
    check(BACKWARD, on, backward_of(call(*given)))


@pytest.mark.parametrize("needed", [(True, False), (False, True), (False, False)])
def test_a_gradient_that_nobody_needs_has_no_elements(needed):
    args = backward_of(call((7, 5, 11, 33), "float16", "float16", "int64", 1e-6), *needed)
    check(BACKWARD, FEW, args)
    kernel = vector_kernel(BACKWARD, named(BACKWARD, args), FEW)
    assert kernel.workspace_bytes == (11 * 33 * 4 if needed[1] else 0)


def test_rows_below_eps_are_scaled_and_not_turned():
    """Rows of norms around eps, of 0, and one that is exactly as long: nothing flows through a norm that eps has cut."""
    query, table, ids, group, _, padding = call((30, 4, 12, 8), "float32", "float32")
    table = torch.nn.functional.normalize(table) * torch.linspace(0, 2, 12).unsqueeze(1)
    table[3] = torch.tensor([1.0, *[0] * 7])
    args = [query, table, ids, group, 1.0, padding]
    check(FORWARD, FEW, args)
    check(BACKWARD, FEW, backward_of(args))


def test_the_padding_id_has_logits_and_no_gradient():
    query, table, ids, *_ = call((9, 4, 3, 8), "float32", "float32")
    _, grad = run_all(BACKWARD, FEW, *backward_of([query, table, ids, None, None, 1]))
    assert (ids == 1).any() and not grad[1].any() and grad[0].any() and grad[2].any()
    assert run(FORWARD, FEW, query, table, ids, None, None, 1)[ids == 1].all()


@pytest.mark.parametrize("groups", [0, 4])
@pytest.mark.parametrize("cosine", [None, 1e-6])
@pytest.mark.parametrize("dtype", FLOATS)
def test_an_id_that_is_no_row_is_nan_and_nothing_else(dtype, cosine, groups):
    """Nothing outside the table is read, and no other pair's logit or gradient is touched."""
    rows = 6
    query, table, ids, group, eps, padding = call((8, 3, rows, 20), dtype, dtype, "int64", cosine, groups)
    bad = ids.clone()
    bad[0, 1], bad[2, 0], bad[3, 2] = -1, rows, 2**40
    if group is not None:
        group[:4], group[4:] = torch.arange(4), 1  # tokens 4 and later read a row of ids that is whole
    lost = ((bad < 0) | (bad >= rows)) if group is None else ((bad < 0) | (bad >= rows))[group]
    args, given = [query, table, bad, group, eps, padding], [query, table, bad.clamp(0, rows - 1), group, eps, padding]
    (got,), want = launched(FORWARD, args), run(FORWARD, FEW, *given)
    assert torch.equal(got.isnan(), lost) and torch.equal(got[~lost], want[~lost])
    grad = drawn((8, 3), dtype, 3)
    grads = launched(BACKWARD, [grad, *args, False, True, True])
    wanted = run_all(BACKWARD, FEW, grad.masked_fill(lost, 0), *given, False, True, True)
    assert torch.equal(grads[0].isnan().any(1), lost.any(1))
    assert torch.equal(grads[0][~lost.any(1)], wanted[0][~lost.any(1)])
    torch.testing.assert_close(grads[1], wanted[1])


@pytest.mark.parametrize("group", ["int32", "int64"])
def test_a_group_that_is_no_row_of_ids_is_nan(group):
    query, table, ids, rows, eps, padding = call((9, 3, 6, 20), "float32", "float32", "int32", None, 4, group)
    rows[2], rows[5] = -1, 4
    if group == "int64":
        rows[7] = (1 << 32) + 1  # its lower word is a row
    lost = (rows < 0) | (rows >= 4)
    (got,) = launched(FORWARD, [query, table, ids, rows, eps, padding])
    want = torch.ops.gr.sampled_logits(query, table, ids, rows.where(~lost, 0), eps, padding)
    assert got[lost].isnan().all()
    torch.testing.assert_close(got[~lost], want[~lost])


def test_a_table_without_rows():
    query, ids = drawn((3, 8), "float32", 0), torch.zeros(3, 2, dtype=torch.int64)
    (got,) = launched(FORWARD, [query, query[:0], ids, None, None, -1])
    assert got.isnan().all()


def test_numbers_of_rows_that_are_not_looked_up_do_not_matter():
    query, table, ids, group, _, padding = call((6, 4, 9, 40), "float32", "float32")
    ids = ids.clamp(max=7)
    dirty = table.clone()
    dirty[8] = float("nan")
    for eps in (None, 1e-6):
        clean, got = (run_all(BACKWARD, FEW, *backward_of([query, x, ids, group, eps, padding])) for x in (table, dirty))
        assert all(torch.equal(a, b) for a, b in zip(clean, got))
        assert not got[1][8].any()


def test_the_same_call_gives_the_same_bits_and_rows_are_summed_in_the_order_of_their_pairs():
    args = call((60, 9, 5, 24), "float32", "float32", "int64", None)
    first, again = (run_all(BACKWARD, FEW, *backward_of(args)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    grad, query, ids = backward_of(args)[0], args[0], args[2]
    sums = torch.zeros(5, 24)
    for token, sample in ((t, r) for t in range(60) for r in range(9)):
        if ids[token, sample] != 1:
            sums[ids[token, sample]] += grad[token, sample] * query[token]
    assert torch.equal(first[1], sums)


def test_half_sums_of_many_pairs_are_kept_in_float32():
    """4096 ones and then one 1: float16 would lose the last."""
    query, table = torch.ones(1, 4, dtype=torch.float16), torch.ones(2, 4, dtype=torch.float16)
    grad, ids = torch.full((1, 4097), 0.5, dtype=torch.float16), torch.zeros(1, 4097, dtype=torch.int64)
    grad_query, grad_table = run_all(BACKWARD, FEW, grad, query, table, ids, None, None, -1, False, True, True)
    assert grad_query.tolist() == [[2048.0] * 4] and grad_table[0].tolist() == [2048.0] * 4


MUTANTS = {
    "a query's lanes behind its columns take part": (FORWARD, "Least(LANES, tile.n - c), tile.rows, {1, 1, 1, 8, 8", "LANES, tile.rows, {1, 1, 1, 8, 8"),
    "ids are not looked at before rows are read": (FORWARD, "id < 0 || id >= t->rows ? NOWHERE : id", "id"),
    "the next ids are read while these are": (FORWARD, "at = 0;\n    Order<HardEvent::S_MTE2>();", "at = 0;"),
    "rows are added before they are cleared": (BACKWARD, "ForMine<true>();\n    PipeBarrier<PIPE_MTE3>();", "ForMine<true>();"),
    "gradients are overwritten before they are read": (BACKWARD, "held = 0;\n    Order<HardEvent::V_S>();\n  }", "held = 0;\n  }"),
    "a row has every block for its owner": (BACKWARD, "return row / t->group % GetBlockNum() == GetBlockIdx();", "return true;"),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_model_refuses_mutants(mutant):
    """A kernel with this defect does not pass: it breaks a rule."""
    operator, *defect = MUTANTS[mutant]
    args = call((120, 19, 60, 37), "float32", "float32", "int64", 1e-6)
    args[2][3, 4] = 60 if "looked at" in mutant else 0
    with pytest.raises(Broken):
        launched(operator, backward_of(args) if operator == BACKWARD else args, (defect[0], defect[1]))


def test_what_no_kernel_takes_is_an_error():
    args = call((2, 2, 3, 4), "float64", "float32")
    with pytest.raises(ValueError, match="gr::sampled_logits: query is float64"):
        vector_kernel(FORWARD, named(FORWARD, args), FEW)
    args = call((2, 2, 3, 4), "float32", "float32")
    with pytest.raises(ValueError, match="gr::sampled_logits: no kernel takes stored"):
        vector_kernel(FORWARD, {**named(FORWARD, args), "stored": args[1]}, FEW)
