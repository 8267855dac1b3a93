"""Moves the choices of a failing model towards the simplest ones while it keeps failing in the same way."""

from __future__ import annotations

from collections.abc import Mapping

from fuzzing.check import Failure, check_text
from fuzzing.models import Generated, generate


def minimise(
    seed: int, failure: Failure, dynamo: bool, start: Mapping[str, int], rounds: int = 2
) -> tuple[Generated, Failure]:
    """The simplest variant of `generate(seed, start)` found, and how it fails."""
    fixed = dict(start)
    best = generate(seed, fixed)
    for _ in range(rounds):
        before = dict(fixed)
        for name in sorted(best.choices, key=_order):
            if name not in best.choices:
                continue
            for simpler in _simpler(best.choices[name]):
                candidate = generate(seed, {**fixed, name: simpler})
                found = check_text(candidate.text, dynamo).failure
                if found is not None and found.kind == failure.kind:
                    fixed[name], best, failure = simpler, candidate, found
                    break
        if fixed == before:
            break
    return best, failure


def _order(name: str) -> tuple[int, str]:
    """What removes most comes first."""
    first = ("outputs", "extra_output", "plan", "context", "mode", "dynamic", "batches")
    return (first.index(name) if name in first else len(first), name)


def _simpler(choice: int) -> list[int]:
    return [k for k in (0, 1, 2, 6, 7) if k < choice][:4]

