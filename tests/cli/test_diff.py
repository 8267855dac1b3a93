"""`gr-compile diff`: equal dumps, and every kind of difference."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import torch
import typer
from torch.fx.experimental.proxy_tensor import make_fx
from typer.testing import CliRunner

from gr_compile.cli import diff
from gr_compile.cli.output import CommandError
from gr_compile.graph_pass import GraphReport, Match, Miss, PassRecord, SourceLine, StageEvent
from gr_compile.inspection.dump import Dumper

WHERE = SourceLine("/a/model.py", 3, "forward", "y = x + 1")


def dumped(folder: Path, *names: str, function=torch.relu, miss: str = "a reason", model: str = "M") -> Path:
    """A dump of one operator, with passes that pretend."""
    graph_module = make_fx(lambda x: function(x) * 2, tracing_mode="fake")(torch.randn(3))
    counts = Counter(str(node.target) for node in graph_module.graph.nodes if node.op == "call_function")
    report = GraphReport(model, "0_0", 0, "eager", ",".join(names))
    dumper = Dumper(folder)
    dumper(StageEvent(0, "captured", graph_module, None, report))
    for index, name in enumerate(names, 1):
        record = PassRecord(
            name, name, "forward", "bitwise", True,
            (Match("a rewrite", where=WHERE),), (Miss(miss, where=WHERE),),
            1.0, 1.0, 2, 2, counts, counts,
        )  # fmt: skip
        report.passes.append(record)
        dumper(StageEvent(index, name, graph_module, record, report))
    dumper(StageEvent(99, "final", graph_module, None, report))
    return folder


def invoke(*arguments):
    app = typer.Typer()
    app.callback()(lambda: None)
    diff.register(app)
    return CliRunner().invoke(app, ["diff", *map(str, arguments)])


def test_equal(tmp_path):
    a, b = dumped(tmp_path / "a", "one"), dumped(tmp_path / "b", "one")
    done = invoke(a, b, "--json", tmp_path / "out.json")
    assert done.exit_code == 0 and "one: equal" in done.output and "the dumps are equal" in done.output
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["equal"] is True and [s["stage"] for s in data["graphs"][0]["stages"]] == [
        "captured",
        "one",
        "final",
    ]


def test_different(tmp_path):
    a = dumped(tmp_path / "a", "one", "two")
    b = dumped(tmp_path / "b", "zero", "two", function=torch.sigmoid, miss="another reason")
    done = invoke(a, b, "--json", tmp_path / "out.json")
    assert done.exit_code == 1
    for part in (
        *("one: only in A", "zero: only in B", "two: differs", "operator aten.sigmoid.default: +1"),
        *("operator aten.relu.default: -1", "left alone only in A: a reason [model.py:3: y = x + 1]"),
        *(
            "left alone only in B: another reason",
            "+    sigmoid = aten.sigmoid.default(x_1)",
            "the dumps differ",
        ),
    ):
        assert part in done.output, part
    assert "rewritten only in" not in done.output
    assert "+    sigmoid" not in invoke(a, b, "--no-program").output
    stage = next(
        s
        for s in json.loads((tmp_path / "out.json").read_text())["graphs"][0]["stages"]
        if s["stage"] == "two"
    )
    assert set(stage) == {
        *("stage", "only_in", "operators", "matches_only_in_a", "matches_only_in_b"),
        *("misses_only_in_a", "misses_only_in_b", "program"),
    }
    assert stage["operators"] == {"aten.relu.default": -1, "aten.sigmoid.default": 1}


def test_one_graph_or_a_folder_of_them(tmp_path):
    a = dumped(dumped(tmp_path / "a", "one"), "one", model="Other")
    b = dumped(tmp_path / "b", "one")
    done = invoke(a, b)
    assert done.exit_code == 1 and "Other/0_0: only in A" in done.output
    assert invoke(a / "Other" / "0_0", b).exit_code == 0


def test_bad_folders(tmp_path):
    good = dumped(tmp_path / "good", "one")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "report.json").write_text('{"schema": 1, "gra')
    (tmp_path / "newer").mkdir()
    (tmp_path / "newer" / "report.json").write_text('{"schema": 2}')
    for folder, message in (
        ("none", "no such folder"),
        ("empty", "there is no dump"),
        ("broken", "not a whole dump"),
        ("newer", "has schema 2; this version reads 1"),
    ):
        done = invoke(good, tmp_path / folder)
        assert (
            done.exit_code == 1
            and isinstance(done.exception, CommandError)
            and message in str(done.exception)
        )


def test_help():
    assert "DUMP_A" in invoke("--help").output
