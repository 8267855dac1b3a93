"""Where Dynamo could not keep one graph: graph breaks, and functions that it left to Python altogether."""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Sequence
from typing import Any

import torch.fx as fx
from torch._dynamo.utils import get_compilation_metrics, graph_break_reasons

from gr_compile.graph_pass import Miss, SourceLine

_EXPLANATION = re.compile(r"^\s*Explanation: (?P<text>.*)$", re.MULTILINE)
_HINT = re.compile(r"^\s*Hint: (?P<hint>.*(?:\n(?!\s*(?:Hint:|Developer|$)).*)*)", re.MULTILINE)


def break_behind(dynamo_graph: fx.GraphModule) -> Miss | None:
    """Why Dynamo ended this graph before the end of the function, or None where it did not."""
    reason = getattr(dynamo_graph, "compile_subgraph_reason", None)
    return _as_miss(reason) if reason is not None and reason.graph_break else None


def breaks_so_far() -> int:
    """How many graph breaks this process has had."""
    return len(graph_break_reasons)


def breaks_since(count: int) -> list[Miss]:
    """Graph breaks after the first `count`, each said once: also those behind which no graph was left to compile."""
    found = (_as_miss(reason) for reason in graph_break_reasons[count:])
    return list({str(miss): miss for miss in found}.values())


def skipped_since(start: float) -> list[Miss]:
    """Functions that Dynamo gave up as a whole after `start` (`time.time()`): they run as plain Python."""
    return [
        Miss(
            f"torch.compile leaves {metric.co_name} to Python: {_headline(metric.fail_reason)}",
            hint=_hint(metric.fail_reason),
            where=_place(metric),
        )
        for metric in get_compilation_metrics()
        if metric.fail_reason and (metric.start_time or 0.0) >= start
    ]


def _as_miss(reason: Any) -> Miss:
    stack: Sequence[traceback.FrameSummary] = reason.user_stack or ()
    frame = next((f for f in reversed(stack) if "/site-packages/torch/" not in f.filename), None)
    where = (
        SourceLine(frame.filename, frame.lineno or 0, frame.name, (frame.line or "").strip())
        if frame
        else None
    )
    return Miss(f"graph break: {_headline(reason.reason)}", hint=_hint(reason.reason), where=where)


def _headline(text: str) -> str:
    first = text.strip().splitlines()[0] if text.strip() else "no reason given"
    if first.startswith("generic_jump"):
        return "a branch of the program depends on the content of a tensor"
    explained = _EXPLANATION.search(text)
    return f"{first}: {explained['text'].strip()}" if explained else first


def _hint(text: str) -> str:
    found = _HINT.search(text)
    return " ".join(found["hint"].split()) if found else ""


def _place(metric: Any) -> SourceLine | None:
    if not metric.fail_user_frame_filename:
        return None
    file, line = metric.fail_user_frame_filename, metric.fail_user_frame_lineno or 0
    return SourceLine(file, line, metric.co_name or "", linecache.getline(file, line).strip())
