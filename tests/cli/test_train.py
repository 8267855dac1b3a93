"""`gr-compile train`: trains, writes its fields, resumes, and says what is wrong with its arguments."""

import json
import sys
from types import SimpleNamespace

import pytest

from gr_compile.cli.__main__ import main

SMALL = (
    *("--data", "synthetic", "--users", 24, "--items", 30, "--median-length", 8, "--max-length", 12),
    *("--max-seq-len", 10, "--embedding-dim", 8, "--num-layers", 1, "--head-dim", 4, "--batch-size", 8),
)


@pytest.fixture
def gr_compile(monkeypatch, capsys):
    """Runs the command line in this process, as `main` does it."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["gr-compile", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return SimpleNamespace(returncode=ended.value.code or 0, stdout=captured.out, stderr=captured.err)

    return call


def run(gr_compile, tmp_path, *arguments):
    target = tmp_path / "result.json"
    done = gr_compile("train", *SMALL, *arguments, "--json", target)
    assert done.returncode == 0, done.stderr
    return json.loads(target.read_text()), done


def losses(found):
    return [record["loss"] for record in found["run"]["epochs"]]


def test_writes_its_fields_and_resumes_exactly(gr_compile, tmp_path):
    whole, done = run(gr_compile, tmp_path, "--run", "eager", "--epochs", 2)
    assert "epoch 2" in done.stderr and "NDCG@10" in done.stdout
    assert whole["kind"] == "eager" and whole["settings"]["training"]["batch_size"] == 8
    assert set(whole["run"]) == {
        "epochs", "test", "speed", "peak_memory_bytes", "step_memory_bytes", "memory_resettable",
        "train_seconds", "evaluate_seconds",
    }  # fmt: skip
    assert whole["run"]["speed"]["mfu"] > 0 and whole["run"]["speed"]["steps"] == 6
    checkpoint = tmp_path / "run.pt"
    run(gr_compile, tmp_path, "--run", "eager", "--epochs", 2, "--max-steps", 2, "--checkpoint", checkpoint)
    resumed, done = run(
        gr_compile, tmp_path, "--run", "eager", "--epochs", 2, "--checkpoint", checkpoint, "--resume"
    )
    assert "resumed at epoch 1, batch 3, step 3" in done.stderr
    assert losses(resumed) == losses(whole)
    assert resumed["run"]["test"] == whole["run"]["test"]


def test_the_optimised_run_follows_the_eager_one_and_continues_its_checkpoint(gr_compile, tmp_path):
    checkpoint = tmp_path / "run.pt"
    common = ("--dropout", 0, "--epochs", 2, "--checkpoint", checkpoint)
    eager, _ = run(gr_compile, tmp_path, "--run", "eager", *common)
    run(gr_compile, tmp_path, "--run", "eager", *common, "--max-steps", 2)
    fast, _ = run(
        gr_compile, tmp_path, "--run", "optimized", *common, "--resume", "--dump", tmp_path / "dump"
    )
    assert losses(fast) == pytest.approx(losses(eager), rel=1e-3)
    assert fast["passes"] and all(row["error"] == "" for row in fast["passes"])
    assert fast["dumps"] and all((tmp_path / "dump") in (tmp_path / d).parents for d in fast["dumps"])


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (("--run", "quick"), "there are eager, optimized, torch-compile"),
        (("--model", "gpt"), "unknown model 'gpt'"),
        (("--resume",), "--resume needs --checkpoint"),
        (("--epochs", 0), "epochs must be at least 1"),
        (("--run", "eager", "--resume", "--checkpoint", "gone.pt"), "there is no such checkpoint"),
    ],
)
def test_wrong_arguments_are_one_line_and_an_exit_code(gr_compile, arguments, complaint):
    done = gr_compile("train", *SMALL, *arguments)
    assert done.returncode == 1
    assert complaint in done.stderr.strip().splitlines()[-1] and "Traceback" not in done.stderr


def test_shared_and_stored_negatives_are_passes_of_the_run(gr_compile, tmp_path):
    whole, _ = run(
        gr_compile, tmp_path, "--epochs", 1, "--max-steps", 2, "--negatives", 4, "--share", 2, "--fp16", "negatives,activations"
    )
    rows = {row["name"]: row for row in whole["passes"] if row["training"]}
    assert rows["share-logits"]["matches"] and len(rows["insert-fp16"]["matches"]) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--share", 2), "--share needs --negatives"),
        (("--share", 0), "--share 0: at least 1"),
        (("--fp16", "negatives"), "--fp16 needs --negatives"),
        (("--fp16", "weights"), "sites=weights: one or more of negatives"),
        (("--run", "eager", "--negatives", 4, "--share", 2), "--share is for --run optimized"),
        (("--run", "torch-compile", "--fp16", "activations"), "--fp16 is for --run optimized"),
    ],
)
def test_passes_of_losses_that_cannot_be_meant(gr_compile, arguments, message):
    done = gr_compile("train", *SMALL, *arguments)
    assert done.returncode == 1 and message in done.stderr


def test_a_checkpoint_is_continued_with_the_same_objective(gr_compile, tmp_path):
    checkpoint = tmp_path / "run.pt"
    run(gr_compile, tmp_path, "--negatives", 4, "--share", 2, "--epochs", 1, "--max-steps", 1, "--checkpoint", checkpoint)
    done = gr_compile("train", *SMALL, "--negatives", 4, "--epochs", 2, "--checkpoint", checkpoint, "--resume")
    assert done.returncode == 1 and "objective" in done.stderr
