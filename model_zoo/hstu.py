"""HSTU, the research form: SiLU attention with a relative bias by position and by time.

Zhai et al., "Actions Speak Louder than Words" (arXiv 2402.17152); the mathematics are those of the
authors' generative_recommenders/research/modeling/sequential/hstu.py, on padded tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from gr_compile.model_zoo.timed import TimedConfig, TimedRecommender


@dataclass(frozen=True)
class HSTUConfig(TimedConfig):
    """Sizes of an HSTU. `concat_u`: the output reads u and A v beside their product."""

    concat_u: bool = False


class RelativeBias(nn.Module):
    """rab[b, i, j] = pos_w[j - i + M - 1] + ts_w[bucket(t[b, i + 1] - t[b, j])], M = max_seq_len.

    bucket(d) = floor(log(max(|d|, 1)) / 0.301), cut to 0..num_buckets (the authors'
    RelativeBucketedTimeAndPositionBasedBias). Row i reads the *next* event's timestamp, so the last
    valid row reads the slot after the sequence: the moment for which the prediction is asked. The last
    place of a full row, which has no next slot, reads its own.
    """

    def __init__(self, max_seq_len: int, num_buckets: int) -> None:
        super().__init__()
        self.max_seq_len = max_seq_len
        self.num_buckets = num_buckets
        self.pos_w = nn.Parameter(torch.empty(2 * max_seq_len - 1).normal_(mean=0, std=0.02))
        self.ts_w = nn.Parameter(torch.empty(num_buckets + 1).normal_(mean=0, std=0.02))

    def forward(self, timestamps: torch.Tensor) -> torch.Tensor:
        """`timestamps` [B, N] int64 seconds, N <= max_seq_len -> [B, N, N] float."""
        batch_size, n = timestamps.shape
        position = torch.arange(n, device=timestamps.device)
        distance = position.unsqueeze(0) - position.unsqueeze(1) + self.max_seq_len - 1
        pos_bias = torch.index_select(self.pos_w, 0, distance.view(-1)).view(1, n, n)

        extended = torch.cat([timestamps, timestamps[:, n - 1 : n]], dim=1)
        delta = extended[:, 1:].unsqueeze(2) - extended[:, :-1].unsqueeze(1)
        bucket = (torch.log(torch.abs(delta).clamp(min=1)) / 0.301).long()
        bucket = torch.clamp(bucket, min=0, max=self.num_buckets)
        ts_bias = torch.index_select(self.ts_w, 0, bucket.view(-1)).view(batch_size, n, n)
        return pos_bias + ts_bias


class HSTULayer(nn.Module):
    """n = LN(x);  u, v, q, k = split(SiLU(n W));  A = SiLU(q kᵀ + rab) / N ⊙ mask;
    out = x + W_o dropout(u ⊙ LN(A v)) + b, or W_o over [u, LN(Av), u ⊙ LN(Av)] with `concat_u`.
    N is the padded length of the call; neither layer norm has weights.
    """

    def __init__(self, config: HSTUConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.attention_dim = config.attention_dim
        self.linear_dim = config.linear_dim
        self.dropout = config.dropout
        self.concat_u = config.concat_u
        width = 2 * config.num_heads * (config.linear_dim + config.attention_dim)
        self.uvqk = nn.Parameter(torch.empty(config.embedding_dim, width).normal_(mean=0, std=0.02))
        self.bias = RelativeBias(config.max_seq_len, config.num_time_buckets)
        out_width = config.num_heads * config.linear_dim * (3 if config.concat_u else 1)
        self.o = nn.Linear(out_width, config.embedding_dim)
        nn.init.xavier_uniform_(self.o.weight)

    def forward(self, x: torch.Tensor, timestamps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`x` [B, N, D] float, `timestamps` [B, N] int64, `mask` [B, N, N] bool -> [B, N, D] float."""
        batch_size, n, dim = x.shape
        linear = self.num_heads * self.linear_dim
        attention = self.num_heads * self.attention_dim
        normed = F.layer_norm(x, [dim], eps=1e-6)
        mixed = F.silu(torch.matmul(normed, self.uvqk))
        u, v, q, k = torch.split(mixed, [linear, linear, attention, attention], dim=-1)
        q = q.view(batch_size, n, self.num_heads, self.attention_dim)
        k = k.view(batch_size, n, self.num_heads, self.attention_dim)
        v = v.reshape(batch_size, n, self.num_heads, self.linear_dim)

        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) + self.bias(timestamps).unsqueeze(1)
        weights = F.silu(scores) / n * mask.unsqueeze(1)
        attended = torch.einsum("bhnm,bmhd->bnhd", weights, v).reshape(batch_size, n, linear)
        attended = F.layer_norm(attended, [linear], eps=1e-6)
        mixed = torch.cat([u, attended, u * attended], dim=-1) if self.concat_u else u * attended
        out: torch.Tensor = self.o(F.dropout(mixed, p=self.dropout, training=self.training)) + x
        return out


class HSTU(TimedRecommender):
    """HSTU layers between a tied item table and itself."""

    def __init__(self, config: HSTUConfig) -> None:
        super().__init__(config, HSTULayer)
