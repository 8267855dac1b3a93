"""The operator project: its text, and what its host code answers, compiled with a stand-in for GE's headers."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gr_compile.lowering.ascendc.functional_model.build import INCLUDE
from gr_compile.lowering.ascendc.machine import machine
from gr_compile.lowering.ascendc.operators import NO_NUMBER, OPERATORS
from gr_compile.lowering.ascendc.project import project_files, write_project
from gr_compile.lowering.ascendc.recipes import RECIPES
from gr_compile.lowering.ascendc.vector import CTYPES, vector_kernel

GE = Path(__file__).parent / "ge"
CODES = {"float32": 0, "float16": 1, "int32": 3, "int64": 9, "bool": 12, "bfloat16": 27}
PROTO = {"float": "float32", "fp16": "float16", "bf16": "bfloat16"}
MACHINES = {"910b1": machine("910b1"), "small": replace(machine("910b1"), vector_cores=3, unified_buffer=40 * 1024)}
NAMES = {name.removeprefix("gr::"): OPERATORS[name] for name in RECIPES}


def offsets(*lengths: int) -> torch.Tensor:
    return torch.tensor([0, *lengths]).cumsum(0)


IDS, ALL = torch.zeros(8, 30, dtype=torch.int64), (False, True, True)
CALLS = [
    ("pack", torch.randn(4, 33, 5), torch.arange(70)),
    ("pack", torch.randn(2, 3, 40, 500).half(), torch.arange(6)),
    ("pack", torch.zeros(0, 3, 2, dtype=torch.bool), torch.arange(0)),
    ("unpack", torch.randn(900, 64).bfloat16(), torch.arange(900), 30, 50, -1.0),
    ("unpack", torch.ones(3, dtype=torch.int64), torch.arange(3), 2, 2, 7),
    ("segment_sum", torch.randn(800, 7, 3), offsets(3, 0, 700)),
    ("segment_sum", torch.ones(9, 2000, dtype=torch.int32), offsets(9)),
    ("segment_expand", torch.randn(2, 128), offsets(3, 500), 600),
    ("suffix_any", torch.ones(7, 9000, dtype=torch.bool)),
    ("count_true", torch.ones(70, 900, dtype=torch.bool)),
    ("true_places", torch.ones(70, 900, dtype=torch.bool), 63000),
    ("lookup_gradient", torch.randn(3, 40, 96), torch.zeros(3, 40, dtype=torch.int32), 1000, 0),
    ("lookup_gradient", torch.randn(40, 5000).half(), torch.zeros(40, dtype=torch.int64), 10, -1),
    ("norm_gate", *torch.randn(2, 3, 70, 33), torch.randn(33), torch.randn(33), 1e-6, True),
    ("norm_gate", *torch.randn(2, 7, 9000).half(), None, None, 1e-5, False),
    ("norm_gate_backward", *torch.randn(3, 90, 64).bfloat16(), torch.randn(64).bfloat16(), None, 0.5, True),
    ("norm_gate_backward", *torch.randn(3, 0, 8), None, torch.randn(8), 1e-6, False),
    ("rms_norm", torch.randn(5000), torch.randn(5000), 1e-6),
    ("rms_norm_backward", *torch.randn(2, 400, 192).half(), torch.randn(192).half(), 1e-6),
    ("rms_norm_backward", *torch.randn(2, 4, 1000), None, 1e-6),
    ("silu_split", torch.randn(2, 30, 14), 3, 5, 0, 6, 9),
    ("silu_split", torch.randn(800, 700).half(), 300, 200, 100, 100, 15),
    ("silu_split_backward", *torch.randn(4, 70, 25), torch.randn(70, 100), 1),
    ("sampled_logits", torch.randn(70, 96), torch.randn(9, 96), torch.zeros(70, 30, dtype=torch.int32), None, None, 0),
    ("sampled_logits", torch.randn(40, 96).half(), torch.randn(9, 96), IDS, torch.zeros(40, dtype=torch.int32), 1e-6, -1),
    ("sampled_logits", torch.randn(8, 9000).bfloat16(), torch.randn(9, 9000).half(), IDS, None, 0.5, -1),
    ("sampled_logits", torch.randn(8, 0), torch.randn(9, 0), IDS[:, :0], None, 0.5, -1),
    ("sampled_logits_backward", torch.randn(8, 30), torch.randn(8, 96), torch.randn(900, 96), IDS, None, None, 0, *ALL),
    ("sampled_logits_backward", torch.randn(40, 30).half(), torch.randn(40, 900).half(), torch.randn(9, 900).bfloat16(), IDS,
     torch.zeros(40, dtype=torch.int64), 1e-6, -1, True, False, True),
    ("sampled_logits_backward", torch.randn(8, 30), torch.randn(8, 9000), torch.randn(9, 9000), IDS, None, 1e-6, -1, False, True, False),
]  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("operators")
    assert write_project(RECIPES, folder) == list(project_files(RECIPES))
    return folder


@pytest.fixture(scope="module")
def host(project) -> Path:
    """All operators' host code in one program."""
    lines = ['#include "call.h"', *(f'#include "gr_{name}_tiling.h"' for name in NAMES)]
    for name in NAMES:
        lines += [f"#define {word} {word}_{name}" for word in ("Tile", "InferShape", "InferDataType")]
        lines += [f'#include "gr_{name}.cpp"', "#undef Tile", "#undef InferShape", "#undef InferDataType"]
    (project / "all.cpp").write_text("\n".join([*lines, f'#include "{GE / "main.cpp"}"', ""]))
    command = ["g++", "-std=c++17", "-Wall", "-Wno-unused-variable", "-Werror", f"-I{GE}", f"-I{project / 'op_host'}"]
    subprocess.run([*command, str(project / "all.cpp"), "-o", str(project / "all")], check=True)
    return project / "all"


