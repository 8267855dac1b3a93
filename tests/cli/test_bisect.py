"""`gr-compile bisect` on scripts that really run, in child processes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from gr_compile.cli import bisect
from gr_compile.cli.output import CommandError

SCRIPT = """
import sys
from gr_compile.graph_pass import SourceLine
from gr_compile.inspection.bisect import RewriteLimit

first, second = RewriteLimit.from_environment(), RewriteLimit.from_environment()
done = []
for number in range(int(sys.argv[1])):
    limit = first if number % 2 else second
    name = f"rewrite {number + 1}"
    if limit.allow(name, SourceLine("model.py", number, "forward", "x = 1")):
        done.append(name)
sys.exit(1 if f"rewrite {sys.argv[2]}" in done else 0)
"""


@pytest.fixture
def script(tmp_path, monkeypatch):
    root = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delenv("GR_COMPILE_LIMIT", raising=False)
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def invoke(*arguments):
    app = typer.Typer()
    app.callback()(lambda: None)
    bisect.register(app)
    return CliRunner().invoke(app, ["bisect", *map(str, arguments)])


def test_finds_the_rewrite(script, tmp_path):
    done = invoke("--json", tmp_path / "out.json", script, "3", "2")
    assert done.exit_code == 0, done.output
    assert "the first bad rewrite is number 2 of 3: rewrite 2" in done.output
    assert "model.py:1 in forward: x = 1" in done.output and "GR_COMPILE_LIMIT=2" in done.output
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["rewrite"]["number"] == 2 and data["total"] == 3 and data["rewrite"]["where"]["line"] == 1
    assert [run["limit"] for run in data["runs"]][:2] == [None, 0]
    assert set(data["runs"][0]) == {"limit", "good", "exit_code", "rewrites"}


def test_says_why_it_cannot(script, tmp_path):
    done = invoke(script, "3", "9")
    assert isinstance(done.exception, CommandError) and "nothing to look for" in str(done.exception)
    assert "no such file" in str(invoke(tmp_path / "none.py").exception)
    script.write_text("raise SystemExit('broken from the start')")
    assert "without any rewrite" in str((found := invoke(script)).exception) and found.exit_code == 1


def test_a_hanging_script_is_wrong(script):
    script.write_text("import time; time.sleep(60)")
    assert "no answer after 0.5 s" in str(invoke("--timeout", "0.5", script).exception)
