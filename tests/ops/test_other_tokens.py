"""gr::other_tokens: the tokens that stand behind each token in a random cycle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

SEED = torch.tensor(3)


def others(tokens: int, count: int, seed: int = 3) -> Tensor:
    made: Tensor = torch.ops.gr.other_tokens(torch.tensor(seed), tokens, count)
    return made


@pytest.mark.parametrize("tokens", [0, 1, 2, 5, 64])
@pytest.mark.parametrize("count", [0, 1, 3, 7])
def test_rows_are_permutations_without_the_token_and_without_repetition(tokens: int, count: int) -> None:
    rows, numbers = others(tokens, count), torch.arange(tokens)
    assert rows.shape == (count, tokens) and rows.dtype == torch.int64
    for row in rows:
        assert torch.equal(row.sort().values, numbers)
    there = rows[: max(tokens - 1, 0)]
    assert not bool((there == numbers).any())
    for token in range(tokens):
        assert len(set(there[:, token].tolist())) == len(there)
    assert bool((rows[max(tokens - 1, 0) :] == numbers).all()), "nobody is left"


def test_rows_are_steps_of_one_cycle() -> None:
    first, second, third = others(50, 3)
    assert torch.equal(first[first], second) and torch.equal(first[second], third)
    token, seen = 0, []
    for _ in range(50):
        token = int(first[token])
        seen.append(token)
    assert sorted(seen) == list(range(50))


def test_it_depends_on_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    assert torch.equal(others(100, 2), others(100, 2))
    assert torch.equal(others(100, 1)[0], others(100, 5)[0])
    assert not torch.equal(others(100, 2), others(100, 2, seed=4))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_every_other_token_is_as_likely_in_every_row() -> None:
    draws, tokens = 6000, 7
    generator = torch.Generator().manual_seed(0)
    seeds = torch.randint(0, 2**62, (draws,), generator=generator)
    counts = torch.zeros(2, tokens, tokens)
    for seed in seeds:
        for row, found in enumerate(torch.ops.gr.other_tokens(seed, tokens, 2)):
            counts[row, torch.arange(tokens), found] += 1
    expected = draws / (tokens - 1)
    apart = counts[:, ~torch.eye(tokens, dtype=torch.bool)]
    assert bool((counts.diagonal(dim1=1, dim2=2) == 0).all())
    assert float((apart - expected).abs().max()) < 5 * expected**0.5


@pytest.mark.parametrize("tokens", [0, 1, 9])
def test_opcheck(tokens: int) -> None:
    torch.library.opcheck(torch.ops.gr.other_tokens.default, (SEED, tokens, 3))


@pytest.mark.parametrize(
    ("seed", "tokens", "count", "said"),
    [
        (torch.zeros(1, dtype=torch.int64), 3, 1, "seed must be"),
        (torch.zeros(()), 3, 1, "seed must be"),
        (SEED, -1, 1, "tokens must not be negative"),
        (SEED, 3, -1, "count must not be negative"),
    ],
)
def test_what_it_refuses(seed: Tensor, tokens: int, count: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        torch.ops.gr.other_tokens(seed, tokens, count)
