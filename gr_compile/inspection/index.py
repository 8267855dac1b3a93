"""index.md of a dump: the passes, what each rewrote and left alone, and the files; needs no browser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gr_compile.graph_pass import GraphReport, Match, Miss, PassRecord, SourceLine


def index_markdown(report: GraphReport, stages: Sequence[str]) -> str:
    """`stages`: names of the programs in the folder, in order, without `.py`."""
    parts = [
        _head(report),
        _pass_table(report.passes),
        _files(stages),
        *(_pass(record) for record in report.passes),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(report: GraphReport) -> str:
    mode = "training" if report.training else "inference"
    lines = [
        f"# {report.model} [{report.compile_id}]" + (f" attempt {report.attempt}" if report.attempt else ""),
        "",
        f"{mode}, target {report.target}, passes `{report.pipeline}`. "
        f"Captured {report.captured_nodes} nodes in {report.capture_milliseconds:.0f} ms; "
        f"the target took {report.target_milliseconds:.0f} ms.",
    ]
    if report.not_captured is not None:
        lines += ["", "Not captured, runs as torch.compile would run it:", *_miss(report.not_captured)]
    if report.graph_breaks:
        lines += ["", "Graph breaks:", *(line for miss in report.graph_breaks for line in _miss(miss))]
    if report.facts:
        lines += ["", *(f"- {name}: {text}" for name, text in report.facts.items())]
    return "\n".join(lines)


def _pass_table(records: Sequence[PassRecord]) -> str:
    if not records:
        return ""
    head = [
        "| pass | numerics | rewritten | left alone | nodes | ms | verify ms |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    rows = [
        f"| `{r.text}` | {r.numerics} | {len(r.matches)} | {len(r.misses)} "
        f"| {r.nodes_before} → {r.nodes_after} | {r.milliseconds:.1f} | {r.verify_milliseconds:.1f} |"
        for r in records
    ]
    return "\n".join([*head, *rows])


def _files(stages: Sequence[str]) -> str:
    lines = [
        "## Programs",
        "",
        "Each runs by itself; `--check` compares it with the one before. See also index.html.",
    ]
    lines.append("")
    for place, stage in enumerate(stages):
        diff = f", [diff]({stage}.diff)" if place else ""
        lines.append(f"- [{stage}.py]({stage}.py){diff}")
    return "\n".join(lines)


def _pass(record: PassRecord) -> str:
    lines = [f"## {record.name}"]
    if record.error:
        lines += ["", f"Error: {record.error}"]
    if record.matches:
        lines += ["", "Rewritten:", *(line for match in record.matches for line in _match(match))]
    if record.misses:
        lines += ["", "Left alone:", *(line for miss in record.misses for line in _miss(miss))]
    changes = list(_operator_changes(record))
    if changes:
        lines += ["", "| operator | before | after |", "|---|--:|--:|", *changes]
    return "\n".join(lines) if len(lines) > 1 else ""


def _match(match: Match) -> list[str]:
    return [
        f"- {match.what}"
        + (f": {match.detail}" if match.detail else "")
        + _place(match.where, match.node_name)
    ]


def _miss(miss: Miss) -> list[str]:
    return [
        f"- {miss.reason}{_place(miss.where, miss.node_name)}" + (f"  \n  → {miss.hint}" if miss.hint else "")
    ]


def _place(where: SourceLine | None, node: str) -> str:
    if where is not None:
        return f"  \n  `{where}`"
    return f" (node `{node}`)" if node else ""


def _operator_changes(record: PassRecord) -> Iterator[str]:
    for name in sorted({*record.operators_before, *record.operators_after}):
        before, after = record.operators_before.get(name, 0), record.operators_after.get(name, 0)
        if before != after:
            yield f"| `{name}` | {before} | {after} |"
