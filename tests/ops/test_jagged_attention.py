"""jagged_attention: random programs against dense torch and its autograd, leaks, edges, compilation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from program_generator import Case, generate
from torch import Tensor

from gr_compile.analysis import expr as E
from gr_compile.analysis.expr import const, index, load, make, size
from gr_compile.ops import ScoreProgram, attention_blocks

b, h, i, j = (index(name) for name in "bhij")
attention = torch.ops.gr.jagged_attention
CHUNKS, CHUNK = 12, 20


def gradients(out: Tensor, operands: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Gradients of a random projection of `out`; zeros for what it does not depend on."""
    torch.manual_seed(seed)
    weight = torch.randn(out.shape, dtype=torch.float64).to(out.dtype)
    found = torch.autograd.grad(out, operands, weight, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(operands, found)]


def check(case: Case, rtol: float, atol: float) -> None:
    """Output and every gradient against the dense form."""
    out = attention(*case.operands())
    name = f"seed {case.seed}: {case.program.score} | {case.program.post}"
    torch.testing.assert_close(out, case.dense_out, rtol=rtol, atol=atol, msg=lambda m: f"{name}\nout: {m}")
    operands = case.differentiable()
    got, want = gradients(out, operands, case.seed), gradients(case.dense_out, operands, case.seed)
    for number, (a, w) in enumerate(zip(got, want)):
        message = f"{name}\ngradient {number}: "
        torch.testing.assert_close(a, w, rtol=rtol, atol=atol, msg=lambda m, x=message: x + m)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_programs(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if chunk % 2:  # many blocks a sequence, so that hulls skip keys and gradients add up over blocks
        monkeypatch.setattr(attention_blocks, "BLOCK_ELEMENTS", 12)
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        check(generate(seed), rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_many_random_programs() -> None:
    for seed in range(1000, 9000):
        check(generate(seed), rtol=1e-8, atol=1e-10)


def test_random_programs_in_float32() -> None:
    for seed in range(5000, 5030):
        check(generate(seed, torch.float32), rtol=1e-3, atol=1e-4)


def test_the_generator_covers_what_it_claims() -> None:
    cases = [generate(seed) for seed in range(CHUNKS * CHUNK)]
    ops = {node.op for case in cases for node in E.walk(*case.program.expressions().values())}
    assert {
        "silu",
        "gelu",
        "softplus",
        "log",
        "where",
        "load",
        "and",
        "not",
        "mod",
        "minimum",
        "s",
        "sm",
    } <= ops
    assert any(case.q is None for case in cases) and any(
        case.program.fully_masked == "zero" for case in cases
    )
    assert any(case.program.key_high is not None and case.program.post is not None for case in cases)
    assert any(case.k is not None and case.k.shape[1] not in (1, case.heads) for case in cases)
    lengths = [case.query.offsets.diff() for case in cases]
    assert any((x == 0).any() for x in lengths) and any((x == 0).all() for x in lengths)
    assert any(case.query is not case.key for case in cases)


# ------------------------------------------------------------------------------------- hand-made programs


def causal_softmax(dtype: str = "f64", fully_masked: str = "zero", p: float = 0.0, bias: bool = True) -> str:
    """Causal softmax with a relative bias and, with p, dropout."""
    s = make("s", (), dtype)
    relative = E.add(E.sub(j, i), size("N"), const(-1))
    score = E.binary("add", s, load("bias", [relative], dtype), dtype) if bias else s
    masked = E.where(E.ge0(E.sub(i, j)), score, const(float("-inf"), dtype), dtype)
    post = make("sm", (), dtype)
    program = ScoreProgram(
        score=masked, post=make("dropout", (post, const(p, "f32")), dtype) if p else post,
        fully_masked=fully_masked,  # type: ignore[arg-type]
        k_head=E.binary("floordiv", h, const(2), "i"), v_head=E.binary("floordiv", h, const(2), "i"),
        leaves=("bias",) if bias else (), sizes=("N",), key_high=E.add(i, const(1)), out_dtype=dtype,
    )  # fmt: skip
    return program.text()


def rows_of(lengths: list[int], length: int) -> tuple[Tensor, Tensor]:
    counts = torch.tensor(lengths, dtype=torch.int64)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    mask = torch.arange(length) < counts[:, None]
    return offsets, (mask.flatten().nonzero().flatten() % max(length, 1)).to(torch.int64)


def sample(
    lengths: list[int], p: float = 0.0, dtype: torch.dtype = torch.float64, grad: bool = True
) -> list[Any]:
    """Operands of `causal_softmax` with N = 5, H = 4 and two shared heads."""
    torch.manual_seed(len(lengths))
    offsets, positions = rows_of(lengths, 5)
    total = positions.shape[0]
    shapes = ((total, 4, 3), (total, 2, 3), (total, 2, 2), (9,))
    q, k, v, bias = (torch.randn(x, dtype=torch.float64).to(dtype).requires_grad_(grad) for x in shapes)
    seed = torch.tensor(7) if p else None
    name = {torch.float64: "f64", torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    program = causal_softmax(name, p=p)
    return [q, k, v, [bias], offsets, positions, offsets, positions, 4, [5], seed, program]


LENGTHS = [[3, 0, 5, 1], [0, 0], [], [1]]


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_gradcheck(lengths: list[int], p: float) -> None:
    q, k, v, (bias,), *rest = sample(lengths, p)
    assert torch.autograd.gradcheck(lambda q, k, v, bias: attention(q, k, v, [bias], *rest), (q, k, v, bias))


def test_gradcheck_of_random_programs() -> None:
    for seed in range(300, 308):
        case = generate(seed)
        operands = case.differentiable()
        names = {id(x): n for n, x in enumerate(operands)}

        def run(*given: Tensor, case: Case = case, names: dict[int, int] = names) -> Tensor:
            def new(x: Any) -> Any:
                return given[names[id(x)]] if id(x) in names else x

            q, k, v, leaves, *rest = case.operands()
            return attention(new(q), new(k), new(v), [new(x) for x in leaves], *rest)  # type: ignore[attr-defined]

        assert torch.autograd.gradcheck(run, operands)


@pytest.mark.parametrize("lengths", [[3, 0, 5, 1], [0, 0]], ids=str)
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_opcheck(lengths: list[int], p: float) -> None:
    operands = sample(lengths, p)
    torch.library.opcheck(torch.ops.gr.jagged_attention.default, tuple(operands))
    plain = sample(lengths, p, grad=False)
    out = attention(*plain)
    for needs in ([True, True, True, True], [False, True, False, False]):
        torch.library.opcheck(
            torch.ops.gr.jagged_attention_backward.default, (torch.randn_like(out), *plain, needs)
        )


def test_opcheck_without_queries() -> None:
    case = next(case for case in map(generate, range(200)) if case.q is None and case.v.shape[0] > 3)
    torch.library.opcheck(torch.ops.gr.jagged_attention.default, case.operands())


def test_gradients_that_nobody_needs_are_empty() -> None:
    operands = sample([3, 0, 5, 1], grad=False)
    grad = torch.ones_like(attention(*operands))
    q, k, v, bias = torch.ops.gr.jagged_attention_backward(grad, *operands, [False, True, False, True])
    assert q.numel() == v.numel() == 0 and k.shape == operands[1].shape and bias.shape == (9,)


# ------------------------------------------------------------------------------------------------ leaks


@pytest.mark.parametrize("junk", [float("nan"), 3.0])
def test_another_sequence_changes_nothing(junk: float) -> None:
    """Bit for bit: outputs, gradients of rows and, with finite junk, gradients of the leaves."""
    looked_at = 0
    for seed in range(400, 450):
        case = generate(seed)
        lengths = case.query.offsets.diff()
        if case.query.mask.shape[0] < 2 or not lengths.any():
            continue
        mine, looked_at = int(lengths.argmax()), looked_at + 1
        edited = _with_other_sequences_edited(case, mine, junk)
        before, after = _results(case, mine), _results(edited, mine)
        for name, x in before.items():
            if junk == junk or name in ("out", "q", "k", "v"):
                torch.testing.assert_close(
                    after[name],
                    x,
                    rtol=0,
                    atol=0,
                    equal_nan=True,
                    msg=lambda m, n=name, s=seed: f"{s} {n} {m}",
                )
    assert looked_at > 20


def _ranges(case: Case, mine: int) -> tuple[slice, slice]:
    query, key = case.query.offsets, case.key.offsets
    return slice(query[mine], query[mine + 1]), slice(key[mine], key[mine + 1])


def _results(case: Case, mine: int) -> dict[str, Tensor]:
    """Sequence `mine`'s rows of the output and of the gradients of a projection of its rows."""
    rows, keys = _ranges(case, mine)
    out = attention(*case.operands())
    weight = torch.zeros_like(out)
    weight[rows] = 1.5
    torch.autograd.backward(out, weight)
    found = {"out": out[rows]}
    for name, x, part in (("q", case.q, rows), ("k", case.k, keys), ("v", case.v, keys)):
        if x is not None:
            assert x.grad is not None
            found[name] = x.grad[part]
    for name, leaf in zip(case.program.leaves, case.leaves):
        if leaf.requires_grad:
            assert leaf.grad is not None
            found[name] = leaf.grad[mine] if _is_by_sequence(case, name) else leaf.grad
    return found


def _with_other_sequences_edited(case: Case, mine: int, junk: float) -> Case:
    """The case with `junk` in every row of the other sequences, and other columns for them."""
    rows, keys = _ranges(case, mine)

    def edit(x: Tensor, kept: slice | int) -> Tensor:
        fresh = ~x.detach() if x.dtype == torch.bool else torch.zeros_like(x, requires_grad=False)
        edited = fresh + junk if x.is_floating_point() else fresh
        edited[kept] = x.detach()[kept]
        return edited.requires_grad_(x.requires_grad)

    leaves = [
        edit(x, mine) if _is_by_sequence(case, name) else x.detach().clone().requires_grad_(x.requires_grad)
        for name, x in zip(case.program.leaves, case.leaves)
    ]
    q, k = None if case.q is None else edit(case.q, rows), None if case.k is None else edit(case.k, keys)
    return replace(case, q=q, k=k, v=edit(case.v, keys), leaves=leaves)


def _is_by_sequence(case: Case, name: str) -> bool:
    return any(x.args[0] == name and x.args[1] and x.args[1][0] is b for x in case.program.loads())


# ------------------------------------------------------------------------------------------------ edges


@pytest.mark.parametrize("fully_masked", ["zero", "natural"])
def test_fully_masked_rows(fully_masked: str) -> None:
    hidden = E.where(E.ge0(E.sub(i, const(2))), make("s", (), "f32"), const(float("-inf"), "f32"), "f32")
    program = ScoreProgram(score=hidden, post=make("sm", (), "f32"), fully_masked=fully_masked)  # type: ignore[arg-type]
    offsets, positions = rows_of([4, 1], 4)
    q, k, v = (torch.randn(5, 1, 2, requires_grad=True) for _ in range(3))
    out = attention(q, k, v, [], offsets, positions, offsets, positions, 1, [], None, program.text())
    masked = positions < 2
    assert out[~masked].isfinite().all()
    assert (out[masked] == 0).all() if fully_masked == "zero" else out[masked].isnan().all()
    if fully_masked == "zero":
        grads = torch.autograd.grad(out.sum(), (q, k, v))
        assert all(g.isfinite().all() for g in grads) and (grads[0][masked] == 0).all()


def test_rows_of_equal_finite_scores_are_uniform() -> None:
    lowest = torch.finfo(torch.float32).min
    program = ScoreProgram(score=const(lowest, "f32"), post=make("sm", (), "f32"))
    offsets, positions = rows_of([4], 4)
    v = torch.randn(4, 2, 3)
    out = attention(None, None, v, [], offsets, positions, offsets, positions, 2, [], None, program.text())
    torch.testing.assert_close(out, v.mean(0, keepdim=True).expand(4, 2, 3))


@pytest.mark.parametrize(("post", "fully_masked"), [(False, "natural"), (True, "zero"), (True, "natural")])
def test_queries_without_keys(post: bool, fully_masked: str) -> None:
    s = make("s", (), "f32")
    program = ScoreProgram(score=s, post=make("sm", (), "f32") if post else None, fully_masked=fully_masked)  # type: ignore[arg-type]
    query_offsets, query_positions = rows_of([2, 2], 2)
    key_offsets, key_positions = rows_of([0, 3], 3)
    q, k = torch.randn(4, 1, 2), torch.randn(3, 1, 2)
    out = attention(
        q, k, k, [], query_offsets, query_positions, key_offsets, key_positions, 1, [], None, program.text()
    )
    assert out[2:].isfinite().all() and (out[2:] != 0).all()
    assert out[:2].isnan().all() if post and fully_masked == "natural" else (out[:2] == 0).all()


def test_rows_behind_the_last_sequence_are_zero() -> None:
    q, k, v, leaves, offsets, positions, *rest = sample([3, 2])
    want = attention(q, k, v, leaves, offsets, positions, *rest)
    filling = [torch.cat([x, torch.full((3, *x.shape[1:]), float("nan"), dtype=x.dtype)]) for x in (q, k, v)]
    places = torch.cat([positions, positions.new_zeros(3)])
    got = attention(*filling, leaves, offsets, places, offsets, places, *rest[2:])
    assert torch.equal(got[:5], want) and (got[5:] == 0).all()
    grads = gradients(got, filling, 0)
    assert all((g[5:] == 0).all() and g.isfinite().all() for g in grads)


def test_blocks_of_any_size_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    operands = sample([5, 0, 5, 4])
    want = attention(*operands)
    for elements in (1, 7, 40):
        monkeypatch.setattr(attention_blocks, "BLOCK_ELEMENTS", elements)
        torch.testing.assert_close(attention(*operands), want)
    monkeypatch.setattr(attention_blocks, "BLOCK_ELEMENTS", 1)
    assert max(x.k1 - x.k0 for x in _blocks_of(operands)) == 5
    assert [x.k1 - x.k0 for x in _blocks_of(operands)][:5] == [1, 2, 3, 4, 5]  # the hull skips what is ahead


def _blocks_of(operands: list[Any]) -> list[attention_blocks.Block]:
    from gr_compile.ops.jagged_attention import inputs_of

    return attention_blocks.blocks(inputs_of(*operands))


# ---------------------------------------------------------------------------------------------- dropout


def test_dropout_repeats_by_seed_and_keeps_the_mean() -> None:
    operands = sample([5, 4], p=0.4, grad=False)
    first, again = attention(*operands), attention(*operands)
    assert torch.equal(first, again)
    outs = []
    for seed in range(600):
        operands[10] = torch.tensor(seed)
        outs.append(attention(*operands))
    assert not torch.equal(outs[0], outs[1])
    operands[10], operands[11] = None, causal_softmax("f64")
    torch.testing.assert_close(torch.stack(outs).mean(0), attention(*operands), rtol=0, atol=0.25)


# ----------------------------------------------------------------------------------------------- dtypes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    operands, exact = sample([3, 0, 5, 1], dtype=dtype), sample([3, 0, 5, 1], dtype=torch.float64)
    out = attention(*operands)
    assert out.dtype == dtype
    floats, exact_floats = [*operands[:3], *operands[3]], [*exact[:3], *exact[3]]
    tolerance = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), attention(*exact), rtol=tolerance, atol=tolerance)
    wanted = gradients(attention(*exact), exact_floats, 0)
    for got, want, x in zip(gradients(out, floats, 0), wanted, floats):
        assert got.dtype == x.dtype
        torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=4 * tolerance)


