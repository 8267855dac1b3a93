"""Generated attention kernels on the functional model, against the float64 reference: forward and backward.

A kernel takes seconds to compile: each program is compiled once for all its lengths.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from attention_programs import PROGRAMS, operands
from program_generator import Shapes, generate
from running import MACHINE, SMALL, WIDE, backward, distance, exact, forward, run
from torch import Tensor

from gr_compile.lowering.ascendc.attention.backward import Backward, wants
from gr_compile.lowering.ascendc.attention.call import Call
from gr_compile.lowering.ascendc.attention.forward import Forward
from gr_compile.lowering.ascendc.functional_model import Broken, In, Out
from gr_compile.lowering.ascendc.kernel import Kernel
from gr_compile.lowering.cpu.lanes import Unsupported
from gr_compile.ops.attention_backward import attention_backward
from gr_compile.ops.attention_blocks import Inputs
from gr_compile.ops.attention_reference import attention
from gr_compile.ops.jagged_attention import inputs_of

WITHIN = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
LENGTHS = [70, 0, 1, 5, 2]  # with tiles that pass a causal mask, and tiles that it cuts
QUICK = {("silu_rab_time", torch.float32), ("softmax", torch.bfloat16), ("functions_of_time", torch.float32)}
CASES = [
    pytest.param(name, dtype, marks=() if (name, dtype) in QUICK else pytest.mark.slow, id=f"{name}-{dtype}")
    for name in PROGRAMS
    for dtype in WITHIN
]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_outputs(name: str, dtype: torch.dtype) -> None:
    found = inputs_of(*operands(name, LENGTHS, dtype))
    assert distance(forward(found), attention(exact(found))) < WITHIN[dtype]


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_gradients(name: str, dtype: torch.dtype) -> None:
    found = inputs_of(*operands(name, LENGTHS, dtype))
    out = attention(exact(found))
    grad = torch.randn(out.shape).to(dtype)
    for got, want in zip(backward(found, grad), _gradients(found, grad), strict=True):
        assert distance(got, want) < WITHIN[dtype]


def _gradients(found: Inputs, grad: Tensor) -> list[Tensor]:
    """In float64."""
    floats = [x.is_floating_point() for x in found.leaves.values()]
    needs = [found.q is not None, found.k is not None, True, *floats]
    return [x for x, need in zip(attention_backward(exact(found), grad.double(), needs), needs) if need]


LONG = [200, 3, 65]  # items of several tiles, whose scores stay in the workspace between phases
PARTS = [("silu_rab_time", LENGTHS), ("softmax", LONG), ("window", LONG)]


@pytest.mark.parametrize(
    ("name", "lengths"), [pytest.param(*x, marks=[] if x[0] == "softmax" else pytest.mark.slow) for x in PARTS]
)
def test_tiles_that_the_vector_code_takes_in_parts(name: str, lengths: list[int]) -> None:
    found = inputs_of(*operands(name, lengths))
    out = attention(exact(found))
    grad = torch.randn(out.shape)
    assert distance(forward(found, WIDE), out) < 1e-5
    for got, want in zip(backward(found, grad, WIDE), _gradients(found, grad), strict=True):
        assert distance(got, want) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("lengths", [[70, 1, 1, 2, 1, 1], [64, 63, 33], [1], [0, 0, 3]], ids=str)
def test_lengths(name: str, lengths: list[int]) -> None:
    found = inputs_of(*operands(name, lengths))
    assert distance(forward(found, cores=3), attention(exact(found))) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_solved_tiling(name: str) -> None:
    found = inputs_of(*operands(name, [70, 3]))
    assert distance(forward(found, tiling=None), attention(exact(found))) < 1e-5


def test_shared_values_that_have_no_room_are_made_again() -> None:
    found = inputs_of(*operands("silu_rab_time", LENGTHS))
    kernel = Forward(Call.of(found)).kernel(MACHINE, SMALL, 2)
    out = [Out((sum(LENGTHS), 4, 20), torch.float32)]
    without = dataclasses.replace(kernel, tiling={**kernel.tiling, "shared_tiles": 1})
    assert torch.equal(run(without, found, out)[0], run(kernel, found, out)[0])


def test_scores_that_have_no_room_are_made_again() -> None:
    found = inputs_of(*operands("softmax", LONG))
    kernel = Forward(Call.of(found)).kernel(MACHINE, SMALL, 2)
    out = [Out((sum(LONG), 4, 20), torch.float32)]
    kept = kernel.tiling["kept"]
    without = dataclasses.replace(kernel, tiling={**kernel.tiling, "kept": 1, "s_slots": kernel.tiling["s_slots"] - kept + 1})
    assert torch.equal(run(without, found, out)[0], run(kernel, found, out)[0])


def test_places_with_holes_are_no_diagonals() -> None:
    """Positions that step by more than one, and a table that is read behind its end: pair by pair, and right."""
    given = operands("silu_rab_time", [30, 20])
    given[5], given[7] = (x * 2 + (x > 7) * 3 for x in (given[5], given[7]))
    given[3][0] = given[3][0][:100]
    found = inputs_of(*given)
    grad = torch.randn(50, 4, 20)
    for got, want in zip(backward(found, grad), _gradients(found, grad), strict=True):
        assert distance(got, want) < 1e-5


FORWARD_MUTANTS = [
    ("order<HardEvent::MTE2_FIX>();", "", "hazard"),
    ("if (s.gathered) x.finish_statistics(-1);", "", ""),
    ("o.kept + items % DEPTH * SHORT + tile - t0;", "o.kept + tile - t0;", "hazard"),
]
BACKWARD_MUTANTS = [
    ("order<HardEvent::MTE3_MTE2>();  // collected", "// collected", "hazard"),
    ("if (k > first) And(here, here, beyond, n / 16);", "", ""),
    ("if (!first_head) SetAtomicAdd<float>();", "", ""),
]


@pytest.mark.parametrize(("line", "instead", "rule"), FORWARD_MUTANTS, ids=[x[0][:30] for x in FORWARD_MUTANTS])
def test_a_softmax_without_a_line_is_refused_or_wrong(line: str, instead: str, rule: str) -> None:
    found = inputs_of(*operands("softmax", LONG))
    kernel = _mutant(Forward(Call.of(found)).kernel(MACHINE, SMALL, 2), line, instead)
    out = [Out((sum(LONG), 4, 20), torch.float32)]
    if rule:
        with pytest.raises(Broken, match=rule):
            run(kernel, found, out)
    else:
        assert distance(run(kernel, found, out)[0], attention(exact(found))) > 1e-3


@pytest.mark.parametrize(("line", "instead", "rule"), BACKWARD_MUTANTS, ids=[x[0][:30] for x in BACKWARD_MUTANTS])
def test_gradients_of_tables_without_a_line_are_refused_or_wrong(line: str, instead: str, rule: str) -> None:
    found = inputs_of(*operands("silu_rab_time", [70, 70]))
    call, grad = Call.of(found), torch.randn(140, 4, 20)
    kernel = _mutant(Backward(call, wants(call)).kernel(MACHINE, SMALL, 2), line, instead)
    given = [found.q, found.k, found.v, *(x for x in found.leaves.values() if x.is_floating_point())]
    outputs = [In(grad), *(Out(tuple(x.shape), x.dtype) for x in given if x is not None)]
    if rule:
        with pytest.raises(Broken, match=rule):
            run(kernel, found, outputs)
    else:
        got = zip(run(kernel, found, outputs), _gradients(found, grad), strict=True)
        assert max(distance(x, y) for x, y in got) > 1e-3


def _mutant(kernel: Kernel, line: str, instead: str) -> Kernel:
    assert kernel.source.count(line) == 1
    return dataclasses.replace(kernel, source=kernel.source.replace(line, instead))


@pytest.mark.parametrize("name", ["silu_rab_time", "functions_of_time"])
def test_a_whole_number_that_does_not_fit_is_no_wrong_number(name: str) -> None:
    """Nor a read beyond a table: of times in milliseconds, and of one whose distance, and 1, wraps."""
    for change in (lambda x: x * 1000, lambda x: torch.where(torch.arange(x.shape[1]) == 3, 2**31 - 1, x * 0)):
        given = operands(name, LENGTHS)
        given[3] = [change(x) if x.dtype == torch.int64 else x for x in given[3]]
        assert bool(forward(inputs_of(*given)).isnan().all())


_SHAPES = Shapes(lengths=(1, 9, 37, 100), keys=(2, 20, 70), widths=(1, 13, 24), v_widths=(1, 16, 20))


def _random(seed: int) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """(O, float64 O, gradients, float64 gradients) of a random program."""
    case, wide = generate(seed, torch.float32, _SHAPES), generate(seed, torch.float64, _SHAPES)
    found = inputs_of(*case.operands())
    weight = torch.randn(wide.dense_out.shape, dtype=torch.float64)
    leaves = wide.differentiable()
    grads = torch.autograd.grad(wide.dense_out, leaves, weight, allow_unused=True)
    wanted = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads)]
    return forward(found), wide.dense_out, backward(found, weight.float()), wanted


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_random_programs(seed: int) -> None:
    try:
        out, wanted_out, found, wanted = _random(seed)
    except Unsupported as reason:
        pytest.skip(str(reason))
    assert distance(out, wanted_out) < 1e-5
    least = max([1e-10, *(0.01 * float(x.norm()) for x in wanted)])
    for got, want in zip(found, wanted, strict=True):
        assert distance(got, want, least) < 1e-4
