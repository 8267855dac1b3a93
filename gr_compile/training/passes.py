"""What each pass did, as plain rows that cross a process boundary and go into JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gr_compile.graph_pass import GraphReport


@dataclass(frozen=True)
class PassRow:
    """One pass over one graph. `graph` names it: model, compile id, training or inference.

    `matches` and `misses` are texts; a miss ends with the source line that blocks. `error` is empty unless
    the pass raised. Times are milliseconds.
    """

    graph: str
    training: bool
    name: str
    numerics: str
    changed: bool
    matches: list[str]
    misses: list[str]
    nodes_before: int
    nodes_after: int
    milliseconds: float
    error: str


def pass_rows(reports: Sequence[GraphReport]) -> list[PassRow]:
    """The rows of all graphs, in the order in which they were compiled.

    What kept a graph, or a part of it, from the passes stands as a row of its own, named "capture".
    """
    return [row for report in reports for row in _graph_rows(report)]


def _graph_rows(report: GraphReport) -> list[PassRow]:
    graph = f"{report.model} {report.compile_id} {'training' if report.training else 'inference'}"
    rows = [
        PassRow(
            graph=graph,
            training=report.training,
            name=record.name,
            numerics=record.numerics,
            changed=record.changed,
            matches=[f"{match.what} {match.detail}".strip() for match in record.matches],
            misses=[str(miss) for miss in record.misses],
            nodes_before=record.nodes_before,
            nodes_after=record.nodes_after,
            milliseconds=record.milliseconds,
            error=record.error,
        )
        for record in report.passes
    ]
    blocked = [*([report.not_captured] if report.not_captured else []), *report.graph_breaks]
    if blocked:
        nodes, misses = report.captured_nodes, [str(miss) for miss in blocked]
        took = report.capture_milliseconds
        rows.insert(
            0,
            PassRow(graph, report.training, "capture", "bitwise", False, [], misses, nodes, nodes, took, ""),
        )
    return rows
