"""Printed CPU kernels: random score programs against dense torch in float64, and what no program may depend on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from program_generator import SMALL, Case, Shapes, generate
from torch import Tensor

from gr_compile.analysis import expr as E
from gr_compile.analysis.expr import const, index, load, make, size
from gr_compile.lowering.cpu import build, kernels
from gr_compile.lowering.cpu.build import Failure
from gr_compile.ops import ScoreProgram
from gr_compile.ops.attention_backward import attention_backward
from gr_compile.ops.attention_reference import attention
from gr_compile.ops.jagged_attention import inputs_of

CHUNKS, CHUNK = 20, 10
LARGE = Shapes(lengths=(1, 37, 150, 333), keys=(2, 70, 260), widths=(1, 13, 24, 64), v_widths=(1, 16, 20, 40))
LONG = Shapes(lengths=(1000,), keys=(1000,), widths=(20,), v_widths=(24,))
b, h, i, j = (index(x) for x in "bhij")


def kernel_results(case: Case) -> tuple[Tensor, list[Tensor]]:
    """Output and gradients by the kernels; fails where a kernel is not built."""
    out = torch.ops.gr.jagged_attention(*case.operands())
    found = gradients(out, case)
    return out, found


def gradients(out: Tensor, case: Case) -> list[Tensor]:
    torch.manual_seed(case.seed)
    weight = torch.randn(out.shape, dtype=torch.float64).to(out.dtype)
    operands = case.differentiable()
    if not operands:
        return []
    found = torch.autograd.grad(out, operands, weight, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(operands, found)]


def distance(got: Tensor, want: Tensor, least: float = 1e-12) -> float:
    """Relative to the tensor's norm, or to `least` where that is more."""
    if not want.numel():
        return 0.0
    assert torch.equal(got.isnan(), want.isnan())
    got, want = numbers(got), numbers(want)
    return float((got - want).norm() / want.norm().clamp(min=least))


def numbers(values: Tensor) -> Tensor:
    return values.detach().double().nan_to_num()


def check(seed: int, shapes: Shapes = SMALL) -> None:
    """A float32 kernel against the dense program in float64.

    A gradient that cancels to 0 (what a softmax adds to all keys alike) is as exact as the sums that it is the
    difference of: 1 % of the largest gradient counts. Scores of millions leave float32 few digits: there a gradient
    is as close as the dense program's in float32.
    """
    case, exact = generate(seed, torch.float32, shapes), generate(seed, torch.float64, shapes)
    out, found = kernel_results(case)
    text = f"seed {seed}: {case.program.score} | {case.program.post}"
    assert distance(out, exact.dense_out) < 1e-5, text
    wanted, dense = gradients(exact.dense_out, exact), gradients(case.dense_out, case)
    least = max([1e-10, *(0.01 * float(numbers(want).norm()) for want in wanted)])
    for number, (got, want, other) in enumerate(zip(found, wanted, dense)):
        allowed = max(1e-4, 2 * distance(other, want, least))
        assert distance(got, want, least) < allowed, f"gradient {number} of {text}"


@pytest.fixture(autouse=True)
def _every_kernel_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(failure: Failure) -> None:
        raise AssertionError(failure)

    monkeypatch.setattr(kernels, "_warn_once", fail)


@pytest.fixture
def quick_builds(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels with less of the compiler's optimisation, in half the time: hundreds are built here, and run once."""
    caches = (build._options, build._machine, kernels.kernel)
    monkeypatch.setattr(build, "_EXTRA_FLAGS", (*build._EXTRA_FLAGS, "-O1"))
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_random_programs(chunk: int, quick_builds: None) -> None:
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        check(seed)


SEEDS = [x if x < 10_008 else pytest.param(x, marks=pytest.mark.slow) for x in range(10_000, 10_024)]


@pytest.mark.parametrize("seed", SEEDS)
def test_long_sequences_and_odd_widths(seed: int) -> None:
    torch.set_num_threads(2)
    check(seed, LARGE)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20_000, 20_020))
def test_a_thousand_places(seed: int) -> None:
    torch.set_num_threads(2)
    check(seed, LONG)


