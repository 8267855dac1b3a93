"""Lengths of made-up sequences: the stated mean fill, the stated shape, the same every time."""

import pytest
import torch

from gr_compile.benchmarking.lengths import lengths_for, sequences_for


@pytest.mark.parametrize("fill", [0.05, 0.15, 0.5, 0.9])
@pytest.mark.parametrize(("batch_size", "n"), [(16, 1024), (1000, 1000), (2, 8192)])
def test_the_mean_fill_is_the_stated_one(fill, batch_size, n):
    found = lengths_for(fill, batch_size, n)
    assert abs(found.double().mean().item() / n - fill) < 0.001


def test_lengths_are_clipped_to_one_and_n():
    found = lengths_for(0.5, 1000, 100)
    assert found.min() >= 1 and found.max() == 100
    assert lengths_for(0.02, 1000, 100).min() == 1


def test_a_full_batch_is_full():
    assert lengths_for(1.0, 4, 10).tolist() == [10] * 4


def test_lengths_are_log_normal_with_sigma_0_8():
    logarithms = lengths_for(0.01, 4000, 100_000).double().log()
    assert logarithms.std().item() == pytest.approx(0.8, rel=0.05)


def test_the_seed_alone_decides():
    assert lengths_for(0.3, 16, 1024).equal(lengths_for(0.3, 16, 1024))
    assert not lengths_for(0.3, 16, 1024).equal(lengths_for(0.3, 16, 1024, seed=8))


@pytest.mark.parametrize("fill", [0.0, -0.5, 1.5, 0.001])
def test_a_fill_that_cannot_be_is_refused(fill):
    with pytest.raises(ValueError, match="fill"):
        lengths_for(fill, 4, 100)


def test_sequences_are_right_padded_and_their_times_rise():
    batch = sequences_for(0.4, 8, 50, items=20)
    valid = torch.arange(50) < batch.lengths.unsqueeze(1)
    for ids in (batch.item_ids, batch.targets):
        assert ids.ne(0).equal(valid) and ids.max() <= 20
    assert (batch.timestamps.diff(dim=1) >= 0).all()
