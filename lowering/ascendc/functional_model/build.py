"""Compile a kernel with the model's headers into a program, and keep programs in the cache on disk.

Reading the standard library's headers takes most of a compilation, so the model's headers are compiled once into a
precompiled header, which g++ uses where it fits and passes over where it does not.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from gr_compile.lowering.cpu.build import cache_folder

INCLUDE = Path(__file__).parent / "include"
_SOURCES = (".h", ".hpp", ".inc", ".cpp", ".asc")  # what a kernel may include from its folder
_FLAGS = ("-std=c++17", "-O1", "-pthread", "-Wno-unknown-pragmas")


class CompileError(Exception):
    """The kernel does not compile with the model: a C++ error, a name that is not modelled, or no compiler."""


def build(text: str, include: Sequence[Path], defines: Mapping[str, str]) -> Path:
    """The program of a translation unit, from the cache or compiled.

    Raises:
        CompileError: it does not compile.
    """
    options = [*(f"-I{x}" for x in include), *(f"-D{name}={value}" for name, value in defines.items())]
    beside = (path for folder in include for path in sorted(folder.rglob("*")) if path.suffix in _SOURCES)
    contents = [path.read_text() for path in beside]
    key = _digest(_model(_compiler()), text, *options, *contents)
    program = _folder() / f"{key}.program"
    if not program.exists():
        with tempfile.TemporaryDirectory(dir=_folder()) as work:
            source, built = Path(work) / "kernel.cpp", Path(work) / "program"
            source.write_text(text)
            _compile(["-include", str(_precompiled()), *options, str(source), "-o", str(built)])
            os.replace(built, program)
    return program


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _folder() -> Path:
    try:
        folder = cache_folder().parent / "functional_model"
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CompileError(f"no folder for programs: {error}. Name one by GR_COMPILE_CACHE.") from error
    return folder


def _compiler() -> str:
    named = os.environ.get("CXX", "g++")
    found = shutil.which(named)
    if found is None:
        raise CompileError(f"there is no C++ compiler {named}. Install g++, or name one by CXX.")
    return found


@lru_cache
def _model(compiler: str) -> str:
    """What every program depends on: the compiler, its flags, the model's headers."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    headers = (path.read_text() for path in sorted(INCLUDE.glob("*.h")))
    return _digest(compiler, version, *_FLAGS, str(INCLUDE), *headers)


def _precompiled() -> Path:
    header = _folder() / f"{_model(_compiler())}.h"
    compiled = header.with_suffix(".h.gch")
    if not compiled.exists():
        with tempfile.TemporaryDirectory(dir=_folder()) as work:
            scratch = Path(work) / "model.h"
            scratch.write_text(f'#include "{INCLUDE / "launch.h"}"\n')
            _compile(["-x", "c++-header", str(scratch), "-o", str(Path(work) / "model.gch")])
            os.replace(scratch, header)
            os.replace(Path(work) / "model.gch", compiled)
    return header


def _compile(arguments: Sequence[str]) -> None:
    ended = subprocess.run(
        [_compiler(), *_FLAGS, f"-I{INCLUDE}", *arguments], capture_output=True, text=True, check=False
    )
    if ended.returncode:
        raise CompileError(f"the kernel does not compile with the functional model:\n{ended.stderr[-4000:]}")
