"""`GR_COMPILE_LIMIT=n`: only the first n rewrites happen; and the search for the first one that does harm.

Passes ask `allow(what)` before each rewrite. Rewrites are numbered from 1, in the order that passes come to
them. With GR_COMPILE_LIMIT_LOG=FILE each is written to FILE as a line of JSON, and the count runs over the
whole process (that is how `gr-compile bisect` counts); without it each optimised model counts its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch.fx as fx

from gr_compile.graph_pass import SourceLine, source_line

LIMIT = "GR_COMPILE_LIMIT"
LIMIT_LOG = "GR_COMPILE_LIMIT_LOG"


class BisectError(Exception):
    """The search cannot begin or cannot end: the message says why and what to do."""


@dataclass(frozen=True)
class Rewrite:
    """One numbered rewrite."""

    number: int
    what: str
    where: SourceLine | None = None
    process: int = 0

    def __str__(self) -> str:
        return f"#{self.number} {self.what}" + (f" [{self.where}]" if self.where else "")


@dataclass
class RewriteLimit:
    """Counts rewrites and refuses those above the limit; safe to use from several threads."""

    limit: int | None = None
    log: Path | None = None
    rewrites: list[Rewrite] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> RewriteLimit:
        """What GR_COMPILE_LIMIT and GR_COMPILE_LIMIT_LOG ask for. Raises ValueError for a bad number."""
        values = os.environ if environment is None else environment
        text, log = values.get(LIMIT, "").strip(), values.get(LIMIT_LOG, "").strip()
        if text and not text.isdecimal():
            raise ValueError(f"{LIMIT}={text!r}: expected a whole number, zero or more")
        return cls(int(text) if text else None, Path(log) if log else None)

    def allow(self, what: str, where: SourceLine | fx.Node | None = None) -> bool:
        """True when the next rewrite may happen. `what` names it; `where`: the user's line, or a node."""
        where = source_line(where) if isinstance(where, fx.Node) else where
        with self._lock:
            if self.limit is None and self.log is None:
                return True
            number = self._count() + 1
            if self.limit is not None and number > self.limit:
                return False
            rewrite = Rewrite(number, what, where, os.getpid())
            self.rewrites.append(rewrite)
            self._write(rewrite)
            return True

    def _count(self) -> int:
        if self.log is None or not self.log.exists():
            return len(self.rewrites)
        return sum(rewrite.process == os.getpid() for rewrite in read_rewrites(self.log))

    def _write(self, rewrite: Rewrite) -> None:
        if self.log is None:
            return
        where = vars(rewrite.where) if rewrite.where else None
        entry = {"number": rewrite.number, "what": rewrite.what, "where": where, "process": rewrite.process}
        with self.log.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def __getstate__(self) -> dict[str, object]:
        return {"limit": self.limit, "log": self.log, "rewrites": list(self.rewrites)}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())


def read_rewrites(log: Path) -> list[Rewrite]:
    """The rewrites in a GR_COMPILE_LIMIT_LOG file, in order; a line that a killed process cut is left out."""
    found = []
    for line in log.read_text().splitlines() if log.exists() else []:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        where = SourceLine(**entry["where"]) if entry["where"] else None
        found.append(Rewrite(entry["number"], entry["what"], where, entry["process"]))
    return found


@dataclass(frozen=True)
class Attempt:
    """One run of the user's script: the limit it ran under, whether it was right, and what it rewrote."""

    limit: int | None
    good: bool
    exit_code: int
    rewrites: tuple[Rewrite, ...]
    output: str

    @property
    def count(self) -> int:
        """How many rewrites happened (the most of any one process)."""
        return max((rewrite.number for rewrite in self.rewrites), default=0)


@dataclass(frozen=True)
class BisectResult:
    """The first rewrite with which the script goes wrong, out of `total`; `attempts` are all the runs."""

    culprit: Rewrite
    total: int
    attempts: tuple[Attempt, ...]


def run_script(command: Sequence[str], limit: int | None, timeout: float | None = None) -> Attempt:
    """Run `command` with at most `limit` rewrites (None: all). Exit code 0: right; a timeout: wrong."""
    with tempfile.TemporaryDirectory(prefix="gr_compile_bisect_") as folder:
        log = Path(folder) / "rewrites.jsonl"
        environment = {key: value for key, value in os.environ.items() if key != LIMIT}
        environment[LIMIT_LOG] = str(log)
        if limit is not None:
            environment[LIMIT] = str(limit)
        try:
            done = subprocess.run(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=timeout,
            )
            code, output = done.returncode, done.stdout
        except subprocess.TimeoutExpired:
            code, output = 124, f"no answer after {timeout} s"
        return Attempt(limit, code == 0, code, tuple(read_rewrites(log)), output[-4000:])


def find_first_bad(
    run: Callable[[int | None], Attempt], tell: Callable[[Attempt], None] = lambda attempt: None
) -> BisectResult:
    """Binary search for the smallest limit under which `run` goes wrong.

    Raises BisectError when the script is right with all rewrites, wrong with none, or rewrites nothing.
    """
    attempts: list[Attempt] = []

    def attempt(limit: int | None) -> Attempt:
        attempts.append(run(limit))
        tell(attempts[-1])
        return attempts[-1]

    whole = attempt(None)
    if whole.good:
        raise BisectError(
            "the script is right (exit code 0) with every rewrite; there is nothing to look for"
        )
    if whole.count == 0:
        raise BisectError(f"the script goes wrong without any rewrite of gr_compile's\n{whole.output}")
    none = attempt(0)
    if not none.good:
        raise BisectError(
            f"the script goes wrong with GR_COMPILE_LIMIT=0 too: no rewrite is to blame\n{none.output}"
        )
    good, bad, first = 0, whole.count, whole
    while bad - good > 1:
        middle = attempt((good + bad) // 2)
        if middle.good:
            good = (good + bad) // 2
        else:
            bad, first = (good + bad) // 2, middle
    culprits = [r for r in (*first.rewrites, *whole.rewrites) if r.number == bad]
    return BisectResult(culprits[0], whole.count, tuple(attempts))
