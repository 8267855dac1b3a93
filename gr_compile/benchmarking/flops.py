"""Useful floating-point operations of a step, and the peak that they are divided by.

The one place where the formula stands; `DEFINITION` is it, as `gr-compile bench` prints it.

T is the number of valid tokens, A the number of pairs (query, key) that the mask leaves, here the causal area
sum L(L+1)/2 over the sequences (cut to the window where there is one), P the number of places that have a
target; at inference the last place of each sequence.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

DEFINITION = """\
MFU = useful FLOPs / (seconds * peak FLOPs a second)
    forward = sum over layers of
                T * 2 * (weights of the layer's matrix products)              token-wise products
              + A * H * 2 * (dqk + dv)                                        q k^T and A v
            + P * 2 * D * (V + 1)                                             scores over the catalogue
    training step = 3 * forward                   backward: twice the forward, for attention too
    T valid tokens, A causal pairs of valid tokens, P places that are scored. Padding, masked pairs, recomputed
    values and pointwise work are not useful and count nothing.
HFU = the same with the scores that a backward computes again: + A * H * 2 * dqk for each layer of a training step
peak = torch.mm of 2048^3 in the same dtype and with the same threads, the median of 9, in the same run"""


@dataclass(frozen=True)
class ModelCost:
    """What the formula needs to know of a model. Weights and widths are counts of numbers.

    token_weights: of all layers' matrix products together. pair_width: sum over layers of H * (dqk + dv).
    head_weights: D * (V + 1). window: keys a query sees at most beside itself (0: all before it).
    score_width: sum over layers of H * dqk, the part of pair_width that a backward may compute again.
    """

    token_weights: int
    pair_width: int
    head_weights: int
    window: int = 0
    score_width: int = 0


def causal_area(lengths: torch.Tensor, window: int = 0) -> int:
    """Pairs (query, key at or before it) of sequences of the given `lengths` [B] int64."""
    full = lengths * (lengths + 1) // 2
    if window:
        beyond = (lengths - window - 1).clamp(min=0)
        full = full - beyond * (beyond + 1) // 2
    return int(full.sum())


def forward_flops(cost: ModelCost, lengths: torch.Tensor, places: int) -> int:
    """FLOPs of one forward over sequences of `lengths` [B] whose scores are wanted at `places` places."""
    tokens = int(lengths.sum())
    area = causal_area(lengths, cost.window)
    return 2 * (tokens * cost.token_weights + area * cost.pair_width + places * cost.head_weights)


def step_flops(cost: ModelCost, lengths: torch.Tensor, places: int) -> int:
    """FLOPs of a training step: the forward three times."""
    return 3 * forward_flops(cost, lengths, places)


def recomputed_flops(cost: ModelCost, lengths: torch.Tensor) -> int:
    """FLOPs of the scores that a training step computes once more in its backward."""
    return 2 * causal_area(lengths, cost.window) * cost.score_width


def utilisation(flops: float, seconds: float, peak: float) -> float:
    """The share of `peak` FLOPs a second that `flops` in `seconds` are; 0 where the peak was not measured."""
    return flops / (seconds * peak) if peak else 0.0


def peak_flops(
    device: str = "cpu", size: int = 2048, repeats: int = 9, dtype: torch.dtype = torch.float32
) -> float:
    """FLOPs a second of a square product, the median of `repeats`."""
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    torch.mm(left, right)
    seconds = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        torch.mm(left, right)
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds)


def synchronize(device: str) -> None:
    """Waits for the device, so that a clock read afterwards covers its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
