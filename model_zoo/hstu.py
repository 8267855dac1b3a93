"""HSTU, the research form: SiLU attention with a relative bias by position and by time.

Zhai et al., "Actions Speak Louder than Words" (arXiv 2402.17152); the mathematics are those of the
authors' generative_recommenders/research/modeling/sequential/hstu.py, on padded tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from gr_compile.model_zoo.retrieval import CosineSimilarity, next_item_loss, sampled_softmax_loss, state_at


@dataclass(frozen=True)
class HSTUConfig:
    """Sizes of an HSTU. `num_items` is V: item ids are 1..V and 0 is padding."""

    num_items: int
    max_seq_len: int
    embedding_dim: int = 64
    num_layers: int = 2
    num_heads: int = 2
    attention_dim: int = 32
    linear_dim: int = 32
    num_time_buckets: int = 128
    dropout: float = 0.2
    concat_u: bool = False
    temperature: float = 0.05


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


class HSTU(nn.Module):
    """A sequential recommender of HSTU layers with a tied item table; right-padded, pad id 0."""

    def __init__(self, config: HSTUConfig) -> None:
        super().__init__()
        self.config = config
        self.item_embedding = nn.Embedding(config.num_items + 1, config.embedding_dim, padding_idx=0)
        self.position_embedding = nn.Embedding(config.max_seq_len, config.embedding_dim)
        self.layers = nn.ModuleList([HSTULayer(config) for _ in range(config.num_layers)])
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
