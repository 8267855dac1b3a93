"""`gr-compile doctor`: what this host can do, and what is missing for the rest."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from gr_compile.autoload import AUTOLOAD, WAY_OUT, is_trap, torch_npu_version
from gr_compile.cli.output import CommandError, JsonOption, Output, check_json_path, write_json

State = Literal["yes", "no", "broken"]
_USUAL, _DEVICES = Path("/usr/local/Ascend"), Path("/dev")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for: whether it is here, what it is, and what to do where it is not."""

    name: str
    state: State
    detail: str
    hint: str = ""


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def doctor(
        fetch_torchair: Annotated[
            bool,
            typer.Option(
                "--fetch-torchair",
                help="Download torch_npu's wheel into the cache and unpack torchair there (45 MB, pinned by hash).",
            ),
        ] = False,
        json_file: JsonOption = None,
    ) -> None:
        """Say what this host can do: torch, compiler, torchair's files, torch_npu, CANN, operator package, device.

        The JSON has findings: [{name, state, detail, hint}]; state is yes, no or broken.
        """
        check_json_path(json_file)
        if fetch_torchair:
            _fetch()
        findings = examine()
        output = Output()
        output.table("this host", ["", "", "found"], [[f.name, f.state, f.detail.replace("\n", " ")] for f in findings])
        for finding in findings:
            if finding.hint:
                output.line(f"{finding.name}: {finding.hint}")
        write_json(json_file, "doctor", {"findings": [asdict(finding) for finding in findings]})


def _fetch() -> None:
    from gr_compile.lowering.torchair import files

    try:
        files.fetch()
    except files.TorchairMissing as error:
        raise CommandError(str(error)) from error


def examine(
    environment: Mapping[str, str] = os.environ, usual: Path = _USUAL, devices: Path = _DEVICES
) -> list[Finding]:
    """Everything that is looked for, in order. What others need stands before them."""
    npu, trap = _torch_npu(environment)
    cann = _cann(environment, usual)
    package = _package(environment, cann)
    device = _device(devices)
    torchair = _torchair()
    ascend = [npu, trap, cann, package, device]
    return [_torch(), _compiler(), torchair, *ascend, *_verdicts(environment, usual, devices, npu, torchair)]


def _torch() -> Finding:
    import torch

    version = str(torch.__version__)
    wanted = version.startswith("2.13.")
    return Finding("torch", "yes" if wanted else "broken", version, "" if wanted else "gr_compile needs torch 2.13")


def _compiler() -> Finding:
    from gr_compile.inspection.explain import versions

    found = versions()["compiler"]
    if found == "none":
        return Finding("C++ compiler", "no", "none", "install g++ or clang++: kernels for the CPU are built with it")
    return Finding("C++ compiler", "yes", found)


def _torchair() -> Finding:
    from gr_compile.lowering.torchair import files

    try:
        found = files.find()
    except files.TorchairMissing as error:
        return Finding("torchair's files", "no", "none that can be used", str(error))
    return Finding("torchair's files", "yes", f"{found.version}, {found.paths[0]} ({found.origin})")


def _torch_npu(environment: Mapping[str, str]) -> tuple[Finding, Finding]:
    """Whether torch_npu can be imported, and whether it breaks `import torch`: each tried in a process of its own."""
    from gr_compile.lowering.torchair import host

    name, trap = "torch_npu", "import torch"
    version = torch_npu_version()
    if version is None:
        return Finding(name, "no", "not installed"), Finding(trap, "yes", "nothing stands in its way")
    plain = {key: value for key, value in environment.items() if key != AUTOLOAD}
    wrong = host.failure("import torch", plain)
    if wrong is not None and is_trap(wrong):
        return Finding(name, "broken", f"{version}: {_last(wrong)}"), Finding(trap, "broken", _last(wrong), WAY_OUT)
    off = {**plain, AUTOLOAD: "0"}
    failed = host.failure("import torch, torch_npu", off)
    found = Finding(name, "yes", version) if failed is None else Finding(name, "broken", f"{version}: {_last(failed)}")
    return found, Finding(trap, "yes" if wrong is None else "broken", "works" if wrong is None else _last(wrong))


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it says nothing"


def _cann(environment: Mapping[str, str], usual: Path) -> Finding:
    from gr_compile.lowering.torchair import host

    folder = host.cann_folder(environment, usual)
    if folder is not None:
        return Finding("CANN", "yes", str(folder))
    named = [environment[key] for key in host.TOOLKITS if environment.get(key)]
    if named:
        return Finding("CANN", "broken", named[0], f"{named[0]} is not a folder: source CANN's set_env.sh again")
    return Finding("CANN", "no", f"neither {' nor '.join(host.TOOLKITS)} is set, and {usual} holds none")


def _package(environment: Mapping[str, str], cann: Finding) -> Finding:
    """Operator packages: folders that hold AscendC operators' implementations."""
    from gr_compile.lowering.torchair import host

    found = host.operator_packages(environment, Path(cann.detail) if cann.state == "yes" else None)
    held = ", ".join(folder.name for folder in found)
    return Finding("operator packages", "yes" if held else "no", held or "none")


def _device(folder: Path) -> Finding:
    from gr_compile.lowering.torchair import host

    found = host.devices(folder)
    return Finding("Ascend device", "yes" if found else "no", ", ".join(found) or f"no {folder}/davinci*")


def _verdicts(
    environment: Mapping[str, str], usual: Path, devices: Path, npu: Finding, torchair: Finding
) -> Sequence[Finding]:
    """What follows: what runs here, and what can be written."""
    from gr_compile.lowering.torchair import host

    missing = host.lacking(environment, usual, devices, lambda: npu.state == "yes")
    lacks = f"lacks {', '.join(missing)}" if missing else "nothing is missing; whether it runs, a run shows"
    hint = 'gr_compile.lower(model, ..., target="ascend") writes what a host with an NPU needs'
    return (
        Finding('target="inductor"', "yes", "runs on every host with torch"),
        Finding('target="ascend"', "no" if missing else "yes", lacks, hint if missing else ""),
        Finding("gr_compile.lower", torchair.state, "writes GE graphs" if torchair.state == "yes" else torchair.detail),
    )
