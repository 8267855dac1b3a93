"""The datasets by the names that the command line takes."""

from __future__ import annotations

from pathlib import Path

from gr_compile.training.data import kuairand, movielens_100k, movielens_ratings, synthetic
from gr_compile.training.data.errors import DataError
from gr_compile.training.data.interactions import InteractionData

NAMES = ("ml-100k", "movielens", "kuairand", "synthetic")


def load(
    name: str,
    path: Path | None = None,
    k_core: int | None = None,
    feedback: str | None = None,
    synthetic_settings: synthetic.SyntheticSettings | None = None,
) -> InteractionData:
    """Loads a dataset by name.

    `ml-100k` is fetched; `movielens` and `kuairand` read `path`; `synthetic` is made up. `k_core` None is the
    dataset's own default (5 for kuairand, none for movielens).
    """
    if name == "ml-100k":
        return movielens_100k.read()
    if name == "synthetic":
        return synthetic.generate(synthetic_settings or synthetic.SyntheticSettings())
    if name not in NAMES:
        raise DataError(f"unknown dataset {name!r}; there are {', '.join(NAMES)}")
    if path is None:
        raise DataError(f"dataset {name!r} is read from files of yours: give their --path")
    if not path.exists():
        raise DataError("does not exist", path)
    if name == "movielens":
        return movielens_ratings.read(path, k_core or 0)
    return kuairand.read(path, 5 if k_core is None else k_core, feedback)
