"""`gr-compile lower`: what it hands to `gr_compile.lower`, and what it prints."""

import json

import pytest
from typer.testing import CliRunner

import gr_compile
from gr_compile.cli.__main__ import make_app

MODEL = """
import torch

class Model(torch.nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.linear = torch.nn.Linear(4, width)

    def forward(self, x):
        return self.linear(x)

def example_inputs():
    return (torch.ones(2, 4),)
"""
REPORT = {"graphs": [{"parts": [{"file": "graph_0/forward.pbtxt", "operators": {"Data": 2, "MatMulV2": 1}}]}]}


@pytest.fixture
def calls(monkeypatch):
    made = []

    def lower(model, *args, **options):
        made.append((model, args, options))
        return REPORT

    monkeypatch.setattr(gr_compile, "lower", lower)
    return made


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return path


def run(*arguments):
    return CliRunner().invoke(make_app(), ["lower", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "training", "dynamic", "width"),
    [((), False, True, 4), (("--train",), True, True, 4), (("--static", "--init", "width=2"), False, False, 2)],
)
def test_what_is_lowered(calls, file, tmp_path, arguments, training, dynamic, width):
    done = run(f"{file}:Model", "--out", tmp_path / "out", *arguments)
    assert done.exit_code == 0, done.output
    ((model, args, options),) = calls
    assert model.training is options["training"] is training and options["dynamic"] is dynamic
    assert model.linear.out_features == width and args[0].shape == (2, 4)
    assert options["target"] == "ascend" and options["out"] == tmp_path / "out"


def test_what_it_prints(calls, file, tmp_path):
    done = run(f"{file}:Model", "--out", "there", "--json", tmp_path / "out.json")
    assert "there/graph_0/forward.pbtxt: 3 nodes" in done.output and "there/report.md" in done.output
    assert json.loads((tmp_path / "out.json").read_text())["graphs"] == REPORT["graphs"]


def test_warnings_go_to_standard_error(calls, file, monkeypatch):
    monkeypatch.setattr(gr_compile, "lower", lambda *args, **options: {**REPORT, "warnings": ["2 calls of gr::x"]})
    done = run(f"{file}:Model")
    assert done.exit_code == 0 and done.stderr == "warning: 2 calls of gr::x\n" and "gr::x" not in done.stdout


def test_a_model_that_cannot_be_lowered_is_one_line(file, tmp_path, monkeypatch):
    monkeypatch.setenv("GR_COMPILE_TORCHAIR", str(tmp_path))
    done = run(f"{file}:Model", "--out", tmp_path / "out")
    assert done.exit_code == 1 and "no torchair/__init__.py there" in str(done.exception)
    assert not (tmp_path / "out").exists()
