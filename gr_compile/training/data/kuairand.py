"""KuaiRand logs (log_standard_*.csv) that the user has; made for the 322 million rows of KuaiRand-27K.

The text is parsed once into three columns on disk; the k-core sweeps and the grouping by user read those in
pieces, so that memory holds one piece, the counts by id (32 million items: 256 MB), and nothing of the log's
size. The prepared arrays stay in the cache, keyed by the files' names, sizes and times and by the options.
Gao et al., "KuaiRand" (arXiv 2208.08696); 5-core and leave-one-out as in TurboGR (arXiv 2605.13433).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from gr_compile.training.data.cache import cache_dir, new_directory
from gr_compile.training.data.delimited import TextFormat, stream_columns
from gr_compile.training.data.errors import DataError
from gr_compile.training.data.interactions import Events, InteractionData, build_interactions

LOG = TextFormat(b",", ("user_id", "video_id", "time_ms"), header=True)
COLUMNS = ("users", "items", "times")
MILLISECONDS = 1000


def read(
    path: Path, k_core: int = 5, feedback: str | None = None, piece_rows: int = 1 << 22
) -> InteractionData:
    """Reads every log_standard_*.csv under `path`, or the one file `path`.

    Args:
        k_core: see `build_interactions`.
        feedback: a 0/1 column (is_click, is_like, long_view, ...); only rows with 1 count. None: all rows.
        piece_rows: rows in memory at a time.
    """
    files = log_files(path)
    folder = cache_dir() / "kuairand" / _key(files, k_core, feedback)
    if not folder.is_dir():
        with new_directory(folder) as scratch:
            _prepare(files, scratch, k_core, feedback, piece_rows)
    return _open(folder)


def log_files(path: Path) -> list[Path]:
    """The log files, in order of name (which is the order of time)."""
    if path.is_file():
        return [path]
    files = sorted(path.rglob("log_standard_*.csv"))
    if not files:
        raise DataError("holds no log_standard_*.csv", path)
    return files


def _key(files: list[Path], k_core: int, feedback: str | None) -> str:
    described = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return hashlib.sha256(repr((1, described, k_core, feedback)).encode()).hexdigest()[:24]


def _prepare(files: list[Path], folder: Path, k_core: int, feedback: str | None, piece_rows: int) -> None:
    _write_columns(files, folder, feedback)
    columns = [np.memmap(folder / name, dtype=np.int64, mode="r") for name in COLUMNS]

    def source() -> Iterator[Events]:
        for start in range(0, len(columns[0]), piece_rows):
            yield Events(*(np.asarray(column[start : start + piece_rows]) for column in columns))

    data = build_interactions("kuairand", source, k_core, MILLISECONDS, folder)
    np.save(folder / "offsets.npy", data.offsets)
    np.save(folder / "item_names.npy", data.item_names)
    np.save(folder / "user_names.npy", data.user_names)
    for array in (data.items, data.timestamps):
        if isinstance(array, np.memmap):
            array.flush()
    for name in COLUMNS:
        (folder / name).unlink()


def _write_columns(files: list[Path], folder: Path, feedback: str | None) -> None:
    wanted = LOG.columns + ((feedback,) if feedback else ())
    rows = 0
    with ExitStack() as stack:
        handles = [stack.enter_context((folder / name).open("wb")) for name in COLUMNS]
        for path in files:
            for values in stream_columns(path, LOG, wanted):
                kept = values[values[:, 3] == 1] if feedback else values
                rows += len(kept)
                for index, handle in enumerate(handles):
                    handle.write(np.ascontiguousarray(kept[:, index]).tobytes())
    if rows == 0:
        raise DataError(f"no row has {feedback} = 1", files[0])


def _open(folder: Path) -> InteractionData:
    names = ("items", "timestamps", "offsets", "item_names", "user_names")
    try:
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}
    except (OSError, ValueError) as error:
        raise DataError(f"the prepared arrays are damaged ({error}); delete the folder", folder) from error
    return InteractionData("kuairand", **arrays)
