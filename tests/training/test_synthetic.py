"""Synthetic data: KuaiRand-like lengths, valid interactions, a function of its settings."""

import numpy as np
import pytest

from gr_compile.training.data.synthetic import SyntheticSettings, generate, sample_lengths


def test_default_lengths_have_the_published_fill():
    lengths = sample_lengths(SyntheticSettings(num_users=20_000), np.random.default_rng(0))
    assert abs(np.median(lengths) / 1734 - 1) < 0.03
    assert abs(lengths.mean() / 4096 - 0.496) < 0.01  # 50.43 % padding
    assert lengths.min() >= 5 and lengths.max() == 4096


def test_interactions_are_valid_and_chronological():
    data = generate(SyntheticSettings(num_users=50, num_items=80, median_length=40))
    assert data.items.min() >= 1 and data.items.max() <= data.num_items == 80
    assert data.offsets[-1] == data.num_interactions
    assert all((np.diff(data.sequence(user)[1]) >= 0).all() for user in range(50))


def test_successors_follow_with_the_set_chance():
    data = generate(SyntheticSettings(num_users=200, num_items=50, median_length=100, follow=0.7))
    pairs = np.zeros((51, 51))
    for user in range(data.num_users):
        items = data.sequence(user)[0]
        np.add.at(pairs, (items[:-1], items[1:]), 1)
    assert abs(pairs.max(axis=1).sum() / pairs.sum() - 0.7) < 0.03


def test_equal_settings_give_equal_data():
    settings = SyntheticSettings(num_users=20, median_length=30)
    first, again = generate(settings), generate(settings)
    other = generate(SyntheticSettings(num_users=20, median_length=30, seed=1))
    assert np.array_equal(first.items, again.items) and np.array_equal(first.timestamps, again.timestamps)
    assert not np.array_equal(first.offsets, other.offsets)


@pytest.mark.parametrize(
    "wrong", [{"num_users": 0}, {"min_length": 9, "max_length": 8}, {"follow": 1.5}, {"median_length": 0}]
)
def test_settings_without_sense_are_refused(wrong):
    with pytest.raises(ValueError):
        SyntheticSettings(**wrong)