def test_every_program_of_the_generator_has_a_kernel() -> None:
    for seed in range(CHUNKS * CHUNK):
        case = generate(seed, torch.float32)
        inputs = inputs_of(*case.operands())
        assert kernels.source(kernels.request_of(inputs, None, None, True))


# ------------------------------------------------------------------------------------------------ one program, many calls


def hstu(dtype: str = "f32", p: float = 0.0) -> ScoreProgram:
    """SiLU(q k + bias by position + bias by time bucket) / N, causal, with dropout."""
    ahead = E.sub(load("times", [b, E.add(i, const(1))], "i"), load("times", [b, j], "i"))
    seconds = E.cast(E.binary("maximum", E.unary("abs", ahead), const(1), "i"), "f32")
    scaled = E.binary("div", E.unary("log", seconds), const(0.301), "f32")
    bucket = E.binary("minimum", E.binary("maximum", E.cast(scaled, "i"), const(0), "i"), const(64), "i")
    bias = E.binary("add", load("position", [E.add(E.sub(j, i), size("N"), const(-1))], dtype), load("time", [bucket], dtype), dtype)
    score = E.unary("silu", E.binary("add", make("s", (), dtype), bias, dtype))
    score = E.binary("div", score, E.cast(size("N"), dtype), dtype)
    if p:
        score = make("dropout", (score, const(p, "f32")), dtype)
    return ScoreProgram(
        score=E.binary("mul", score, E.cast(E.ge0(E.sub(i, j)), dtype), dtype),
        leaves=("position", "times", "time"), sizes=("N",), key_high=E.add(i, const(1)), out_dtype=dtype,
    )  # fmt: skip


def operands(
    program: ScoreProgram, lengths: list[int], dtype: torch.dtype = torch.float32, times: Callable[[Tensor], Tensor] = lambda x: x
) -> list[Any]:
    torch.manual_seed(0)
    n, rows, heads, width = max([*lengths, 1]), sum(lengths), 2, 24
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    places = torch.cat([torch.arange(x) for x in lengths] or [torch.zeros(0, dtype=torch.int64)])
    q, k, v = (torch.randn(rows, heads, width).to(dtype).requires_grad_() for _ in range(3))
    when = times(torch.randint(0, 10**8, (len(lengths), n + 1)).cumsum(1))
    leaves = [torch.randn(2 * n - 1).to(dtype).requires_grad_(), when, torch.randn(65).to(dtype).requires_grad_()]
    seed = torch.tensor(7_000_000_123) if program.has_dropout else None
    return [q, k, v, leaves, offsets, places, offsets, places, heads, [n], seed, program.text()]


def grads(out: Tensor, args: list[Any]) -> list[Tensor]:
    torch.manual_seed(1)
    floats = [args[0], args[1], args[2], args[3][0], args[3][2]]
    return list(torch.autograd.grad(out, floats, torch.randn(out.shape).to(out.dtype)))


def reference(args: list[Any]) -> tuple[Tensor, list[Tensor]]:
    """The plain torch reference, forward and backward."""
    inputs = inputs_of(*[x.detach() if isinstance(x, Tensor) else x for x in args[:3]], [x.detach() for x in args[3]], *args[4:])
    out = attention(inputs)
    torch.manual_seed(1)
    found = attention_backward(inputs, torch.randn(out.shape).to(out.dtype), [True, True, True, True, False, True])
    return out, [*found[:4], found[5]]


