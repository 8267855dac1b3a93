"""The dump folder: layout, contents, attempts, bad folders, and torch's structured trace."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import warnings
from pathlib import Path

import pytest
import torch
import torch.fx as fx
from torch._logging._internal import trace_log
from torch._subclasses.fake_tensor import FakeTensorMode

from gr_compile.graph_pass import GraphReport, StageEvent
from gr_compile.inspection.dump import Dumper, DumpError, check_writable
from gr_compile.inspection.inputs import record_inputs

LAYOUT = {
    *("00_captured.py", "01_use-silu.py", "01_use-silu.diff", "99_final.py", "99_final.diff"),
    *("index.md", "index.html", "report.json"),
}


def files(folder: str | Path) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def test_layout_and_contents(tmp_path, run):
    dumper = Dumper(tmp_path / "dumps")
    report = run().tell(dumper)
    folder = tmp_path / "dumps" / "Padded.Model" / "0_0"
    assert report.dump == str(folder) and files(folder) == LAYOUT
    diff = (folder / "01_use-silu.diff").read_text()
    assert diff.startswith("--- 00_captured.py\n+++ 01_use-silu.py\n")
    assert "\n+    silu_default = aten.silu.default(getitem)" in diff and "\n-    sigmoid = " in diff
    assert (folder / "99_final.diff").read_text() == ""
    first = (folder / "01_use-silu.py").read_text().splitlines()[0]
    assert re.match(
        r"# 01 use-silu of Padded.Model \[0_0\], made by use-silu \(reassociates\) in 3.2 ms", first
    )
    assert f"torch {torch.__version__}" in first and "1 rewritten, 1 left alone" in first
    index = (folder / "index.md").read_text()
    for part in (
        "| `use-silu` | reassociates | 1 | 1 | 38 → 37 |",
        "the other factor is no sigmoid",
        "conftest.py:",
    ):
        assert part in index
    assert "| `aten.silu.default` | 0 | 1 |" in index and "[diff](01_use-silu.diff)" in index


def test_finish_adds_what_came_later(tmp_path, run):
    dumper = Dumper(tmp_path)
    report = run().tell(dumper)
    report.target_milliseconds = 1234.0
    dumper.finish(report)
    dumper.finish(report)
    data = json.loads((Path(report.dump) / "report.json").read_text())
    assert data["graphs"][0]["target_milliseconds"] == 1234.0
    assert "the target took 1234 ms" in (Path(report.dump) / "index.md").read_text()


def test_attempts_and_equal_ids_do_not_overwrite(tmp_path, run):
    dumper = Dumper(tmp_path)
    first, second = run().tell(dumper), run(attempt=1).tell(dumper)
    third, other = run().tell(dumper), run().tell(Dumper(tmp_path))
    names = [Path(report.dump).name for report in (first, second, third, other)]
    assert names == ["0_0", "0_0-attempt1", "0_0-2", "0_0-3"]
    assert all(files(report.dump) == LAYOUT for report in (first, second, third, other))


def test_a_later_process_replaces_but_keeps_foreign_files(tmp_path, run):
    report = run().tell(Dumper(tmp_path))
    folder = Path(report.dump)
    data = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps({**data, "process": "1@1"}))
    (folder / "07_old.py").write_text("")
    (folder / "notes.txt").write_text("mine")
    assert run().tell(Dumper(tmp_path)).dump == str(folder)
    assert files(folder) == LAYOUT | {"notes.txt"}


def test_odd_names(tmp_path, run):
    report = run(model="../a model/<locals>", compile_id="0/1").tell(Dumper(tmp_path))
    assert Path(report.dump) == tmp_path / "a_model_locals" / "0_1"


def test_unwritable_folder_is_an_error_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DumpError, match=r"cannot write there .*name a folder"):
        check_writable(tmp_path / "file" / "dumps")
    check_writable(tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder").is_dir() and not list((tmp_path / "new" / "folder").iterdir())


def test_trouble_while_compiling_is_a_warning_once(tmp_path, run):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="could not write its dump") as caught:
        dumper = Dumper(tmp_path / "file")
        run().tell(dumper)
        run().tell(dumper)
    assert len([w for w in caught if "dump" in str(w.message)]) == 1


def test_a_graph_that_cannot_be_printed_is_still_dumped(tmp_path):
    graph_module = fx.symbolic_trace(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    report = GraphReport("M", "0", 0, "eager", "none")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for index, stage in ((0, "captured"), (99, "final")):
            Dumper(tmp_path)(StageEvent(index, stage, graph_module, None, report))
    assert "not runnable" in next(tmp_path.rglob("00_captured.py")).read_text()


def test_an_error_of_a_pass_still_gives_the_pages(tmp_path, run):
    events = []
    run().tell(events.append)
    dumper = Dumper(tmp_path)
    dumper(events[0])
    record = dataclasses.replace(events[1].record, error="RuntimeError: broken")
    events[1].report.passes[0] = record
    dumper(dataclasses.replace(events[1], record=record))
    folder = Path(events[0].report.dump)
    assert {"index.html", "index.md", "report.json"} <= files(folder)
    assert "RuntimeError: broken" in (folder / "index.html").read_text()
    assert "RuntimeError: broken" in (folder / "index.md").read_text()


def test_structured_trace(tmp_path, run, monkeypatch):
    seen = []

    class Handler(logging.Handler):
        def emit(self, record):
            seen.append((record.metadata, getattr(record, "payload", None)))

    handler = Handler()
    trace_log.addHandler(handler)
    try:
        run().tell(Dumper(None))
    finally:
        trace_log.removeHandler(handler)
    names = {metadata["artifact"]["name"]: text for metadata, text in seen if "artifact" in metadata}
    expected = {f"gr_compile_{name}" for name in LAYOUT - {"index.html"}}
    assert expected <= set(names)
    assert "def forward(" in names["gr_compile_01_use-silu.py"]


def test_dumps_work_under_fake_tensors(tmp_path, run, padded_inputs):
    events = []
    run(prepare=lambda graph_module: record_inputs(graph_module, padded_inputs())).tell(events.append)
    with warnings.catch_warnings(), FakeTensorMode():
        warnings.simplefilter("error")
        Dumper(tmp_path)(events[0])
    (saved,) = tmp_path.rglob("constant_*.pt")
    assert torch.equal(torch.load(saved), padded_inputs()[4])


def test_environment(monkeypatch):
    monkeypatch.delenv("GR_COMPILE_DUMP", raising=False)
    assert Dumper.folder_from_environment() is None
    monkeypatch.setenv("GR_COMPILE_DUMP", "here")
    assert Dumper.folder_from_environment() == "here"
