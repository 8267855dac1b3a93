"""Build kernels with torch's own C++ builder, and keep them in a cache on disk that several processes may share.

A library's name is a digest of its source, the compiler's command line and version, and what the machine can do: a
home that machines of several kinds share holds a library for each. It is built under a name of its own and
moved into its place, so that a half-written library is never read. One that cannot be read is built again.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

_EXTRA_FLAGS = ("-fsigned-zeros", "-fno-math-errno", "-Wno-psabi", "-Wno-ignored-attributes")
_ENTRY = "gr_kernel_digest"


class BuildError(Exception):
    """There is no kernel: no compiler, a compiler that fails, nowhere to write. The message says which."""


def cache_folder() -> Path:
    """Where libraries are kept: GR_COMPILE_CACHE, or the user's cache folder."""
    named = os.environ.get("GR_COMPILE_CACHE")
    if named:
        return Path(named) / "kernels"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gr_compile" / "kernels"


def library(text: str) -> ctypes.CDLL:
    """The loaded library of a translation unit, from the cache or built.

    Raises:
        BuildError: it cannot be built.
    """
    name = _digest(text)
    source = f'{text}extern "C" const char* {_ENTRY}() {{ return "{name}"; }}\n'
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        found = _load(folder / f"{name}.so", name)
        return found or _build(source, name, folder)
    except OSError:
        return _build(source, name, Path(_private_folder()))


@functools.lru_cache(maxsize=1)
def _private_folder() -> str:
    """Where this process builds when the cache cannot be written."""
    return tempfile.mkdtemp(prefix="gr_compile-")


def _load(path: Path, name: str) -> ctypes.CDLL | None:
    """The library at `path`, if it is there, whole, and the one that its name says."""
    if not path.exists():
        return None
    try:
        found = ctypes.CDLL(str(path))
        entry = getattr(found, _ENTRY)
        entry.restype = ctypes.c_char_p
        return found if entry() == name.encode() else None
    except (OSError, AttributeError):
        return None


def _build(source: str, name: str, folder: Path) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=folder) as work:
        unit = Path(work) / "kernel.cpp"
        unit.write_text(source)
        _compile(unit, work)
        built = Path(work) / "kernel.so"
        final = folder / f"{name}.so"
        os.replace(built, final)
    found = _load(final, name)
    if found is None:
        raise BuildError(f"the compiler made {final}, which cannot be loaded")
    return found


def _compile(unit: Path, work: str) -> None:
    from torch._inductor.cpp_builder import CppBuilder
    from torch._inductor.exc import CppCompileError

    try:
        builder = CppBuilder("kernel", str(unit), _options(), work)
        builder.build()
    except CppCompileError as error:
        raise BuildError(f"the C++ compiler failed: {str(error)[-2000:]}") from error
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{type(error).__name__}: {error}") from error
    if not (Path(work) / "kernel.so").exists():
        raise BuildError("the C++ compiler ended without a library")


def _options() -> Any:
    from torch._inductor.cpp_builder import CppTorchOptions
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    return CppTorchOptions(vec_isa=pick_vec_isa(), warning_all=False, extra_flags=_EXTRA_FLAGS)


def _digest(text: str) -> str:
    content = f"{text}\0{_machine()}"
    return hashlib.sha256(content.encode()).hexdigest()[:40]


@functools.lru_cache(maxsize=1)
def _machine() -> str:
    """What a library depends on beside its source: compiler, flags, instruction set, ABI."""
    from torch._inductor.cpp_builder import get_compiler_version_info, get_cpp_compiler

    try:
        options = _options()
        compiler = get_cpp_compiler()
        flags = [*options.get_cflags(), *options.get_definitions(), *options.get_passthrough_args()]
        version = get_compiler_version_info(compiler)
    except Exception as error:
        raise BuildError(f"there is no C++ compiler: {error}") from error
    return "\0".join([version, *flags, _instructions(), platform.machine(), torch.__version__])


def _instructions() -> str:
    """The processor's instruction sets: -march=native means another thing on another machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    found = next((x for x in lines if x.lower().startswith(("flags", "features"))), "")
    return found.partition(":")[2].strip() or f"{platform.processor()} {torch.backends.cpu.get_cpu_capability()}"