def test_autocast_and_inference_mode_change_nothing() -> None:
    operands = sample([3, 0, 5, 1], dtype=torch.float32)
    want = attention(*operands)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = attention(*operands)
        grads = gradients(got, operands[:3], 0)
    assert torch.equal(got, want) and got.dtype == torch.float32
    assert all(torch.equal(x, y) for x, y in zip(grads, gradients(want, operands[:3], 0)))
    with torch.inference_mode():
        assert torch.equal(attention(*operands), want)


def test_operands_may_be_strided() -> None:
    operands = sample([3, 0, 5, 1])
    want = attention(*operands)
    strided = [x.detach().transpose(0, 2).contiguous().transpose(0, 2) for x in operands[:3]]
    assert not strided[0].is_contiguous()
    torch.testing.assert_close(attention(*strided, *operands[3:]), want)


# -------------------------------------------------------------------------------------------- compiled


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_one_graph_serves_every_batch(backend: str) -> None:
    torch._dynamo.reset()
    program = causal_softmax("f32")

    def model(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        batch, length = mask.shape
        where = mask.flatten().nonzero().flatten()
        offsets = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0))
        packed = [torch.ops.gr.pack(x, where) for x in (q, k, v)]
        places = where % length
        out = attention(*packed, [bias], offsets, places, offsets, places, 4, [length], None, program)
        return torch.ops.gr.unpack(out, where, batch, length)

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
        for turn, (lengths, length) in enumerate([([3, 1, 2], 7), ([0, 0, 0, 0, 0], 6), ([4, 9], 9)]):
            torch.manual_seed(turn)
            mask = torch.arange(length) < torch.tensor(lengths)[:, None]
            shapes = ((4, 19), (2, 19), (2, 23))
            operands = [torch.randn(*mask.shape, *x, requires_grad=True) for x in shapes]
            operands.append(torch.randn(2 * length - 1, requires_grad=True))
            with torch.compiler.set_stance("fail_on_recompile" if turn else "default"):
                got = compiled(*operands, mask)
            want = model(*operands, mask)
            torch.testing.assert_close(got, want)
            for x, y in zip(gradients(got, operands, 0), gradients(want, operands, 0)):
                torch.testing.assert_close(x, y)


