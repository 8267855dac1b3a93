"""Writes a dump of each compiled graph: a runnable program a stage, diffs, report.json, index.md, index.html.

    <folder>/<model>/<compile-id>/index.md  00_captured.py  01_canonicalize.py  01_canonicalize.diff ...
                                  99_final.py  report.json  index.html  constant_<digest>.pt

A second attempt of one compile id, and a second graph that has the same id (after torch._dynamo.reset()), go
to folders of their own. A later process replaces what an earlier one wrote. The same texts go to torch's
structured trace (TORCH_TRACE), so that tlparse shows them.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
import re
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch._logging._internal import trace_log, trace_structured
from torch.utils._python_dispatch import _disable_current_modes

from gr_compile.graph_pass import GraphReport, StageEvent
from gr_compile.inspection.explain import dump_json, report_json, versions
from gr_compile.inspection.index import index_markdown
from gr_compile.inspection.page import StageView, render_page
from gr_compile.inspection.program import PrintedProgram, ProgramError, ProgramLine, print_program

DUMP = "GR_COMPILE_DUMP"
_OURS = re.compile(r"(\d\d_[\w.-]+\.(py|diff)|constant_[0-9a-f]{12}\.pt|report\.json|index\.(md|html))")
log = logging.getLogger("gr_compile")


class DumpError(OSError):
    """The dump folder cannot be written."""


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Make the folder and write to it once. Raises DumpError with the reason and what to do."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise DumpError(
            f"dump={str(folder)!r}: cannot write there ({error.strerror or error}); "
            f"name a folder that can be written, or leave dump= and {DUMP} out"
        ) from error


@dataclass
class _GraphDump:
    """The stages of one graph that have been written so far."""

    report: GraphReport
    folder: Path | None
    stages: list[StageView] = field(default_factory=list)
    files: set[str] = field(default_factory=set)


class Dumper:
    """A between-pass hook that writes dumps under `folder`; with None it feeds torch's structured trace only.

    It never raises while a model compiles: what goes wrong is warned of once.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self.folder = Path(folder) if folder is not None else None
        self._graphs: dict[int, _GraphDump] = {}
        self._lock = threading.RLock()
        self._warned = False

    @staticmethod
    def folder_from_environment() -> str | None:
        """The folder that GR_COMPILE_DUMP names, if any."""
        return os.environ.get(DUMP) or None

    def __call__(self, event: StageEvent) -> None:
        """Write one stage; after the last, the report and its pages."""
        if self.folder is None and not trace_log.handlers:
            return
        with self._safely(), self._lock, _disable_current_modes(), torch.no_grad():
            graph = self._graphs.get(id(event.report))
            if graph is None:
                graph = self._graphs[id(event.report)] = _GraphDump(
                    event.report, self._make_folder(event.report)
                )
            self._write_stage(graph, event)
            self._write_report(
                graph, page=event.stage == "final" or bool(event.record and event.record.error)
            )

    def finish(self, report: GraphReport) -> None:
        """Write the report and pages again, with what became known after the last stage; forget the graph."""
        with self._safely(), self._lock:
            graph = self._graphs.pop(id(report), None)
            if graph is not None:
                self._write_report(graph, page=True)

    @contextlib.contextmanager
    def _safely(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            log.debug("dump failed", exc_info=True)
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"gr_compile could not write its dump: {type(error).__name__}: {error}", stacklevel=4
                )

    def _make_folder(self, report: GraphReport) -> Path | None:
        if self.folder is None:
            return None
        attempt = f"-attempt{report.attempt}" if report.attempt else ""
        base = self.folder / (_slug(report.model) + _rank()) / (_slug(report.compile_id) + attempt)
        folder, number = base, 1
        while _written_by(folder) == _process():
            number += 1
            folder = base.with_name(f"{base.name}-{number}")
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            if _OURS.fullmatch(old.name):
                old.unlink()
        (folder / "report.json").write_text(dump_json({"process": _process()}))
        report.dump = str(folder)
        return folder

    def _write_stage(self, graph: _GraphDump, event: StageEvent) -> None:
        name = f"{event.index:02d}_{_slug(event.stage)}"
        before = graph.stages[-1] if graph.stages else None
        printed = _print(event, previous=f"{before.name}.py" if before else "")
        stage = StageView(name, event.stage, event.record, printed.lines)
        self._put(graph, f"{name}.py", printed.source)
        if graph.folder is not None:
            for file, tensor in printed.files.items():
                if file not in graph.files:
                    torch.save(tensor, graph.folder / file)
                    graph.files.add(file)
        if before is not None:
            self._put(graph, f"{name}.diff", _diff(before, stage))
        graph.stages.append(stage)

    def _write_report(self, graph: _GraphDump, page: bool) -> None:
        data = {
            **report_json([graph.report]),
            "process": _process(),
            "stages": [s.name for s in graph.stages],
        }
        last = page or self.folder is None
        self._put(graph, "report.json", dump_json(data), encoding="json", trace=page)
        if last:
            self._put(graph, "index.html", render_page(graph.report, graph.stages, versions()), trace=False)
        self._put(graph, "index.md", index_markdown(graph.report, [s.name for s in graph.stages]), trace=page)

    def _put(
        self, graph: _GraphDump, name: str, text: str, encoding: str = "string", trace: bool = True
    ) -> None:
        if graph.folder is not None:
            partial = graph.folder / f".{name}.partial"
            partial.write_text(text, encoding="utf-8")
            partial.replace(graph.folder / name)
        if trace:
            trace_structured(
                "artifact",
                metadata_fn=lambda: {"name": f"gr_compile_{name}", "encoding": encoding},
                payload_fn=lambda: text,
            )


