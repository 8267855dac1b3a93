"""The datasets by the names that the command line takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gr_compile.training.data import kuairand, movielens_100k, movielens_ratings, synthetic
from gr_compile.training.data.errors import DataError
from gr_compile.training.data.interactions import InteractionData

NAMES = ("ml-100k", "movielens", "kuairand", "synthetic")


@dataclass(frozen=True)
class DataRequest:
    """A dataset by name: `ml-100k` is fetched, `movielens` and `kuairand` read `path`, `synthetic` is made.

    k_core None is the dataset's own default (5 for kuairand, none for movielens); `feedback` is a 0/1 column
    of kuairand's logs; both mean nothing to the others.
    """

    name: str
    path: Path | None = None
    k_core: int | None = None
    feedback: str | None = None
    synthetic: synthetic.SyntheticSettings = field(default_factory=synthetic.SyntheticSettings)


def load(request: DataRequest) -> InteractionData:
    """Loads it; raises DataError for anything that stands in the way."""
    if request.name == "ml-100k":
        return movielens_100k.read()
    if request.name == "synthetic":
        return synthetic.generate(request.synthetic)
    if request.name not in NAMES:
        raise DataError(f"unknown dataset {request.name!r}; there are {', '.join(NAMES)}")
    if request.path is None:
        raise DataError(f"dataset {request.name!r} is read from files of yours: give their --path")
    if not request.path.exists():
        raise DataError("does not exist", request.path)
    if request.name == "movielens":
        return movielens_ratings.read(request.path, request.k_core or 0)
    return kuairand.read(request.path, 5 if request.k_core is None else request.k_core, request.feedback)
