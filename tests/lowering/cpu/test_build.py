"""Building and keeping kernels: whatever is wrong with the compiler, the cache or the processes beside us,
the answer is right, nobody waits, and what is wrong is said once."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import platform
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

import pytest
import torch
from program_generator import generate
from torch._inductor import config, cpp_builder

from gr_compile.lowering.cpu import build, kernels

ANSWER = 'extern "C" int answer() { return 42; }\n'
ANOTHER = 'extern "C" int answer() { return 13; }\n'
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder, empty before and after every test."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GR_COMPILE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


@pytest.fixture
def new_process() -> Iterator[Callable[[], None]]:
    """Forgets what a process remembers of kernels, machines and warnings."""

    def forget() -> None:
        for remembered in (kernels.kernel, kernels._warn_once, build._options, build._machine):
            remembered.cache_clear()

    forget()
    yield forget
    forget()


def files(folder: Path) -> list[str]:
    return sorted(x.name for x in folder.rglob("*") if x.is_file())


def answer(text: str = ANSWER) -> int:
    return int(build.library(text).answer())


def entry_of(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which a cache of its own keeps a kernel."""
    place = folder / f"of-{answer(text)}"
    monkeypatch.setenv("GR_COMPILE_CACHE", str(place))
    answer(text)
    (entry,) = (place / "kernels").iterdir()
    return entry


