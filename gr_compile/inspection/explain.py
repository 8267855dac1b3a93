"""The report as text, rich table, HTML and JSON: what each pass did, what it left alone, why, and where."""

from __future__ import annotations

import functools
import json
import os
import platform
import shutil
import subprocess
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import metadata
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gr_compile.graph_pass import GraphReport, Match, Miss, PassRecord, SourceLine

SCHEMA = 1
_COLUMNS = ("pass", "matches", "misses", "nodes", "ms")


@dataclass(frozen=True, repr=False)
class Explanation:
    """What was done to each compiled graph of a model: `print(explanation)`, or show it in a notebook."""

    reports: Sequence[GraphReport]

    def __str__(self) -> str:
        if not self.reports:
            return "nothing is compiled yet: call the model once, or pass a batch to explain"
        return "\n\n".join(_graph_text(report) for report in self.reports)

    def __repr__(self) -> str:
        return str(self)

    def rich(self) -> RenderableType:
        """The same for a terminal, in colour."""
        return Group(*(part for report in self.reports for part in _graph_rich(report)))

    def _repr_html_(self) -> str:
        return "".join(_graph_html(report) for report in self.reports) or f"<p>{escape(str(self))}</p>"

    def to_json(self) -> dict[str, Any]:
        """`report_json` of the same reports."""
        return report_json(self.reports)


# ------------------------------------------------------------------------------------------ JSON
def report_json(reports: Sequence[GraphReport]) -> dict[str, Any]:
    """The reports as plain data; `--json` and report.json hold this. Fields, schema 1:

    schema: 1. versions: {gr_compile, torch, python, compiler, isa}. graphs: one for each compiled graph:
      model, compile_id, attempt, target, pipeline, training, dump: as the names say
      captured_nodes, capture_milliseconds, target_milliseconds
      facts: {name: text}   measured or proved, such as which places are kept
      not_captured: a miss or null   why the graph ran as torch.compile would run it
      graph_breaks: [miss]
      passes: [{name, text, stage, numerics, changed, error, milliseconds, verify_milliseconds,
                nodes_before, nodes_after, operators_before, operators_after: {operator: count},
                matches: [match], misses: [miss]}]
    match: {what, detail, node, where}. miss: {reason, hint, node, where}.
    where: {file, line, function, code} or null.
    """
    return {
        "schema": SCHEMA,
        "versions": dict(versions()),
        "graphs": [_graph_json(report) for report in reports],
    }


def _graph_json(report: GraphReport) -> dict[str, Any]:
    return {
        "model": report.model,
        "compile_id": report.compile_id,
        "attempt": report.attempt,
        "target": report.target,
        "pipeline": report.pipeline,
        "training": report.training,
        "captured_nodes": report.captured_nodes,
        "capture_milliseconds": round(report.capture_milliseconds, 3),
        "target_milliseconds": round(report.target_milliseconds, 3),
        "facts": {str(name): str(text) for name, text in report.facts.items()},
        "not_captured": _miss_json(report.not_captured) if report.not_captured else None,
        "graph_breaks": [_miss_json(miss) for miss in report.graph_breaks],
        "passes": [_pass_json(record) for record in report.passes],
        "dump": report.dump,
    }


def _pass_json(record: PassRecord) -> dict[str, Any]:
    return {
        "name": record.name,
        "text": record.text,
        "stage": record.stage,
        "numerics": record.numerics,
        "changed": record.changed,
        "error": record.error,
        "milliseconds": round(record.milliseconds, 3),
        "verify_milliseconds": round(record.verify_milliseconds, 3),
        "nodes_before": record.nodes_before,
        "nodes_after": record.nodes_after,
        "operators_before": dict(sorted(record.operators_before.items())),
        "operators_after": dict(sorted(record.operators_after.items())),
        "matches": [_match_json(match) for match in record.matches],
        "misses": [_miss_json(miss) for miss in record.misses],
    }


def _match_json(match: Match) -> dict[str, Any]:
    return {
        "what": match.what,
        "detail": match.detail,
        "node": match.node_name,
        "where": _where_json(match.where),
    }


def _miss_json(miss: Miss) -> dict[str, Any]:
    return {
        "reason": miss.reason,
        "hint": miss.hint,
        "node": miss.node_name,
        "where": _where_json(miss.where),
    }


def _where_json(where: SourceLine | None) -> dict[str, Any] | None:
    return (
        {"file": where.file, "line": where.line, "function": where.function, "code": where.code}
        if where
        else None
    )


