"""Build kernels with torch's own C++ builder, and keep them in a cache on disk that several processes may share.

A library's name is a digest of its source, the compiler with its flags and version, and what the machine can do: a
home that machines of several kinds share holds a library for each. It is built in a temporary folder, and only what
is whole goes to the cache, by a rename. There is no lock: processes that build one kernel at once do so twice, and
one that is killed is in nobody's way. An entry ends with a seal, a digest of name and content, and nothing is
handed to the loader unread: the loader dies of half a file. What the seal does not fit is built again and replaced.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

_LOG = logging.getLogger("gr_compile.kernels")
_EXTRA_FLAGS = ("-fsigned-zeros", "-fno-math-errno", "-Wno-psabi", "-Wno-ignored-attributes")
_SEAL = hashlib.sha256().digest_size
_COMPILER_REMEDY = "Install g++ or clang++, or name one that works by CXX."
_FOLDER_REMEDY = "Make room there, or name another by TMPDIR."
_LOADER_REMEDY = "Name another compiler by CXX, or by TMPDIR a folder whose files may be executed."


@dataclass(frozen=True)
class Failure:
    """What happened and what to do. Failures of several kernels are one where only the program's words differ."""

    what: str
    remedy: str
    words: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.what}. {self.remedy}" + (f" In its words: {self.words[-2000:]}" if self.words else "")


