"""Attention in the operator project: printed once for a program, chosen by the host, run for sizes that differ.

The host code is compiled with a stand-in for GE's headers; the kernel's entry, as it is printed, runs on the functional
model with the tiling key, the tiling struct, the blocks and the workspace that the host code gives.
"""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_programs import operands
from running import distance, exact
from torch import Tensor

from gr_compile.lowering.ascendc.attention.call import Call
from gr_compile.lowering.ascendc.attention.printed import BACKWARD, FORWARD, AttentionCall, Printed, print_programs
from gr_compile.lowering.ascendc.functional_model import In, Listed, Out, Program, Tiling, Workspace, compile_kernels
from gr_compile.lowering.ascendc.machine import machine
from gr_compile.lowering.ascendc.operators import OPERATORS
from gr_compile.lowering.ascendc.project import write_project
from gr_compile.lowering.ascendc.project.attention_host import tiling_fields
from gr_compile.ops.attention_backward import attention_backward
from gr_compile.ops.attention_reference import attention
from gr_compile.ops.jagged_attention import inputs_of

GE = Path(__file__).parents[1] / "ge"
CODES = {torch.float32: 0, torch.float16: 1, torch.int32: 3, torch.int64: 9, torch.bool: 12, torch.bfloat16: 27}
PROTO = {"float": "float32", "fp16": "float16", "bf16": "bfloat16"}
MACHINE = replace(machine("910b1"), cube_cores=2, vector_cores=4)
RAB, WINDOW = ("silu_rab_time", torch.float32), ("window", torch.bfloat16)
TIMES = frozenset({(2, 0), (2, 1)})  # of silu_rab_time: [B, N]; D is 12 and 20, no multiples of 16
NEEDS = (True, True, True, True, True, False)
SIZES = {"five sequences, N 70": ([37, 0, 1, 5, 2], 70), "three, N 50": ([50, 3, 41], 50)}


def given(kind: tuple[str, torch.dtype], lengths: Sequence[int], length: int = 70, d: int = 12) -> list[Any]:
    """Operands with N = `length`."""
    found = operands(kind[0], list(lengths), kind[1], d)
    found[9] = [length]
    found[3] = [x[:, :length].contiguous() if x.dim() == 2 else x for x in found[3]]
    return found


def call_of(kind: tuple[str, torch.dtype], args: list[Any], needs: tuple[bool, ...] | None = None) -> AttentionCall:
    call = Call.of(inputs_of(*args))
    return AttentionCall(replace(call, open=TIMES if kind == RAB else frozenset()), needs)


@dataclass(frozen=True)
class Project:
    folder: Path
    programs: dict[str, tuple[Printed, ...]]

    @functools.cached_property
    def host(self) -> Path:
        lines = ['#include "call.h"']
        for name in self.names:
            lines += [f"#define {word} {word}_{name}" for word in ("Tile", "InferShape", "InferDataType")]
            lines += [f'#include "{name}.cpp"', "#undef Tile", "#undef InferShape", "#undef InferDataType"]
        (self.folder / "all.cpp").write_text("\n".join([*lines, f'#include "{GE / "main.cpp"}"', ""]))
        command = ["g++", "-std=c++17", "-Wall", "-Werror", f"-I{GE}", f"-I{self.folder / 'op_host'}"]
        subprocess.run([*command, str(self.folder / "all.cpp"), "-o", str(self.folder / "all")], check=True)
        return self.folder / "all"

    @property
    def names(self) -> list[str]:
        return [f"gr_{OPERATORS[name].name}" for name in self.programs]

    def kernel(self, operator: str) -> Program:
        name = f"gr_{OPERATORS[operator].name}"
        same = 'static_assert(sizeof(type) == sizeof(TilingData), "one layout")'
        return compile_kernels(
            self.folder / "op_kernel" / name / f"{name}.cpp", [name], defines={"REGISTER_TILING_DEFAULT(type)": same},
            tiling=[(field, "int64_t") for field in tiling_fields(self.programs[operator])],
        )  # fmt: skip

    def said(self, *arguments: str, line: str = "") -> tuple[list[list[str]], str]:
        done = subprocess.run([str(self.host), *arguments], input=line, capture_output=True, text=True, check=True)
        return [words.split() for words in done.stdout.splitlines()], done.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    calls = [call_of(RAB, given(RAB, [5, 3])), call_of(WINDOW, given(WINDOW, [5, 3]))]
    calls.append(call_of(RAB, given(RAB, [5, 3]), NEEDS))
    programs = print_programs([*calls, *calls], MACHINE)
    assert not programs.refused and [len(x) for x in programs.kernels.values()] == [2, 1]
    folder = tmp_path_factory.mktemp("operators")
    write_project(["gr::pack"], folder, programs.kernels)
    return Project(folder, programs.kernels)


