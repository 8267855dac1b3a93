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

from gr_compile.model_zoo.retrieval import CosineSimilarity, next_item_loss, sampled_softmax_loss, state_at


@dataclass(frozen=True)
class FuXiConfig:
    """Sizes of a FuXi-α. `num_items` is V: item ids are 1..V and 0 is padding. The feed-forward is
    `ffn_multiply` times as wide as the states."""

    num_items: int
    max_seq_len: int
    embedding_dim: int = 64
    num_layers: int = 2
    num_heads: int = 2
    attention_dim: int = 32
    linear_dim: int = 32
    num_time_buckets: int = 128
    ffn_multiply: int = 1
    dropout: float = 0.2
    temperature: float = 0.05


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


class FuXi(nn.Module):
    """A sequential recommender of FuXi-α layers with a tied item table; right-padded, pad id 0."""

    def __init__(self, config: FuXiConfig) -> None:
        super().__init__()
        self.config = config
        self.item_embedding = nn.Embedding(config.num_items + 1, config.embedding_dim, padding_idx=0)
        self.position_embedding = nn.Embedding(config.max_seq_len, config.embedding_dim)
        self.layers = nn.ModuleList([FuXiLayer(config) for _ in range(config.num_layers)])
        self.similarity = CosineSimilarity(config.temperature)
        with torch.no_grad():
            nn.init.trunc_normal_(self.item_embedding.weight, std=0.02)
            self.item_embedding.weight[0].zero_()
            nn.init.trunc_normal_(self.position_embedding.weight, std=config.embedding_dim**-0.5)

    def encode(self, item_ids: torch.Tensor, timestamps: torch.Tensor) -> torch.Tensor:
        """`item_ids`, `timestamps` [B, N] int64 -> states [B, N, D] float, zero at padded places."""
        n = item_ids.size(1)
        valid = item_ids != 0
        causal = torch.ones(n, n, dtype=torch.bool, device=item_ids.device).tril()
        mask = causal.unsqueeze(0) & valid.unsqueeze(1)
        x = self.item_embedding(item_ids) * self.config.embedding_dim**0.5
        x = x + self.position_embedding(torch.arange(n, device=item_ids.device))
        x = F.dropout(x, p=self.config.dropout, training=self.training) * valid.unsqueeze(-1)
        for layer in self.layers:
            x = layer(x, timestamps, mask)
        states: torch.Tensor = x * valid.unsqueeze(-1)
        return states

    def forward(
        self,
        item_ids: torch.Tensor,
        timestamps: torch.Tensor,
        targets: torch.Tensor | None = None,
        negatives: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss when `targets` are given, else the scores of the next item.

        Args:
            item_ids: [B, N] int64, right padded with 0, N <= max_seq_len.
            timestamps: [B, N] int64 seconds; the slot after a sequence holds the moment of its prediction.
            targets: [B, N] int64, the item after each place; 0 where there is none.
            negatives: [B, N, K] int64, the items that each target is told apart from; without them all items.
        Returns:
            Scalar mean cross entropy, or logits [B, V + 1] at the last valid place of each row.
        """
        states = self.encode(item_ids, timestamps)
        if targets is None:
            last = (item_ids != 0).sum(dim=1) - 1
            scores: torch.Tensor = self.similarity(state_at(states, last), self.item_embedding.weight)
            return scores
        if negatives is None:
            return next_item_loss(self.similarity(states, self.item_embedding.weight), targets)
        candidates = self.item_embedding(torch.cat([targets.unsqueeze(-1), negatives], dim=-1))
        return sampled_softmax_loss(self.similarity.of_candidates(states, candidates), targets)

    def predict(self, item_ids: torch.Tensor, timestamps: torch.Tensor) -> torch.Tensor:
        """Logits [B, V + 1] of the item that follows the last valid place of each row."""
        logits: torch.Tensor = self(item_ids, timestamps)
        return logits
