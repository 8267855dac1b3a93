"""`GR_COMPILE_LOGS=passes,misses,graphs,kernels,debug`: what gr_compile says through logging ("gr_compile").

passes: a line for each pass; misses: why candidates were left alone; graphs: the program after each pass;
kernels: which programs have no CPU kernel, and why; debug: everything. Without the variable no handler is
installed and no level is set.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping

from gr_compile.graph_pass import StageEvent
from gr_compile.inspection.program import ProgramError, print_program

TOPICS = ("passes", "misses", "graphs", "kernels", "debug")
_ROOT = "gr_compile"


class LogsError(ValueError):
    """GR_COMPILE_LOGS names a topic that there is not."""


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]
    """Our own handler: its class says whether one is installed already."""


def configure_logs(environment: Mapping[str, str] | None = None) -> None:
    """Set levels, and a handler that writes to stderr, from GR_COMPILE_LOGS; does nothing where it is unset.

    May be called often. Raises LogsError for an unknown topic.
    """
    text = (os.environ if environment is None else environment).get("GR_COMPILE_LOGS", "")
    topics = {part.strip().lower() for part in text.split(",") if part.strip()}
    if not topics:
        return
    unknown = sorted(topics - set(TOPICS))
    if unknown:
        raise LogsError(
            f"GR_COMPILE_LOGS={text!r}: no such topic {', '.join(unknown)}; topics: {', '.join(TOPICS)}"
        )
    root = logging.getLogger(_ROOT)
    if not any(isinstance(handler, _Handler) for handler in root.handlers):
        handler = _Handler(sys.stderr)
        handler.setFormatter(logging.Formatter("[%(name)s] %(message)s"))
        root.addHandler(handler)
        root.propagate = False
    root.setLevel(logging.DEBUG if "debug" in topics else logging.WARNING)
    for topic in TOPICS[:-1]:
        chosen = topic in topics or "debug" in topics
        logging.getLogger(f"{_ROOT}.{topic}").setLevel(logging.DEBUG if chosen else logging.WARNING)


def log_event(event: StageEvent) -> None:
    """A between-pass hook that tells the topic loggers; costs nothing while they are off."""
    passes, misses, graphs = (logging.getLogger(f"{_ROOT}.{topic}") for topic in TOPICS[:3])
    record, name = event.record, f"{event.report.model} [{event.report.compile_id}]"
    if record is not None:
        passes.info(
            "%s %02d %s: %d rewritten, %d left, nodes %d -> %d, %.1f ms",
            name,
            event.index,
            record.text,
            len(record.matches),
            len(record.misses),
            record.nodes_before,
            record.nodes_after,
            record.milliseconds,
        )
        for match in record.matches:
            passes.debug(
                "%s %s: %s%s", name, record.name, match.what, f" [{match.where}]" if match.where else ""
            )
        for miss in record.misses:
            misses.info("%s %s: %s", name, record.name, miss)
    if graphs.isEnabledFor(logging.INFO):
        try:
            text = print_program(event.graph_module).forward_text
        except ProgramError as error:
            text = str(error)
        graphs.info("%s %02d %s\n%s", name, event.index, event.stage, text)
