"""GR_COMPILE_LOGS: nothing without it; its topics; its handler, installed once."""

from __future__ import annotations

import logging

import pytest

from gr_compile.inspection.logs import TOPICS, LogsError, configure_logs, log_event


@pytest.fixture(autouse=True)
def restored():
    loggers = [
        logging.getLogger(name) for name in ("gr_compile", *(f"gr_compile.{topic}" for topic in TOPICS))
    ]
    saved = [(one, one.level, list(one.handlers), one.propagate) for one in loggers]
    yield
    for one, level, handlers, propagate in saved:
        one.setLevel(level)
        one.handlers[:], one.propagate = handlers, propagate


def test_nothing_without_the_variable(run, capsys):
    before = list(logging.getLogger("gr_compile").handlers)
    configure_logs({})
    run().tell(log_event)
    assert logging.getLogger("gr_compile").handlers == before and capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("topics", "shown", "hidden"),
    [
        ("passes", ["01 use-silu: 1 rewritten, 1 left"], ["no sigmoid", "def forward"]),
        ("misses", ["the other factor is no sigmoid [", "conftest.py"], ["1 rewritten", "def forward"]),
        ("graphs", ["def forward(ids,", "00 captured"], ["1 rewritten"]),
        ("debug", ["1 rewritten", "no sigmoid", "def forward", "x * sigmoid(x) -> silu(x)"], []),
        (" Passes, misses,", ["1 rewritten", "no sigmoid"], ["def forward"]),
    ],
)
def test_topics(run, capsys, topics, shown, hidden):
    configure_logs({"GR_COMPILE_LOGS": topics})
    configure_logs({"GR_COMPILE_LOGS": topics})
    run().tell(log_event)
    said = capsys.readouterr().err
    assert all(part in said for part in shown) and not any(part in said for part in hidden)
    assert said.count("1 rewritten, 1 left") <= 1, "one handler"


def test_unknown_topic():
    with pytest.raises(LogsError, match=r"no such topic pases; topics: passes, misses, graphs, kernels, debug"):
        configure_logs({"GR_COMPILE_LOGS": "pases"})
