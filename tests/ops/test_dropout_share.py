"""gr::dropout_share: what is left of many equal weights under dropout."""

from __future__ import annotations

import math

import pytest
import torch

SEED = torch.tensor(3)


def share(count: torch.Tensor, p: float, seed: int = 3) -> torch.Tensor:
    made: torch.Tensor = torch.ops.gr.dropout_share(count, p, torch.tensor(seed))
    return made


@pytest.mark.parametrize(("count", "p"), [(1, 0.5), (3, 0.2), (40, 0.1), (500, 0.7)])
def test_mean_and_spread_are_those_of_as_many_weights(count: int, p: float) -> None:
    draws = 20_000
    found = share(torch.full((draws,), count), p).double()
    spread = math.sqrt(p / (count * (1 - p)))
    assert abs(float(found.mean()) - 1) < 5 * spread / math.sqrt(draws)
    assert float(found.std()) == pytest.approx(spread, rel=0.03)


def test_it_depends_on_the_seed_alone() -> None:
    count = torch.arange(1, 200).reshape(1, -1).expand(3, -1)
    state = torch.random.get_rng_state()
    assert torch.equal(share(count, 0.4), share(count, 0.4))
    assert not torch.equal(share(count, 0.4), share(count, 0.4, seed=4))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(("p", "left"), [(0.0, 1.0), (1.0, 0.0)])
def test_nothing_or_everything_is_dropped(p: float, left: float) -> None:
    assert torch.equal(share(torch.tensor([1, 7]), p), torch.tensor([left, left]))


@pytest.mark.parametrize("count", [torch.arange(1, 7).reshape(2, 3), torch.ones(0, 2, dtype=torch.int64)])
def test_opcheck(count: torch.Tensor) -> None:
    torch.library.opcheck(torch.ops.gr.dropout_share.default, (count, 0.3, SEED))


@pytest.mark.parametrize(
    ("count", "p", "seed", "said"),
    [
        (torch.ones(2), 0.5, SEED, "count must be whole"),
        (torch.ones(2, dtype=torch.int64), 1.5, SEED, "p must be within"),
        (torch.ones(2, dtype=torch.int64), 0.5, torch.zeros(1), "seed must be"),
    ],
)
def test_what_it_refuses(count: torch.Tensor, p: float, seed: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        torch.ops.gr.dropout_share(count, p, seed)
