"""Splits and batches: leave-one-out in order of time, right padded, every batch a function of its address."""

import numpy as np
import pytest
import torch

from gr_compile.training.data.batches import SequenceBatches
from gr_compile.training.data.interactions import InteractionData

LENGTHS = [6, 2, 3, 9, 4]


def make_data(lengths=LENGTHS):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    items = np.arange(1, offsets[-1] + 1, dtype=np.int32)
    names = np.arange(offsets[-1] + 1)
    return InteractionData(
        "tiny", items, 1000 + 10 * items.astype(np.int64), offsets, names, np.arange(len(lengths))
    )


def rows(split, max_seq_len=12):
    batch = SequenceBatches(make_data(), split, max_seq_len, 8).at(0, 0)
    return {
        int(user): (ids[:n].tolist(), targets[targets > 0].tolist(), int(times[n]))
        for user, ids, targets, n, times in zip(
            batch.users, batch.item_ids, batch.targets, batch.lengths, batch.timestamps
        )
    }


def test_the_last_item_is_tested_the_one_before_validated_the_rest_trained_on():
    assert rows("test")[0] == ([1, 2, 3, 4, 5], [6], 1060)
    assert rows("validation")[0] == ([1, 2, 3, 4], [5], 1050)
    assert rows("train")[0] == ([1, 2, 3], [2, 3, 4], 1040)


def test_short_users_are_left_out_of_the_splits_they_cannot_serve():
    assert set(rows("train")) == {0, 3, 4}
    assert set(rows("validation")) == set(rows("test")) == {0, 2, 3, 4}
    with pytest.raises(ValueError, match="no user has the 4 interactions"):
        SequenceBatches(make_data([3, 2]), "train", 4, 2)


def test_long_users_keep_their_latest_items_and_the_slot_of_the_prediction():
    items, targets, time = rows("test", max_seq_len=4)[3]
    assert (items, targets, time) == ([17, 18, 19], [20], 1200)


def test_padding_is_zero_and_last_targets_are_found():
    batch = SequenceBatches(make_data(), "test", 12, 8).at(0, 0)
    padded = torch.arange(12) >= batch.lengths.unsqueeze(1)
    assert (batch.item_ids[padded] == 0).all() and (batch.item_ids[~padded] > 0).all()
    assert batch.last_targets.tolist() == [6, 11, 20, 24]
    assert batch.num_tokens == int(batch.lengths.sum())


def test_an_epoch_holds_every_user_once_and_depends_on_seed_and_epoch_alone():
    def users(seed, epoch):
        batches = SequenceBatches(make_data(), "train", 5, 2, shuffle=True, seed=seed)
        return torch.cat([batch.users for batch in batches.epoch(epoch)]).tolist()

    assert users(0, 3) == users(0, 3)
    assert sorted(users(0, 3)) == [0, 3, 4]
    assert len({tuple(users(seed, epoch)) for seed in range(4) for epoch in range(4)}) > 1


def test_a_batch_by_its_address_is_the_batch_of_the_epoch():
    batches = SequenceBatches(make_data(), "train", 5, 2, shuffle=True, seed=1)
    assert len(batches) == 2
    for index, batch in enumerate(batches.epoch(7)):
        assert torch.equal(batch.item_ids, batches.at(7, index).item_ids)
    assert [b.users.tolist() for b in batches.epoch(7, start=1)] == [batches.at(7, 1).users.tolist()]