CALLS = {
    "ordinary": ([50, 1, 0, 131, 7], {}),
    "all empty": ([0, 0], {}),
    "no sequence": ([], {}),
    "one place": ([1], {}),
    "dropout": ([90, 3], {"p": 0.3}),
    "everything dropped": ([20, 3], {"p": 1.0}),
    "times beyond 32 bits": ([40, 60], {"times": lambda x: x * 10**6}),
    "negative times": ([40, 60], {"times": lambda x: x - 10**9}),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_reference_gives_the_same(name: str, threads: int) -> None:
    lengths, options = CALLS[name]
    args = operands(hstu(p=options.get("p", 0.0)), lengths, times=options.get("times", lambda x: x))  # type: ignore[arg-type]
    torch.set_num_threads(threads)
    out = torch.ops.gr.jagged_attention(*args)
    want, wanted = reference(args)
    assert distance(out, want) < 1e-5
    for got, ref in zip(grads(out, args), wanted):
        assert distance(got, ref) < 1e-5


@pytest.mark.parametrize("dtype, tolerance", [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_half_precision(dtype: torch.dtype, tolerance: float) -> None:
    args = operands(hstu({torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]), [50, 0, 77], dtype)
    out = torch.ops.gr.jagged_attention(*args)
    want, wanted = reference(args)
    assert out.dtype == dtype
    assert distance(out, want) < tolerance
    for got, ref in zip(grads(out, args), wanted):
        assert got.dtype == ref.dtype
        assert distance(got, ref) < tolerance


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_threads_give_the_same_bits(threads: int) -> None:
    args = operands(hstu(), [50, 1, 0, 331, 77])
    torch.set_num_threads(threads)
    first, *rest = ((x, grads(x, args)) for x in (torch.ops.gr.jagged_attention(*args) for _ in range(3)))
    for out, found in rest:
        assert torch.equal(out, first[0])
        assert all(torch.equal(x, y) for x, y in zip(found, first[1]))


def test_operands_that_are_views() -> None:
    args = operands(hstu(), [50, 3])
    packed = torch.randn(53, 2, 3 * 24)
    views = [
        packed[..., :24].requires_grad_(), packed[..., 24:48].requires_grad_(),
        torch.randn(53, 24, 2).transpose(1, 2).requires_grad_(),
    ]  # fmt: skip
    args[:3] = views
    out = torch.ops.gr.jagged_attention(*args)
    want, wanted = reference(args)
    assert distance(out, want) < 1e-5
    for got, ref in zip(grads(out, args), wanted):
        assert distance(got, ref) < 1e-5


def test_misaligned_operands() -> None:
    args = operands(hstu(), [50, 3])
    args[:3] = [torch.randn(53 * 2 * 24 + 1)[1:].view(53, 2, 24).requires_grad_() for _ in range(3)]
    out = torch.ops.gr.jagged_attention(*args)
    assert distance(out, reference(args)[0]) < 1e-5


def test_operands_that_are_expanded() -> None:
    """One row for all tokens, one head for all heads, one gradient for everything."""
    args = operands(hstu(), [50, 3])
    args[:3] = [torch.randn(1, 2, 24).expand(53, 2, 24), torch.randn(53, 1, 24).expand(53, 2, 24), args[2]]
    args[:2] = [x.requires_grad_() for x in args[:2]]
    out = torch.ops.gr.jagged_attention(*args)
    dense = [x.detach().clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x for x in args]
    want = torch.ops.gr.jagged_attention(*dense)
    torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-6)
    for got, ref in zip(torch.autograd.grad(out.sum(), args[:3]), torch.autograd.grad(want.sum(), dense[:3])):
        torch.testing.assert_close(got, ref, rtol=1e-6, atol=1e-6)


def untouched(folder: Path, elements: int) -> Tensor:
    """Zeros in a sparse file: they take room only where they are touched, however many there are."""
    return torch.from_file(str(folder / "zeros"), shared=True, size=elements, dtype=torch.float32)


def test_rows_beyond_32_bits(tmp_path: Path) -> None:
    """Rows that lie 2^30 elements apart: the place of an element is counted in 64 bits."""
    args = operands(hstu(), [3, 2])
    want = torch.ops.gr.jagged_attention(*args)
    apart = torch.as_strided(untouched(tmp_path, 5 << 30), (3, 5, 2, 24), (24 * 2, 1 << 30, 24, 1))
    with torch.no_grad():
        apart.copy_(torch.stack(args[:3]))
        assert torch.equal(torch.ops.gr.jagged_attention(*apart, *args[3:]), want)
    far = [x.requires_grad_() for x in apart.detach().unbind()]
    out = torch.ops.gr.jagged_attention(*far, *args[3:])
    for got, ref in zip(grads(out, [*far, *args[3:]]), grads(want, args)):
        assert torch.equal(got, ref)


def test_places_beyond_32_bits(tmp_path: Path) -> None:
    """B * N beyond 2^32, places at the end of N beyond 2^31: indices into leaves are of 64 bits."""
    n, lengths = (1 << 31) + 7, [4, 0, 3]
    weight = untouched(tmp_path, 3 * n).view(3, n)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    places = torch.cat([torch.arange(n - x, n) for x in lengths])
    for row, length in zip(weight, lengths):
        row[n - max(length, 1):] = torch.randn(max(length, 1))
    ahead = E.cast(E.ge0(E.sub(i, j)), "f32")
    program = ScoreProgram(
        score=E.binary("mul", E.binary("mul", make("s", (), "f32"), load("weight", [b, j], "f32"), "f32"), ahead, "f32"),
        leaves=("weight",), sizes=("N",), key_high=E.add(i, const(1)),
    )  # fmt: skip
    q, k, v = (torch.randn(7, 2, 24) for _ in range(3))
    args = [q, k, v, [weight], offsets, places, offsets, places, 2, [n], None, program.text()]
    found = kernels._run_forward(inputs_of(*args))
    assert found is not None
    assert distance(found, attention(inputs_of(*args))) < 1e-5


def test_deterministic_algorithms() -> None:
    """Nothing refuses, and the bits are those of another run: sums have a fixed order in any case."""
    args = operands(hstu(), [50, 1, 0, 131, 7])
    usual = torch.ops.gr.jagged_attention(*args)
    torch.use_deterministic_algorithms(True)
    try:
        out = torch.ops.gr.jagged_attention(*args)
        found = grads(out, args)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(out, usual)
    assert all(torch.equal(x, y) for x, y in zip(found, grads(usual, args)))


@pytest.mark.parametrize("junk", [float("nan"), float("inf")])
def test_another_sequence_changes_nothing(junk: float) -> None:
    args = operands(hstu(), [50, 3, 20])
    out = torch.ops.gr.jagged_attention(*args)
    edited = [x.detach().clone() for x in args[:3]]
    for x in edited:
        x[:50] = junk
        x[53:] = junk
    again = torch.ops.gr.jagged_attention(*edited, *args[3:])
    assert torch.equal(again[50:53], out[50:53])


def test_rows_behind_the_last_sequence_give_zeros() -> None:
    args = operands(hstu(), [50, 3])
    longer = [torch.cat([x.detach(), torch.full((9, 2, 24), float("nan"))]) for x in args[:3]]
    places = torch.cat([args[5], torch.zeros(9, dtype=torch.int64)])
    out = torch.ops.gr.jagged_attention(*longer, args[3], args[4], places, args[6], places, *args[8:])
    assert torch.equal(out[:53], torch.ops.gr.jagged_attention(*args))
    assert not out[53:].any()


def test_float64_is_left_to_the_reference() -> None:
    case = generate(3)
    assert kernels._run_forward(inputs_of(*case.operands())) is None


def test_a_step_that_another_library_may_round_otherwise_has_no_kernel() -> None:
    real = load("when", [b, j], "f32")
    bucket = E.cast(E.unary("log", E.binary("maximum", real, const(1.0), "f32")), "i")
    program = ScoreProgram(score=E.binary("add", make("s", (), "f32"), load("time", [E.binary("minimum", bucket, i, "i")], "f32"), "f32"), leaves=("when", "time"))
    args = operands(hstu(), [5])
    args[3], args[9], args[11] = [torch.rand(1, 6), torch.randn(65)], [], program.text()
    assert kernels._run_forward(inputs_of(*args)) is None
    with torch.no_grad():
        assert torch.ops.gr.jagged_attention(*args).shape == (5, 2, 24)


def test_kernels_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GR_COMPILE_CPU_KERNELS", "0")
    monkeypatch.setattr(kernels, "kernel", lambda request: pytest.fail("a kernel was asked for"))
    args = operands(hstu(), [5, 3])
    grads(torch.ops.gr.jagged_attention(*args), args)


def test_a_request_is_by_content() -> None:
    args = operands(hstu(), [5, 3])
    one, two = (kernels.request_of(inputs_of(*args), None, None, True) for _ in range(2))
    assert one == two
    assert one != dataclasses.replace(one, narrow=False)
