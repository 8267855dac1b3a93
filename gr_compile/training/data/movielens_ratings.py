"""MovieLens rating files of the user's: ratings.csv (20M, 25M, 32M), ratings.dat (1M, 10M), u.data (100K)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gr_compile.training.data.delimited import TextFormat, stream_columns
from gr_compile.training.data.errors import DataError
from gr_compile.training.data.interactions import Events, InteractionData, build_interactions

FORMATS = {
    "ratings.csv": TextFormat(b",", ("userId", "movieId", "timestamp"), header=True),
    "ratings.dat": TextFormat(b"::", ("userId", "movieId", "rating", "timestamp"), header=False),
    "u.data": TextFormat(b"\t", ("userId", "movieId", "rating", "timestamp"), header=False),
}


def read(path: Path, k_core: int = 0) -> InteractionData:
    """Reads one of the three files, or the one in the folder `path`; every rating is an interaction."""
    if path.is_dir():
        present = [path / name for name in FORMATS if (path / name).is_file()]
        if not present:
            raise DataError(f"holds none of {', '.join(FORMATS)}", path)
        path = present[0]
    text_format = FORMATS.get(path.name)
    if text_format is None:
        raise DataError(f"is not named as a MovieLens file is: {', '.join(FORMATS)}", path)
    return read_rating_file(path, text_format, path.resolve().parent.name or path.name, k_core)


def read_rating_file(path: Path, text_format: TextFormat, name: str, k_core: int = 0) -> InteractionData:
    """Reads user, item and time (seconds), which stand first, second and last in `text_format.columns`."""
    user, item = text_format.columns[:2]
    wanted = (user, item, text_format.columns[-1])

    pieces = [Events(*piece.T) for piece in stream_columns(path, text_format, wanted)]

    def source() -> Iterator[Events]:
        return iter(pieces)

    return build_interactions(name, source, k_core)
