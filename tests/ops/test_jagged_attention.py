"""jagged_attention: random programs against dense torch and its autograd, leaks between sequences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_samples import attention, gradients, sample
from program_generator import Case, generate
from torch import Tensor

from gr_compile.analysis import expr as E
from gr_compile.analysis.expr import index
from gr_compile.ops import attention_blocks

b = index("b")
CHUNKS, CHUNK = 12, 20


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
