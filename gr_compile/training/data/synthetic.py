"""Made-up interactions with KuaiRand-like lengths and something to learn.

Lengths are lognormal(median, sigma) cut at a maximum. The defaults are the calibrated stand-in for
KuaiRand-27K as TurboGR (arXiv 2605.13433) batches it: median 1734, sigma 0.796, cut at 4096: fill 49.6 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gr_compile.training.data.interactions import Int64Array, InteractionData

FIRST_SECOND = 1_650_000_000  # April 2022


@dataclass(frozen=True)
class SyntheticSettings:
    """Lengths in interactions; `follow` is the chance that an item is the successor of the one before."""

    num_users: int = 1000
    num_items: int = 2000
    median_length: float = 1734.0
    sigma: float = 0.796
    min_length: int = 5
    max_length: int = 4096
    follow: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_users < 1 or self.num_items < 1:
            raise ValueError("num_users and num_items must be at least 1")
        if not 1 <= self.min_length <= self.max_length:
            raise ValueError("lengths need 1 <= min_length <= max_length")
        if self.median_length <= 0 or self.sigma < 0 or not 0 <= self.follow <= 1:
            raise ValueError("median_length must be positive, sigma >= 0 and follow within 0..1")


def sample_lengths(settings: SyntheticSettings, random: np.random.Generator) -> Int64Array:
    """[num_users] int64."""
    drawn = random.lognormal(np.log(settings.median_length), settings.sigma, settings.num_users)
    return np.clip(np.rint(drawn), settings.min_length, settings.max_length).astype(np.int64)


def generate(settings: SyntheticSettings) -> InteractionData:
    """A dataset that is a function of the settings alone.

    A user starts at an item drawn by popularity (rank^-0.8) and, at each event, moves to the item's successor
    with chance `follow` or draws anew; so a model can reach a hit rate near `follow`. Times are a Poisson
    process with a mean gap of 10 minutes.
    """
    random = np.random.default_rng(settings.seed)
    lengths = sample_lengths(settings, random)
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    total = int(offsets[-1])
    event = np.arange(total)
    fresh = random.random(total) >= settings.follow
    fresh[offsets[:-1]] = True
    popularity = np.arange(1, settings.num_items + 1) ** -0.8
    draws = random.choice(settings.num_items, size=total, p=popularity / popularity.sum())
    last_fresh = np.maximum.accumulate(np.where(fresh, event, 0))
    chain = np.arange(settings.num_items)
    random.shuffle(
        chain
    )  # chain[r] is the item at place r of one long cycle; the successor is the next place
    rank = np.argsort(chain)[draws[last_fresh]] + (event - last_fresh)
    items = (chain[rank % settings.num_items] + 1).astype(np.int32)
    gaps = random.exponential(600.0, total).astype(np.int64)
    elapsed = np.cumsum(gaps)
    timestamps = FIRST_SECOND + elapsed - np.repeat(elapsed[offsets[:-1]], lengths)
    names = np.arange(settings.num_items + 1)
    return InteractionData("synthetic", items, timestamps, offsets, names, np.arange(settings.num_users))
