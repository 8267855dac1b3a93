"""A small padded recommender, as a user would write it: no packing, no offsets, no custom operators."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Layer(nn.Module):
    """SiLU attention with a bias by distance, causal, keys masked; then a gate and a residual."""

    def __init__(self, dim: int, heads: int, max_len: int) -> None:
        super().__init__()
        self.heads, self.max_len = heads, max_len
        self.inputs = nn.Linear(dim, 4 * dim)
        self.output = nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.zeros(2 * max_len - 1))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`x` [B, N, D] float, `mask` [B, N, N] bool -> [B, N, D] float."""
        b, n, d = x.shape
        u, v, q, k = F.silu(self.inputs(F.layer_norm(x, [d]))).chunk(4, dim=-1)
        q, k, v = (t.reshape(b, n, self.heads, d // self.heads) for t in (q, k, v))
        place = torch.arange(n, device=x.device)
        bias = self.bias[place[:, None] - place[None, :] + self.max_len - 1]
        scores = F.silu(torch.einsum("bihd,bjhd->bhij", q, k) + bias) / n
        scores = scores * mask[:, None]
        mixed = torch.einsum("bhij,bjhd->bihd", scores, v).reshape(b, n, d)
        out: torch.Tensor = x + self.output(u * F.layer_norm(mixed, [d]))
        return out


class Recommender(nn.Module):
    """Next-item prediction over a catalogue; ids [B, N], right-padded with 0."""

    def __init__(
        self, items: int = 1000, dim: int = 32, heads: int = 2, layers: int = 2, max_len: int = 64
    ) -> None:
        super().__init__()
        self.items = nn.Embedding(items + 1, dim, padding_idx=0)
        self.layers = nn.ModuleList(Layer(dim, heads, max_len) for _ in range(layers))

    def forward(self, ids: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """The loss when `targets` [B, N] are given (0: no target), else logits [B, N, items + 1]."""
        n = ids.size(1)
        causal = torch.ones(n, n, dtype=torch.bool, device=ids.device).tril()
        mask = causal & (ids != 0)[:, None, :]
        x = self.items(ids)
        for layer in self.layers:
            x = layer(x, mask)
        logits = F.linear(x, self.items.weight) / 0.05
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=0)


def make_batch(
    lengths: list[int], n: int = 64, items: int = 1000, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, targets), each [len(lengths), n] int64: random sequences, each target the item that follows."""
    generator = torch.Generator().manual_seed(seed)
    sequence = torch.randint(1, items + 1, (len(lengths), n + 1), generator=generator)
    valid = torch.arange(n) < torch.tensor(lengths)[:, None]
    return sequence[:, :-1] * valid, sequence[:, 1:] * valid


def example_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """What `gr-compile explain docs/examples/model.py:Recommender` runs."""
    return make_batch([50, 12, 3, 30])
