"""`gr-compile explain`: finding the model, making it and its inputs, and leaving no trace of the file."""

from __future__ import annotations

import json
import re
import sys
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

import gr_compile
from gr_compile.cli import explain
from gr_compile.cli.output import CommandError
from gr_compile.graph_pass import GraphReport
from gr_compile.inspection.explain import Explanation

MODEL = """
import dataclasses
import torch
import explain_helper

@dataclasses.dataclass
class Config:
    width: "int" = 4

class Model(torch.nn.Module):
    def __init__(self, items, width=4):
        super().__init__()
        self.table = torch.nn.Embedding(items, width)

    def forward(self, ids, scale=1.0):
        return self.table(ids) * scale

def function(x):
    return x + explain_helper.ONE

ready = Model(3)

def example_inputs():
    return torch.tensor([[1, 2]])
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "explain_helper.py").write_text("ONE = 1\n")
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return path


@pytest.fixture
def calls(monkeypatch):
    """Stands in for the compiler: keeps what it was given."""
    seen = SimpleNamespace()

    def optimize(model, **options):
        seen.model, seen.options = model, options
        return model

    def explained(fast, *args, **kwargs):
        seen.args, seen.kwargs, seen.output = args, kwargs, fast(*args, **kwargs)
        return Explanation([GraphReport(type(fast).__name__, "0_0", 0, "eager", "default")])

    monkeypatch.setattr(gr_compile, "optimize", optimize, raising=False)
    monkeypatch.setattr(gr_compile, "explain", explained, raising=False)
    return seen


def invoke(*arguments):
    app = typer.Typer()
    app.callback()(lambda: None)
    explain.register(app)
    return CliRunner().invoke(app, ["explain", *map(str, arguments)])


def test_a_class(file, calls, tmp_path):
    done = invoke(
        f"{file}:Model", "--init", "items=7, width=5", "--target", "eager", "--json", tmp_path / "out.json"
    )
    assert done.exit_code == 0, done.output
    assert calls.output.shape == (1, 2, 5) and not calls.model.training and not calls.output.requires_grad
    assert calls.options == {"passes": "default", "target": "eager", "dump": None}
    assert "Model [0_0] inference, target eager" in done.output
    data = json.loads((tmp_path / "out.json").read_text())
    assert data["schema"] == 1 and data["command"] == "explain" and data["graphs"][0]["model"] == "Model"


def test_inputs_and_training(file, calls):
    inputs = "dict(ids=torch.ones(2, 3, dtype=torch.long), scale=2.0)"
    assert invoke(f"{file}:Model", "--init", "dict(items=3)", "--inputs", inputs, "--train").exit_code == 0
    assert set(calls.kwargs) == {"ids", "scale"} and calls.model.training and calls.output.requires_grad
    assert invoke(f"{file}:ready").exit_code == 0
    assert (
        invoke(f"{file}:function", "--inputs", "torch.ones(2),").exit_code == 0
        and float(calls.output[0]) == 2
    )


def test_the_file_leaves_no_trace(file, calls):
    path, modules = list(sys.path), set(sys.modules)
    assert invoke(f"{file}:ready").exit_code == 0
    assert sys.path == path
    assert not {"model", "explain_helper", "gr_compile_explained"} & (set(sys.modules) - modules)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("", [], "expected FILE:MODEL"),
        (":None such", [], "expected FILE:MODEL"),
        (":Missing", [], "has no 'Missing'; it has: Config, Model, function"),
        (":Model", [], r"Model\(items, width=4\) cannot be made"),
        (":Model", ["--init", "items="], "--init: 'dict\\(items=\\)' fails: SyntaxError"),
        (":ready", ["--init", "items=3"], "--init is for a class"),
        (":ready", ["--inputs", "nothing"], "--inputs: 'nothing' fails: NameError"),
    ],
)
def test_wrong_usage(file, calls, name, options, message):
    done = invoke(f"{file}{name}", *options)
    assert done.exit_code != 0 and isinstance(done.exception, CommandError)
    assert re.search(message, str(done.exception)), str(done.exception)


def test_files_that_are_wrong(tmp_path, calls):
    assert "no such file" in str(invoke(f"{tmp_path}/none.py:Model").exception)
    (tmp_path / "bad.py").write_text("import torch\nraise RuntimeError('oh')\n")
    assert "fails to import: RuntimeError: oh" in str(invoke(f"{tmp_path}/bad.py:Model").exception)
    (tmp_path / "plain.py").write_text("import torch\nmodel = torch.nn.ReLU()\n")
    assert "no inputs" in str(invoke(f"{tmp_path}/plain.py:model").exception)
    assert "gr_compile_explained" not in sys.modules
