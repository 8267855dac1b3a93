"""`gr-compile bench`: rows with the promised fields, a picture, reasons for what has no row, failures."""

import json
import subprocess
import sys

import pytest

from gr_compile.cli import bench
from gr_compile.cli.output import Output

TINY = ["--threads", "1", "--batch-size", "2", "--max-seq-len", "16", "--embedding-dim", "8", "--num-heads", "2",
        "--head-dim", "4", "--num-layers", "1", "--items", "20", "--repeats", "1", "--fills", "0.5",
        "--modes", "inference"]  # fmt: skip
CODE = "from gr_compile.cli.__main__ import main\nif __name__ == '__main__':\n    main()"


@pytest.fixture
def gr_compile(tmp_path):
    """Runs the command in a process of its own."""
    script = tmp_path / "cli.py"
    script.write_text(CODE)

    def run(*arguments):
        return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True)

    return run


def test_rows_runs_and_a_picture(gr_compile, tmp_path):
    target, picture = tmp_path / "bench.json", tmp_path / "bench.svg"
    contenders = ("--contenders", "eager,gr_compile,flex_attention")
    done = gr_compile("bench", *TINY, *contenders, "--json", str(target), "--picture", str(picture))
    assert done.returncode == 0, done.stderr
    found = json.loads(target.read_text())
    assert (found["schema"], found["command"], found["what"]) == (1, "bench", "speed")
    (row,) = found["rows"]
    assert list(row) == ["fill", "mode", "eager_ms", "torch_compile_ms", "gr_compile_ms", "speedup_vs_torch_compile",
                         "mfu", "hfu", "gemm_gflops", "peak_mb", "padded_peak_mb"]  # fmt: skip
    assert row["gr_compile_ms"] > 0 and row["torch_compile_ms"] is None and 0 < row["mfu"] == row["hfu"]
    eager, ours = found["runs"]
    assert (eager["contender"], ours["contender"]) == ("eager", "gr_compile")
    assert ours["deviation"] < 1e-3 and ours["compile_s"] > 0 and ours["cold"]
    assert [entry["contender"] for entry in found["absent"]] == ["flex_attention"]
    assert "not expressible" in found["absent"][0]["reason"] and "not expressible" in done.stdout
    assert found["definition"] in done.stdout and "backward: twice the forward" in found["definition"]
    assert picture.read_text().lstrip().startswith("<?xml")
    assert "eager, padded: first step" in done.stderr  # progress, as plain lines


def test_a_failing_contender_is_reported_and_the_exit_code_is_not_zero(gr_compile, tmp_path):
    target = tmp_path / "bench.json"
    done = gr_compile("bench", *TINY, "--contenders", "gr_compile", "--passes", "nonsense", "--json", str(target))
    assert done.returncode == 1 and "gr_compile, inference" in done.stderr and "nonsense" in done.stderr
    (run,) = json.loads(target.read_text())["runs"]
    assert run["status"] == "failed" and "nonsense" in run["reason"]


def test_a_padded_model_without_memory_is_a_finding(gr_compile, tmp_path):
    target = tmp_path / "bench.json"
    sizes = ("--max-seq-len", "4096", "--batch-size", "8", "--memory-limit", "0.2")
    done = gr_compile("bench", "memory", *TINY, *sizes, "--contenders", "eager", "--json", str(target))
    assert done.returncode == 0, done.stderr
    found = json.loads(target.read_text())
    assert found["runs"][0]["status"] == "out of memory" and "out of memory" in done.stdout
    assert found["rows"][0]["padded_peak_mb"] is None and found["rows"][0]["ratio"] is None


