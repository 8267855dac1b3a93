"""jagged_attention at its edges: empty rows, fillings, blocks, dropout, dtypes, compilation, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attention_samples import attention, causal_softmax, gradients, rows_of, sample
from torch import Tensor

from gr_compile.analysis import expr as E
from gr_compile.analysis.expr import const, index, make
from gr_compile.ops import ScoreProgram, attention_blocks
from gr_compile.ops.jagged_attention import inputs_of

i = index("i")


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
