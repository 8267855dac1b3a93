"""Kernels of this folder, compiled once a session; what a mutant's number is called in its source."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from gr_compile.lowering.ascendc.functional_model import Program, compile_kernels
from gr_compile.lowering.ascendc.machine import machine

KERNELS = Path(__file__).parent / "kernels"
MACHINE = machine("910b1")
RULES = (("n", "int64_t"), ("mutant", "int32_t"))
PRODUCTS = tuple((x, "int32_t") for x in ("m", "n", "k", "k0", "transposed", "mutant"))
VALUES = (("n", "int64_t"), ("op", "int32_t"), ("scalar", "float"))


@functools.lru_cache
def program(name: str, tiling: tuple[tuple[str, str], ...] = RULES) -> Program:
    text = (KERNELS / f"{name}.cpp").read_text()
    return compile_kernels(KERNELS / f"{name}.cpp", _kernels(text), tiling=tiling)


def _kernels(text: str) -> list[str]:
    return re.findall(r"__aicore__ void (?!name)(\w+)\(GM_ADDR", text) + re.findall(
        r"^(?:CAST|PRODUCT)\((\w+),", text, re.MULTILINE
    )


@functools.lru_cache
def mutants(name: str) -> dict[str, int]:
    text = (KERNELS / f"{name}.cpp").read_text()
    found = re.search(r"enum (?:Mutant|Case) \{(.*?)\}", text, re.DOTALL)
    assert found is not None
    return {x.strip(): i for i, x in enumerate(found[1].strip().rstrip(",").split(","))}
