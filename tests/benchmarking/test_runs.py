"""Contenders in processes of their own: they take turns, and what goes wrong in one is a result, not a crash."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gr_compile.benchmarking import child
from gr_compile.benchmarking.benchmark import Absence, Case, Measured, cases_of, measure
from gr_compile.benchmarking.child import Footprint, Job, is_out_of_memory
from gr_compile.benchmarking.rows import embedding_rows, memory_rows, runs_as_json, speed_rows
from gr_compile.benchmarking.runs import (
    ChildFailure,
    ContenderRun,
    Contestant,
    compare,
    with_deviations,
)
from gr_compile.benchmarking.settings import BenchSettings
from gr_compile.benchmarking.workload import useful_work

TINY = BenchSettings(
    threads=1, batch_size=2, max_seq_len=16, embedding_dim=8, num_heads=2, head_dim=4, num_layers=1, items=20,
    fills=(0.5,), modes=("inference",), repeats=2, contenders=("eager", "rectools"),
)  # fmt: skip


class Silent:
    def update(self, stage, done, total, note=""):
        pass

    def message(self, text):
        pass


def job(name="eager", **changes):
    return Job(name, replace(TINY, **changes), 0.5, "inference")


def test_a_run_has_samples_a_first_step_and_a_footprint():
    (found,) = compare([job()], Silent())
    assert found.status == "measured" and found.cold
    assert len(found.samples["step"]) >= TINY.repeats and found.median() > 0
    assert found.first_seconds > 0 and found.footprint.peak >= found.footprint.steady_peak >= 0


def test_a_contender_that_fails_is_reported_and_the_others_go_on():
    broken = job("gr_compile", passes="no-such-pass")
    failed, eager = compare([broken, job()], Silent())
    assert failed.status == "failed" and "no-such-pass" in failed.reason and failed.median() is None
    assert eager.status == "measured"


def test_a_contender_without_memory_is_reported():
    (found,) = compare([job(batch_size=64, max_seq_len=4096, memory_limit=0.25)], Silent())
    assert found.status == "out of memory" and "allocate" in found.reason
    assert found.median() is None


def test_a_killed_process_is_out_of_memory():
    contestant = Contestant(job())
    contestant.process.kill()
    contestant.process.join()
    with pytest.raises(ChildFailure, match="killed") as failure:
        contestant.ask("warm_up")
    contestant.close()
    assert failure.value.status == "out of memory"


def test_what_says_that_memory_is_out():
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."))
    assert is_out_of_memory(MemoryError()) and not is_out_of_memory(RuntimeError("shapes"))


def test_a_reason_is_one_line_of_readable_length():
    found = child.in_one_line(ValueError("first\nsecond " + "x" * 10_000))
    assert found.startswith("ValueError: first second") and len(found) <= 300 and "\n" not in found


def test_a_process_offers_to_die_first(tmp_path, monkeypatch):
    score = tmp_path / "score"
    monkeypatch.setattr(child, "Path", lambda name: score)
    child.offer_to_die_first()
    assert score.read_text() == "1000"


def test_the_benchmark_says_who_is_absent(tmp_path):
    found = measure(cases_of(TINY), Silent(), Path(tmp_path))
    assert found.absent == [Absence("rectools", "inference", found.absent[0].reason)]
    assert [run.contender for run in found.runs[0]] == ["eager"]
    assert found.peak_flops > 0


def run(name, seconds=0.1, checks=None, **changes):
    samples = {"step": [seconds, seconds / 2, 9.0], "forward": [seconds / 4], "backward": [seconds / 2]}
    footprint = Footprint(200 << 20, 100 << 20)
    made = ContenderRun(name, 0.5, "training", samples=samples, checks=checks or {}, footprint=footprint)
    return replace(made, **changes)


def test_another_answer_is_wrong_within_a_tolerance():
    runs = [run("eager", checks={"output": 2.0}), run("gr_compile", checks={"output": 2.0002}),
            run("torch_compile", checks={"output": 3.0}), run("rectools"), run("nested", checks={"output": torch.nan})]  # fmt: skip
    eager, ours, theirs, peer, nested = with_deviations(runs, 1e-3)
    assert ours.status == "measured" and ours.deviation == pytest.approx(1e-4)
    assert theirs.status == "wrong" and "differs from eager" in theirs.reason
    assert (eager.deviation, peer.deviation, peer.status) == (None, None, "measured")
    assert nested.status == "wrong" and nested.deviation is None


SPEED_FIELDS = ["fill", "mode", "eager_ms", "torch_compile_ms", "gr_compile_ms", "speedup_vs_torch_compile",
                "mfu", "hfu", "gemm_gflops", "peak_mb", "padded_peak_mb"]  # fmt: skip


def measured(*runs):
    return Measured([Case(TINY, 0.5, "training")], [list(runs)], [], peak_flops=1e9)


def test_a_row_of_speed_has_exactly_the_promised_fields():
    (row,) = speed_rows(measured(run("eager", 0.8), run("torch_compile", 0.4), run("gr_compile", 0.1)))
    assert list(row) == SPEED_FIELDS
    assert (row["eager_ms"], row["torch_compile_ms"], row["gr_compile_ms"]) == (800.0, 400.0, 100.0)
    assert row["speedup_vs_torch_compile"] == 4.0
    work = useful_work(TINY, 0.5, "training")
    assert row["mfu"] == pytest.approx(work.flops / (0.1 * 1e9))
    assert row["hfu"] == pytest.approx((work.flops + work.recomputed) / (0.1 * 1e9))
    assert (row["gemm_gflops"], row["peak_mb"], row["padded_peak_mb"]) == (1.0, 200.0, 200.0)


def test_what_was_not_measured_is_null():
    gone = ContenderRun("eager", 0.5, "training", "out of memory", "killed")
    (row,) = speed_rows(measured(gone, run("gr_compile")))
    assert list(row) == SPEED_FIELDS
    missing = ("eager_ms", "torch_compile_ms", "speedup_vs_torch_compile", "padded_peak_mb")
    assert all(row[name] is None for name in missing)
    (memory,) = memory_rows(measured(gone, run("gr_compile")))
    assert memory["ratio"] is None and memory["peak_mb"] == 200.0


def test_rows_of_memory_and_of_the_lookup_compare_with_the_padded_model():
    small = run("gr_compile", 0.1, footprint=Footprint(20 << 20, 10 << 20))
    found = measured(run("eager", 0.8), run("torch_compile", 0.4), small)
    (memory,) = memory_rows(found)
    assert (memory["ratio"], memory["steady_ratio"]) == (0.1, 0.1)
    (lookup,) = embedding_rows(found)
    assert lookup["forward_speedup_vs_torch_compile"] == lookup["backward_speedup_vs_torch_compile"] == 4.0
    assert lookup["gr_compile_backward_ms"] == 50.0


def test_every_process_is_in_the_json():
    found = runs_as_json(measured(run("eager"), ContenderRun("gr_compile", 0.5, "training", "failed", "why")))
    assert [entry["status"] for entry in found] == ["measured", "failed"]
    assert found[1]["reason"] == "why" and found[1]["step_ms"] is None
    assert found[0]["tokens"] / 32 == found[0]["real_fill"]