def test_a_table_in_a_file_beside_one_in_memory(gr_compile, tmp_path):
    target, folder = tmp_path / "bench.json", tmp_path / "files"
    folder.mkdir()
    sizes = ("--items", "3000", "--max-seq-len", "32", "--embedding-dim", "16", "--negatives", "4", "--segments", "4",
             "--repeats", "1", "--threads", "1")  # fmt: skip
    done = gr_compile("bench", "offload", "--quick", *sizes, "--folder", str(folder), "--json", str(target))
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())
    found = json.loads(target.read_text())
    (row,) = found["rows"]
    assert list(row) == [
        "fill", "tokens", "items", "negatives", "segments", "table_mb", "in_memory_ms", "offloaded_ms",
        "speed_vs_in_memory", "forward_ms", "backward_ms", "update_ms", "waited_ms", "buffers_mb", "limit_mb", "read_mb",
        "written_mb", "major_faults", "direct",
    ]  # fmt: skip
    assert row["speed_vs_in_memory"] == row["in_memory_ms"] / row["offloaded_ms"] and row["segments"] == 4
    assert 0 < row["buffers_mb"] < 0.7 * row["table_mb"]
    memory, file = found["runs"]
    assert file["contender"] == "offloaded" and memory["deviation"] is None and file["deviation"] < 1e-4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "there are speed, memory, embedding"),
        (["--fills", "half"], "numbers with commas"),
        (["--fills", "2"], "within 0..1"),
        (["--modes", "sleep"], "there are inference, training"),
        (["--contenders", "nobody"], "unknown contender"),
        (["--dtype", "int8"], "unknown dtype"),
        (["--picture", "bench.txt"], "ends with one of"),
        (["--json", "/nowhere/bench.json"], "no file can be written"),
        (["embedding", "--model", "hstu"], "no --model"),
        (["offload", "--folder", "/nowhere"], "there is no such folder"),
        (["offload", "--segments", "0"], "segments must be at least 1"),
    ],
)
def test_wrong_usage_is_said_before_any_work(arguments, said, monkeypatch, capsys):
    from gr_compile.cli.__main__ import main

    monkeypatch.setattr(sys, "argv", ["gr-compile", "bench", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert said in capsys.readouterr().err


def test_help_says_what_is_measured(monkeypatch, capsys):
    from typer.testing import CliRunner

    from gr_compile.cli.__main__ import make_app

    shown = CliRunner().invoke(make_app(), ["bench", "--help"]).output
    for word in ("speed", "memory", "embedding", "--quick", "--picture", "--fills", "--dtype", "--repeats"):
        assert word in shown


def test_each_mode_of_memory_has_its_own_length():
    from gr_compile.benchmarking.settings import MEMORY

    found = {case.mode: case.settings.max_seq_len for case in bench.cases("memory", MEMORY, False, False)}
    assert found == {"inference": 8192, "training": 4096}
    assert (MEMORY.batch_size, MEMORY.num_layers, MEMORY.fills) == (2, 1, (0.5,))
    assert {case.settings.max_seq_len for case in bench.cases("memory", MEMORY, False, True)} == {1024}


def test_the_lookup_is_of_a_million_ids_half_of_them_padding():
    from gr_compile.benchmarking.workload import useful_work

    settings = bench.preset("embedding", quick=False)
    work = useful_work(settings, settings.fills[0], "training")
    assert work.places == 1_000_000 and abs(work.tokens / work.places - 0.5) < 0.001


@pytest.mark.parametrize("what", bench.WHAT)
@pytest.mark.parametrize("name", ["bench.png", "bench.pdf"])
def test_everything_is_shown_and_drawn(what, name, tmp_path, capsys):
    from gr_compile.benchmarking.benchmark import Absence, Measured
    from gr_compile.benchmarking.child import Footprint
    from gr_compile.benchmarking.runs import ContenderRun

    settings = bench.preset(what, quick=True)
    todo = bench.cases(what, settings, True, False)
    runs = []
    for case in todo:
        samples = {"step": [0.2], "forward": [0.1], "backward": [0.1]}
        runs.append([
            ContenderRun("eager", case.fill, case.mode, "out of memory", "the system killed the process"),
            ContenderRun("gr_compile", case.fill, case.mode, samples=samples, footprint=Footprint(1 << 30, 1 << 28)),
        ])  # fmt: skip
    found = Measured(todo, runs, [Absence("nested", "inference", "softmax only")], 1e11)
    payload = bench.make_payload(what, settings, found, 12.0)
    bench.show(Output(), payload)
    bench.draw(tmp_path / name, payload)
    assert (tmp_path / name).stat().st_size > 1000
    shown = capsys.readouterr().out
    for text in ("out of memory: the system killed", "no row: nested", "gr_compile", "12 s in all"):
        assert text in shown