# ---------------------------------------------------------------------------------------------- one call, as GE has it
def by_port(operator: str, args: list[Any], grad: Tensor | None) -> dict[str, list[Tensor]]:
    """The tensors of each input."""
    q, k, v, leaves, *rows = args[:8]
    named = {"q": q, "k": k, "v": v, "sizes": torch.tensor(args[9]), "grad_out": grad}
    named |= dict(zip(("query_offsets", "query_positions", "key_offsets", "key_positions"), rows))
    found = {}
    for port in OPERATORS[operator].inputs:
        if port.role == "dynamic":
            found[port.name] = [x for x in leaves if str(x.dtype) == f"torch.{port.types[0]}"]
        else:
            found[port.name] = [] if named.get(port.name) is None else [named[port.name]]
    return found


def question(operator: str, args: list[Any], grad: Tensor | None = None, needs: Sequence[bool] = ()) -> str:
    """The call as the program of the host code reads it."""
    row = OPERATORS[operator]
    words: list[object] = [row.ge_type, MACHINE.vector_cores, MACHINE.cube_cores, MACHINE.unified_buffer]
    tensors = by_port(operator, args, grad)
    for port in row.inputs:
        words += [] if port.role == "required" else [len(tensors[port.name])]
        for x in tensors[port.name]:
            words += [CODES[x.dtype], x.dim(), *x.shape, 0]
    types = ",".join(str(x.dtype).removeprefix("torch.") for x in args[3])
    words += [len(types), types, args[8], len(args[11].encode()), args[11]]
    if needs:
        wanted = [str(x.dtype) for x, need in zip(args[3], needs[3:]) if need]
        words += [len(needs), *map(int, needs)]
        words += [wanted.count(f"torch.{port.types[0]}") for port in row.outputs if port.role == "dynamic"]
    return " ".join(map(str, words))


@dataclass(frozen=True)
class Answer:
    """Shapes and dtypes of the outputs, and what the tiling function set."""

    outputs: list[tuple[tuple[int, ...], torch.dtype]]
    blocks: int
    workspace: int
    mode: int
    key: int
    tiling: list[int]

    @staticmethod
    def of(words: list[str], outputs: int) -> Answer:
        numbers = list(map(int, words))
        found = []
        for _ in range(outputs):
            rank = numbers.pop(0)
            shape = tuple(numbers.pop(0) for _ in range(rank))
            found.append((shape, next(dtype for dtype, code in CODES.items() if code == numbers[0])))
            numbers.pop(0)
        return Answer(found, *numbers[:4], numbers[4:])


def answered(project: Project, operator: str, args: list[Any], outputs: int, *more: Any) -> Answer:
    (words,), _ = project.said("calls", line=question(operator, args, *more))
    return Answer.of(words, outputs)


def run(project: Project, operator: str, args: list[Any], answer: Answer, grad: Tensor | None = None) -> list[Tensor]:
    """The kernel's entry with what the host said; the outputs that have elements."""
    row = OPERATORS[operator]
    outs = [Out(shape, dtype) for shape, dtype in answer.outputs]
    passed: list[Any] = []
    for port in row.inputs:
        items = [In(x.detach()) for x in by_port(operator, args, grad)[port.name]]
        passed.append(Listed(items) if port.role == "dynamic" else (items or [In(torch.zeros(0))])[0])
    fixed = sum(port.role == "required" for port in row.outputs)
    for port in row.outputs:
        if port.role == "dynamic":
            passed.append(Listed([x for x in outs[fixed:] if str(x.dtype) == f"torch.{port.types[0]}"]))
    passed[len(row.inputs) : len(row.inputs)] = outs[:fixed]
    fields = tiling_fields(project.programs[operator])
    passed += [Workspace(answer.workspace), Tiling(dict(zip(fields, answer.tiling, strict=True)))]
    return project.kernel(operator).run(
        f"gr_{row.name}", passed, MACHINE, blocks=answer.blocks, cores="mix", tiling_key=answer.key
    )


# --------------------------------------------------------------------------------------------------------- the kernel
@pytest.mark.parametrize(("lengths", "length"), SIZES.values(), ids=SIZES)
def test_one_kernel_serves_every_size(lengths, length, project):
    args = given(RAB, lengths, length)
    found = inputs_of(*args)
    answer = answered(project, FORWARD, args, 1)
    want = attention(exact(found))
    assert answer.outputs == [(tuple(want.shape), torch.float32)] and answer.mode == 1
    (out,) = run(project, FORWARD, args, answer)
    assert distance(out, want) < 1e-5


@pytest.mark.parametrize(("lengths", "length"), SIZES.values(), ids=SIZES)
def test_one_backward_serves_every_size(lengths, length, project):
    args = given(RAB, lengths, length)
    found = inputs_of(*args)
    grad = torch.randn(len(args[5]), 4, 20)
    answer = answered(project, BACKWARD, args, 5, grad, NEEDS)
    wanted = [x for x, need in zip(attention_backward(exact(found), grad.double(), NEEDS), NEEDS) if need]
    assert answer.outputs == [(tuple(x.shape), torch.float32) for x in wanted]
    for got, want in zip(run(project, BACKWARD, args, answer, grad), wanted, strict=True):
        assert distance(got, want) < 1e-5


