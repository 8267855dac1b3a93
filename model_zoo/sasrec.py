"""SASRec: a causal transformer over a user's items.

Kang and McAuley, "Self-Attentive Sequential Recommendation" (arXiv 1808.09781), in the post-norm form with
ReLU feed-forward and learned positions that most later work copies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from gr_compile.model_zoo.retrieval import next_item_loss, sampled_softmax_loss, state_at


@dataclass(frozen=True)
class SASRecConfig:
    """Sizes of a SASRec. `num_items` is V: item ids are 1..V and 0 is padding."""

    num_items: int
    max_seq_len: int
    embedding_dim: int = 64
    num_layers: int = 2
    num_heads: int = 2
    feedforward_dim: int = 256
    dropout: float = 0.2
    layer_norm_eps: float = 1e-12


class SASRecLayer(nn.Module):
    """a = LN(x + MHA(x));  out = LN(a + W_2 ReLU(W_1 a))."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        dim = config.embedding_dim
        self.num_heads = config.num_heads
        self.dropout = config.dropout
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.attention_norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)
        self.expand = nn.Linear(dim, config.feedforward_dim)
        self.contract = nn.Linear(config.feedforward_dim, dim)
        self.feedforward_norm = nn.LayerNorm(dim, eps=config.layer_norm_eps)

    def attend(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Masked softmax attention: `x` [B, N, D], `mask` [B, 1, N, N] bool -> [B, N, D]."""
        batch_size, n, dim = x.shape
        heads = (batch_size, n, self.num_heads, dim // self.num_heads)
        q = self.query(x).view(heads).transpose(1, 2)
        k = self.key(x).view(heads).transpose(1, 2)
        v = self.value(x).view(heads).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        out: torch.Tensor = self.out(attended.transpose(1, 2).reshape(batch_size, n, dim))
        return out

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`x` [B, N, D] float, `mask` [B, 1, N, N] bool -> [B, N, D] float."""
        attended = F.dropout(self.attend(x, mask), p=self.dropout, training=self.training)
        x = self.attention_norm(x + attended)
        hidden = F.dropout(torch.relu(self.expand(x)), p=self.dropout, training=self.training)
        hidden = F.dropout(self.contract(hidden), p=self.dropout, training=self.training)
        out: torch.Tensor = self.feedforward_norm(x + hidden)
        return out


class SASRec(nn.Module):
    """A sequential recommender of SASRec layers with a tied item table; right-padded, pad id 0."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        self.config = config
        self.item_embedding = nn.Embedding(config.num_items + 1, config.embedding_dim, padding_idx=0)
        self.position_embedding = nn.Embedding(config.max_seq_len, config.embedding_dim)
        self.input_norm = nn.LayerNorm(config.embedding_dim, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList([SASRecLayer(config) for _ in range(config.num_layers)])
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.item_embedding.weight[0].zero_()

    def encode(self, item_ids: torch.Tensor) -> torch.Tensor:
        """`item_ids` [B, N] int64 -> states [B, N, D] float, zero at padded places."""
        n = item_ids.size(1)
        valid = item_ids != 0
        causal = torch.ones(n, n, dtype=torch.bool, device=item_ids.device).tril()
        mask = (causal.unsqueeze(0) & valid.unsqueeze(1)).unsqueeze(1)
        x = self.item_embedding(item_ids) + self.position_embedding(torch.arange(n, device=item_ids.device))
        x = F.dropout(self.input_norm(x), p=self.config.dropout, training=self.training)
        for layer in self.layers:
            x = layer(x, mask)
        states: torch.Tensor = x * valid.unsqueeze(-1)
        return states

    def forward(
        self,
        item_ids: torch.Tensor,
        targets: torch.Tensor | None = None,
        negatives: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss when `targets` are given, else the scores of the next item.

        Args:
            item_ids: [B, N] int64, right padded with 0, N <= max_seq_len.
            targets: [B, N] int64, the item after each place; 0 where there is none.
            negatives: [B, N, K] int64, the items that each target is told apart from; without them all items.
        Returns:
            Scalar mean cross entropy, or logits [B, V + 1] at the last valid place of each row.
        """
        states = self.encode(item_ids)
        if targets is None:
            last = (item_ids != 0).sum(dim=1) - 1
            return F.linear(state_at(states, last), self.item_embedding.weight)
        if negatives is None:
            return next_item_loss(F.linear(states, self.item_embedding.weight), targets)
        candidates = self.item_embedding(torch.cat([targets.unsqueeze(-1), negatives], dim=-1))
        return sampled_softmax_loss(torch.einsum("bnd,bncd->bnc", states, candidates), targets)

    def predict(self, item_ids: torch.Tensor) -> torch.Tensor:
        """Logits [B, V + 1] of the item that follows the last valid place of each row."""
        logits: torch.Tensor = self(item_ids)
        return logits
