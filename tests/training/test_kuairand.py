"""KuaiRand logs: several files, in pieces of any size, filtered, prepared once."""

import numpy as np
import pytest

from gr_compile.training.data import kuairand
from gr_compile.training.data.errors import DataError

HEADER = "user_id,video_id,date,hourmin,time_ms,is_click,is_like"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GR_COMPILE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_logs(folder, events, parts=2):
    folder.mkdir(exist_ok=True)
    for part in range(parts):
        lines = [f"{u},{v},20220408,900,{t},{c},0" for u, v, t, c in events[part::parts]]
        (folder / f"log_standard_part{part}.csv").write_text("\n".join([HEADER, *lines, ""]))
    return folder


def random_events(count=400, seed=0):
    random = np.random.default_rng(seed)
    users, items = random.integers(0, 12, count), random.integers(0, 60, count)
    times = random.permutation(count) * 1700 + 1_650_000_000_000
    return list(zip(users.tolist(), items.tolist(), times.tolist(), random.integers(0, 2, count).tolist()))


def five_core(events, k):
    """Brute force."""
    while True:
        users, items = [e[0] for e in events], [e[1] for e in events]
        kept = [e for e in events if users.count(e[0]) >= k and items.count(e[1]) >= k]
        if len(kept) == len(events):
            return kept
        events = kept


@pytest.mark.parametrize("piece_rows", [1, 37, 1 << 20])
@pytest.mark.parametrize("k", [0, 5, 7])
def test_sequences_are_those_of_brute_force(tmp_path, k, piece_rows):
    events = random_events()
    data = kuairand.read(write_logs(tmp_path / "log", events), k_core=k, piece_rows=piece_rows)
    kept = five_core(events, k)
    assert data.num_interactions == len(kept)
    assert data.user_names.tolist() == sorted({e[0] for e in kept})
    assert data.item_names[1:].tolist() == sorted({e[1] for e in kept})
    for index, user in enumerate(data.user_names.tolist()):
        items, seconds = data.sequence(index)
        mine = sorted((e for e in kept if e[0] == user), key=lambda e: e[2])
        assert data.item_names[items].tolist() == [e[1] for e in mine]
        assert seconds.tolist() == [e[2] // 1000 for e in mine]


def test_feedback_counts_only_rows_with_one(tmp_path):
    events = random_events()
    data = kuairand.read(write_logs(tmp_path / "log", events), k_core=0, feedback="is_click")
    assert data.num_interactions == sum(e[3] for e in events)
    with pytest.raises(DataError, match="no column 'is_cool'"):
        kuairand.read(tmp_path / "log", feedback="is_cool")
    with pytest.raises(DataError, match="no row has is_like = 1"):
        kuairand.read(tmp_path / "log", feedback="is_like")


def test_prepared_arrays_are_mapped_kept_and_renewed_with_the_files(tmp_path, cache):
    folder = write_logs(tmp_path / "log", random_events())
    data = kuairand.read(folder, k_core=0)
    assert isinstance(data.items, np.memmap)
    prepared = [path.name for path in (cache / "kuairand").iterdir()]
    kuairand.read(folder, k_core=0)
    assert [path.name for path in (cache / "kuairand").iterdir()] == prepared
    write_logs(tmp_path / "log", random_events(300))
    assert kuairand.read(folder, k_core=0).num_interactions == 300


def test_a_truncated_log_is_named_and_leaves_nothing_behind(tmp_path, cache):
    folder = write_logs(tmp_path / "log", random_events())
    path = folder / "log_standard_part1.csv"
    path.write_text(path.read_text()[:-25])
    with pytest.raises(DataError, match="fields instead of 7") as caught:
        kuairand.read(folder)
    assert (caught.value.path, caught.value.line) == (path, 201)
    assert list((cache / "kuairand").iterdir()) == []


def test_damaged_preparations_and_missing_logs_are_named(tmp_path, cache):
    folder = write_logs(tmp_path / "log", random_events())
    kuairand.read(folder, k_core=0)
    next((cache / "kuairand").glob("*/items.npy")).write_bytes(b"broken")
    with pytest.raises(DataError, match="delete the folder"):
        kuairand.read(folder, k_core=0)
    with pytest.raises(DataError, match=r"holds no log_standard_\*"):
        kuairand.read(cache)
