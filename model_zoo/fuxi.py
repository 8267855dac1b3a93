"""FuXi-α: position, time and similarity as three attention maps of their own, and a feed-forward of two stages.

Ye et al., "FuXi-α: Scaling Recommendation Model with Feature Interaction Enhanced Transformer" (arXiv
2502.03036); the mathematics are those of the authors' generative_recommenders/modeling/sequential/fuxi.py, on
padded tensors. Theirs concatenates the channels as position, time, score; Huawei's operator has score, time,
position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from gr_compile.model_zoo.timed import TimedConfig, TimedRecommender


@dataclass(frozen=True)
class FuXiConfig(TimedConfig):
    """Sizes of a FuXi-α. The feed-forward is `ffn_multiply` times as wide as the states."""

    ffn_multiply: int = 1


class RelativeMaps(nn.Module):
    """Two maps over pairs of places, of position and of time, shared by all heads.

    position[i, j] = pos_w[j - i + M - 1], M = max_seq_len; time[b, i, j] = ts_w[bucket(t[b, i + 1] - t[b, j])],
    bucket(d) = floor(log(max(|d|, 1)) / 0.301), cut to 0..num_buckets. Row i reads the *next* event's timestamp;
    the last place of a full row, which has no next slot, reads its own.
    """

    def __init__(self, max_seq_len: int, num_buckets: int) -> None:
        super().__init__()
        self.max_seq_len = max_seq_len
        self.num_buckets = num_buckets
        self.pos_w = nn.Parameter(torch.empty(2 * max_seq_len - 1).normal_(mean=0, std=0.02))
        self.ts_w = nn.Parameter(torch.empty(num_buckets + 1).normal_(mean=0, std=0.02))

    def forward(self, timestamps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`timestamps` [B, N] int64 seconds, N <= max_seq_len -> [N, N] and [B, N, N] float."""
        n = timestamps.size(1)
        place = torch.arange(n, device=timestamps.device)
        position = self.pos_w[place.unsqueeze(0) - place.unsqueeze(1) + self.max_seq_len - 1]

        extended = torch.cat([timestamps, timestamps[:, n - 1 : n]], dim=1)
        delta = extended[:, 1:].unsqueeze(2) - extended[:, :-1].unsqueeze(1)
        bucket = (torch.log(torch.abs(delta).clamp(min=1)) / 0.301).long()
        time = self.ts_w[bucket.clamp(min=0, max=self.num_buckets)]
        return position, time


class MultiStageFeedForward(nn.Module):
    """y = W_0 a + b + x;  out = y + W_2 (SiLU(W_1 n) ⊙ W_3 n), n = RMSNorm(y), no affine."""

    def __init__(self, config: FuXiConfig) -> None:
        super().__init__()
        dim, hidden = config.embedding_dim, config.embedding_dim * config.ffn_multiply
        self.dropout = config.dropout
        self.combine = nn.Linear(3 * config.num_heads * config.linear_dim, dim)
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.expand = nn.Linear(dim, hidden, bias=False)
        self.contract = nn.Linear(hidden, dim, bias=False)
        for linear in (self.combine, self.gate, self.expand, self.contract):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, attended: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`attended` [B, N, 3 H dv], `x` [B, N, D] float -> [B, N, D] float."""
        y = self.combine(F.dropout(attended, p=self.dropout, training=self.training)) + x
        normed = F.rms_norm(y, [y.size(-1)], eps=1e-6)
        normed = F.dropout(normed, p=self.dropout, training=self.training)
        out: torch.Tensor = self.contract(F.silu(self.gate(normed)) * self.expand(normed)) + y
        return out


class FuXiLayer(nn.Module):
    """n = RMSNorm(x);  u, v, q, k = split(SiLU(n W)), u three times as wide as v;
    a = [position v, time v, SiLU(q kᵀ) / N v] for each head, all three masked;
    out = feed-forward of u ⊙ RMSNorm(a) and x. N is the padded length of the call; no norm has weights.
    """

    def __init__(self, config: FuXiConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.attention_dim = config.attention_dim
        self.linear_dim = config.linear_dim
        width = config.num_heads * (4 * config.linear_dim + 2 * config.attention_dim)
        self.uvqk = nn.Parameter(torch.empty(config.embedding_dim, width).normal_(mean=0, std=0.02))
        self.maps = RelativeMaps(config.max_seq_len, config.num_time_buckets)
        self.feed_forward = MultiStageFeedForward(config)

    def forward(self, x: torch.Tensor, timestamps: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`x` [B, N, D] float, `timestamps` [B, N] int64, `mask` [B, N, N] bool -> [B, N, D] float."""
        batch_size, n, dim = x.shape
        linear = self.num_heads * self.linear_dim
        attention = self.num_heads * self.attention_dim
        mixed = F.silu(torch.matmul(F.rms_norm(x, [dim], eps=1e-6), self.uvqk))
        u, v, q, k = torch.split(mixed, [3 * linear, linear, attention, attention], dim=-1)
        q = q.view(batch_size, n, self.num_heads, self.attention_dim)
        k = k.view(batch_size, n, self.num_heads, self.attention_dim)
        v = v.reshape(batch_size, n, self.num_heads, self.linear_dim)

        position, time = self.maps(timestamps)
        scores = F.silu(torch.einsum("bnhd,bmhd->bhnm", q, k)) / n * mask.unsqueeze(1)
        by_position = torch.einsum("bnm,bmhd->bnhd", position.unsqueeze(0) * mask, v)
        by_time = torch.einsum("bnm,bmhd->bnhd", time * mask, v)
        by_score = torch.einsum("bhnm,bmhd->bnhd", scores, v)
        attended = torch.cat([by_position, by_time, by_score], dim=-1).reshape(batch_size, n, 3 * linear)
        out: torch.Tensor = self.feed_forward(u * F.rms_norm(attended, [3 * linear], eps=1e-6), x)
        return out


class FuXi(TimedRecommender):
    """FuXi-α layers between a tied item table and itself."""

    def __init__(self, config: FuXiConfig) -> None:
        super().__init__(config, FuXiLayer)
