"""HSTU, the STU form: Meta's current layer, with targets, a contextual prefix and a window.

The mathematics are those of the authors' generative_recommenders (modules/stu.py, positional_encoder.py,
ops/pytorch/pt_hstu_*.py and pt_position.py), on padded tensors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from gr_compile.model_zoo.retrieval import CosineSimilarity, next_item_loss, sampled_softmax_loss, state_at


@dataclass(frozen=True)
class STUConfig:
    """Sizes of an STU model.

    `num_items` is V: item ids are 1..V, 0 is padding, and V + 1 .. V + num_context_ids name contextual
    values (age, gender, ...). The first `contextual_seq_len` places of every sequence hold such values.
    `max_attn_len` 0 means no window.
    """

    num_items: int
    max_seq_len: int
    embedding_dim: int = 64
    num_layers: int = 2
    num_heads: int = 2
    attention_dim: int = 32
    hidden_dim: int = 32
    contextual_seq_len: int = 0
    num_context_ids: int = 0
    max_attn_len: int = 0
    num_time_buckets: int = 64
    dropout: float = 0.2
    temperature: float = 0.05


def valid_attention_mask(
    n: int,
    lengths: torch.Tensor,
    num_targets: torch.Tensor,
    max_attn_len: int = 0,
    contextual_seq_len: int = 0,
) -> torch.Tensor:
    """Who attends to whom (Meta's `_get_valid_attn_mask`, causal): [B, N, N] bool, rows query.

    Targets share one id, so they see the history and themselves and not each other; the contextual places
    share id 0 and see all history; `max_attn_len` > 0 is a window in ids.
    `lengths` [B] and `num_targets` [B] int64; the targets are the last places of the sequence.
    """
    index = torch.arange(n, device=lengths.device)
    max_ids = (lengths - num_targets).view(-1, 1)
    ids = index.view(1, n)
    if contextual_seq_len > 0:
        ids = torch.clamp(ids - contextual_seq_len + 1, min=0)
        max_ids = max_ids - contextual_seq_len + 1
    ids = torch.minimum(ids, max_ids)
    rows, columns = ids.unsqueeze(2), ids.unsqueeze(1)
    distance = rows - columns
    mask = (index.view(n, 1) == index.view(1, n)).unsqueeze(0) | (distance > 0)
    if max_attn_len > 0:
        mask = mask & (distance <= max_attn_len)
    if contextual_seq_len > 0:
        mask = mask | ((rows == 0) & (columns < max_ids.unsqueeze(1)))
    return mask


class PositionalEncoder(nn.Module):
    """Embeds distance to the end of the history and time to the last event (HSTUPositionalEncoder)."""

    def __init__(self, config: STUConfig) -> None:
        super().__init__()
        self.contextual_seq_len = config.contextual_seq_len
        self.num_positions = config.max_seq_len + config.contextual_seq_len + 1
        self.num_time_buckets = config.num_time_buckets
        self.position = nn.Embedding(self.num_positions, config.embedding_dim)
        self.time = nn.Embedding(config.num_time_buckets + 1, config.embedding_dim)
        for table in (self.position, self.time):
            bound = table.num_embeddings**-0.5
            nn.init.uniform_(table.weight, -bound, bound)

    def forward(
        self, timestamps: torch.Tensor, lengths: torch.Tensor, num_targets: torch.Tensor
    ) -> torch.Tensor:
        """`timestamps` [B, N] int64 seconds, `lengths`, `num_targets` [B] int64 -> [B, N, D] float."""
        index = torch.arange(timestamps.size(1), device=timestamps.device).unsqueeze(0)
        history = (lengths - num_targets).unsqueeze(1)
        distance = history - torch.minimum(index, history) + self.contextual_seq_len
        distance = torch.clamp(distance, max=self.num_positions - 1)
        place = torch.where(index < self.contextual_seq_len, index, distance)

        now = timestamps.gather(1, (lengths - 1).clamp(min=0).unsqueeze(1))
        minutes = (now - timestamps).clamp(min=1e-6) / 60.0
        bucket = torch.log(minutes).clamp(min=0, max=self.num_time_buckets).int()
        encoded: torch.Tensor = self.time(bucket) + self.position(place)
        return encoded


class STULayer(nn.Module):
    """n = LN(x; w, b);  u, v, q, k = split(n W + b), SiLU on u only;  A = SiLU(alpha q kᵀ) / N ⊙ mask;
    out = x + dropout([u, Av, u ⊙ LN(Av; w, b)]) W_o, alpha = 1 / sqrt(attention_dim), N the padded length.
    """

    def __init__(self, config: STUConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.attention_dim = config.attention_dim
        self.hidden_dim = config.hidden_dim
        self.alpha = config.attention_dim**-0.5
        self.dropout = config.dropout
        width = 2 * config.num_heads * (config.hidden_dim + config.attention_dim)
        self.input_norm = nn.LayerNorm(config.embedding_dim, eps=1e-6)
        self.uvqk = nn.Linear(config.embedding_dim, width)
        self.output_norm = nn.LayerNorm(config.num_heads * config.hidden_dim, eps=1e-6)
        self.output = nn.Linear(3 * config.num_heads * config.hidden_dim, config.embedding_dim, bias=False)
        nn.init.xavier_uniform_(self.uvqk.weight)
        nn.init.zeros_(self.uvqk.bias)
        nn.init.xavier_uniform_(self.output.weight)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`x` [B, N, D] float, `mask` [B, N, N] bool -> [B, N, D] float."""
        batch_size, n, _ = x.shape
        hidden = self.num_heads * self.hidden_dim
        attention = self.num_heads * self.attention_dim
        mixed = self.uvqk(self.input_norm(x))
        u, v, q, k = torch.split(mixed, [hidden, hidden, attention, attention], dim=-1)
        u = F.silu(u)
        q = q.reshape(batch_size, n, self.num_heads, self.attention_dim).transpose(1, 2)
        k = k.reshape(batch_size, n, self.num_heads, self.attention_dim).transpose(1, 2)
        v = v.reshape(batch_size, n, self.num_heads, self.hidden_dim).transpose(1, 2)

        scores = torch.einsum("bhxa,bhya->bhxy", q, k) * self.alpha
        weights = F.silu(scores) / n * mask.unsqueeze(1)
        attended = torch.einsum("bhxy,bhyv->bhxv", weights, v).transpose(1, 2).flatten(2, 3)
        gated = torch.cat([u, attended, u * self.output_norm(attended)], dim=-1)
        out: torch.Tensor = x + self.output(F.dropout(gated, p=self.dropout, training=self.training))
        return out


class STU(nn.Module):
    """A sequential recommender of STU layers with a tied item table; right-padded by `lengths`."""

    def __init__(self, config: STUConfig) -> None:
        super().__init__()
        self.config = config
        num_ids = config.num_items + config.num_context_ids + 1
        self.item_embedding = nn.Embedding(num_ids, config.embedding_dim, padding_idx=0)
        self.positional_encoder = PositionalEncoder(config)
        self.layers = nn.ModuleList([STULayer(config) for _ in range(config.num_layers)])
        self.similarity = CosineSimilarity(config.temperature)
        with torch.no_grad():
            nn.init.trunc_normal_(self.item_embedding.weight, std=0.02)
            self.item_embedding.weight[0].zero_()

    def encode(
        self,
        item_ids: torch.Tensor,
        timestamps: torch.Tensor,
        lengths: torch.Tensor,
        num_targets: torch.Tensor,
    ) -> torch.Tensor:
        """`item_ids`, `timestamps` [B, N], `lengths`, `num_targets` [B], all int64 -> states [B, N, D] float,
        zero at padded places."""
        config = self.config
        n = item_ids.size(1)
        valid = torch.arange(n, device=lengths.device).unsqueeze(0) < lengths.unsqueeze(1)
        mask = valid_attention_mask(n, lengths, num_targets, config.max_attn_len, config.contextual_seq_len)
        x = self.item_embedding(item_ids) * config.embedding_dim**0.5
        x = x + self.positional_encoder(timestamps, lengths, num_targets)
        x = F.dropout(x, p=config.dropout, training=self.training) * valid.unsqueeze(-1)
        for layer in self.layers:
            x = layer(x, mask)
        states: torch.Tensor = x * valid.unsqueeze(-1)
        return states

    def forward(
        self,
        item_ids: torch.Tensor,
        timestamps: torch.Tensor,
        lengths: torch.Tensor,
        num_targets: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
        negatives: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The loss when `targets` are given, else the scores of the next item.

        Args:
            item_ids: [B, N] int64, N <= max_seq_len: contextual prefix, history, candidates, padding of 0.
            timestamps: [B, N] int64 seconds.
            lengths: [B] int64, valid places of each row, the prefix and the candidates included.
            num_targets: [B] int64 >= 0, candidates at the end of each row; None is none.
            targets: [B, N] int64, the item after each place; 0 where there is none.
            negatives: [B, N, K] int64, the items that each target is told apart from; without them all items.
        Returns:
            Scalar mean cross entropy, or logits [B, V + 1] at the last place of each row's history.
        """
        if num_targets is None:
            num_targets = torch.zeros_like(lengths)
        num_targets = num_targets.clamp(min=0)  # a negative count would let rows attend to padded places
        states = self.encode(item_ids, timestamps, lengths, num_targets)
        items = self.item_embedding.weight[: self.config.num_items + 1]
        if targets is None:
            scores: torch.Tensor = self.similarity(state_at(states, lengths - num_targets - 1), items)
            return scores
        if negatives is None:
            return next_item_loss(self.similarity(states, items), targets)
        candidates = self.item_embedding(torch.cat([targets.unsqueeze(-1), negatives], dim=-1))
        return sampled_softmax_loss(self.similarity.of_candidates(states, candidates), targets)

    def predict(
        self,
        item_ids: torch.Tensor,
        timestamps: torch.Tensor,
        lengths: torch.Tensor,
        num_targets: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits [B, V + 1] of the item that follows the last place of each row's history."""
        logits: torch.Tensor = self(item_ids, timestamps, lengths, num_targets)
        return logits
