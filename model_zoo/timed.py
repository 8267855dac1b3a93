"""What HSTU and FuXi-α share around their layers: items with timestamps, a tied item table, next-item prediction.

The mathematics are those of the authors' generative_recommenders/modeling/sequential, on padded tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from gr_compile.model_zoo.retrieval import CosineSimilarity, next_item_loss, sampled_softmax_loss, state_at


@dataclass(frozen=True)
class TimedConfig:
    """Sizes of a recommender of items with timestamps. `num_items` is V: item ids are 1..V and 0 is padding."""

    num_items: int
    max_seq_len: int
    embedding_dim: int = 64
    num_layers: int = 2
    num_heads: int = 2
    attention_dim: int = 32
    linear_dim: int = 32
    num_time_buckets: int = 128
    dropout: float = 0.2
    temperature: float = 0.05


class TimedRecommender(nn.Module):
    """A sequential recommender with a tied item table; right-padded, pad id 0. A `layer_type(config)` is
    called with states [B, N, D] float, timestamps [B, N] int64 and a mask [B, N, N] bool, and gives states."""

    def __init__(self, config: TimedConfig, layer_type: type[nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.item_embedding = nn.Embedding(config.num_items + 1, config.embedding_dim, padding_idx=0)
        self.position_embedding = nn.Embedding(config.max_seq_len, config.embedding_dim)
        self.layers = nn.ModuleList([layer_type(config) for _ in range(config.num_layers)])
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
