"""torch's own modules as people use them over padded sequences."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from subject import Maker, Size, Subject
from torch import Tensor, nn

ITEMS, WIDTH, HEADS = 500, 64, 4


class Encoder(nn.Module):
    """nn.TransformerEncoder with src_key_padding_mask, causal or not; cross entropy of the next item."""

    def __init__(self, n: int, causal: bool) -> None:
        super().__init__()
        self.items, self.places = nn.Embedding(ITEMS, WIDTH, padding_idx=0), nn.Embedding(n, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.causal = causal

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.items(ids) + self.places(torch.arange(ids.shape[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1]).bool() if self.causal else None
        x = self.encoder(x, mask=mask, src_key_padding_mask=ids == 0, is_causal=self.causal)
        return F.cross_entropy((x @ self.items.weight.T).flatten(0, 1), labels.flatten(), ignore_index=0)


class Attention(nn.Module):
    """F.scaled_dot_product_attention with a boolean or an additive mask."""

    def __init__(self, additive: bool) -> None:
        super().__init__()
        self.items, self.project = nn.Embedding(ITEMS, WIDTH, padding_idx=0), nn.Linear(WIDTH, 3 * WIDTH)
        self.out, self.norm, self.additive = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), additive

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x, (count, n) = self.items(ids), ids.shape
        q, k, v = self.project(self.norm(x)).view(count, n, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        mask = torch.ones(n, n, dtype=torch.bool).tril() & (ids != 0)[:, None, None, :]
        mask = torch.zeros(mask.shape).masked_fill(~mask, float("-inf")) if self.additive else mask
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        return F.cross_entropy((x @ self.items.weight.T).flatten(0, 1), labels.flatten(), ignore_index=0)


class MultiHead(nn.Module):
    """nn.MultiheadAttention with a float causal mask and a boolean key mask."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.norm = nn.Embedding(ITEMS, WIDTH, padding_idx=0), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x, n = self.items(ids), ids.shape[1]
        y, later = self.norm(x), torch.ones(n, n, dtype=torch.bool).triu(1)
        x = x + self.attention(y, y, y, key_padding_mask=ids == 0, attn_mask=later, need_weights=False)[0]
        return F.cross_entropy((x @ self.items.weight.T).flatten(0, 1), labels.flatten(), ignore_index=0)


class PackedGru(nn.Module):
    """nn.GRU over a packed sequence: the lengths leave the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.gru = nn.Embedding(ITEMS, WIDTH, padding_idx=0), nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        lengths = (ids != 0).sum(1).clamp(min=1)
        packed = nn.utils.rnn.pack_padded_sequence(self.items(ids), lengths, batch_first=True, enforce_sorted=False)
        x, _ = nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=ids.shape[1])
        return F.cross_entropy((x @ self.items.weight.T).flatten(0, 1), labels.flatten(), ignore_index=0)


def maker(make_model: type[nn.Module], *options: bool, side: str = "right", sized: bool = False) -> Maker:
    def make(size: Size) -> Subject:
        model = make_model(size.n, *options) if sized else make_model(*options)
        mask = size.mask(side)
        generator = torch.Generator().manual_seed(3)
        ids, labels = (torch.randint(1, ITEMS, mask.shape, generator=generator) * mask for _ in range(2))
        return Subject(model, (ids, labels))

    return make


CASES: dict[str, Maker] = {
    "TransformerEncoder": maker(Encoder, False, sized=True),
    "TransformerEncoder, causal": maker(Encoder, True, sized=True),
    "TransformerEncoder, causal, padded left": maker(Encoder, True, sized=True, side="left"),
    "MultiheadAttention": maker(MultiHead),
    "SDPA, boolean mask": maker(Attention, False),
    "SDPA, additive mask": maker(Attention, True),
    "GRU, packed": maker(PackedGru),
}
