"""Random padded models compute what they compute eagerly: outputs, gradients, NaN. See benchmarks/fuzz_models.py."""

from __future__ import annotations

import pytest
from fuzzing.check import check_text
from fuzzing.models import OWN_SIZES, generate


def _assert_same(seed: int, dynamo: bool) -> None:
    model = generate(seed, OWN_SIZES if dynamo else {})
    outcome = check_text(model.text, dynamo)
    assert outcome.failure is None, f"seed {seed}: {outcome.failure}\n{model.text}"


@pytest.mark.parametrize("seed", range(24))
def test_random_model(seed: int) -> None:
    _assert_same(seed, dynamo=False)


@pytest.mark.parametrize("seed", range(100, 106))
def test_random_model_through_dynamo(seed: int) -> None:
    _assert_same(seed, dynamo=True)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 5000, 50))
def test_many_random_models(first: int) -> None:
    for seed in range(first, first + 50):
        _assert_same(seed, dynamo=seed % 10 == 0)


def test_most_models_are_packed_or_fused() -> None:
    """A generator whose models the passes decline would prove nothing."""
    outcomes = [check_text(generate(seed).text, dynamo=False) for seed in range(200, 212)]
    assert sum(o.packed for o in outcomes) >= 3
    assert sum(o.fused for o in outcomes) >= 3


def test_a_choice_does_not_move_the_others() -> None:
    model = generate(7)
    changed = generate(7, {"batch0.B": 0})
    assert {k: v for k, v in model.choices.items() if not k.startswith("batch0")} == {
        k: v for k, v in changed.choices.items() if not k.startswith("batch0")
    }
