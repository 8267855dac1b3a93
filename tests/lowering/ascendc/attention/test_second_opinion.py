"""Huawei's planner and ours agree on what fits; its messages are read, whatever its status. Skipped where it is not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from attention_programs import PROGRAMS, operands

from gr_compile.lowering.ascendc.attention.backward import Backward, wants
from gr_compile.lowering.ascendc.attention.call import Call
from gr_compile.lowering.ascendc.attention.forward import Forward
from gr_compile.lowering.ascendc.attention.instructions import Instruction, Register
from gr_compile.lowering.ascendc.attention.printer import Printer
from gr_compile.lowering.ascendc.attention.second_opinion import (
    ENVIRONMENT,
    NoOpinion,
    Opinion,
    ask,
    find_compiler,
    opinions,
    program_of,
)
from gr_compile.lowering.ascendc.machine import machine
from gr_compile.lowering.ascendc.tiling import Demand, Tiling, solve, up
from gr_compile.ops.jagged_attention import inputs_of

MACHINE = machine("910b1")


@pytest.fixture(scope="module")
def planner() -> Path:
    try:
        return find_compiler()
    except NoOpinion as why:
        pytest.skip(str(why))


def _printer(name: str, backward: bool) -> Printer:
    call = Call.of(inputs_of(*operands(name, [5, 70], torch.float16, 128, 128)))
    return Backward(call, wants(call)) if backward else Forward(call)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_planner_fits_what_was_chosen(planner: Path, name: str, backward: bool) -> None:
    printer = _printer(name, backward)
    assert all(opinion.fits for opinion in opinions(planner, printer, solve(printer.demand(), MACHINE), MACHINE))


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", PROGRAMS)
def test_it_refuses_wider_tiles(planner: Path, name: str, backward: bool) -> None:
    """The chosen tiling with so many columns that by our count it overflows by a fifth."""
    printer = _printer(name, backward)
    tiling = wider(printer.demand(), solve(printer.demand(), MACHINE), MACHINE.unified_buffer * 6 // 5)
    worst = max(opinions(planner, printer, tiling, MACHINE), key=lambda x: x.required)
    assert not worst.fits and worst.available == MACHINE.unified_buffer < worst.required


def wider(demand: Demand, tiling: Tiling, size: int) -> Tiling:
    """With so many columns that registers take `size` bytes of the unified buffer beside what else lies there."""
    column = tiling.vector_rows * (4 * demand.tiles + demand.bits / 8) + 4 * demand.columns
    more = up(int((size - tiling.buffers["UB"]) / column) + 1, 64)
    return dataclasses.replace(
        tiling, vector_columns=(tiling.vector_columns or tiling.columns) + more,
        buffers={"UB": tiling.buffers["UB"] + int(more * column)},
    )  # fmt: skip


def test_registers_live_from_their_instruction_to_their_last_reader() -> None:
    x, y, z, given = Register(0, "tile"), Register(1, "tile"), Register(2, "bits"), Register(3, "row", fixed=0)
    instructions = [
        Instruction("", x, (given,)), Instruction("", y, (x, x)), Instruction("", z, (y,), in_place=False),
        Instruction("", x, (z,)),
    ]  # fmt: skip
    demand = dataclasses.replace(_printer("window", False).demand(), tiles=1, bits=1, rows=0, columns=0)
    tiling = Tiling(64, 64, 32, 16, 16, {"UB": 100_000}, 1.0, 1.0)
    lines = [line.split(" : ")[0].strip() for line in program_of(instructions, demand, tiling).splitlines()[2:-3]]
    made, read = ("%r{} = memref.alloc()", "hivm.hir.load ins(%g{}"), "hivm.hir.store ins(%r{}"
    tile, bits, rest = 64 * 32 * 4, 64 * 32 // 8, 100_000 + 8192 - 64 * 32 * 4 - 64 * 32 // 8
    wanted = [
        made[0].format("rest"), made[1].format(rest), made[0].format(0), made[1].format(tile), read.format(0),
        made[0].format(1), made[1].format(tile), made[0].format(2), made[1].format(bits), read.format(1),
        read.format(2), read.format("rest"),
    ]  # fmt: skip
    assert lines == wanted


OVERFLOW = 'loc("t.mlir":2:3): error: ub overflow, requires 4194304 bits while 1572864 bits available! (possible reason: '
PLANNED = """[ERROR] Cannot find hivmc under $PATH
loc("t.mlir":1:1): error: External hivmc run fails, returning module before running external compiler"""


@pytest.mark.parametrize(
    ("said", "status", "opinion"),
    [
        (OVERFLOW, 1, Opinion(False, 524288, 196608)),
        (OVERFLOW, 0, Opinion(False, 524288, 196608)),
        (PLANNED, 1, Opinion(True)),
        ("", 0, Opinion(True)),
    ],
)
def test_the_message_is_what_counts(tmp_path: Path, said: str, status: int, opinion: Opinion) -> None:
    assert ask(_saying(tmp_path, said, status), "module {}", MACHINE) == opinion


def test_a_failure_of_another_kind_is_no_opinion(tmp_path: Path) -> None:
    with pytest.raises(NoOpinion, match=r"custom op 'hivm\.hir\.lod' is unknown"):
        ask(_saying(tmp_path, "t.mlir:4:5: error: custom op 'hivm.hir.lod' is unknown", 1), "module {}", MACHINE)
    with pytest.raises(NoOpinion, match="does not run"):
        ask(tmp_path / "none", "module {}", MACHINE)


def _saying(folder: Path, said: str, status: int) -> Path:
    script = folder / "bishengir-compile"
    script.write_text(f"#!/bin/sh\ncat <<'END' >&2\n{said}\nEND\nexit {status}\n")
    script.chmod(0o755)
    return script


def test_an_environment_that_holds_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    with pytest.raises(NoOpinion, match="no environment with ascendnpu-ir"):
        find_compiler()
