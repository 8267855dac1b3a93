"""Models whose values are jagged already: fbgemm's operators, torchrec's keyed tensors, torch's nested ones."""

from __future__ import annotations

import fbgemm_gpu  # noqa: F401  (its operators are what the models call)
import torch
import torch.nn.functional as F
from subject import Maker, Size, Subject
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

ITEMS, WIDTH, HEADS = 500, 64, 4
fbgemm = torch.ops.fbgemm


class Bias(nn.Module):
    """Relative position and time: tables read by pad-repeat-reshape and by buckets of differences."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.places, self.times = (nn.Parameter(0.02 * torch.randn(size)) for size in (2 * n - 1, 129))

    def forward(self, times: Tensor) -> Tensor:
        n, count = self.n, times.shape[0]
        rows = F.pad(self.places, [0, n]).repeat(n)[:-n].reshape(1, n, 3 * n - 2)[:, :, n - 1 : 1 - n]
        longer = torch.cat([times, times[:, n - 1 :]], dim=1)
        apart = longer[:, 1:].unsqueeze(2) - longer[:, :-1].unsqueeze(1)
        bucket = (torch.log(apart.abs().clamp(min=1)) / 0.301).long().clamp(0, 128).detach()
        return rows + self.times.index_select(0, bucket.view(-1)).view(count, n, n)


class JaggedBlock(nn.Module):
    """An HSTU layer over [T, D]; attention alone is padded."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.bias = n, Bias(n)
        self.uvqk = nn.Parameter(0.1 * torch.randn(WIDTH, 4 * WIDTH))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, offsets: Tensor, times: Tensor, seen: Tensor) -> Tensor:
        u, v, q, k = torch.split(F.silu(F.layer_norm(x, [WIDTH]) @ self.uvqk), [WIDTH] * 4, dim=1)

        def padded(values: Tensor) -> Tensor:
            dense = fbgemm.jagged_to_padded_dense(values=values, offsets=[offsets], max_lengths=[self.n], padding_value=0.0)
            return dense.view(-1, self.n, HEADS, WIDTH // HEADS)

        scores = torch.einsum("bnhd,bmhd->bhnm", padded(q), padded(k)) + self.bias(times).unsqueeze(1)
        weights = F.silu(scores) / self.n * seen.unsqueeze(0).unsqueeze(0)
        mixed = torch.einsum("bhnm,bmhd->bnhd", weights, padded(v)).reshape(-1, self.n, WIDTH)
        mixed = fbgemm.dense_to_jagged(mixed, [offsets])[0]
        return self.out(F.dropout(u * F.layer_norm(mixed, [WIDTH]), p=0.0, training=self.training)) + x


class JaggedHstu(nn.Module):
    """Activations are jagged from the embedding to the normalised output; the causal mask is a buffer."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.items, self.places = nn.Embedding(ITEMS, WIDTH, padding_idx=0), nn.Embedding(n, WIDTH)
        self.blocks = nn.ModuleList(JaggedBlock(n) for _ in range(2))
        self.register_buffer("later", torch.ones(n, n, dtype=torch.bool).triu(1))

    def forward(self, ids: Tensor, valid: Tensor, lengths: Tensor, times: Tensor) -> Tensor:
        offsets = fbgemm.asynchronous_complete_cumsum(lengths)
        x = self.items(ids) * WIDTH**0.5 + self.places(torch.arange(ids.shape[1]).unsqueeze(0).repeat(ids.shape[0], 1))
        x *= valid.unsqueeze(-1).float()
        x = fbgemm.dense_to_jagged(x, [offsets])[0]
        for block in self.blocks:
            x = block(x, offsets, times, 1.0 - self.later.to(x.dtype))
        y = fbgemm.jagged_to_padded_dense(values=x, offsets=[offsets], max_lengths=[self.later.shape[0]], padding_value=0.0)
        return y / torch.linalg.norm(y, ord=2, dim=-1, keepdim=True).clamp(min=1e-6)


class Keyed(nn.Module):
    """torchrec's embeddings of a KeyedJaggedTensor, padded for attention."""

    def __init__(self, n: int) -> None:
        super().__init__()
        table = EmbeddingConfig(num_embeddings=ITEMS, embedding_dim=WIDTH, name="table", feature_names=["ids"])
        self.items, self.n = EmbeddingCollection(tables=[table]), n
        self.attention = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, dropout=0.0, batch_first=True)

    def forward(self, keyed: KeyedJaggedTensor, labels: Tensor) -> Tensor:
        found = self.items(keyed)["ids"]
        x = fbgemm.jagged_to_padded_dense(found.values(), [found.offsets()], [self.n], 0.0)
        x = self.attention(x, src_key_padding_mask=torch.arange(self.n) >= found.lengths()[:, None])
        return F.cross_entropy((x @ self.items.embeddings["table"].weight.T).flatten(0, 1), labels.flatten(), ignore_index=0)


class Nested(nn.Module):
    """torch's jagged nested tensors."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.items, self.inner, self.n = nn.Embedding(ITEMS, WIDTH), nn.Linear(WIDTH, WIDTH), n

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = F.gelu(self.inner(self.items(ids))).to_padded_tensor(0.0, (labels.shape[0], self.n, WIDTH))
        return F.cross_entropy((x @ self.items.weight.T).flatten(0, 1), labels.flatten(), ignore_index=0)


def _rows(size: Size) -> tuple[Tensor, Tensor, Tensor]:
    """ids [B, N], times [B, N], labels [B, N]."""
    generator, mask = torch.Generator().manual_seed(3), size.mask("right")
    ids, labels = (torch.randint(1, ITEMS, mask.shape, generator=generator) * mask for _ in range(2))
    return ids, torch.randint(0, 1000, mask.shape, generator=generator).cumsum(1), labels


def hstu(size: Size) -> Subject:
    ids, times, _ = _rows(size)
    return Subject(JaggedHstu(size.n), (ids, size.mask("right"), size.lengths(), times))


def keyed(size: Size) -> Subject:
    ids, _, labels = _rows(size)
    values = ids[size.mask("right")]
    return Subject(Keyed(size.n), (KeyedJaggedTensor(keys=["ids"], values=values, lengths=size.lengths()), labels))


def nested(size: Size) -> Subject:
    ids, _, labels = _rows(size)
    rows = [row[:length] for row, length in zip(ids, size.lengths().tolist())]
    return Subject(Nested(size.n), (torch.nested.nested_tensor(rows, layout=torch.jagged), labels))


CASES: dict[str, Maker] = {
    "HSTU, jagged outside attention": hstu, "KeyedJaggedTensor": keyed, "Nested tensor, jagged": nested,
}  # fmt: skip
