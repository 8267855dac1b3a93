"""The common form of every dataset: who interacted with what, when, grouped by user in order of time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from gr_compile.training.data.errors import DataError

Int64Array = npt.NDArray[np.int64]
Int32Array = npt.NDArray[np.int32]
BoolArray = npt.NDArray[np.bool_]
Number = TypeVar("Number", bound=np.generic)

MAX_ID = 1 << 28  # counts by id are dense arrays; KuaiRand-27K has 32 million items


@dataclass(frozen=True)
class Events:
    """A piece of a log: three arrays [rows] int64; ids as in the file, times in the file's unit."""

    users: Int64Array
    items: Int64Array
    times: Int64Array


EventSource = Callable[[], Iterator[Events]]
"""Starts the log over and yields it in file order; called once for every sweep."""


@dataclass(frozen=True)
class InteractionData:
    """Interactions grouped by user, each user's in order of time (ties in file order).

    name: what the data are. items: [E] int32, 1..num_items. timestamps: [E] int64 seconds.
    offsets: [U + 1] int64; user u owns offsets[u]..offsets[u + 1]. item_names: [num_items + 1] int64, the
    file's own item ids (entry 0 is padding). user_names: [U] int64. Arrays may be memory-mapped.
    """

    name: str
    items: Int32Array
    timestamps: Int64Array
    offsets: Int64Array
    item_names: Int64Array
    user_names: Int64Array

    @property
    def num_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_items(self) -> int:
        return len(self.item_names) - 1

    @property
    def num_interactions(self) -> int:
        return len(self.items)

    @property
    def lengths(self) -> Int64Array:
        """[U] int64: interactions of each user."""
        return np.diff(self.offsets)

    def sequence(self, user: int) -> tuple[Int32Array, Int64Array]:
        """One user's items [n] and timestamps [n]."""
        place = slice(int(self.offsets[user]), int(self.offsets[user + 1]))
        return self.items[place], self.timestamps[place]


def build_interactions(
    name: str, source: EventSource, k_core: int = 0, time_divisor: int = 1, directory: Path | None = None
) -> InteractionData:
    """Filter, renumber, group by user and sort by time, one piece of the log in memory at a time.

    Args:
        k_core: keep the largest set in which every user and every item has at least this many interactions;
            0 or 1 keeps everything.
        time_divisor: the file's time units in a second.
        directory: where the two arrays of the size of the log live (memory-mapped); None is memory.
    Raises:
        DataError: nothing is left, or an id is too large to count.
    """
    keep_users, keep_items = core_members(source, k_core)
    if not keep_users.any():
        raise DataError(f"{name}: no interactions are left after the {k_core}-core filter")
    user_index = np.cumsum(keep_users) - 1
    item_index = np.cumsum(keep_items)
    counts = np.zeros(int(keep_users.sum()), dtype=np.int64)
    for users, _, _ in _kept(source, keep_users, keep_items):
        counts += np.bincount(user_index[users], minlength=len(counts))
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)])
    items = _array(directory, "items", np.int32, int(offsets[-1]))
    times = _array(directory, "timestamps", np.int64, int(offsets[-1]))
    cursor = offsets[:-1].copy()
    for raw_users, raw_items, raw_times in _kept(source, keep_users, keep_items):
        users = user_index[raw_users]
        order = np.argsort(users, kind="stable")
        places = _places(users[order], cursor)
        items[places] = item_index[raw_items][order]
        times[places] = raw_times[order]
    _sort_by_time(items, times, offsets, time_divisor)
    item_names = np.concatenate([np.zeros(1, dtype=np.int64), np.flatnonzero(keep_items)])
    return InteractionData(name, items, times, offsets, item_names, np.flatnonzero(keep_users))


def core_members(source: EventSource, k: int) -> tuple[BoolArray, BoolArray]:
    """Users and items of the k-core, as flags by id; sweeps until nothing more falls out."""
    user_counts, item_counts = _count(source)
    while True:
        keep_users = user_counts >= max(k, 1)
        keep_items = item_counts >= max(k, 1)
        if k <= 1:
            return keep_users, keep_items
        new_users = np.zeros_like(user_counts)
        new_items = np.zeros_like(item_counts)
        for users, items, _ in _kept(source, keep_users, keep_items):
            new_users += np.bincount(users, minlength=len(new_users))
            new_items += np.bincount(items, minlength=len(new_items))
        if np.array_equal(new_users, user_counts) and np.array_equal(new_items, item_counts):
            return keep_users, keep_items
        user_counts, item_counts = new_users, new_items


def _count(source: EventSource) -> tuple[Int64Array, Int64Array]:
    user_counts = np.zeros(1, dtype=np.int64)
    item_counts = np.zeros(1, dtype=np.int64)
    for events in source():
        user_counts = _add_counts(user_counts, events.users)
        item_counts = _add_counts(item_counts, events.items)
    return user_counts, item_counts


def _add_counts(counts: Int64Array, ids: Int64Array) -> Int64Array:
    if len(ids) == 0:
        return counts
    top = int(ids.max())
    if top >= MAX_ID:
        raise DataError(f"id {top} is too large: ids up to {MAX_ID - 1} can be counted; renumber them")
    if top >= len(counts):
        # Doubling keeps the growth of a log whose largest id comes last linear.
        grown = np.zeros(max(top + 1, min(2 * len(counts), MAX_ID)), dtype=np.int64)
        grown[: len(counts)] = counts
        counts = grown
    counts += np.bincount(ids, minlength=len(counts))
    return counts


def _kept(
    source: EventSource, keep_users: BoolArray, keep_items: BoolArray
) -> Iterator[tuple[Int64Array, Int64Array, Int64Array]]:
    for events in source():
        keep = keep_users[events.users] & keep_items[events.items]
        yield events.users[keep], events.items[keep], events.times[keep]


def _places(sorted_users: Int64Array, cursor: Int64Array) -> Int64Array:
    """Where each row of a piece sorted by user goes; moves the users' cursors on."""
    counts = np.bincount(sorted_users, minlength=len(cursor))
    starts = np.cumsum(counts) - counts
    places = cursor[sorted_users] + np.arange(len(sorted_users)) - starts[sorted_users]
    cursor += counts
    return places


def _sort_by_time(items: Int32Array, times: Int64Array, offsets: Int64Array, time_divisor: int) -> None:
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist()):
        order = np.argsort(times[start:end], kind="stable")
        items[start:end] = items[start:end][order]
        times[start:end] = times[start:end][order] // time_divisor


def _array(directory: Path | None, name: str, dtype: type[Number], size: int) -> npt.NDArray[Number]:
    if directory is None:
        return np.empty(size, dtype=dtype)
    return np.lib.format.open_memmap(directory / f"{name}.npy", mode="w+", dtype=dtype, shape=(size,))