def test_the_tiling_key_chooses_the_program(project):
    args = given(WINDOW, [37, 5])
    answer = answered(project, FORWARD, args, 1)
    assert answer.outputs[0][1] == torch.bfloat16
    (out,) = run(project, FORWARD, args, answer)
    assert distance(out, attention(exact(inputs_of(*args)))) < 1e-2
    assert {answer.key, answered(project, FORWARD, given(RAB, [5]), 1).key} == {1, 2}


# ----------------------------------------------------------------------------------------------------------- the host
@pytest.mark.parametrize("kind", [RAB, WINDOW], ids=str)
@pytest.mark.parametrize("lengths", [[9, 300], [], [1], [0, 0]], ids=str)
def test_the_host_computes_the_numbers_that_python_does(kind, lengths, project):
    args = given(kind, [min(x, 70) for x in lengths] or [0])
    if not lengths:
        args[4] = args[6] = torch.zeros(1, dtype=torch.int64)
    answer = answered(project, FORWARD, args, 1)
    call = call_of(kind, args)
    (one,) = [x for x in project.programs[FORWARD] if x.key == answer.key]
    assert one.serves == call.constants()
    numbers = one.numbers(call.call, MACHINE)
    assert (numbers.pop("blocks"), numbers.pop("workspace")) == (answer.blocks, answer.workspace)
    fields = tiling_fields(project.programs[FORWARD])
    assert dict(zip(fields, answer.tiling, strict=True)) == {**dict.fromkeys(fields, 0), **numbers}


def _other(change):
    args = given(RAB, [5, 3])
    change(args)
    return args


REFUSED = {
    "another program": (given(("targets", torch.float32), [5, 3]), "no kernel for this call of\ngr_score 1"),
    "another width": (given(RAB, [5, 3], d=24), "no kernel for this call"),
    "another dtype": (given(("window", torch.float16), [5, 3]), "no kernel for this call"),
    "another table": (_other(lambda args: args[3].__setitem__(1, torch.zeros(65))), "no kernel for this call"),
    "other heads": (_other(lambda args: args.__setitem__(8, 2)), "no kernel for this call"),
    "an empty leaf": (
        _other(lambda args: args[3].__setitem__(2, args[3][2][:, :0])), "leaf times is empty in dimension 1"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("args", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_no_program_serves_is_refused_with_the_reason(args, reason, project):
    said, log = project.said("calls", line=question(FORWARD, args))
    assert said == [["failed"]] and log.startswith("[gr] node: ") and reason in log


def test_other_gradients_are_another_program(project):
    args = given(RAB, [5, 3])
    line = question(BACKWARD, args, torch.randn(8, 4, 20), (True, True, True, False, True, False))
    assert project.said("calls", line=line)[0] == [["failed"]]


# ----------------------------------------------------------------------------------------------------------- the text
def test_definitions_are_the_descriptions(project):
    said, _ = project.said()
    found = {(op, kind, name): rest for op, kind, name, *rest in said}
    options = {"required": 0, "optional": 1, "dynamic": 2}
    for operator in project.programs:
        row = OPERATORS[operator]
        ((described),) = json.loads((project.folder / "proto" / f"gr_{row.name}.json").read_text())
        for kind, ports in (("input", row.inputs), ("output", row.outputs)):
            assert [item["name"] for item in described[f"{kind}_desc"]] == [port.name for port in ports]
            for item, port in zip(described[f"{kind}_desc"], ports):
                option, read, formats, *types = found[row.ge_type, kind, port.name]
                assert (int(option), read, int(formats)) == (options[port.role], "0", 2 * len(types))
                named = [PROTO.get(dtype, dtype) for dtype in item["type"]]
                assert types == [str(CODES[getattr(torch, dtype)]) for dtype in named] and set(named) <= set(port.types)


def test_the_text_depends_on_constants_alone(project, tmp_path):
    other = [call_of(RAB, given(RAB, [41, 2, 9], 50), NEEDS), call_of(WINDOW, given(WINDOW, [70]))]
    other.append(call_of(RAB, given(RAB, [50], 50)))
    write_project(["gr::pack"], tmp_path, print_programs(other, MACHINE).kernels)
    names = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert all((project.folder / name).read_text() == (tmp_path / name).read_text() for name in names)
    assert {f"op_kernel/gr_jagged_attention/program_{key}.h" for key in (1, 2)} < set(map(str, names))


def test_the_device_tests_have_operands_for_every_program(project):
    """They are printed as data; the reference, at least, takes what they make of it."""
    names: dict[str, Any] = {}
    exec((project.folder / "tests" / "operators.py").read_text(), names)
    source = (project.folder / "tests" / "test_attention.py").read_text()
    exec(source.replace("import gr_operators", "").replace("from operators import ATTENTION", ""), names)
    for entry in names["ATTENTION"]:
        args = names["operands"](entry["call"], [5, 0, 64])
        if entry["needs"] is None:
            assert torch.ops.gr.jagged_attention(*args).shape == (69, 4, 20)
        assert AttentionCall.read(json.loads(json.dumps(entry))) == AttentionCall.read(entry)
