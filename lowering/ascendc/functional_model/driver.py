"""Compile AscendC kernels with the functional model and run them on tensors, each run in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from gr_compile.lowering.ascendc.functional_model.arguments import (
    Argument,
    In,
    InOut,
    Listed,
    Out,
    Single,
    Tiling,
    TilingFields,
    Workspace,
    content,
    size_of,
    tensor_of,
    tiling_struct,
)
from gr_compile.lowering.ascendc.functional_model.build import CompileError, build
from gr_compile.lowering.ascendc.machine import Machine

Cores = Literal["vector", "cube", "mix"]
_ROLES: Mapping[type, str] = {In: "in", Out: "out", InOut: "inout", Workspace: "workspace", Tiling: "tiling"}


class Broken(Exception):
    """A kernel broke a rule of the API, or ended without a verdict. The message names the core and the rule."""


def compile_kernels(
    source: str | Path,
    kernels: Sequence[str],
    *,
    tiling: TilingFields = (),
    defines: Mapping[str, str] | None = None,
) -> Program:
    """The program of some kernels of one C++ source.

    Args:
        source: the text of a kernel's .cpp, or the file, whose folder its own headers are looked for in.
        kernels: names of `extern "C" __global__ __aicore__` functions, all of whose parameters are GM_ADDR.
        tiling: fields of the struct that GET_TILING_DATA reads, as (name, C++ type), in their order.
        defines: macros, such as {"DTYPE_X": "float"}.

    Raises:
        CompileError: it does not compile.
        ValueError: a tiling field of an unknown type.
    """
    text = f'#include "{source}"\n' if isinstance(source, Path) else source
    include = [source.parent] if isinstance(source, Path) else []
    table = ", ".join(f'{{"{name}", model_entry({name})}}' for name in kernels)
    whole = (
        f'#include "launch.h"\n{tiling_struct(tiling)}{text}\n'
        f"int main(int model_argc, char** model_argv) {{ return model_run(model_argc, model_argv, {{{table}}}); }}\n"
    )
    return Program(build(whole, include, defines or {}), tuple(tiling))


@dataclass(frozen=True)
class Program:
    """Compiled kernels. `path` is the program that the model's launcher starts."""

    path: Path
    tiling: tuple[tuple[str, str], ...]

    def run(
        self,
        kernel: str,
        arguments: Sequence[Argument],
        machine: Machine,
        *,
        blocks: int = 1,
        cores: Cores = "vector",
        auto_sync: bool = True,
        tiling_key: int = 0,
        timeout: float = 300.0,
    ) -> list[torch.Tensor]:
        """Run a kernel and return what it left in its Out and InOut arguments, in their order.

        Args:
            kernel: one of the names that the program was compiled with.
            arguments: one for each GM_ADDR parameter.
            machine: capacities and core counts.
            blocks: of the launch. A block is a vector core, a cube core, or (mix) a cube core and two vector cores.
            cores: which.
            auto_sync: whether the compiler orders what --cce-auto-sync=on, the default of an operator project, orders
                by itself on a vector core.
            tiling_key: what TILING_KEY_IS compares with.
            timeout: seconds; then the run is broken.

        Raises:
            Broken: the kernel broke a rule.
            CompileError: the program cannot be started from its folder.
            ValueError: the tiling's values do not fit its fields.
        """
        with tempfile.TemporaryDirectory(prefix="gr_compile-") as folder:
            lines = [*_machine_lines(machine, blocks, cores, auto_sync, tiling_key), f"kernel {kernel}"]
            given: list[Single] = []
            for argument in arguments:
                singles = argument.items if isinstance(argument, Listed) else [argument]
                lines += [f"list {len(singles)}"] if isinstance(argument, Listed) else []
                for single in singles:
                    slack = single.slack if isinstance(single, In) else 0
                    lines.append(f"argument {_ROLES[type(single)]} {size_of(single, self.tiling)} {slack}")
                    (Path(folder) / str(len(given))).write_bytes(content(single, self.tiling) or b"")
                    given.append(single)
            (Path(folder) / "job").write_text("\n".join(lines))
            _start([str(self.path), folder], timeout, Path(folder) / "verdict")
            return [
                tensor_of((Path(folder) / str(i)).read_bytes(), single)
                for i, single in enumerate(given)
                if isinstance(single, Out | InOut)
            ]


def _machine_lines(machine: Machine, blocks: int, cores: Cores, auto_sync: bool, tiling_key: int) -> list[str]:
    sizes = {"ub": machine.unified_buffer, "bias": machine.bias_table}
    sizes |= {name: getattr(machine, name) for name in ("l1", "l0a", "l0b", "l0c", "cube_cores", "vector_cores")}
    sizes |= {"blocks": blocks, "auto_sync": int(auto_sync), "tiling_key": tiling_key}
    return [f"kind {cores}", *(f"{name} {value}" for name, value in sizes.items())]


def _start(command: Sequence[str], timeout: float, verdict: Path) -> None:
    """Run the program. Its verdict is a file; a program without one died, and how it died is the verdict."""
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired as error:
        raise Broken(f"the kernel did not end in {timeout:g} s") from error
    except OSError as error:
        raise CompileError(
            f"{command[0]} cannot be started: {error}. Name another folder by GR_COMPILE_CACHE."
        ) from error
    said = verdict.read_text() if verdict.exists() else ""
    if ended.returncode < 0:
        name = signal.Signals(-ended.returncode).name
        raise Broken(f"the kernel died of {name}: a raw pointer left its memory, or a stack overflowed")
    if said != "passed":
        raise Broken(said or f"the kernel ended with status {ended.returncode} and no verdict: {ended.stderr[-500:]}")