def _print(event: StageEvent, previous: str) -> PrintedProgram:
    record = event.record
    try:
        return print_program(
            event.graph_module,
            provenance=_provenance(event),
            previous=previous,
            exact=record is not None and record.numerics == "bitwise",
            ignore_zeros=record is not None and event.report.facts.get("padded_outputs") == "zero",
        )
    except ProgramError as error:
        listing = [
            f"# {line}" for line in (f"not runnable: {error}", *str(event.graph_module.graph).splitlines())
        ]
        text = "\n".join([f"# {_provenance(event)}", *listing, "", f"raise SystemExit({str(error)!r})", ""])
        return PrintedProgram(text, tuple(ProgramLine(line) for line in listing), {})


def _provenance(event: StageEvent) -> str:
    report, record, known = event.report, event.record, versions()
    if record is not None:
        made = (
            f"made by {record.text} ({record.numerics}) in {record.milliseconds:.1f} ms, "
            f"verified in {record.verify_milliseconds:.1f} ms: "
            f"{len(record.matches)} rewritten, {len(record.misses)} left alone"
        )
    elif event.stage == "captured":
        made = f"made by capture in {report.capture_milliseconds:.1f} ms"
    else:
        made = f"as handed to the target {report.target}"
    attempt = f" attempt {report.attempt}" if report.attempt else ""
    return (
        f"{event.index:02d} {event.stage} of {report.model} [{report.compile_id}]{attempt}, {made}; "
        f"gr_compile {known['gr_compile']}, torch {known['torch']}, Python {known['python']}, "
        f"{known['compiler']}, {known['isa']}"
    )


def _diff(before: StageView, after: StageView) -> str:
    old, new = ([line.text for line in stage.lines] for stage in (before, after))
    lines = difflib.unified_diff(old, new, f"{before.name}.py", f"{after.name}.py", lineterm="", n=3)
    return "".join(line + "\n" for line in lines)


def _slug(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text).strip("._") or "graph"


def _rank() -> str:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        return f".rank{distributed.get_rank()}"
    return ""


def _process() -> str:
    """This process, told apart from earlier ones that had the same number."""
    try:
        started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = f"{time.time() - time.process_time():.0f}"
    return f"{os.getpid()}@{started}"


def _written_by(folder: Path) -> str:
    try:
        return str(json.loads((folder / "report.json").read_text()).get("process", ""))
    except (OSError, ValueError, AttributeError):
        return ""