def asked(program: Path, *lines: str) -> list[list[str]]:
    """The program's answers, in words; without lines the definitions."""
    command = [str(program), *(["calls"] if lines else [])]
    said = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=True).stdout
    return [line.split() for line in said.splitlines()]


def test_the_text_is_the_same_again_and_holds_no_path_of_this_host(project):
    files = project_files(reversed(list(RECIPES)))
    assert all((project / name).read_text() == text for name, text in files.items())
    assert (project / "build.sh").stat().st_mode & 0o111
    paths = {found for text in files.values() for found in re.findall(r"(?<![\w.}\"<*])/(?:\w+/)+\w+", text)}
    assert paths == {"/usr/local/Ascend/cann/set_env", "/usr/bin/env"}


def test_only_what_is_asked_for_is_printed():
    files = project_files(["gr::pack"])
    assert [name for name in files if "gr_" in name and name.startswith("op_host")] == [
        "op_host/gr_pack.cpp", "op_host/gr_pack_tiling.h",
    ]  # fmt: skip
    assert "gr_unpack" not in "".join(text for name, text in files.items())
    with pytest.raises(ValueError, match="no kernel for gr::jagged_attention"):
        project_files(["gr::pack", "gr::jagged_attention"])


@pytest.mark.parametrize("name", NAMES)
def test_the_description_is_the_tables(name, project):
    row = NAMES[name]
    ((described),) = json.loads((project / "proto" / f"gr_{name}.json").read_text())
    assert described["op"] == row.ge_type
    for ports, key in ((row.inputs, "input_desc"), (row.outputs, "output_desc")):
        assert [item["name"] for item in described[key]] == [port.name for port in ports]
        for item, port in zip(described[key], ports):
            assert len(item["type"]) == len(item["format"])
            assert {PROTO.get(dtype, dtype) for dtype in item["type"]} == set(port.types)
    assert [item["name"] for item in described["attr"]] == [attribute.name for attribute in row.attributes]


def test_definitions_are_the_descriptions(host, project):
    found = {(op, kind, name): rest for op, kind, name, *rest in asked(host)}
    for name, row in NAMES.items():
        (described,) = json.loads((project / "proto" / f"gr_{name}.json").read_text())
        for kind in ("input", "output"):
            for item in described[f"{kind}_desc"]:
                _, read, formats, *types = found[row.ge_type, kind, item["name"]]
                assert types == [str(CODES[PROTO.get(dtype, dtype)]) for dtype in item["type"]]
                assert int(formats) == 2 * len(types)
                number = item["name"] in {"batch", "length", "total", "count", "rows"}
                assert read == str(int(number and kind == "input"))


