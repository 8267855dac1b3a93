"""The text of a kernel is a function of its request alone; what has no kernel says why."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from program_generator import generate

import gr_compile
from gr_compile.analysis import expr as E
from gr_compile.analysis.expr import Expr, const, index, load, make
from gr_compile.lowering.cpu.lanes import Unsupported
from gr_compile.lowering.cpu.source import Request, source
from gr_compile.ops import ScoreProgram

b, h, i, j = (index(x) for x in "bhij")
PRODUCT = make("s", (), "f32")
SEEDS = range(12)


def program(bias: str = "bias", scale: float = 0.5) -> ScoreProgram:
    """silu(scale s + bias by the logarithm of a difference of times)."""
    seconds = E.binary("maximum", E.sub(load("times", [b, i], "i"), load("times", [b, j], "i")), const(1), "i")
    step = E.cast(E.unary("log", E.cast(seconds, "f32")), "i")
    score = E.binary("add", E.binary("mul", PRODUCT, const(scale), "f32"), load(bias, [step], "f32"), "f32")
    return ScoreProgram(score=E.unary("silu", score), leaves=("times", bias))


def forward(of: ScoreProgram) -> Request:
    leaves = tuple({"i": torch.int64, "b": torch.bool}.get(of.leaf_types[x][1], torch.float32) for x in of.leaves)
    return Request(of, torch.float32, torch.float32, torch.float32, leaves, wanted=None, narrow=True)


def backward(of: ScoreProgram) -> Request:
    return replace(forward(of), wanted=tuple(x for x in of.loads() if x.dtype == "f32"))


def texts() -> list[str]:
    """Kernels of every kind."""
    requests = [kind(generate(seed, torch.float32).program) for seed in SEEDS for kind in (forward, backward)]
    return [source(request) for request in (*requests, forward(program()), backward(program()))]


# ---------------------------------------------------------------------------------------------------- the same and different


def test_a_program_read_from_its_text_has_the_same_source() -> None:
    for seed in SEEDS:
        written = generate(seed, torch.float32).program
        read = ScoreProgram.parse(written.text())
        assert source(forward(read)) == source(forward(written))
        assert source(backward(read)) == source(backward(written))


def test_another_process_prints_the_same() -> None:
    """The cache is by the text, so an order of sets or of hashes would build every kernel again."""
    here = hashlib.sha256("".join(texts()).encode()).hexdigest()
    code = "import hashlib, test_source; print(hashlib.sha256(''.join(test_source.texts()).encode()).hexdigest())"
    tests = Path(__file__).parent
    path = os.pathsep.join(map(str, (tests, tests.parents[1], Path(gr_compile.__file__).parents[1])))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "12345"}
    there = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


ORDINARY = forward(program())
OTHERS = {
    "program": forward(program(scale=0.25)),
    "dtype of q and k": replace(ORDINARY, qk_dtype=torch.bfloat16),
    "dtype of v": replace(ORDINARY, v_dtype=torch.float16),
    "dtype of the gradient": replace(ORDINARY, grad_dtype=torch.bfloat16),
    "dtype of O": forward(replace(program(), out_dtype="bf16")),
    "dtype of a table": replace(ORDINARY, leaf_dtypes=(torch.int64, torch.float16)),
    "dtype of times": replace(ORDINARY, leaf_dtypes=(torch.int32, torch.float32)),
    "backward": backward(program()),
    "backward by nothing but q and k": replace(ORDINARY, wanted=(PRODUCT,)),
    "wide integers": replace(ORDINARY, narrow=False),
    "hull of keys": forward(replace(program(), key_high=E.add(i, const(1)))),
    "grouped heads": forward(replace(program(), k_head=E.binary("floordiv", h, const(4), "i"))),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_kernel_has_another_source(name: str) -> None:
    assert source(OTHERS[name]) != source(ORDINARY)
    assert len({source(x) for x in OTHERS.values()}) == len(OTHERS)


def test_a_leaf_has_no_name() -> None:
    """Operands are numbered: what a model calls a parameter does not build another kernel."""
    assert source(forward(program(bias="weight"))) == source(ORDINARY)


# -------------------------------------------------------------------------------------------------------------- of no machine


def test_no_machine_is_in_the_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folders = {str(Path(gr_compile.__file__).parent), str(Path.home()), sys.prefix, tempfile.gettempdir()}
    before = texts()
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 96)
    monkeypatch.chdir(tmp_path)
    assert texts() == before
    for text in before:
        assert not [x for x in (*folders, torch.__version__, "__FILE__", "__DATE__", "__TIME__") if x in text]


def test_only_the_language_and_its_vectors_are_included() -> None:
    allowed = {"stdint.h", "stdlib.h", "string.h", "type_traits", "new", "immintrin.h", "arm_neon.h", "math.h"}
    for text in texts():
        lines = [x for x in text.splitlines() if x.lstrip().startswith("#include")]
        assert {re.split(r"[<>]", x)[1] for x in lines} <= allowed
        assert "#pragma once" not in text


# ------------------------------------------------------------------------------------------------------------------ no kernel


def reads(place: Expr) -> ScoreProgram:
    return ScoreProgram(score=E.binary("add", PRODUCT, load("bias", [place], "f32"), "f32"), leaves=("bias",))


NO_KERNEL = {
    "operands in float64": replace(ORDINARY, qk_dtype=torch.float64),
    "a leaf of torch.complex64": replace(ORDINARY, leaf_dtypes=(torch.int64, torch.complex64)),
    "a step of a float that is no bucket of one integer": forward(
        reads(E.cast(E.unary("sin", E.cast(j, "f32")), "i"))
    ),
    "a leaf is read at a place that depends on scores": backward(reads(E.cast(PRODUCT, "i"))),
}  # fmt: skip


@pytest.mark.parametrize("reason", NO_KERNEL)
def test_what_has_no_kernel_says_why(reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        source(NO_KERNEL[reason])