def is_kept(monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the next process finds ANSWER in the cache and compiles nothing."""
    with monkeypatch.context() as patch:
        patch.setattr(build, "_compile", lambda *args: pytest.fail("it was compiled"))
        return answer() == 42


def run_operator(gradients: bool = True) -> list[str]:
    """What was warned of while the operator ran forward and backward; its results are the dense program's."""
    case = generate(3, torch.float32)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = torch.ops.gr.jagged_attention(*case.operands())
        if gradients:
            torch.autograd.grad(out.sum(), case.differentiable(), allow_unused=True)
    torch.testing.assert_close(out, case.dense_out)
    return [str(x.message) for x in caught]


def script(folder: Path, text: str, mode: int = 0o755) -> str:
    """A compiler: a shell script. Its name says gcc, by which torch chooses flags."""
    path = folder / "g++"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def by(compiler: str) -> Any:
    return config.patch({"cpp.cxx": (None, compiler)})


# ------------------------------------------------------------------------------------------------ the cache cannot be written


def fails(number: int) -> Callable[..., NoReturn]:
    def fail(*args: object, **options: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return fail


def full_file(handle: int, mode: str) -> IO[Any]:
    os.close(handle)
    return open("/dev/full", mode)


def write(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("")


def no_home() -> NoReturn:
    raise RuntimeError("Could not determine home directory.")


def homeless(patch: pytest.MonkeyPatch, _: Path) -> None:
    patch.delenv("GR_COMPILE_CACHE")
    patch.delenv("XDG_CACHE_HOME", raising=False)
    patch.setattr(Path, "home", no_home)


UNWRITABLE: dict[str, Callable[[pytest.MonkeyPatch, Path], None]] = {
    "full": lambda patch, _: patch.setattr(os, "fdopen", full_file),
    "full when the name is entered": lambda patch, _: patch.setattr(os, "replace", fails(errno.ENOSPC)),
    "read-only": lambda patch, _: patch.setattr(tempfile, "mkstemp", fails(errno.EROFS)),
    "not ours": lambda patch, _: patch.setattr(Path, "mkdir", fails(errno.EACCES)),
    "a file": lambda _, folder: write(folder),
    "below a file": lambda _, folder: write(folder.parent),
    "nowhere: no home": homeless,
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_a_cache_that_cannot_be_written(name: str, cache: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    UNWRITABLE[name](monkeypatch, cache)
    before = files(cache.parent)
    assert answer() == answer() == 42
    assert files(cache.parent) == before
    assert not list(temporary.iterdir())


def test_the_log_says_why_a_kernel_is_not_kept(cache: Path) -> None:
    said: list[str] = []
    handler, log = logging.Handler(), logging.getLogger("gr_compile.kernels")
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    write(cache)
    answer()
    log.removeHandler(handler)
    log.setLevel(level)
    assert len(said) == 1 and str(cache) in said[0]


def test_nowhere_to_build(new_process: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryDirectory", fails(errno.ENOSPC))
    (said,) = run_operator()
    assert "temporary folder" in said and "TMPDIR" in said and "No space left" in said


# ---------------------------------------------------------------------------------------------- what lies in the cache is wrong

DAMAGED: dict[str, Callable[[bytes, bytes], bytes]] = {
    "empty": lambda whole, another: b"",
    "a text": lambda whole, another: b"not a library, but longer than a seal is\n",
    "the first page": lambda whole, another: whole[:4096],
    "half": lambda whole, another: whole[: len(whole) // 2],
    "without its last byte": lambda whole, another: whole[:-1],
    "one bit": lambda whole, another: whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:],
    "zeros after a crash": lambda whole, another: whole[:4096] + bytes(len(whole) - 4096),
    "a foreign library": lambda whole, another: another[: -build._SEAL],
    "another kernel's entry": lambda whole, another: another,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_wrong_entry_is_replaced(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, another = (entry_of(text, tmp_path, monkeypatch) for text in (ANSWER, ANOTHER))
    monkeypatch.setenv("GR_COMPILE_CACHE", str(tmp_path / "damaged"))
    damaged = tmp_path / "damaged" / "kernels" / whole.name
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(DAMAGED[name](whole.read_bytes(), another.read_bytes()))
    assert answer() == 42
    assert is_kept(monkeypatch)
    assert files(damaged.parent) == [whole.name]


def test_a_folder_in_the_place_of_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = entry_of(ANSWER, tmp_path, monkeypatch).name
    monkeypatch.setenv("GR_COMPILE_CACHE", str(tmp_path / "damaged"))
    (tmp_path / "damaged" / "kernels" / name).mkdir(parents=True)
    assert answer() == 42
    assert files(tmp_path / "damaged") == []


# ----------------------------------------------------------------------------------------------------- the compiler is wrong

REAL = 'case "$1" in -*) exec g++ "$@";; esac\n'  # answers questions as a compiler does
COMPILERS = {
    "refuses": ("#!/bin/sh\necho no licence >&2; exit 1\n", "failed with exit status 1", "no licence"),
    "killed": ("#!/bin/sh\nkill -9 $$\n", "killed by signal 9 (SIGKILL)", "Memory"),
    "no program": ("\0\0\0\0", "cannot be started", "Exec format error"),
    "refuses the source": (f"#!/bin/sh\n{REAL}echo no room; exit 3\n", "failed with exit status 3", "no room"),
    "killed half way": (f"#!/bin/sh\n{REAL}echo x > kernel.so; kill -9 $$\n", "killed by signal 9 (SIGKILL)", "Memory"),
    "makes nothing": (f"#!/bin/sh\n{REAL}exit 0\n", "ended without a library", ""),
    "makes no library": (f"#!/bin/sh\n{REAL}echo x > kernel.so\n", "cannot be loaded", "kernel.so"),
}


@pytest.mark.parametrize("name", COMPILERS)
def test_a_compiler_that_does_not_work(
    name: str, tmp_path: Path, cache: Path, temporary: Path, new_process: Callable[[], None]
) -> None:
    text, what, words = COMPILERS[name]
    with by(script(tmp_path, text)):
        (said,) = run_operator()
    assert what in said and words in said
    assert "CXX" in said and "GR_COMPILE_CPU_KERNELS=0" in said
    assert not files(cache)
    assert not list(temporary.iterdir())


@pytest.mark.parametrize("is_there", [False, True], ids=["missing", "not executable"])
def test_no_compiler(is_there: bool, tmp_path: Path, new_process: Callable[[], None]) -> None:
    compiler = script(tmp_path, "#!/bin/sh\n", 0o644) if is_there else str(tmp_path / "g++")
    with by(compiler):
        (said,) = run_operator()
    assert f"{compiler} cannot be started" in said and "CXX" in said


def test_a_later_process_with_a_compiler_builds(tmp_path: Path, cache: Path, new_process: Callable[[], None]) -> None:
    with by(script(tmp_path, COMPILERS["killed half way"][0])):
        assert len(run_operator(gradients=False)) == 1
    new_process()
    assert run_operator(gradients=False) == []
    assert len(files(cache)) == 1


def test_kernels_that_fail_in_their_own_words_are_one_failure() -> None:
    assert build.Failure("it failed", "mend it", "line 3") == build.Failure("it failed", "mend it", "line 4")
    assert build.Failure("it failed", "mend it") != build.Failure("it was killed", "mend it")


def test_kernels_switched_off(cache: Path, new_process: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GR_COMPILE_CPU_KERNELS", "0")
    monkeypatch.setattr(build, "_run", lambda *args: pytest.fail("a compiler was run"))
    assert run_operator() == []
    assert files(cache) == []


# ------------------------------------------------------------------------------------------------------- processes beside us


def waiting_compiler(folder: Path) -> str:
    """It notes that it began, and works once there is a file `go`, or after some 20 s."""
    wait = f"for n in $(seq 400); do [ -e {folder}/go ] && break; sleep 0.05; done"
    return script(folder, f"#!/bin/sh\n{REAL}echo > {folder}/began-$$\n{wait}\nexec g++ \"$@\"\n")


def began(folder: Path, count: int) -> None:
    end = time.monotonic() + 20
    while len(list(folder.glob("began-*"))) < count:
        assert time.monotonic() < end, "no compiler began"
        time.sleep(0.02)


def build_in_child() -> None:
    os.setsid()
    os._exit(answer())


def test_two_processes_build_one_kernel(
    tmp_path: Path, cache: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with by(waiting_compiler(tmp_path)):
        children = [FORK.Process(target=build_in_child) for _ in range(2)]
        for child in children:
            child.start()
        began(tmp_path, 2)
        (tmp_path / "go").touch()
        for child in children:
            child.join(30)
    assert [child.exitcode for child in children] == [42, 42]
    assert len(files(cache)) == 1
    assert not list(temporary.iterdir())
    assert is_kept(monkeypatch)


def test_a_process_killed_while_it_builds(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with by(waiting_compiler(tmp_path)):
        child = FORK.Process(target=build_in_child)
        child.start()
        began(tmp_path, 1)
        assert child.pid is not None
        os.killpg(child.pid, signal.SIGKILL)
        child.join(30)
    assert child.exitcode == -signal.SIGKILL
    assert files(cache) == []
    assert answer() == 42
    assert len(files(cache)) == 1


# ------------------------------------------------------------------------------------------------- machines that share a home

MACHINES: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "instructions": lambda patch: patch.setattr(build, "_instructions", lambda: "fpu sse2"),
    "architecture": lambda patch: patch.setattr(platform, "machine", lambda: "i686"),
    "C library": lambda patch: patch.setattr(platform, "libc_ver", lambda: ("glibc", "2.17")),
    "compiler": lambda patch: patch.setattr(cpp_builder, "get_compiler_version_info", lambda compiler: "gcc 1.42"),
    "flags": lambda patch: patch.setattr(build, "_EXTRA_FLAGS", (*build._EXTRA_FLAGS, "-O1")),
}


@pytest.mark.parametrize("name", MACHINES)
def test_another_machine_has_its_own_entry(
    name: str, cache: Path, new_process: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answer() == 42
    ours = files(cache)
    with monkeypatch.context() as patch:
        MACHINES[name](patch)
        new_process()
        assert answer() == 42
    assert len(set(files(cache)) - set(ours)) == 1
    new_process()
    assert is_kept(monkeypatch)
    assert len(files(cache)) == 2


def test_a_kernel_is_linked_with_nothing_of_torch() -> None:
    compiler = build._compiler()
    command = cpp_builder.CppBuilder("kernel", "kernel.cpp", build._options(compiler)).get_command_line().split()
    assert not [x for x in command if x.startswith("-ltorch")]
    assert "-fopenmp" in command and "-march=native" in command
