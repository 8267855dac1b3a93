"""MovieLens-100K: 943 users, 1,682 films, 100,000 ratings, as the recbole wheel carries it.

The wheel is fetched by pip at run time into the cache and checked by sha256; nothing of it is part of this
project (GroupLens' terms of use apply: https://grouplens.org/datasets/movielens/100k).
"""

from __future__ import annotations

import csv
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from gr_compile.training.data.cache import cache_dir, new_directory, require_sha256
from gr_compile.training.data.delimited import TextFormat
from gr_compile.training.data.errors import DataError, DataUnavailableError
from gr_compile.training.data.interactions import InteractionData
from gr_compile.training.data.movielens_ratings import read_rating_file

WHEEL = "recbole==1.2.1"
MEMBERS = "recbole/dataset_example/ml-100k/"
SHA256 = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
}
INTER = TextFormat(b"\t", ("user_id", "item_id", "timestamp"), header=True)


@dataclass(frozen=True)
class Film:
    """A row of ml-100k.item. `release_year` is None where the file has none ("unkonwn", "V")."""

    item_id: int
    title: str
    release_year: int | None
    genres: tuple[str, ...]


@dataclass(frozen=True)
class Viewer:
    """A row of ml-100k.user."""

    user_id: int
    age: int
    gender: str
    occupation: str


def fetch(timeout_seconds: float = 120.0) -> Path:
    """The folder with ml-100k.inter, .item and .user, fetched on first use; contents are checked each time.

    Raises:
        DataUnavailableError: the wheel cannot be fetched.
        DataError: what was fetched, or what lies in the cache, is not the expected data.
    """
    folder = cache_dir() / "ml-100k"
    if not folder.is_dir():
        with new_directory(folder) as scratch:
            _unpack(_download(timeout_seconds), scratch)
            _check(scratch)
    _check(folder)
    return folder


def read() -> InteractionData:
    """MovieLens-100K, fetched on first use."""
    return read_rating_file(fetch() / "ml-100k.inter", INTER, "ml-100k")


def read_films(path: Path) -> list[Film]:
    """The rows of an ml-100k.item file, in file order."""
    films = []
    for line, row in _rows(path, 4):
        year = row[2].strip()
        if not row[0].isdigit():
            raise DataError(f"not an item id: {row[0]!r}", path, line)
        films.append(Film(int(row[0]), row[1], int(year) if year.isdigit() else None, tuple(row[3].split())))
    return films


def read_viewers(path: Path) -> list[Viewer]:
    """The rows of an ml-100k.user file, in file order."""
    viewers = []
    for line, row in _rows(path, 5):
        if not row[0].isdigit() or not row[1].isdigit():
            raise DataError(f"not a user id and an age: {row[0]!r}, {row[1]!r}", path, line)
        viewers.append(Viewer(int(row[0]), int(row[1]), row[2], row[3]))
    return viewers


def _rows(path: Path, num_fields: int) -> list[tuple[int, list[str]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", path) from error
    rows = list(enumerate(csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE), start=1))
    for line, row in rows:
        if len(row) != num_fields:
            raise DataError(f"{len(row)} fields instead of {num_fields}", path, line)
    return rows[1:]


def _download(timeout_seconds: float) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += ["--disable-pip-version-check", "--retries", "1", "--dest", folder, WHEEL]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_seconds)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DataUnavailableError(f"pip could not fetch {WHEEL}: {error}") from error
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
            raise DataUnavailableError(f"pip could not fetch {WHEEL}: {(said or ['no wheel'])[-1]}")
        return wheels[0].read_bytes()


def _unpack(wheel: bytes, folder: Path) -> None:
    with tempfile.TemporaryFile() as handle:
        handle.write(wheel)
        try:
            with zipfile.ZipFile(handle) as archive:
                for name in SHA256:
                    (folder / name).write_bytes(archive.read(MEMBERS + name))
        except (zipfile.BadZipFile, KeyError) as error:
            raise DataError(f"the wheel {WHEEL} does not hold MovieLens-100K: {error}") from error


def _check(folder: Path) -> None:
    for name, expected in SHA256.items():
        path = folder / name
        if not path.is_file():
            raise DataError("is missing; delete its folder to fetch again", path)
        require_sha256(path, expected)
