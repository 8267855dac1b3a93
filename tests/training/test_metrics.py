"""HR@k and NDCG@k, against brute force."""

import math

import pytest
import torch

from gr_compile.training.metrics import quality, ranks


def brute_rank(row, target, seen):
    order = sorted(range(1, len(row)), key=lambda item: (-row[item].item(), item))
    return [item for item in order if item == target or item not in seen].index(target)


def test_ranks_are_those_of_a_sorted_catalogue_with_ties():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 6, (40, 21), generator=generator).float()
    targets = torch.randint(1, 21, (40,), generator=generator)
    seen = torch.randint(0, 21, (40, 7), generator=generator)
    for history in (None, seen):
        found = ranks(logits, targets, history)
        for row in range(40):
            exclude = set() if history is None else set(history[row].tolist())
            assert found[row] == brute_rank(logits[row], targets[row].item(), exclude)


def test_the_padding_column_never_ranks():
    logits = torch.tensor([[9.0, 1.0, 0.0]])
    assert ranks(logits, torch.tensor([1])).tolist() == [0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="not finite"):
        ranks(torch.tensor([[0.0, value, 1.0]]), torch.tensor([2]))


def test_quality_is_the_mean_over_users():
    found = quality(torch.tensor([0, 9, 10, 3]), k=10)
    assert found.hit_rate == 0.75
    assert math.isclose(found.ndcg, (1 + 1 / math.log2(11) + 1 / math.log2(5)) / 4)
    assert (found.users, found.k) == (4, 10)
