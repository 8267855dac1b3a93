"""A second opinion on a tiling: does Huawei's own planner, bishengir-compile, fit the same tiles into the buffer?

    r2 = Add(r0, r1)            hivm.hir.store ins(%r0 ...), store ins(%r1 ...)
                                %r2 = memref.alloc() : memref<BYTESxi8, ub>;  hivm.hir.load outs(%r2 ...)

A function of tiles is printed as MLIR that gives every register the size and the life time that it has in our kernel,
beside one buffer for everything that lies there all the time; what is computed is left out. The planner decides by its
own rules which registers share memory. It needs no NPU and no CANN: behind the plan it looks for a closed compiler
(hivmc) and stops there, with the same exit status as for an overflow, so that its message is what counts.

bishengir-compile is part of ascendnpu-ir (`pip install gr_compile[ascend-check]`, best in an environment of its own,
which GR_COMPILE_ASCEND_CHECK then names).
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from gr_compile.lowering.ascendc.attention.instructions import Instruction, Register, Shape
from gr_compile.lowering.ascendc.attention.printer import Given, Printer
from gr_compile.lowering.ascendc.attention.sharing import making
from gr_compile.lowering.ascendc.machine import Machine
from gr_compile.lowering.ascendc.tiling import SELECT_WORKSPACE, Demand, Tiling, up

ENVIRONMENT = "GR_COMPILE_ASCEND_CHECK"
_COMPILER = Path("ascendnpuir", "bin", "bishengir-compile")
_OVERFLOW = re.compile(r"\bub overflow, requires (\d+) bits while (\d+) bits available")
_PLANNED = "returning module before running external compiler"  # what it says where hivmc would come next
_SECONDS = 120


class NoOpinion(RuntimeError):
    """bishengir-compile is not there, or says neither that the plan fits nor that it does not; the message has why."""


@dataclass(frozen=True)
class Opinion:
    """What the planner says: `required` and `available` bytes where it does not fit."""

    fits: bool
    required: int = 0
    available: int = 0


def find_compiler() -> Path:
    """bishengir-compile, of the environment that GR_COMPILE_ASCEND_CHECK names, or of this one.

    Raises:
        NoOpinion: it is in neither.
    """
    named = os.environ.get(ENVIRONMENT)
    if named:
        found = sorted(Path(named).expanduser().glob(f"lib/python3*/site-packages/{_COMPILER}"))
        if not found:
            raise NoOpinion(f"{ENVIRONMENT}={named}: no environment with ascendnpu-ir")
        return found[0]
    spec = find_spec("ascendnpuir")
    if spec is None or spec.origin is None:
        raise NoOpinion(f"ascendnpu-ir is not installed (extra ascend-check), and {ENVIRONMENT} names no environment")
    return Path(spec.origin).parents[1] / _COMPILER


def opinions(compiler: Path, printer: Printer, tiling: Tiling, machine: Machine) -> list[Opinion]:
    """What bishengir-compile says of each function of tiles that a kernel has.

    Raises:
        NoOpinion: of one of them it says nothing.
    """
    functions = [*printer.functions(Given(printer.shared)).values(), making(printer.shared, printer.context)]
    return [ask(compiler, program_of(each, printer.demand(), tiling), machine) for each in functions]


def ask(compiler: Path, program: str, machine: Machine) -> Opinion:
    """What bishengir-compile says of a program's unified buffer.

    Raises:
        NoOpinion: it fails otherwise; the message is what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "tile.mlir")
        source.write_text(program, encoding="utf-8")
        target = "".join(machine.name.split(",")[0].split())
        command = [str(compiler), str(source), f"--target={target}", "--enable-hivm-compile=true", "-o", f"{source}.o"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, cwd=folder)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoOpinion(f"bishengir-compile does not run: {error}") from error
    return _judged(done.stdout + done.stderr, done.returncode)


def _judged(said: str, status: int) -> Opinion:
    """By the message: the status is 1 for an overflow and for a plan that fits where there is no hivmc."""
    if (overflow := _OVERFLOW.search(said)) is not None:
        return Opinion(False, int(overflow[1]) // 8, int(overflow[2]) // 8)
    if _PLANNED in said or status == 0:
        return Opinion(True)
    lines = [line for line in said.splitlines() if "error" in line.lower()] or ["it says nothing"]
    raise NoOpinion(f"bishengir-compile says: {lines[0]}")


def program_of(instructions: Sequence[Instruction], demand: Demand, tiling: Tiling) -> str:
    """MLIR with the memory of one function of tiles: its registers, and the rest of the unified buffer all the time."""
    sizes = _sizes(tiling)
    slots: dict[Shape, int] = {
        "tile": demand.tiles, "bits": demand.bits, "row": demand.rows, "column": demand.columns,
    }  # fmt: skip
    rest = tiling.buffers["UB"] + SELECT_WORKSPACE - sum(count * sizes[shape] for shape, count in slots.items())
    used = sorted({rest, *sizes.values()})
    given = ", ".join(f"%g{size}: {_type(size, 'gm')}" for size in used)
    body = [*_load("rest", rest), *_life(instructions, sizes), *_store("rest", rest)]
    lines = "".join(f"    {line}\n" for line in body)
    return (
        "module {\n"
        f"  func.func @tile({given}) attributes {{hacc.entry, hacc.function_kind = #hacc.function_kind<DEVICE>}} {{\n"
        f"{lines}    return\n  }}\n}}\n"
    )


def _sizes(tiling: Tiling) -> dict[Shape, int]:
    """Bytes of a register, as `Program::layout` takes them."""
    columns = tiling.vector_columns or tiling.columns
    tile = tiling.vector_rows * columns
    return {
        "tile": tile * 4, "bits": up(tile // 8, 32), "row": up(tiling.vector_rows * 4, 32),
        "column": up(columns * 4, 32),
    }  # fmt: skip


def _life(instructions: Sequence[Instruction], sizes: Mapping[Shape, int]) -> Iterator[str]:
    """Registers begin where they are made and end with their last reader; fixed ones are part of the rest.

    Where a result may lie in an operand's place, the operands are read before it begins, else after.
    """
    alive: set[Register] = set()
    for each in instructions:
        read = [x for x in dict.fromkeys(each.operands) if x.fixed is None and x in alive]
        reads = [line for x in read for line in _store(str(x.number), sizes[x.shape])]
        made = each.result
        begins = made is not None and made.fixed is None and made not in alive
        makes = [*_load(str(made.number), sizes[made.shape])] if made is not None and begins else []
        alive.update([made] if made is not None and begins else [])
        yield from (*reads, *makes) if each.in_place else (*makes, *reads)


def _type(size: int, space: str) -> str:
    return f"memref<{size}xi8, #hivm.address_space<{space}>>"


def _load(name: str, size: int) -> Iterator[str]:
    yield f"%r{name} = memref.alloc() : {_type(size, 'ub')}"
    yield f"hivm.hir.load ins(%g{size} : {_type(size, 'gm')}) outs(%r{name} : {_type(size, 'ub')})"


def _store(name: str, size: int) -> Iterator[str]:
    yield f"hivm.hir.store ins(%r{name} : {_type(size, 'ub')}) outs(%g{size} : {_type(size, 'gm')})"
