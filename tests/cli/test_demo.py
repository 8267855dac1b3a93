"""`gr-compile demo`: eager and optimised side by side, without network on synthetic data, and it says so."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from gr_compile.cli import demo
from gr_compile.training.loop import TrainResult
from gr_compile.training.metrics import Quality
from gr_compile.training.reporting import EpochRecord
from gr_compile.training.timing import Speed
from gr_compile.training.variants import VariantResult


def test_without_network_it_runs_on_synthetic_data_and_says_so(tmp_path):
    environment = {**os.environ, "GR_COMPILE_CACHE": str(tmp_path / "cache"), "PIP_NO_INDEX": "1"}
    environment.pop("PIP_FIND_LINKS", None)
    code = "from gr_compile.cli.__main__ import main\nif __name__ == '__main__':\n    main()"
    script = tmp_path / "cli.py"
    script.write_text(code)
    arguments = ("--epochs", "2", "--max-steps", "2", "--batch-size", "64", "--max-seq-len", "24", "--negatives", "8")
    dump, target = tmp_path / "dump", tmp_path / "demo.json"
    done = subprocess.run(
        [sys.executable, str(script), "demo", *arguments, "--dump", str(dump), "--json", str(target)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "SYNTHETIC" in done.stdout and "SYNTHETIC" in done.stderr
    found = json.loads(target.read_text())
    assert found["data"]["synthetic"] and "pip could not fetch" in found["data"]["reason"]
    assert set(found["runs"]) == {"eager", "optimized"}
    assert found["comparison"]["same_top_items"] >= 0.99
    assert found["comparison"]["hit_rate_difference"] <= 0.005
    assert found["passes"] and dump.is_dir() and found["dumps"]
    losses = [row for row in found["passes"] if row["name"] == "fuse-sampled-logits" and row["training"]]
    assert losses[0]["matches"] and "fuse-sampled-logits" in done.stdout


def variant(kind, loss, hit_rate, seconds, items):
    speed = Speed(10, seconds, 100.0, 1e9, 1e10, 0.1, 0.0)
    records = [EpochRecord(1, loss, hit_rate, 0.1, 1.0), EpochRecord(2, loss / 2, hit_rate, 0.1, 1.0)]
    test = Quality(hit_rate, hit_rate / 2, 3, 10)
    result = TrainResult(records, test, speed, 1000, 500, True, 10.0, 1.0)
    return VariantResult(kind, result, top_items=items)


def test_the_comparison_is_of_the_worst_epoch_and_of_whole_lists():
    eager = variant("eager", 4.0, 0.2, 0.4, [[1, 2], [3, 4], [5, 6]])
    fast = variant("optimized", 4.04, 0.21, 0.1, [[1, 2], [4, 3], [5, 6]])
    found = demo.compare(eager, fast)
    assert found["max_loss_difference"] == pytest.approx(0.01)
    assert found["hit_rate_difference"] == pytest.approx(0.01)
    assert found["same_top_items"] == pytest.approx(2 / 3)
    assert found["speedup"] == pytest.approx(4.0)


def test_runs_that_are_compared_share_one_peak():
    made = {kind: variant(kind, 4.0, 0.2, 0.4, []) for kind in ("eager", "optimized")}
    slow = made["optimized"].result
    made["optimized"] = replace(made["optimized"], result=replace(slow, speed=slow.speed.against(2e10)))
    shared = demo.with_one_peak(made)
    assert [run.result.speed.mfu for run in shared.values()] == [0.05, 0.05]


def test_a_variant_that_fails_is_named(tmp_path):
    from gr_compile.training.data.catalogue import DataRequest
    from gr_compile.training.models import ModelSettings
    from gr_compile.training.reporting import SilentReporter
    from gr_compile.training.settings import TrainSettings
    from gr_compile.training.variants import VariantError, VariantJob, run_variant

    job = VariantJob("eager", DataRequest("movielens", tmp_path / "gone"), ModelSettings(), TrainSettings())
    with pytest.raises(VariantError, match=r"the eager run failed: DataError: .*gone: does not exist"):
        run_variant(job, SilentReporter())


def test_every_field_of_the_comparison_is_shown(capsys):
    from gr_compile.cli.output import Output

    eager, fast = variant("eager", 4.0, 0.2, 0.4, [[1]]), variant("optimized", 4.0, 0.2, 0.1, [[1]])
    data = SimpleNamespace(name="ml-100k", num_users=3, num_items=4, num_interactions=5)
    payload = {
        "data": demo.describe_data(data, None),
        "comparison": demo.compare(eager, fast),
        "dumps": ["dumps"],
        "seconds": 1.0,
    }
    demo.show(Output(), payload, {"eager": eager, "optimized": fast})
    shown = capsys.readouterr().out
    for text in (
        "HR@10",
        "NDCG@10",
        "step, ms",
        "tokens/s",
        "MFU",
        "memory",
        "4.00x",
        "dump: dumps",
    ):
        assert text in shown


def test_an_unwritable_dump_folder_is_said_before_any_work(tmp_path, monkeypatch, capsys):
    from gr_compile.cli.__main__ import main

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(sys, "argv", ["gr-compile", "demo", "--dump", str(tmp_path / "file" / "dump")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "cannot write there" in capsys.readouterr().err
