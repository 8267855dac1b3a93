"""What is printed, without a compiler: instructions, slots, errors that name what there is no instruction for."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from attention_programs import PROGRAMS, S, operands

from gr_compile.analysis import expr as E
from gr_compile.analysis.derive import derivative
from gr_compile.analysis.expr import const, index, load
from gr_compile.lowering.ascendc.attention.backward import Backward, wants
from gr_compile.lowering.ascendc.attention.call import Call
from gr_compile.lowering.ascendc.attention.forward import Forward
from gr_compile.lowering.ascendc.attention.instructions import Instruction, Register, allocate
from gr_compile.lowering.ascendc.attention.values import Value
from gr_compile.lowering.ascendc.attention.vector import Function
from gr_compile.lowering.ascendc.machine import machine
from gr_compile.lowering.cpu.lanes import Unsupported
from gr_compile.ops import ScoreProgram
from gr_compile.ops.jagged_attention import inputs_of

b, i, j = (index(x) for x in "bij")


def _call(name: str) -> Call:
    return Call.of(inputs_of(*operands(name, [5, 3])))


def _printed(score: E.Expr, leaves: dict[str, torch.Tensor] | None = None) -> Forward:
    given = operands("window", [5, 3])
    given[3] = list((leaves or {}).values())
    given[11] = ScoreProgram(score=score, leaves=tuple(leaves or {}), sizes=("N",)).text()
    return Forward(Call.of(inputs_of(*given)))


def test_a_register_is_free_after_its_last_reader() -> None:
    x, y, z = (Register(n, "tile") for n in range(3))
    given = Register(-1, "tile", 0)
    program = [
        Instruction("Exp({d:f}, {0:f}, n);", x, (given,)),
        Instruction("Add({d:f}, {0:f}, {0:f}, n);", y, (x,)),
        Instruction("Gather({d:f}, {0:u});", z, (y,), in_place=False),
        Instruction("return {0:f};", None, (z,)),
    ]
    lines, slots = allocate(program, {"tile": [0]})
    assert lines == [
        "Exp(tile<float>(0), given_tile<float>(0), n);",
        "Add(tile<float>(0), tile<float>(0), tile<float>(0), n);",
        "Gather(tile<float>(1), tile<uint32_t>(0));",
        "return tile<float>(1);",
    ]
    assert slots["tile"] == 2


def test_a_value_is_computed_once() -> None:
    twice = E.unary("silu", S)
    text = _printed(E.binary("add", twice, E.binary("mul", twice, S, "f32"), "f32")).dump()
    assert text.count("Exp(") == 1


def test_a_value_that_is_overwritten_is_made_again() -> None:
    """A softmax lies where its scores lay; the slope of SiLU reads what SiLU has computed."""
    f = Function(_printed(E.unary("silu", S)).context, {S: Value(Register(-1, "tile", 0))})
    first = f.value(E.unary("silu", S)).register
    assert first is not None
    f.forget(first)
    slope = E.binary("mul", E.unary("sigmoid", S), derivative(E.unary("silu", S), S).args[1], "f32")
    f.value(slope)
    made = [x.text.split("(")[0] for x in f.instructions]
    assert made == ["Muls", "Exp", "Adds", "Div", "Div", "Sub", "Adds", "Div"]
    assert first not in [x for each in f.instructions[4:] for x in each.operands]


def test_the_dump_of_a_causal_silu() -> None:
    dump = Forward(_call("window")).dump()
    assert [line.split("(")[0].strip() for line in dump.splitlines()[1:]][:4] == ["Muls", "Exp", "Adds", "Div"]


@pytest.mark.parametrize(
    ("name", "made"),
    [("reciprocal", ["Duplicate", "Div"]), ("rsqrt", ["Sqrt", "Duplicate", "Div"])],
)
def test_what_is_an_approximation_on_a_device_is_composed(name: str, made: list[str]) -> None:
    program = _printed(E.unary(name, E.unary("exp", S)))
    lines = [line.split("(")[0].strip() for line in program.dump().splitlines()[1:]]
    assert lines[: len(made) + 1] == ["Exp", *made]
    for kernel in (program, Backward(program.call, wants(program.call))):
        assert "Rsqrt(" not in kernel.dump() and "Reciprocal(" not in kernel.dump()


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        (E.unary("cos", S), "no instruction computes 'cos'"),
        (E.binary("pow", S, const(2.5, "f32"), "f32"), "no instruction computes 'pow'"),
        (E.binary("mod", S, const(2.0, "f32"), "f32"), "no instruction computes 'mod'"),
    ],
)
def test_what_nothing_computes_is_named(score: E.Expr, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        _printed(score)


def test_a_sum_of_two_times_may_need_more_than_32_bits_and_a_difference_may_not() -> None:
    times = {"times": torch.zeros(2, 70, dtype=torch.int64)}
    left, right = load("times", [b, i], "i"), load("times", [b, j], "i")
    real = E.cast(E.sub(left, right), "f32")
    assert "AddRowColumn" in _printed(real, times).dump()
    with pytest.raises(Unsupported, match="more than 32 bits"):
        _printed(E.cast(E.add(left, right), "f32"), times)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_has_a_kernel_forward_and_backward(name: str) -> None:
    call = _call(name)
    for printer in (Forward(call), Backward(call, wants(call))):
        kernel = printer.kernel(machine("910b1"))
        assert set(kernel.tiling) == {x for x, _ in kernel.tiling_fields}
        assert f"void {kernel.name}(GM_ADDR q" in kernel.source and kernel.blocks == 24
        assert "910B1" in kernel.reason and kernel.workspace_bytes > 0


@pytest.mark.parametrize(
    ("name", "count"), [("silu_rab_time", 1), ("fuxi_time", 1), ("fuxi_position", 1), ("window", 0), ("softmax", 0)]
)
def test_what_no_head_differs_in_is_computed_once(name: str, count: int) -> None:
    printer = Forward(_call(name))
    of_heads = [line for x in (printer.listings, printer.whole) for line in x["weights"].lines]
    assert len(printer.shared) == count
    assert not any("Gather(" in line for line in of_heads)


def test_one_head_shares_nothing() -> None:
    alone = dataclasses.replace(_call("silu_rab_time"), heads=1)
    assert not Forward(alone).shared


def test_equal_programs_have_one_source() -> None:
    assert Forward(_call("softmax")).source("x") == Forward(_call("softmax")).source("x")
