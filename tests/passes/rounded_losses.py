"""Losses of `loss_models` whose logits are of rounded rows, in eager torch: what insert-fp16 must give."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from loss_models import SAMPLED, Loss, Recommender
from torch import Tensor

ALONE = ("by sequence", "by sequence, a product")  # the product with the target is none of sampled rows


def straight(table: Tensor, dtype: torch.dtype) -> Tensor:
    """The rounded table, whose gradient is the table's."""
    return table + (table.to(dtype).float() - table).detach()


def rounded(name: str, dtype: torch.dtype) -> Loss:
    """The loss over rows in 16 bits; the model reads its inputs' rows as they are."""

    def loss(m: Recommender, x: Tensor, mask: Tensor, t: Tensor, negatives: Tensor, drawn: Tensor) -> Any:
        def items(ids: Tensor) -> Tensor:
            exact = name in ALONE and ids is t
            return F.embedding(ids, m.items.weight if exact else straight(m.items.weight, dtype), padding_idx=0)

        return SAMPLED[name](SimpleNamespace(items=items), x, mask, t, negatives, drawn)  # type: ignore[arg-type]

    return loss
