"""`gr-compile data`: what it shows, what it writes, how it fails."""

import json
import sys
from types import SimpleNamespace

import pytest

from gr_compile.cli.__main__ import main

COLUMNS = "userId,movieId,rating,timestamp"
EVENTS = [
    (user, (user * 3 + step * 7) % 11 + 1, 4, 1000 + step) for user in range(1, 6) for step in range(user + 2)
]


@pytest.fixture
def gr_compile(monkeypatch, capsys):
    """Runs the command line in this process, as `main` does it."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["gr-compile", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return SimpleNamespace(returncode=ended.value.code or 0, stdout=captured.out, stderr=captured.err)

    return call


@pytest.fixture
def ratings(tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_text("\n".join([COLUMNS, *(",".join(map(str, event)) for event in EVENTS), ""]))
    return path


def test_shows_and_writes_what_is_in_a_dataset(gr_compile, tmp_path, ratings):
    target = tmp_path / "data.json"
    done = gr_compile("data", "movielens", "--path", ratings, "--max-seq-len", 5, "--json", target)
    assert done.returncode == 0, done.stderr
    assert "interactions" in done.stdout and "\x1b" not in done.stdout
    found = json.loads(target.read_text())
    assert found["schema"] == 1 and found["command"] == "data" and "torch" in found["versions"]
    assert (found["users"], found["interactions"]) == (5, len(EVENTS))
    assert found["lengths"] == {"min": 3, "median": 5.0, "mean": 5.0, "p90": 6.6, "max": 7}
    assert found["splits"]["test"] == {"sequences": 5, "tokens": 2 + 3 + 4 + 4 + 4, "fill": 17 / 25}
    assert found["splits"]["train"] == {"sequences": 4, "tokens": 1 + 2 + 3 + 4, "fill": 10 / 20}


def test_sizes_of_splits_are_those_of_the_batches(ratings):
    from gr_compile.cli.data import summarize
    from gr_compile.training.data.batches import SequenceBatches
    from gr_compile.training.data.movielens_ratings import read

    data = read(ratings)
    for split, numbers in summarize(data, 5)["splits"].items():
        batches = list(SequenceBatches(data, split, 5, 2).epoch())
        assert numbers["tokens"] == sum(batch.num_tokens for batch in batches)
        assert numbers["sequences"] == sum(len(batch.users) for batch in batches)


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (("kuairand",), "give their --path"),
        (("movielenz",), "unknown dataset 'movielenz'"),
        (("movielens", "--path", "gone"), "gone: does not exist"),
        (("synthetic", "--users", "0"), "must be at least 1"),
        (("synthetic", "--max-seq-len", "0"), "--max-seq-len must be at least 2, not 0"),
        (("synthetic", "--json", "no/such/folder/x.json"), "no file can be written there"),
    ],
)
def test_failures_are_one_line_and_an_exit_code(gr_compile, arguments, complaint):
    done = gr_compile("data", *arguments)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and complaint in last and "Traceback" not in done.stderr


def test_debug_shows_the_traceback(gr_compile):
    done = gr_compile("data", "kuairand", "--debug")
    assert done.returncode == 1 and "Traceback" in done.stderr


def test_wrong_usage_is_exit_code_two(gr_compile):
    assert gr_compile("data", "--no-such-option").returncode == 2
    assert gr_compile("no-such-command").returncode == 2


def test_help_names_every_command(gr_compile):
    done = gr_compile("--help")
    assert done.returncode == 0
    for command in ("demo", "train", "data", "explain", "bisect", "diff", "passes"):
        assert command in done.stdout
        assert gr_compile(command, "--help").returncode == 0
