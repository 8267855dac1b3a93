"""What goes wrong with data, said with the file and the line."""

from __future__ import annotations

from pathlib import Path


class DataError(Exception):
    """A dataset is missing, truncated, corrupt or not of the named kind."""

    def __init__(self, message: str, path: Path | None = None, line: int | None = None) -> None:
        place = "" if path is None else f"{path}: " if line is None else f"{path}:{line}: "
        super().__init__(place + message)
        self.path = path
        self.line = line


class DataUnavailableError(DataError):
    """A dataset that is fetched at run time cannot be reached (no network, index refuses)."""