# ------------------------------------------------------------------------------------------------ errors

ERRORS: list[tuple[int, Any, str]] = [
    (0, None, "give both q and k"),
    (0, torch.ones(9, 4, 3), "of one dtype"),
    (0, torch.ones(9, 4, 5, dtype=torch.float64), "5 wide but k is 3 wide"),
    (1, torch.ones(8, 2, 3, dtype=torch.float64), "k has 8 rows for 9 positions"),
    (2, torch.ones(9, 2, dtype=torch.float64), "v must be \\[Tk, Hv, dv\\]"),
    (3, [], "0 leaves for the program's"),
    (3, [torch.ones(9)], "leaf 'bias' is loaded as 'f64' with 1 indices, but it is torch.float32"),
    (3, [torch.ones(9, 1, dtype=torch.float64)], "leaf 'bias'"),
    (4, torch.tensor([0, 3, 3, 8, 9], dtype=torch.int32), "query_offsets \\[B \\+ 1\\] must be int64"),
    (6, torch.tensor([0, 9]), "5 query_offsets but 2 key_offsets"),
    (9, [], "0 sizes for the program's"),
    (11, causal_softmax(p=0.5), "needs seed, an int64 scalar"),
    (11, "score = s", "not a score program"),
]


@pytest.mark.parametrize("number", range(len(ERRORS)))
def test_errors(number: int) -> None:
    place, value, words = ERRORS[number]
    operands = sample([3, 0, 5, 1], grad=False)
    operands[place] = value
    with pytest.raises(ValueError, match=words):
        attention(*operands)


def test_the_backward_has_no_second_derivative() -> None:
    operands = sample([3, 1])
    out = attention(*operands)
    (grad,) = torch.autograd.grad(out.sum(), operands[0], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad.sum().backward()