@pytest.mark.parametrize("on", MACHINES)
def test_the_host_computes_the_numbers_that_python_does(host, on):
    """Shape and dtype of the result, blocks, workspace and every field of the tiling."""
    lines, expected = [], []
    for name, *args in CALLS:
        row, chip = NAMES[name], MACHINES[on]
        given = dict(zip((argument.name for argument in row.overload._schema.arguments), args))
        words = [row.ge_type, chip.vector_cores, chip.cube_cores, chip.unified_buffer]
        for port in row.inputs:
            words += spelled(given[port.argument], port.role == "optional")
        words += [number(given[a.argument]) for a in row.attributes]
        lines.append(" ".join(map(str, words)))
        want = row.overload(*args)
        results = [torch.tensor(want)] if isinstance(want, int) else [want] if isinstance(want, torch.Tensor) else want
        kernel = vector_kernel(f"gr::{name}", given, chip)
        described = [[r.dim(), *r.shape, CODES[str(r.dtype).removeprefix("torch.")]] for r in results]
        expected.append([
            *itertools.chain.from_iterable(described), kernel.blocks, kernel.workspace_bytes,
            int(RECIPES[f"gr::{name}"].meets), 0, *kernel.tiling.values(),
        ])  # fmt: skip
    assert [list(map(int, words)) for words in asked(host, *lines)] == expected


def number(value: object) -> object:
    return NO_NUMBER if value is None else int(value) if isinstance(value, bool) else value


def spelled(value: object, optional: bool = False) -> list[object]:
    if optional:
        return [0] if value is None else [1, *spelled(value)]
    if not isinstance(value, torch.Tensor):
        return [CODES["int64"], 1, 1, 1, int(value)] if isinstance(value, int) else [CODES["float32"], 1, 1, 0]
    return [CODES[str(value.dtype).removeprefix("torch.")], value.dim(), *value.shape, 0]


def test_a_size_that_is_not_known_yet_stays_unknown(host):
    (words,) = asked(host, "GrTruePlaces 48 24 196608 12 2 3 4 0 9 1 1 0")
    assert words[:3] == ["1", "-1", str(CODES["int64"])]


@pytest.mark.parametrize(
    ("name", "types"),
    [
        ("segment_sum", {"VALUES": "bfloat16"}),
        *(
            pytest.param(name, dict.fromkeys(("DENSE", "VALUES", "MASK", "GRAD", "IDS"), "int32"), marks=pytest.mark.slow)
            for name in NAMES if name not in ("segment_sum", "lookup_gradient") and not {"x", "query"} & NAMES[name].variables.keys()
        ),
        *(
            pytest.param(name, dict.fromkeys(("X", "GRAD", "GRAD_U"), "float16"), marks=pytest.mark.slow)
            for name in NAMES if "x" in NAMES[name].variables
        ),
        pytest.param("lookup_gradient", {"GRAD": "float16", "IDS": "int32"}, marks=pytest.mark.slow),
        pytest.param("sampled_logits", {"QUERY": "bfloat16", "TABLE": "float32", "IDS": "int32"}, marks=pytest.mark.slow),
        pytest.param("sampled_logits_backward", {"GRAD": "bfloat16", "TABLE": "float16", "IDS": "int64"}, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_kernels_compile_as_they_are_printed(name, types, project):
    struct = f"{NAMES[name].ge_type}TilingData"
    defines = [f"-DDTYPE_{port}={CTYPES[dtype]}" for port, dtype in types.items()]
    source = project / "op_kernel" / f"gr_{name}" / f"gr_{name}.cpp"
    command = ["g++", "-std=c++17", "-fsyntax-only", f"-I{INCLUDE}", "-include", str(INCLUDE / "launch.h"), *defines]
    command += ["-DREGISTER_TILING_DEFAULT(type)=static_assert(sizeof(type) > 0)", f"-DTilingData={struct}"]
    subprocess.run([*command, str(source)], check=True)
