"""Chronological leave-one-out splits and right-padded batches; every batch is a function of its address.

A user with n interactions is tested on the last, validated on the last but one, and trained on those before.
Users with fewer than four interactions have nothing to train on, those with fewer than three nothing to be
tested on; they are left out of that split alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from gr_compile.training.data.interactions import InteractionData

Split = Literal["train", "validation", "test"]
HELD_OUT: dict[str, int] = {"train": 2, "validation": 1, "test": 0}
LEAST: dict[str, int] = {"train": 4, "validation": 3, "test": 3}


@dataclass(frozen=True)
class Batch:
    """B sequences, right padded to N with 0; all tensors int64.

    item_ids, timestamps (seconds) [B, N]; lengths [B]; users [B] (rows of the dataset).
    targets [B, N]: the item after each place; outside training only the last valid place has one.
    The slot after each sequence holds the time of its last target, as in Meta's generative-recommenders.
    negatives [B, N, R]: items that each target is told apart from, where the loss samples them.
    """

    item_ids: torch.Tensor
    timestamps: torch.Tensor
    lengths: torch.Tensor
    targets: torch.Tensor
    users: torch.Tensor
    negatives: torch.Tensor | None = None

    @property
    def last_targets(self) -> torch.Tensor:
        """[B] int64: the target of each row's last valid place."""
        return self.targets.gather(1, (self.lengths - 1).clamp(min=0).unsqueeze(1)).squeeze(1)

    @property
    def num_tokens(self) -> int:
        """Valid places in the batch."""
        return int(self.lengths.sum())

    def to(self, device: torch.device) -> Batch:
        held = {f.name: getattr(self, f.name) for f in fields(self)}
        return Batch(**{name: value.to(device) for name, value in held.items() if value is not None})


class SequenceBatches:
    """The batches of one split. `at(epoch, index)` depends on nothing else, so a run resumes anywhere.

    `max_seq_len` is N; the latest N - 1 interactions are kept, which leaves the slot for the time of the
    prediction. With `shuffle` an epoch's order is drawn from (seed, epoch). `negatives` of each place are drawn evenly
    from all items, and from (seed, epoch, batch); one may be the target itself.
    """

    def __init__(
        self,
        data: InteractionData,
        split: Split,
        max_seq_len: int,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        negatives: int = 0,
    ) -> None:
        if max_seq_len < 2 or batch_size < 1:
            raise ValueError("max_seq_len must be at least 2 and batch_size at least 1")
        if not 0 <= negatives <= data.num_items:
            raise ValueError(f"{data.name} has {data.num_items} items: there cannot be {negatives} negatives")
        self.data = data
        self.split = split
        self.max_seq_len = max_seq_len
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.negatives = negatives
        self.users: npt.NDArray[np.int64] = np.flatnonzero(data.lengths >= LEAST[split])
        if len(self.users) == 0:
            raise ValueError(f"{data.name}: no user has the {LEAST[split]} interactions that {split} needs")

    def __len__(self) -> int:
        return -(-len(self.users) // self.batch_size)

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """The users of an epoch, in their order."""
        if not self.shuffle:
            return self.users
        return np.random.default_rng((self.seed, epoch)).permutation(self.users)

    def at(self, epoch: int, index: int) -> Batch:
        """Batch `index` of an epoch."""
        start = index * self.batch_size
        return self._with_negatives(self.make(self.order(epoch)[start : start + self.batch_size]), epoch, index)

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from the `start`-th."""
        order = self.order(epoch)
        for index in range(start, len(self)):
            first = index * self.batch_size
            yield self._with_negatives(self.make(order[first : first + self.batch_size]), epoch, index)

    def _with_negatives(self, batch: Batch, epoch: int, index: int) -> Batch:
        if not self.negatives:
            return batch
        drawn = np.random.default_rng((self.seed, epoch, index))
        shape = (*batch.targets.shape, self.negatives)
        return replace(batch, negatives=torch.from_numpy(drawn.integers(1, self.data.num_items + 1, shape)))

    def make(self, users: npt.NDArray[np.int64]) -> Batch:
        """The batch of the given users."""
        shape = (len(users), self.max_seq_len)
        item_ids, timestamps, targets = (np.zeros(shape, dtype=np.int64) for _ in range(3))
        lengths = np.zeros(len(users), dtype=np.int64)
        for row, user in enumerate(users.tolist()):
            items, times = self.data.sequence(user)
            end = len(items) - HELD_OUT[self.split]
            kept = slice(max(0, end - self.max_seq_len), end)
            items, times = items[kept], times[kept]
            n = len(items) - 1
            lengths[row] = n
            item_ids[row, :n] = items[:-1]
            timestamps[row, : n + 1] = times
            if self.split == "train":
                targets[row, :n] = items[1:]
            else:
                targets[row, n - 1] = items[-1]
        arrays = (item_ids, timestamps, lengths, targets, np.asarray(users))
        return Batch(*(torch.from_numpy(array) for array in arrays))
