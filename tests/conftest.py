"""Tensors here are tiny: one thread is faster, and far faster on a busy machine."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class _Collector(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What gr_compile warns of while a test runs (pytest's own log capture is off: torch logs so much that it doubles the time)."""
    messages: list[str] = []
    handler = _Collector(messages)
    logging.getLogger("gr_compile").addHandler(handler)
    yield messages
    logging.getLogger("gr_compile").removeHandler(handler)

