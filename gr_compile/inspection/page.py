"""The HTML page of a dump: one self-contained file, without network, that steps through the passes.

The passes stand down the side; each shows the program before and after, aligned, its rewrites and misses with
the user's source lines, the operators, and the times. The data is embedded as JSON, each distinct line once.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from gr_compile.graph_pass import GraphReport, PassRecord, SourceLine
from gr_compile.inspection.explain import report_json
from gr_compile.inspection.page_script import SCRIPT
from gr_compile.inspection.page_style import STYLE
from gr_compile.inspection.program import ProgramLine

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
Row = tuple[int, int]


@dataclass(frozen=True)
class StageView:
    """One stage as the page shows it: file name without `.py`, stage, what the pass did, and the program."""

    name: str
    stage: str
    record: PassRecord | None
    lines: tuple[ProgramLine, ...]


def render_page(report: GraphReport, stages: Sequence[StageView], versions: Mapping[str, str]) -> str:
    """The whole page. `versions` are shown at the foot of the overview."""
    # "<" is written \\u003c, so that no text of the program can close the script element.
    data = json.dumps(page_data(report, stages, versions), separators=(",", ":")).replace("<", "\\u003c")
    title = escape(f"{report.model} [{report.compile_id}]")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<link rel="icon" href="data:,">
<title>{title} · gr_compile</title>
<style>{STYLE}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the program</a>
<header id="head"></header>
<nav id="side" aria-label="Passes"></nav>
<main id="main" tabindex="-1"><noscript>Without JavaScript, read index.md beside this.</noscript></main>
<script type="application/json" id="data">{data}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def page_data(
    report: GraphReport, stages: Sequence[StageView], versions: Mapping[str, str]
) -> dict[str, Any]:
    """What the page's script reads: the report, tables of lines and sources, stages with aligned rows."""
    tables = _Tables()
    shown: list[dict[str, Any]] = []
    before: list[int] = []
    for place, stage in enumerate(stages):
        lines = [tables.line(line) for line in stage.lines]
        rows = list(aligned_rows(before, lines, tables.node_of)) if place else []
        of_pass = next((k for k, record in enumerate(report.passes) if record is stage.record), None)
        entry = {"name": stage.name, "stage": stage.stage, "pass": of_pass, "lines": lines}
        shown.append({**entry, "rows": _compressed(rows)})
        before = lines
    graph = report_json([report])["graphs"][0]
    sources = [[w.file, w.line, w.function, w.code] for w in tables.sources]
    return {
        "graph": graph,
        "versions": dict(versions),
        "lines": [[line.text, line.node, tables.source(line.where)] for line in tables.lines],
        "sources": sources,
        "stages": shown,
    }


@dataclass
class _Tables:
    """Distinct program lines and source lines, numbered."""

    lines: dict[ProgramLine, int] = field(default_factory=dict)
    sources: dict[SourceLine, int] = field(default_factory=dict)
    nodes: list[str] = field(default_factory=list)

    def line(self, line: ProgramLine) -> int:
        if line not in self.lines:
            self.lines[line] = len(self.lines)
            self.nodes.append(line.node)
            self.source(line.where)
        return self.lines[line]

    def source(self, where: SourceLine | None) -> int:
        return -1 if where is None else self.sources.setdefault(where, len(self.sources))

    def node_of(self, line: int) -> str:
        return self.nodes[line]


def aligned_rows(before: Sequence[int], after: Sequence[int], node_of: Any) -> Iterator[Row]:
    """Pairs (place before, place after), -1 for none: equal lines together, changed ones by node name."""
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        if tag == "equal":
            yield from zip(range(i1, i2), range(j1, j2))
        elif tag == "replace":
            yield from _by_node(before, after, (i1, i2, j1, j2), node_of)
        else:
            yield from ((i, -1) for i in range(i1, i2))
            yield from ((-1, j) for j in range(j1, j2))


def _by_node(
    before: Sequence[int], after: Sequence[int], block: tuple[int, int, int, int], node_of: Any
) -> Iterator[Row]:
    i1, i2, j1, j2 = block
    left = [node_of(line) or f"<{i}" for i, line in enumerate(before[i1:i2])]
    right = [node_of(line) or f">{j}" for j, line in enumerate(after[j1:j2])]
    for tag, a1, a2, b1, b2 in difflib.SequenceMatcher(None, left, right, autojunk=False).get_opcodes():
        if tag == "equal":
            yield from ((i1 + a, j1 + b) for a, b in zip(range(a1, a2), range(b1, b2)))
        else:
            yield from ((i1 + a, -1) for a in range(a1, a2))
            yield from ((-1, j1 + b) for b in range(b1, b2))


def _compressed(rows: Sequence[Row]) -> list[list[int]]:
    """Runs [i, j, length] of rows whose places both advance (or stay -1)."""
    runs: list[list[int]] = []
    for i, j in rows:
        if runs and _continues(runs[-1], i, j):
            runs[-1][2] += 1
        else:
            runs.append([i, j, 1])
    return runs


def _continues(run: list[int], i: int, j: int) -> bool:
    start_i, start_j, length = run
    follows_i = i == -1 if start_i == -1 else i == start_i + length
    follows_j = j == -1 if start_j == -1 else j == start_j + length
    return follows_i and follows_j
