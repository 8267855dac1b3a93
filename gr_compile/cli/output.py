"""What all commands share: the --json file, tables and progress for a terminal and for a log, errors."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

SCHEMA = 1
PLAIN_SECONDS = 10.0  # a log gets a line of progress at most this often

JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the result to FILE, as JSON.")
]


class CommandError(Exception):
    """A command cannot do what it was asked; the message is one line that says why and what to do."""


class Output:
    """Writes for people: rich on a terminal, plain lines elsewhere. Results to stdout, progress to stderr."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        self.progress_console = Console(stderr=True, highlight=False)

    @property
    def is_terminal(self) -> bool:
        return self.console.is_terminal

    def line(self, text: str = "") -> None:
        """One line of text."""
        if self.is_terminal:
            self.console.print(text, markup=False)
        else:
            print(text, flush=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table; the first column is text, the others stand right."""
        if self.is_terminal:
            table = Table(title=title, title_justify="left")
            for index, column in enumerate(columns):
                table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
            for row in rows:
                table.add_row(*row)
            self.console.print(table, markup=False)
            return
        lines = [list(columns), *(list(row) for row in rows)]
        widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
        self.line(title)
        for line in lines:
            cells = [line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:]))]
            self.line("  " + "  ".join(cells).rstrip())

    @contextmanager
    def progress(self) -> Iterator[ProgressLines]:
        """Progress of named stages, for the length of the block."""
        with ProgressLines(self.progress_console) as progress:
            yield progress


class ProgressLines:
    """A bar for the current stage on a terminal; elsewhere a line now and then."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self.bars.add_task("", visible=False, note="")
        self._last_line = time.monotonic()

    def __enter__(self) -> ProgressLines:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def update(self, stage: str, done: int, total: int, note: str = "") -> None:
        """`done` of `total` pieces of `stage` are finished."""
        if self.console.is_terminal:
            self.bars.update(
                self._task, description=stage, completed=done, total=total, note=note, visible=True
            )
        elif time.monotonic() - self._last_line >= PLAIN_SECONDS:
            self.message(f"{stage}: {done}/{total} {note}".rstrip())

    def message(self, text: str) -> None:
        """A line that stays."""
        self._last_line = time.monotonic()
        if self.console.is_terminal:
            self.console.print(text, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)


def check_json_path(path: Path | None) -> None:
    """Raises CommandError before any work when the --json file could not be written."""
    if path is None:
        return
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise CommandError(f"--json {path}: no file can be written there")
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise CommandError(f"--json {path}: not writable")


def write_json(path: Path | None, command: str, payload: dict[str, Any]) -> None:
    """Writes `schema`, `command`, `versions` and the payload; whole or not at all."""
    if path is None:
        return
    from gr_compile.inspection.explain import versions

    document = {"schema": SCHEMA, "command": command, "versions": versions(), **payload}
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        raise CommandError(f"--json {path}: cannot be written: {error}") from error
    finally:
        scratch.unlink(missing_ok=True)
