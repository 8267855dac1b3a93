"""Explanation: text, rich, HTML, and the JSON whose fields others rely on."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from gr_compile.graph_pass import GraphReport, Match, Miss, PassRecord, SourceLine
from gr_compile.inspection.explain import SCHEMA, Explanation, report_json, versions

WHERE = SourceLine("/models/hstu.py", 31, "forward", "w = softmax(s)")


@pytest.fixture
def report() -> GraphReport:
    miss = Miss("the key at j may be <padded>", hint="add the key mask", where=WHERE)
    record = PassRecord(
        "eliminate-padding", "eliminate-padding{mode=bucket}", "forward", "reassociates", True,
        (Match("linear on packed tokens", where=WHERE),), (miss, miss), 12.34, 1.5, 388, 360,
        {"aten.linear.default": 4}, {"aten.linear.default": 4, "aten.index.Tensor": 1},
    )  # fmt: skip
    return GraphReport(
        "HSTU", "0_0", 1, "inductor", "eliminate-padding{mode=bucket}", [record],
        graph_breaks=[Miss("print() is called", where=WHERE)], captured_nodes=388,
        capture_milliseconds=1400.0, target_milliseconds=2000.0, training=True,
        facts={"places kept": "37 %"}, dump="dumps/HSTU/0_0",
    )  # fmt: skip


def test_text(report):
    text = str(Explanation((report,)))
    for part in (
        "HSTU [0_0, attempt 2] training, target inductor",
        "captured 388 nodes in 1400 ms, passes 14 ms, target 2000 ms",
        "388 -> 360",
        "- the key at j may be <padded> (2 times)",
        "at /models/hstu.py:31 in forward: w = softmax(s)",
        "-> add the key mask",
        "graph breaks: 1",
        "places kept  37 %",
        "dump: dumps/HSTU/0_0",
    ):
        assert part in text, part
    header = next(line for line in text.splitlines() if line.startswith("pass "))
    assert header.split() == ["pass", "matches", "misses", "nodes", "ms", "why", "not"]
    assert all(line == line.rstrip() for line in text.splitlines())


def test_not_captured_and_nothing_compiled(report):
    report.not_captured = Miss("input x is mutated in place", where=WHERE)
    assert "not captured, runs as torch.compile would run it:\n  - input x is mutated in place" in str(
        Explanation([report])
    )
    assert "nothing is compiled yet" in str(Explanation(()))


def test_rich_and_html(report):
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(Explanation([report]).rich())
    shown = console.export_text()
    assert "eliminate-padding{mode=bucket}" in shown and "add the key mask" in shown and "37 %" in shown
    page = Explanation([report])._repr_html_()
    assert "&lt;padded&gt;" in page and "<padded>" not in page and "hstu.py:31" in page
    assert "nothing is compiled yet" in Explanation(())._repr_html_()


def test_json_fields_are_stable(report):
    report.not_captured = Miss("reason")
    data = json.loads(json.dumps(Explanation([report]).to_json()))
    assert SCHEMA == 1 and data["schema"] == 1 and set(data) == {"schema", "versions", "graphs"}
    assert set(data["versions"]) == {"gr_compile", "torch", "python", "compiler", "isa"} == set(versions())
    (graph,) = data["graphs"]
    assert set(graph) == {
        *("model", "compile_id", "attempt", "target", "pipeline", "training", "captured_nodes", "dump"),
        *("capture_milliseconds", "target_milliseconds", "facts", "not_captured", "graph_breaks", "passes"),
    }
    (record,) = graph["passes"]
    assert set(record) == {
        *("name", "text", "stage", "numerics", "changed", "error", "milliseconds", "verify_milliseconds"),
        *("nodes_before", "nodes_after", "operators_before", "operators_after", "matches", "misses"),
    }
    where = {"file": "/models/hstu.py", "line": 31, "function": "forward", "code": "w = softmax(s)"}
    assert record["matches"] == [
        {"what": "linear on packed tokens", "detail": "", "node": "", "where": where}
    ]
    assert record["misses"][0] == {
        "reason": "the key at j may be <padded>", "hint": "add the key mask", "node": "", "where": where,
    }  # fmt: skip
    assert graph["not_captured"] == {"reason": "reason", "hint": "", "node": "", "where": None}
    assert report_json([]) == {"schema": 1, "versions": versions(), "graphs": []}
