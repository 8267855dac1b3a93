"""Padded batches: right, left or holes; empty and full; targets with a padding of their own."""

from __future__ import annotations

from typing import Any

import torch

FEATURES, GIVEN = 6, 7
"""The inputs of real numbers, among those of `make_batch`."""
_JUNK = {"none": 0.0, "large": 1e3, "nan": float("nan")}
"""What is added to features in the padding."""


def make_batch(spec: dict[str, Any], dtype: torch.dtype) -> list[torch.Tensor]:
    """ids, lengths, mask, times, targets, negatives, features, given, context_ids."""
    generator = torch.Generator().manual_seed(spec["seed"])
    B, N, M = spec["B"], spec["N"], spec["M"]

    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator)

    valid = _valid(spec, integers(N + 1, B), torch.rand(B, N, generator=generator))
    lengths = valid.sum(1)
    ids = (1 + integers(19, B, N)) * valid
    times = torch.cumsum(integers(4, B, N), 1) * valid
    keep = {"same": valid, "other": torch.rand(B, N, generator=generator) < 0.5, "shifted": valid & valid.roll(-1, 1)}
    targets = torch.where(keep[spec["targets"]], integers(20, B, N), -100)
    features = torch.randn(B, N, 3, generator=generator, dtype=torch.float64).to(dtype)
    features = torch.where(valid[..., None], features, torch.tensor(_JUNK[spec.get("junk", "none")]).to(dtype) + features)
    given = torch.randn(B, width_of(spec), generator=generator, dtype=torch.float64).to(dtype)
    context = (1 + integers(19, B, M)) * (torch.arange(M) < integers(M + 1, B, 1))
    mask = valid.to(getattr(torch, spec["mask_dtype"]))
    if spec["float_grad"]:
        features.requires_grad_()
        given.requires_grad_()
    return [ids, lengths, mask, times, targets, integers(20, B, N), features, given, context]


def width_of(spec: dict[str, Any]) -> int:
    """D of the model that the batch is for."""
    return int(spec["D"])


def _valid(spec: dict[str, Any], lengths: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    N, fill = spec["N"], spec["fill"]
    if fill == "full":
        lengths = torch.full_like(lengths, N)
    elif fill == "empty":
        lengths = torch.zeros_like(lengths)
    elif fill == "some_empty":
        lengths = lengths * (torch.arange(len(lengths)) % 2)
    elif fill == "half":
        lengths = torch.full_like(lengths, (N + 1) // 2)
    places = torch.arange(N)[None, :]
    if spec["side"] == "left":
        return places >= (N - lengths)[:, None]
    right = places < lengths[:, None]
    return right & (noise < 0.7) if spec["side"] == "holes" else right
