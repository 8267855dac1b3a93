"""`gr-compile calibrate`: the report, its files, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from gr_compile.cli import calibrate
from gr_compile.cli.output import CommandError
from gr_compile.passes.insert_fp16 import Calibration

MODEL = """
import torch
import torch.nn.functional as F

class Model(torch.nn.Module):
    def __init__(self, items=20):
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(items, 8)

    def forward(self, states, ids):
        logits = torch.einsum("td,trd->tr", states, self.table(ids))
        return -F.log_softmax(logits, -1)[:, 0].sum()

def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 8, generator=generator, requires_grad=True), torch.randint(20, (5, 3), generator=generator)

def example_inputs():
    return batch(0)

def function(x):
    return x
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return path


def invoke(*arguments: object) -> str:
    app = typer.Typer()
    app.callback()(lambda: None)
    calibrate.register(app)
    result = CliRunner().invoke(app, ["calibrate", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_report_and_its_files(file: Path, tmp_path: Path) -> None:
    out, picture, numbers = (tmp_path / name for name in ("found.json", "found.png", "all.json"))
    text = invoke(
        f"{file}:Model", "--batches", "[batch(k) for k in range(3)]", "--out", out, "--picture", picture,
        "--json", numbers,
    )  # fmt: skip
    assert "1 sites, 3 batches" in text and "negatives: table.weight" in text and "float16/" in text
    made = Calibration.load(out)
    assert made.batches == 3 and [(site.kind, site.name) for site in made.sites] == [("negatives", "table.weight")]
    assert picture.read_bytes().startswith(b"\x89PNG")
    written = json.loads(numbers.read_text())
    assert written["command"] == "calibrate" and written["sites"][0]["values"] == made.sites[0].values


def test_example_inputs_are_one_batch(file: Path, tmp_path: Path) -> None:
    invoke(f"{file}:Model", "--init", "items=30", "--out", tmp_path / "found.json")
    assert Calibration.load(tmp_path / "found.json").batches == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("function",), "calibrate takes a module, not function"),
        (("Model", "--sites", "weights"), "sites=weights: one or more of negatives"),
        (("Model", "--inputs", "batch(0)", "--batches", "[batch(0)]"), "say one of them"),
        (("Model", "--batches", "3"), "expected batches, got int"),
        (("Model", "--out", "nowhere/found.json"), "there is no folder"),
    ],
)
def test_what_it_refuses(arguments: tuple[str, ...], message: str, file: Path, tmp_path: Path) -> None:
    model, *rest = arguments
    out = () if "--out" in rest else ("--out", tmp_path / "found.json")
    with pytest.raises((CommandError, ValueError), match=message):
        invoke(f"{file}:{model}", *rest, *out)
