"""Attention as people write it: (layer, q, k, v [B, N, H, d], seen [B or 1, N, N], bias, valid) -> [B, N, ...]."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Spelling = Callable[..., Tensor]


def einsum(layer: Any, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, bias: Tensor | None, valid: Tensor) -> Tensor:
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / math.sqrt(q.shape[-1])
    weights = layer.weights(scores if bias is None else scores + bias, _head(seen))
    return torch.einsum("bhij,bjhd->bihd", weights, v)


def matmul(layer: Any, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, bias: Tensor | None, valid: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    weights = layer.weights(scores if bias is None else scores + bias, _head(seen))
    return (weights @ v).transpose(1, 2)


def bmm(layer: Any, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, bias: Tensor | None, valid: Tensor) -> Tensor:
    """Heads folded into the batch, batch outermost."""
    batch, n, heads, width = q.shape
    q, k, v = (t.transpose(1, 2).reshape(batch * heads, n, width) for t in (q, k, v))
    scores = torch.bmm(q, k.transpose(1, 2)).view(batch, heads, n, n) / math.sqrt(width)
    weights = layer.weights(scores if bias is None else scores + bias, _head(seen))
    made = torch.bmm(weights.reshape(batch * heads, n, n), v)
    return made.view(batch, heads, n, width).transpose(1, 2)


def bmm_heads_first(
    layer: Any, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, bias: Tensor | None, valid: Tensor
) -> Tensor:
    """Heads folded into the batch, heads outermost, as SASRec's authors do (torch.cat of torch.split)."""
    batch, n, heads, width = q.shape
    q, k, v = (torch.cat(torch.unbind(t, 2), 0) for t in (q, k, v))
    scores = torch.bmm(q, k.transpose(1, 2)) / math.sqrt(width)
    scores = scores.view(heads, batch, n, n).transpose(0, 1)
    weights = layer.weights(scores if bias is None else scores + bias, _head(seen))
    made = torch.bmm(weights.transpose(0, 1).reshape(heads * batch, n, n), v)
    return torch.stack(torch.chunk(made, heads, 0), 2)


def sdpa_bool(layer: Any, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, bias: Tensor | None, valid: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=_head(seen)).transpose(1, 2)


def sdpa_additive(
    layer: Any, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, bias: Tensor | None, valid: Tensor
) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    added = torch.zeros((), dtype=q.dtype) if bias is None else bias
    mask = _head(seen)
    if mask is not None:
        added = added + torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -math.inf)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=added).transpose(1, 2)


def sdpa_causal(
    layer: Any, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, bias: Tensor | None, valid: Tensor
) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


def sdpa_gqa(layer: Any, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, bias: Tensor | None, valid: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=_head(seen), enable_gqa=True).transpose(1, 2)


def three_dimensional(
    layer: Any, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, bias: Tensor | None, valid: Tensor
) -> Tensor:
    """One head, no head dimension at all."""
    q, k, v = (t.flatten(2) for t in (q, k, v))
    scores = torch.matmul(q, k.transpose(1, 2))
    weights = layer.weights(scores, seen) if bias is None else layer.weights(scores + bias[:, 0], seen)
    return torch.matmul(weights, v)


def none(layer: Any, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, bias: Tensor | None, valid: Tensor) -> Tensor:
    return q * k * v


def _head(seen: Tensor | None) -> Tensor | None:
    return None if seen is None else seen[:, None]


SPELLINGS: dict[str, Spelling] = {
    "einsum": einsum, "matmul": matmul, "bmm": bmm, "bmm heads first": bmm_heads_first, "sdpa": sdpa_bool,
    "sdpa additive": sdpa_additive, "sdpa causal": sdpa_causal, "sdpa gqa": sdpa_gqa, "one head": three_dimensional,
    "none": none,
}  # fmt: skip