@functools.lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of gr_compile, torch, Python, the C++ compiler, and the CPU's vector instructions."""
    try:
        own = metadata.version("gr-compile")
    except metadata.PackageNotFoundError:
        own = "unknown"
    return {
        "gr_compile": own,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "compiler": _compiler(),
        "isa": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def _compiler() -> str:
    command = shutil.which(os.environ.get("CXX") or "g++") or shutil.which("clang++") or shutil.which("c++")
    if command is None:
        return "none"
    try:
        said = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return said.splitlines()[0] if said else "unknown"


# ------------------------------------------------------------------------------------------ plain text
def _title(report: GraphReport) -> str:
    attempt = f", attempt {report.attempt + 1}" if report.attempt else ""
    mode = "training" if report.training else "inference"
    name = f"{report.model} [{report.compile_id}{attempt}]"
    return f"{name} {mode}, target {report.target}, passes {report.pipeline}"


def _totals(report: GraphReport) -> str:
    passes = sum(record.milliseconds + record.verify_milliseconds for record in report.passes)
    return (
        f"captured {report.captured_nodes} nodes in {report.capture_milliseconds:.0f} ms, "
        f"passes {passes:.0f} ms, target {report.target_milliseconds:.0f} ms"
    )


def _row(record: PassRecord) -> tuple[str, ...]:
    time = f"{record.milliseconds:.1f}"
    nodes = f"{record.nodes_before} -> {record.nodes_after}"
    return record.text, str(len(record.matches)), str(len(record.misses)), nodes, time


def _grouped(misses: Sequence[Miss]) -> list[tuple[Miss, int]]:
    """Equal misses once, with their number: sixteen equal layers miss for one reason."""
    found: dict[tuple[str, SourceLine | None, str], list[Miss]] = {}
    for miss in misses:
        found.setdefault((miss.reason, miss.where, miss.hint), []).append(miss)
    return [(group[0], len(group)) for group in found.values()]


def _miss_lines(miss: Miss, times: int, indent: str, width: int = 118) -> list[str]:
    count = f" ({times} times)" if times > 1 else ""
    lines = textwrap.wrap(
        f"- {miss.reason}{count}", width, initial_indent=indent, subsequent_indent=indent + "  "
    )
    if miss.where or miss.node_name:
        lines.append(f"{indent}    at {miss.where or miss.node_name}")
    if miss.hint:
        lines += textwrap.wrap(
            miss.hint, width, initial_indent=f"{indent}    -> ", subsequent_indent=indent + "       "
        )
    return lines


def _graph_text(report: GraphReport) -> str:
    lines = [_title(report), _totals(report)]
    if report.not_captured is not None:
        lines.append("not captured, runs as torch.compile would run it:")
        lines += _miss_lines(report.not_captured, 1, "  ")
    if report.graph_breaks:
        lines.append(f"graph breaks: {len(report.graph_breaks)}")
        lines += [line for miss, n in _grouped(report.graph_breaks) for line in _miss_lines(miss, n, "  ")]
    if report.passes:
        lines += ["", *_table_text(report.passes)]
    if report.facts:
        width = max(len(name) for name in report.facts)
        lines += ["", "facts", *(f"  {name:<{width}}  {text}" for name, text in report.facts.items())]
    if report.dump:
        lines += ["", f"dump: {report.dump}"]
    return "\n".join(lines)


def _table_text(records: Sequence[PassRecord]) -> list[str]:
    rows = [_row(record) for record in records]
    widths = [max(len(cells[i]) for cells in (_COLUMNS, *rows)) for i in range(len(_COLUMNS))]

    def line(cells: Sequence[str]) -> str:
        padded = [c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths))]
        return "  ".join(padded)

    lines = [line(_COLUMNS) + "  why not", line(["-" * width for width in widths]) + "  -------"]
    for record, row in zip(records, rows):
        lines.append(line(row) + ("  see below" if record.misses else ""))
        if record.error:
            lines.append(f"  error: {record.error}")
        lines += [
            text for miss, times in _grouped(record.misses) for text in _miss_lines(miss, times, "    ")
        ]
    return lines


# ------------------------------------------------------------------------------------------ rich, HTML
def _graph_rich(report: GraphReport) -> list[RenderableType]:
    table = Table(title=_title(report), title_justify="left", caption=_totals(report), caption_justify="left")
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name == "pass" else "right", no_wrap=name in ("nodes", "ms"))
    table.add_column("why not")
    for record in report.passes:
        why = [
            line for miss, times in _grouped(record.misses) for line in _miss_lines(miss, times, "", 10_000)
        ]
        table.add_row(*(Text(cell) for cell in _row(record)), Text("\n".join([record.error, *why]).strip()))
    parts: list[RenderableType] = [table]
    blocked = [*([report.not_captured] if report.not_captured else []), *report.graph_breaks]
    parts += [
        Text("\n".join(_miss_lines(miss, times, "", 10_000)), style="yellow")
        for miss, times in _grouped(blocked)
    ]
    parts += [Text(f"{name}: {text}") for name, text in report.facts.items()]
    return parts


def _graph_html(report: GraphReport) -> str:
    head = "".join(f"<th>{name}</th>" for name in (*_COLUMNS, "why not"))
    rows = []
    for record in report.passes:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in _row(record))
        why = "<br>".join(_miss_html(miss, times) for miss, times in _grouped(record.misses))
        rows.append(f"<tr>{cells}<td style='text-align:left'>{escape(record.error)}{why}</td></tr>")
    blocked = [*([report.not_captured] if report.not_captured else []), *report.graph_breaks]
    notes = "".join(f"<p>{_miss_html(miss, times)}</p>" for miss, times in _grouped(blocked))
    facts = "".join(f"<li>{escape(name)}: {escape(text)}</li>" for name, text in report.facts.items())
    return (
        f"<h4>{escape(_title(report))}</h4><p>{escape(_totals(report))}</p>{notes}"
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table><ul>{facts}</ul>"
    )


def _miss_html(miss: Miss, times: int) -> str:
    count = f" ({times} times)" if times > 1 else ""
    place = (
        f"<br><code>{escape(str(miss.where or miss.node_name))}</code>"
        if miss.where or miss.node_name
        else ""
    )
    return escape(miss.reason + count) + place + (f"<br><i>{escape(miss.hint)}</i>" if miss.hint else "")


def dump_json(value: Any) -> str:
    """JSON as gr_compile writes it: indented, stable order of fields, a newline at the end."""
    return json.dumps(value, indent=2) + "\n"