class BuildError(Exception):
    """There is no kernel: no compiler, a compiler that fails, nowhere to write. `failure` says which."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure


def cache_folder() -> Path:
    """Where libraries are kept: GR_COMPILE_CACHE, or the user's cache folder.

    Raises:
        OSError: there is no home.
    """
    named = os.environ.get("GR_COMPILE_CACHE")
    if named:
        return Path(named) / "kernels"
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gr_compile" / "kernels"
    except RuntimeError as error:
        raise OSError(str(error)) from error


def library(text: str) -> ctypes.CDLL:
    """The loaded library of a translation unit, from the cache or built.

    Raises:
        BuildError: it cannot be built.
    """
    compiler = _compiler()
    name = hashlib.sha256(f"{text}\0{_machine(compiler)}".encode()).hexdigest()[:40]
    return _cached(name) or _built(text, compiler, name)


# -------------------------------------------------------------------------------------------------- cache
def _seal(name: str, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + content).digest()


def _cached(name: str) -> ctypes.CDLL | None:
    """The library of the cache, if it is there, whole, and the one that its name says."""
    try:
        path = cache_folder() / f"{name}.so"
        found = path.read_bytes()
        return ctypes.CDLL(str(path)) if found[-_SEAL:] == _seal(name, found[:-_SEAL]) else None
    except OSError:
        return None


def _keep(content: bytes, name: str) -> None:
    """Put a library into the cache. Where that is impossible every process builds its own."""
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(prefix=f".{name}-", dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content + _seal(name, content))
            os.replace(scratch, folder / f"{name}.so")
        finally:
            Path(scratch).unlink(missing_ok=True)
    except OSError as reason:
        _LOG.info("a kernel is not kept for the next process: %s", reason)


# -------------------------------------------------------------------------------------------------- build
def _built(text: str, compiler: str, name: str) -> ctypes.CDLL:
    try:
        with tempfile.TemporaryDirectory(prefix="gr_compile-", ignore_cleanup_errors=True) as work:
            (Path(work) / "kernel.cpp").write_text(text)
            _compile(compiler, work)
            built = Path(work) / "kernel.so"
            found = _opened(built, compiler)
            _keep(built.read_bytes(), name)
            return found
    except OSError as error:
        raise BuildError(Failure("the temporary folder cannot hold a library", _FOLDER_REMEDY, str(error))) from error


def _opened(built: Path, compiler: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(built))
    except OSError as error:
        what = f"what the C++ compiler {compiler} built cannot be loaded"
        raise BuildError(Failure(what, _LOADER_REMEDY, str(error))) from error


def _compile(compiler: str, work: str) -> None:
    """work/kernel.cpp -> work/kernel.so; the command line names both by relative paths, in any folder the same."""
    from torch._inductor.cpp_builder import CppBuilder

    _run(shlex.split(CppBuilder("kernel", "kernel.cpp", _options(compiler)).get_command_line()), work)
    if not (Path(work) / "kernel.so").exists():
        raise BuildError(Failure(f"the C++ compiler {compiler} ended without a library", _COMPILER_REMEDY))


def _run(command: Sequence[str], folder: str | None = None) -> None:
    """Run a compiler. A BuildError says how it ended where that was not well."""
    name = f"the C++ compiler {command[0]}"
    try:
        ended = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
    except OSError as error:
        raise BuildError(Failure(f"{name} cannot be started: {error.strerror}", _COMPILER_REMEDY)) from error
    said = ended.stdout.decode(errors="replace").strip()
    if ended.returncode < 0:
        remedy = f"Memory may be short: free some and start again. {_COMPILER_REMEDY}"
        raise BuildError(Failure(f"{name} was killed by {_signal(-ended.returncode)}", remedy, said))
    if ended.returncode:
        raise BuildError(Failure(f"{name} failed with exit status {ended.returncode}", _COMPILER_REMEDY, said))


def _signal(number: int) -> str:
    known = {x.value: x.name for x in signal.Signals}
    return f"signal {number} ({known[number]})" if number in known else f"signal {number}"


# ----------------------------------------------------------------------------------- compiler and machine
def _compiler() -> str:
    """The compiler that torch finds; where it finds none, a BuildError says why each was refused."""
    from torch._inductor import config
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return str(get_cpp_compiler())
    except (RuntimeError, OSError) as error:
        named = config.cpp.cxx if isinstance(config.cpp.cxx, (list, tuple)) else (config.cpp.cxx,)
        for name in filter(None, named):
            _run([name, "--version"])
        raise BuildError(Failure("torch finds no C++ compiler", _COMPILER_REMEDY, str(error))) from error


@functools.lru_cache(maxsize=4)
def _options(compiler: str) -> Any:
    """Torch's flags and its OpenMP, without its libraries and headers, which a kernel does not need.

    Nor does it need torch's choice of instruction set, which takes seconds to find out by trial: `-march=native`
    is among the flags.
    """
    from torch._inductor.cpp_builder import BuildOptionsBase, CppTorchOptions

    try:
        full = CppTorchOptions(compiler=compiler, warning_all=False, extra_flags=_EXTRA_FLAGS)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        what = f"torch has no options for the C++ compiler {compiler}"
        raise BuildError(Failure(what, _COMPILER_REMEDY, str(error))) from error
    return BuildOptionsBase(
        compiler=compiler,
        cflags=full.get_cflags(),
        ldflags=full.get_ldflags(),
        libraries_dirs=full.get_libraries_dirs(),
        libraries=[x for x in full.get_libraries() if not x.startswith("torch")],
        passthrough_args=full.get_passthrough_args(),
    )


@functools.lru_cache(maxsize=4)
def _machine(compiler: str) -> str:
    """What a library depends on beside its source: compiler, flags, instruction set, ABI."""
    from torch._inductor.cpp_builder import get_compiler_version_info

    options = _options(compiler)
    flags = [*options.get_cflags(), *options.get_ldflags(), *options.get_libraries(), *options.get_passthrough_args()]
    abi = (platform.system(), platform.machine(), *platform.libc_ver())
    return "\0".join([get_compiler_version_info(compiler), *flags, _instructions(), *abi])


def _instructions() -> str:
    """The processor's instruction sets: -march=native means another thing on another machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    found = next((x for x in lines if x.lower().startswith(("flags", "features"))), "")
    return found.partition(":")[2].strip() or f"{platform.processor()} {torch.backends.cpu.get_cpu_capability()}"
