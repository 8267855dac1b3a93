"""Idioms share the batches and read-outs of tests/passes, and the compiler without Dynamo of benchmarks/fuzzing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

_ROOT = Path(__file__).parents[2]
sys.path += [str(_ROOT / "tests" / "passes"), str(_ROOT / "benchmarks")]


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    yield
    torch._dynamo.reset()
