"""The limit on rewrites, its log, and the search for the first bad one."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.fx as fx

from gr_compile.graph_pass import SourceLine
from gr_compile.inspection.bisect import (
    Attempt,
    BisectError,
    Rewrite,
    RewriteLimit,
    find_first_bad,
    read_rewrites,
)


def test_without_a_limit_everything_is_allowed():
    limit = RewriteLimit.from_environment({})
    assert all(limit.allow(f"r{i}") for i in range(5)) and limit.rewrites == []


def test_only_the_first_n():
    limit = RewriteLimit.from_environment({"GR_COMPILE_LIMIT": "2"})
    assert [limit.allow(name) for name in "abcd"] == [True, True, False, False]
    assert [str(rewrite) for rewrite in limit.rewrites] == ["#1 a", "#2 b"]
    assert not RewriteLimit.from_environment({"GR_COMPILE_LIMIT": "0"}).allow("a")


@pytest.mark.parametrize("text", ["-1", "two", "1.5"])
def test_bad_numbers(text):
    with pytest.raises(ValueError, match=r"GR_COMPILE_LIMIT=.*whole number"):
        RewriteLimit.from_environment({"GR_COMPILE_LIMIT": text})


def test_threads_do_not_pass_the_limit_together():
    limit = RewriteLimit(limit=100)
    with ThreadPoolExecutor(8) as pool:
        allowed = list(pool.map(limit.allow, map(str, range(500))))
    assert sum(allowed) == 100 and [r.number for r in limit.rewrites] == list(range(1, 101))


def test_the_log_counts_for_the_whole_process(tmp_path):
    log = tmp_path / "log.jsonl"
    environment = {"GR_COMPILE_LIMIT": "3", "GR_COMPILE_LIMIT_LOG": str(log)}
    one, two = RewriteLimit.from_environment(environment), RewriteLimit.from_environment(environment)
    where = SourceLine("m.py", 3, "forward", "y = x")
    assert [one.allow("a", where), two.allow("b"), one.allow("c"), two.allow("d")] == [
        True,
        True,
        True,
        False,
    ]
    found = read_rewrites(log)
    assert [(r.number, r.what) for r in found] == [(1, "a"), (2, "b"), (3, "c")]
    assert str(found[0]) == "#1 a [m.py:3 in forward: y = x]"
    log.write_text(log.read_text() + '{"number": 4, "wh')
    assert len(read_rewrites(log)) == 3


def test_a_node_gives_its_line():
    node = fx.Graph().placeholder("x")
    node.meta["stack_trace"] = 'File "m.py", line 3, in forward'
    limit = RewriteLimit(limit=1)
    assert limit.allow("a", node) and limit.rewrites[0].where == SourceLine("m.py", 3, "forward", "")


def test_pickles():
    limit = pickle.loads(pickle.dumps(RewriteLimit(limit=1)))
    assert limit.allow("a") and not limit.allow("b")


def runner(total, first_bad, broken_without=False):
    def run(limit):
        count = total if limit is None else min(limit, total)
        bad = broken_without or (first_bad is not None and count >= first_bad)
        rewrites = tuple(Rewrite(number, f"r{number}") for number in range(1, count + 1))
        return Attempt(limit, not bad, int(bad), rewrites, "output")

    return run


@pytest.mark.parametrize(
    ("total", "first_bad"), [(1, 1), (2, 1), (2, 2), (7, 4), (100, 100), (100, 1), (33, 17)]
)
def test_search(total, first_bad):
    told = []
    result = find_first_bad(runner(total, first_bad), told.append)
    assert result.culprit.what == f"r{first_bad}" and result.total == total
    assert len(told) == len(result.attempts) <= 2 + total.bit_length()


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (runner(5, None), "right .* with every rewrite"),
        (runner(0, None, broken_without=True), "without any rewrite"),
        (runner(5, 1, broken_without=True), "no rewrite is to blame"),
    ],
)
def test_searches_that_cannot_begin(run, message):
    with pytest.raises(BisectError, match=message):
        find_first_bad(run)
