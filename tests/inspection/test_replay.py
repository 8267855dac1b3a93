"""`--check`: success means equal outputs and equal gradients, and nothing less."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gr_compile.analysis.expr import const, make, unary
from gr_compile.dropout import WithoutDropout
from gr_compile.inspection import replay
from gr_compile.inspection.dump import Dumper
from gr_compile.inspection.inputs import record_inputs
from gr_compile.ops.score_program import ScoreProgram


def check(path: Path, *arguments: str) -> int:
    return replay.main(replay.load_program(path).PROGRAM, ["--check", *arguments])


@pytest.fixture
def dumped(tmp_path, run, padded_inputs):
    def make(**options) -> Path:
        prepare = lambda graph_module: record_inputs(graph_module, padded_inputs())  # noqa: E731
        return Path(run(prepare=prepare, **options).tell(Dumper(tmp_path)).dump)

    return make


@pytest.fixture(scope="module")
def right(tmp_path_factory, run, padded_inputs) -> Path:
    """One right dump, for tests that change a copy of it."""
    prepare = lambda graph_module: record_inputs(graph_module, padded_inputs())  # noqa: E731
    return Path(run(prepare=prepare).tell(Dumper(tmp_path_factory.mktemp("right"))).dump)


def test_right_stages_are_equal(dumped, capsys):
    folder = dumped(rate=0.4)
    assert [
        check(folder / f"{name}.py", "--seed", "3") for name in ("00_captured", "01_use-silu", "99_final")
    ] == [0, 0, 0]
    said = capsys.readouterr().out
    assert "equal to 00_captured.py" in said and "gradient of w: equal" in said and "tolerance 1e-05" in said


def test_a_wrong_stage_is_different(dumped, capsys):
    folder = dumped(factor=1.01)
    assert check(folder / "01_use-silu.py") == 1
    assert "DIFFERENT from 00_captured.py" in capsys.readouterr().out
    assert check(folder / "99_final.py") == 0


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("silu_default = aten.silu.default(getitem)", "silu_default = aten.silu.default(getitem.detach())"),
        ("silu_default = aten.silu.default(getitem)", "silu_default = aten.gelu.default(getitem)"),
        ("return (mul_1, mean,", "return (mul_1, mean.double(),"),
        ("return (mul_1, mean,", "return (mul_1 + 0 * float('nan'), mean,"),
        (", None)\n", ", 0)\n"),
        ("aten.embedding.default(emb_weight, ids)", "aten.embedding.default(emb_weight.detach(), ids)"),
    ],
)
def test_mutants_are_caught(right, tmp_path, before, after):
    path = Path(shutil.copytree(right, tmp_path / "copy")) / "01_use-silu.py"
    source = path.read_text()
    assert before in source
    path.write_text(source.replace(before, after))
    assert check(path) == 1


def test_a_lost_gradient_counts_though_outputs_agree(right, tmp_path, capsys):
    path = Path(shutil.copytree(right, tmp_path / "copy")) / "01_use-silu.py"
    path.write_text(
        path.read_text().replace("aten.silu.default(getitem)", "aten.silu.default(getitem.detach())")
    )
    assert check(path) == 1
    said = capsys.readouterr().out
    assert "output[0]: equal" in said and "gradient of w: DIFFERENT" in said


def test_programs_run_as_scripts_with_exit_codes(dumped):
    folder = dumped(factor=1.5)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    shown = subprocess.run(
        [sys.executable, folder / "00_captured.py"], env=environment, capture_output=True, text=True
    )
    assert shown.returncode == 0 and "output[0]: float32[3, 6, 5] mean" in shown.stdout
    wrong = subprocess.run(
        [sys.executable, folder / "01_use-silu.py", "--check"], env=environment, capture_output=True
    )
    assert wrong.returncode == 1


def test_difference():
    one = torch.tensor([1.0, 2.0])
    assert replay.difference(one, one.clone()) == 0
    assert replay.difference(one * (1 + 1e-6), one) == pytest.approx(1e-6, rel=0.1)
    assert replay.difference(one, one.double()) == math.inf
    assert replay.difference(one, one[None]) == math.inf
    lowest = torch.full((2,), torch.finfo(torch.float32).min)
    assert replay.difference(lowest, lowest.clone()) == 0
    assert replay.difference(lowest, lowest * torch.tensor([1.0, 0.5])) == pytest.approx(0.5 / 1.25**0.5)
    infinite = torch.tensor([math.inf, math.nan, 1.0])
    assert replay.difference(infinite, infinite.clone()) == 0
    assert replay.difference(infinite, -infinite) == math.inf
    assert replay.difference(torch.zeros(2), torch.tensor([0.0, 1e-9])) == 1
    assert replay.difference(torch.tensor([0.0, 1e-9]), torch.zeros(2)) == math.inf
    assert replay.difference(torch.tensor([0.0, 1e-9]), torch.zeros(2), floor=1.0) == pytest.approx(1e-9)
    assert replay.difference(torch.tensor([0.0, 3.0]), torch.tensor([7.0, 3.0]), ignore_zeros=True) == 0
    assert replay.difference(torch.zeros(2), torch.tensor([7.0, 3.0]), ignore_zeros=True) == 1
    assert (
        replay.difference(3, 3) == 0
        and replay.difference(3, 4) == math.inf
        and replay.difference(1, True) == math.inf
    )
    assert replay.difference(None, None) == 0 and replay.difference(torch.ones(1), None) == math.inf


def test_bitwise_stages_must_be_exact(tmp_path, run):
    events = []
    run().tell(events.append)
    from gr_compile.inspection.program import print_program

    for name, event in (("a", events[0]), ("b", events[1])):
        text = print_program(event.graph_module, previous="a.py" if name == "b" else "", exact=True).source
        (tmp_path / f"{name}.py").write_text(text)
    path = tmp_path / "b.py"
    assert check(path, "--against", "b.py") == 0
    path.write_text(path.read_text().replace("return (mul_1,", "return (mul_1 * (1 + 2**-22),"))
    assert check(path) == 1


def test_half_precision_inside_sets_the_tolerance():
    program = replay.Program(__file__, lambda: None, lambda seed: [], (), precision=torch.bfloat16)
    assert replay._tolerance(program, torch.ones(1)) == replay.TOLERANCES[torch.bfloat16]
    assert replay._tolerance(program, torch.ones(1, dtype=torch.int64)) == (0.0, 0.0)


def test_dropout_inside_an_attention_operator_is_off_too():
    score = ScoreProgram(make("dropout", (unary("silu", make("s", (), "f32")), const(0.5)), "f32"))
    q, rows, offsets = torch.randn(3, 1, 2), torch.arange(3), torch.tensor([0, 3])

    def attend(program: ScoreProgram, seed: int) -> torch.Tensor:
        return torch.ops.gr.jagged_attention.default(
            q, q, q, [], offsets, rows, offsets, rows, 1, [], torch.tensor(seed), program.text()
        )

    with WithoutDropout():
        assert torch.equal(attend(score, 1), attend(score, 2))
    assert not torch.equal(attend(score, 1), attend(score, 2))
    assert not score.without_dropout().has_dropout
