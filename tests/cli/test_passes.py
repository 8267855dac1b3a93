"""`gr-compile passes`: the table comes from the dataclasses."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import typer
from typer.testing import CliRunner

import gr_compile.pipeline
from gr_compile.cli import passes
from gr_compile.graph_pass import Numerics, Pass


@dataclass(frozen=True)
class ShareWork(Pass):
    """Computes equal things once.

    This second paragraph is not part of the summary.

    Attributes:
        depth: how deep to look,
            in layers
    """

    name: ClassVar[str] = "share-work"
    numerics: ClassVar[Numerics] = "reassociates"
    requires: ClassVar[frozenset[str]] = frozenset({"canonical"})
    conflicts: ClassVar[frozenset[str]] = frozenset({"pack"})
    depth: int = 3
    size_mode: str = field(default="unbacked", metadata={"help": "unbacked | bucket"})
    min_saving: float = 0.1
    """The least share of the
    work that must be saved."""

    def run(self, graph_module, context):
        raise NotImplementedError


@pytest.fixture(autouse=True)
def one_pass(monkeypatch):
    monkeypatch.setattr(gr_compile.pipeline, "list_passes", lambda: (ShareWork,))


def invoke(*arguments):
    app = typer.Typer()
    app.callback()(lambda: None)
    passes.register(app)
    return CliRunner().invoke(app, ["passes", *map(str, arguments)])


def test_text_and_json(tmp_path):
    done = invoke("--json", tmp_path / "out.json")
    assert done.exit_code == 0, done.output
    for part in (
        *("share-work  (forward, reassociates)", "Computes equal things once.", "requires: canonical"),
        *("{depth=3}: how deep to look, in layers", "{size-mode=unbacked}: unbacked | bucket"),
        "{min-saving=0.1}: The least share of the work that must be saved.",
    ):
        assert part in done.output, part
    (entry,) = json.loads((tmp_path / "out.json").read_text())["passes"]
    assert set(entry) == {
        *("name", "summary", "stage", "numerics", "requires", "provides", "conflicts", "after", "options")
    }
    assert entry["options"][0] == {
        "name": "depth",
        "type": "int",
        "default": 3,
        "help": "how deep to look, in layers",
    }


def test_markdown():
    text = invoke("--markdown").output
    assert (
        "| [`share-work`](#share-work) | forward | reassociates | canonical | – "
        "| Computes equal things once. |" in text
    )
    assert "| `size-mode` | `str` | `unbacked` | unbacked \\| bucket |" in text
    assert "Conflicts with: pack." in text and "second paragraph" not in text
