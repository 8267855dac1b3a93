"""`gr-compile diff DUMP_A DUMP_B`: what differs between two dumps, graph by graph and stage by stage."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from gr_compile.cli.output import CommandError, JsonOption, Output, check_json_path, write_json


@dataclass(frozen=True)
class Dump:
    """One graph's dump as read back: its report and the forward of every stage's program."""

    folder: Path
    graph: Mapping[str, Any]
    programs: Mapping[str, list[str]]


@dataclass
class StageDifference:
    """How one stage differs. Counts are of B minus A; texts are of rewrites and misses, with their lines."""

    stage: str
    only_in: str = ""
    operators: dict[str, int] = field(default_factory=dict)
    matches_only_in_a: list[str] = field(default_factory=list)
    matches_only_in_b: list[str] = field(default_factory=list)
    misses_only_in_a: list[str] = field(default_factory=list)
    misses_only_in_b: list[str] = field(default_factory=list)
    program: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether nothing differs but the stage's name."""
        return not any(value for name, value in vars(self).items() if name != "stage")


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def diff(
        dump_a: Annotated[
            Path,
            typer.Argument(metavar="DUMP_A", help="A dump: one graph's folder, or a folder above such ones."),
        ],
        dump_b: Annotated[Path, typer.Argument(metavar="DUMP_B", help="The other one.")],
        program: Annotated[
            bool, typer.Option("--program/--no-program", help="Show differing lines of the programs.")
        ] = True,
        json_file: JsonOption = None,
    ) -> None:
        """Compare two dumps: operators, rewrites, misses and program text of every stage.

        The exit code is 0 when they are equal, 1 when they differ. The JSON has: equal, and graphs [{graph,
        only_in, stages: [{stage, only_in, operators: {name: count in B minus A}, matches_only_in_a,
        matches_only_in_b, misses_only_in_a, misses_only_in_b, program: [line]}]}].
        """
        check_json_path(json_file)
        graphs = compare_folders(dump_a, dump_b)
        output = Output()
        equal = all(not graph["only_in"] and all(s.equal for s in graph["stages"]) for graph in graphs)
        for graph in graphs:
            _print(output, graph, program)
        output.line("the dumps are equal" if equal else "the dumps differ")
        plain = [{**graph, "stages": [asdict(stage) for stage in graph["stages"]]} for graph in graphs]
        write_json(json_file, "diff", {"equal": equal, "graphs": plain})
        if not equal:
            raise typer.Exit(1)


def compare_folders(left: Path, right: Path) -> list[dict[str, Any]]:
    """Compare all graphs below two folders, paired by their place. Raises CommandError where no dump is."""
    a, b = find_dumps(left), find_dumps(right)
    if len(a) == len(b) == 1:  # two graphs named one by one need not have equal ids
        a, b = ({"graph": next(iter(found.values()))} for found in (a, b))
    result = []
    for name in [*a, *(name for name in b if name not in a)]:
        only_in = "" if name in a and name in b else ("A" if name in a else "B")
        stages = [] if only_in else compare(read_dump(a[name]), read_dump(b[name]))
        result.append({"graph": name, "only_in": only_in, "stages": stages})
    return result


def find_dumps(folder: Path) -> dict[str, Path]:
    """The graphs' folders at or below `folder`, by their relative names."""
    if not folder.is_dir():
        raise CommandError(f"{folder}: no such folder")
    found = {str(p.parent.relative_to(folder)): p.parent for p in sorted(folder.rglob("report.json"))}
    if not found:
        raise CommandError(f"{folder}: there is no dump (no report.json) at or below it")
    return found


def read_dump(folder: Path) -> Dump:
    """Read one graph's dump. Raises CommandError when its report.json is not one that this version writes."""
    try:
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        if report["schema"] != 1:
            raise CommandError(f"{folder}/report.json has schema {report['schema']}; this version reads 1")
        programs = {name: _forward(folder / f"{name}.py") for name in report["stages"]}
        return Dump(folder, report["graphs"][0], programs)
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise CommandError(f"{folder}: not a whole dump: {type(error).__name__}: {error}") from error


def _forward(path: Path) -> list[str]:
    """The readable forward: what stands between the inputs and PROGRAM."""
    lines = path.read_text(encoding="utf-8").splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith("    return replay.make_inputs")), -1)
    end = next((i for i, line in enumerate(lines) if line.startswith("PROGRAM = ")), len(lines))
    return "\n".join(lines[start + 1 : end]).strip().splitlines()


def compare(a: Dump, b: Dump) -> list[StageDifference]:
    """Compare two graphs stage by stage; stages are paired by pass name, so that a pass may come or go."""
    left, right = _stages(a), _stages(b)
    result = []
    for stage in [*left, *(stage for stage in right if stage not in left)]:
        if stage not in left or stage not in right:
            result.append(StageDifference(stage, only_in="A" if stage in left else "B"))
            continue
        (name_a, pass_a), (name_b, pass_b) = left[stage], right[stage]
        text = difflib.unified_diff(
            a.programs[name_a], b.programs[name_b], f"A/{name_a}.py", f"B/{name_b}.py", lineterm="", n=2
        )
        found = StageDifference(stage, program=list(text))
        found.operators = _operator_changes(pass_a, pass_b)
        found.matches_only_in_a, found.matches_only_in_b = _changes(pass_a, pass_b, "matches")
        found.misses_only_in_a, found.misses_only_in_b = _changes(pass_a, pass_b, "misses")
        result.append(found)
    return result


def _stages(dump: Dump) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Stage -> (program's name, the pass's record); a pass that runs twice gets a number."""
    passes = iter(dump.graph["passes"])
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for name in dump.programs:
        stage = name.partition("_")[2]
        key, number = stage, 1
        while key in found:
            number += 1
            key = f"{stage} ({number})"
        found[key] = (name, {} if stage in ("captured", "final") else next(passes, {}))
    return found


def _operator_changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, int]:
    left, right = (Counter(record.get("operators_after", {})) for record in (a, b))
    return {name: right[name] - left[name] for name in sorted({*left, *right}) if left[name] != right[name]}


def _changes(a: Mapping[str, Any], b: Mapping[str, Any], kind: str) -> tuple[list[str], list[str]]:
    left, right = (Counter(map(_text, record.get(kind, []))) for record in (a, b))
    return list((left - right).elements()), list((right - left).elements())


def _text(entry: Mapping[str, Any]) -> str:
    where = entry["where"]
    place = f" [{Path(where['file']).name}:{where['line']}: {where['code']}]" if where else ""
    return (entry.get("what") or entry.get("reason") or "") + place


def _print(output: Output, graph: Mapping[str, Any], program: bool) -> None:
    if graph["only_in"]:
        output.line(f"{graph['graph']}: only in {graph['only_in']}")
        return
    output.line(f"{graph['graph']}:")
    for stage in graph["stages"]:
        if stage.only_in:
            output.line(f"  {stage.stage}: only in {stage.only_in}")
            continue
        output.line(f"  {stage.stage}: {'equal' if stage.equal else 'differs'}")
        for name, change in stage.operators.items():
            output.line(f"    operator {name}: {change:+d}")
        for kind, verb in (("matches", "rewritten"), ("misses", "left alone")):
            for side in ("a", "b"):
                for text in getattr(stage, f"{kind}_only_in_{side}"):
                    output.line(f"    {verb} only in {side.upper()}: {text}")
        if program:
            for line in stage.program:
                output.line(f"    {line}")
