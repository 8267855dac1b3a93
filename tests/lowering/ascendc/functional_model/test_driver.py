"""The driver: errors as exceptions, capacities from the machine that is given, tilings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from programs import MACHINE, mutants, program

from gr_compile.lowering.ascendc.functional_model import (
    Broken,
    CompileError,
    In,
    Listed,
    Out,
    Program,
    Tiling,
    Workspace,
    compile_kernels,
)
from gr_compile.lowering.ascendc.functional_model.arguments import tiling_bytes, tiling_struct

_SLEEPER = """
#include "kernel_operator.h"
extern "C" __global__ __aicore__ void sleeper(GM_ADDR z) { while (true) ((volatile uint8_t*)z)[0] = 1; }
extern "C" __global__ __aicore__ void thrower(GM_ADDR z) { throw std::runtime_error("of its own"); }
"""
_LISTS = """
#include "kernel_operator.h"
using namespace AscendC;
extern "C" __global__ __aicore__ void sum_of(GM_ADDR list, GM_ADDR z, GM_ADDR tiling) {
  GET_TILING_DATA(t, tiling);
  ListTensorDesc tensors((__gm__ void*)list);
  GlobalTensor<int64_t> x, sum;
  int64_t total = 0;
  for (int64_t i = 0; i < tensors.GetSize() + t.beyond; i++) {
    x.SetGlobalBuffer(tensors.GetDataPtr<int64_t>(i), 1);
    total += x.GetValue(0);
  }
  sum.SetGlobalBuffer((__gm__ int64_t*)z, 1);
  sum.SetValue(0, total);
}
"""


def test_capacities_are_the_machines() -> None:
    x = torch.zeros(1000)
    arguments = [
        In(x),
        In(x),
        Out((1000,), torch.float32),
        Workspace(1024),
        Tiling({"n": 1000, "mutant": mutants("queues")["NOTHING"]}),
    ]
    program("queues").run("add", arguments, replace(MACHINE, unified_buffer=6144))
    with pytest.raises(Broken, match=r"overflows by 32 bytes \(5120 of 6112 given, 1024 asked\)"):
        program("queues").run("add", arguments, replace(MACHINE, unified_buffer=6112))


def test_what_a_kernel_does_to_itself() -> None:
    built = compile_kernels(_SLEEPER, ["sleeper", "thrower"])
    with pytest.raises(Broken, match=r"did not end in 0\.2 s"):
        built.run("sleeper", [Workspace(32)], MACHINE, timeout=0.2)
    with pytest.raises(Broken, match=r"of its own"):
        built.run("thrower", [Workspace(32)], MACHINE)
    with pytest.raises(Broken, match="takes 1 arguments, 2 were given"):
        built.run("thrower", [Workspace(32), Workspace(32)], MACHINE)
    with pytest.raises(Broken, match="no kernel other"):
        built.run("other", [], MACHINE)


def test_a_parameter_lists_tensors() -> None:
    built = compile_kernels(_LISTS, ["sum_of"], tiling=[("beyond", "int64_t")])
    out, tensors = Out((1,), torch.int64), [In(torch.tensor([x])) for x in (2, 3, 4)]
    for listed, total in ((tensors, 9), (tensors[1:2], 3), ([], 0)):
        assert built.run("sum_of", [Listed(listed), out, Tiling({"beyond": 0})], MACHINE)[0].item() == total
    with pytest.raises(Broken, match="GetDataPtr of tensor 3 of 3"):
        built.run("sum_of", [Listed(tensors), out, Tiling({"beyond": 1})], MACHINE)
    with pytest.raises(Broken, match="the parameter is no list of tensors"):
        built.run("sum_of", [In(torch.zeros(4)), out, Tiling({"beyond": 0})], MACHINE)


def test_a_name_that_is_not_modelled_does_not_compile() -> None:
    source = '#include "kernel_operator.h"\nextern "C" void kernel(GM_ADDR z) { AscendC::Sort32(z); }'
    with pytest.raises(CompileError, match="Sort32"):
        compile_kernels(source, ["kernel"])


def test_a_kernel_that_changed_is_compiled_again(tmp_path: Path) -> None:
    source = tmp_path / "kernel.cpp"
    for value in (1, 2):
        (tmp_path / "value.h").write_text(f"constexpr int32_t VALUE = {value};")
        source.write_text(
            '#include "kernel_operator.h"\n#include "value.h"\n'
            'extern "C" __global__ __aicore__ void kernel(GM_ADDR z) {\n'
            "  AscendC::GlobalTensor<int32_t> gz; gz.SetGlobalBuffer((__gm__ int32_t*)z, 1); gz(0) = VALUE; }\n"
        )
        (z,) = compile_kernels(source, ["kernel"]).run("kernel", [Out((1,), torch.int32)], MACHINE)
        assert z.item() == value


def test_folders_and_programs_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CompileError, match=r"cannot be started"):
        Program(tmp_path / "file", ()).run("kernel", [], MACHINE)
    monkeypatch.setenv("GR_COMPILE_CACHE", str(tmp_path / "file"))
    with pytest.raises(CompileError, match=r"Name one by GR_COMPILE_CACHE"):
        compile_kernels(_SLEEPER, ["sleeper"])
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("GR_COMPILE_CACHE", str(tmp_path))
    with pytest.raises(CompileError, match=r"there is no C\+\+ compiler no-such-compiler"):
        compile_kernels(_SLEEPER + "// again", ["sleeper"])


def test_a_tiling_is_laid_out_as_its_struct() -> None:
    fields = [("a", "uint8_t"), ("b", "int64_t"), ("c", "float")]
    assert tiling_struct(fields) == "struct TilingData { uint8_t a; int64_t b; float c; };\n"
    assert tiling_bytes(fields, {"a": 1, "b": -1, "c": 1.0}) == b"\x01" + bytes(
        7
    ) + b"\xff" * 8 + b"\x00\x00\x80\x3f" + bytes(4)
    with pytest.raises(ValueError, match=r"without a value \['c'\], without a field \['d'\]"):
        tiling_bytes(fields, {"a": 1, "b": 1, "d": 1})
    with pytest.raises(ValueError, match="unknown types in a tiling struct: double"):
        tiling_struct([("a", "double")])
