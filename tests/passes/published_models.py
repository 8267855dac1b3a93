"""Recommenders as their authors publish them: nothing here knows of gr_compile, and every model spells things its way.

Sequences are [B, N] item ids, 0 where padded; a model that is given `lengths` or `mask` reads those and not the ids.
Forwards return the training loss, or what the published code returns from its training step.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ITEMS = 50
LONGEST = 64


# ------------------------------------------------------------------------------- sequences of items, next item wanted
class TiSASRec(nn.Module):
    """SASRec as in the PyTorch TiSASRec repository: heads are split and concatenated into the batch, masks are tiled.

    Peculiar: padded queries are masked rather than padded keys, the feed-forward is two Conv1d of kernel 1 over
    [B, D, N], and both losses read their logits at the indices that `torch.where(pos != 0)` gives.
    """

    def __init__(self, dim: int = 32, heads: int = 2, layers: int = 2) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        self.items = nn.Embedding(ITEMS, dim, padding_idx=0)
        self.positions = nn.Embedding(LONGEST, dim)
        self.attention_norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-8) for _ in range(layers))
        self.queries = nn.ModuleList(nn.Linear(dim, dim) for _ in range(layers))
        self.keys = nn.ModuleList(nn.Linear(dim, dim) for _ in range(layers))
        self.values = nn.ModuleList(nn.Linear(dim, dim) for _ in range(layers))
        self.forward_norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-8) for _ in range(layers))
        self.first_convolutions = nn.ModuleList(nn.Conv1d(dim, dim, kernel_size=1) for _ in range(layers))
        self.second_convolutions = nn.ModuleList(nn.Conv1d(dim, dim, kernel_size=1) for _ in range(layers))
        self.last_norm = nn.LayerNorm(dim, eps=1e-8)

    def attend(self, layer: int, inputs: Tensor, queries: Tensor, time_mask: Tensor, attention_mask: Tensor) -> Tensor:
        width, batch = self.dim // self.heads, inputs.shape[0]
        q, k, v = self.queries[layer](queries), self.keys[layer](inputs), self.values[layer](inputs)
        q = torch.cat(torch.split(q, width, dim=2), dim=0)
        k = torch.cat(torch.split(k, width, dim=2), dim=0)
        v = torch.cat(torch.split(v, width, dim=2), dim=0)
        weights = q.matmul(torch.transpose(k, 1, 2)) / (k.shape[-1] ** 0.5)
        time_mask = time_mask.unsqueeze(-1).repeat(self.heads, 1, 1).expand(-1, -1, weights.shape[-1])
        attention_mask = attention_mask.unsqueeze(0).expand(weights.shape[0], -1, -1)
        paddings = torch.ones(weights.shape).to(weights.dtype) * (-(2**32) + 1)
        weights = torch.where(time_mask, paddings, weights)
        weights = torch.where(attention_mask, paddings, weights)
        outputs = F.softmax(weights, dim=-1).matmul(v)
        return torch.cat(torch.split(outputs, batch, dim=0), dim=2)

    def feed_forward(self, layer: int, inputs: Tensor) -> Tensor:
        hidden = F.relu(self.first_convolutions[layer](inputs.transpose(-1, -2)))
        return inputs + self.second_convolutions[layer](hidden).transpose(-1, -2)

    def log2feats(self, log_seqs: Tensor) -> Tensor:
        batch, n = log_seqs.shape
        seqs = self.items(log_seqs) * self.dim**0.5
        seqs = seqs + self.positions(torch.arange(n).unsqueeze(0).expand(batch, n))
        time_mask = log_seqs == 0
        seqs = seqs * ~time_mask.unsqueeze(-1)
        attention_mask = ~torch.tril(torch.ones((n, n), dtype=torch.bool))
        for layer in range(len(self.queries)):
            queries = self.attention_norms[layer](seqs)
            seqs = queries + self.attend(layer, seqs, queries, time_mask, attention_mask)
            seqs = self.feed_forward(layer, self.forward_norms[layer](seqs))
            seqs = seqs * ~time_mask.unsqueeze(-1)
        return self.last_norm(seqs)

    def forward(self, log_seqs: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        features = self.log2feats(log_seqs)
        pos_logits = (features * self.items(pos)).sum(dim=-1)
        neg_logits = (features * self.items(neg)).sum(dim=-1)
        indices = torch.where(pos != 0)
        loss = F.binary_cross_entropy_with_logits(pos_logits[indices], torch.ones_like(pos_logits[indices]))
        return loss + F.binary_cross_entropy_with_logits(neg_logits[indices], torch.zeros_like(neg_logits[indices]))


class BERT4Rec(nn.Module):
    """BERT4Rec on torch's own nn.TransformerEncoder (pre-norm, GELU).

    Peculiar: bidirectional with a key padding mask, and cross entropy over transposed logits [B, V, N].
    """

    def __init__(self, dim: int = 32, heads: int = 4, layers: int = 2) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, dim)
        self.positions = nn.Parameter(torch.randn(1, LONGEST, dim) * 0.1)
        self.norm = nn.LayerNorm(dim)
        layer = nn.TransformerEncoderLayer(
            dim, heads, 2 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(dim, ITEMS)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.norm(self.items(ids) + self.positions[:, : ids.size(1)])
        x = self.encoder(x, src_key_padding_mask=ids.eq(0))
        logits = self.head(x)
        return F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=0)


class RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class LlamaLayer(nn.Module):
    """Grouped keys and values are repeated with expand and reshape, as `repeat_kv` does."""

    def __init__(self, dim: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups = heads, groups
        width = dim // heads
        self.input_norm, self.post_norm = RMSNorm(dim), RMSNorm(dim)
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, groups * width, bias=False)
        self.v_proj = nn.Linear(dim, groups * width, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)
        self.gate_proj = nn.Linear(dim, 48, bias=False)
        self.up_proj = nn.Linear(dim, 48, bias=False)
        self.down_proj = nn.Linear(48, dim, bias=False)

    def repeat_kv(self, x: Tensor) -> Tensor:
        batch, groups, n, width = x.shape
        x = x[:, :, None, :, :].expand(batch, groups, self.heads // groups, n, width)
        return x.reshape(batch, self.heads, n, width)

    def forward(self, x: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, n, _ = x.shape
        h = self.input_norm(x)
        q = self.q_proj(h).view(batch, n, self.heads, -1).transpose(1, 2)
        k = self.k_proj(h).view(batch, n, self.groups, -1).transpose(1, 2)
        v = self.v_proj(h).view(batch, n, self.groups, -1).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        k, v = self.repeat_kv(k), self.repeat_kv(v)
        weights = torch.matmul(q, k.transpose(2, 3)) * q.shape[-1] ** -0.5 + mask
        weights = F.softmax(weights, dim=-1, dtype=torch.float64).to(q.dtype)
        mixed = torch.matmul(weights, v).transpose(1, 2).contiguous().reshape(batch, n, -1)
        x = x + self.o_proj(mixed)
        h = self.post_norm(x)
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


class LlamaDecoder(nn.Module):
    """A Llama-style decoder as Hugging Face writes it, trained on the next item.

    Peculiar: the mask is a sum of finfo.min that `masked_fill` completes, positions are a cumsum of the padding mask
    (so left padding works), the head is tied, and the loss shifts logits and labels against each other.
    """

    def __init__(self, dim: int = 32, heads: int = 4, groups: int = 2, layers: int = 2) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, dim)
        self.layers = nn.ModuleList(LlamaLayer(dim, heads, groups) for _ in range(layers))
        self.norm = RMSNorm(dim)
        width = dim // heads
        frequencies = 1.0 / (10000 ** (torch.arange(0, width, 2).float() / width))
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        batch, n = input_ids.shape
        x = self.items(input_ids)
        positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        angles = positions[..., None].to(self.frequencies.dtype) * self.frequencies
        angles = torch.cat([angles, angles], dim=-1)
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        least = torch.finfo(x.dtype).min
        causal = torch.full((n, n), least, dtype=x.dtype).triu(1)
        mask = causal[None, None].expand(batch, 1, n, n).clone()
        mask = mask.masked_fill(attention_mask[:, None, None, :] == 0, least)
        for layer in self.layers:
            x = layer(x, mask, cos, sin)
        logits = self.norm(x) @ self.items.weight.T
        shifted_logits = logits[..., :-1, :].contiguous()
        shifted_labels = labels[..., 1:].contiguous()
        return F.cross_entropy(shifted_logits.view(-1, ITEMS), shifted_labels.view(-1), ignore_index=-100)


class HSTU(nn.Module):
    """The HSTU of the generative-recommenders research code: relative position and time biases, SiLU attention.

    Peculiar: the position bias is unfolded with pad, repeat and slices, u, v, q and k come from one matmul, padded
    places are set to 0 after every layer, and the loss is a weighted mean with weights from the supervision ids.
    """

    def __init__(self, dim: int = 32, heads: int = 2, layers: int = 2, buckets: int = 32) -> None:
        super().__init__()
        self.dim, self.heads, self.buckets = dim, heads, buckets
        self.items = nn.Embedding(ITEMS, dim, padding_idx=0)
        self.uvqk = nn.ParameterList(nn.Parameter(torch.randn(dim, 4 * dim) * 0.2) for _ in range(layers))
        self.outputs = nn.ModuleList(nn.Linear(dim, dim) for _ in range(layers))
        self.position_weights = nn.Parameter(torch.randn(2 * LONGEST - 1) * 0.3)
        self.time_weights = nn.Parameter(torch.randn(buckets + 1) * 0.3)

    def relative_bias(self, timestamps: Tensor) -> Tensor:
        batch, n = timestamps.shape
        unfolded = F.pad(self.position_weights[: 2 * n - 1], [0, n]).repeat(n)
        unfolded = unfolded[..., :-n].reshape(1, n, 3 * n - 2)
        r = (2 * n - 1) // 2
        extended = torch.cat([timestamps, timestamps[:, n - 1 : n]], dim=1)
        apart = extended[:, 1:].unsqueeze(2) - extended[:, :-1].unsqueeze(1)
        bucket = (torch.log(torch.abs(apart).clamp(min=1).to(torch.float64)) / 0.301).long()
        bucket = torch.clamp(bucket, min=0, max=self.buckets).detach()
        return unfolded[:, :, r:-r] + torch.index_select(self.time_weights, 0, bucket.view(-1)).view(batch, n, n)

    def forward(self, past_ids: Tensor, timestamps: Tensor, past_lengths: Tensor, supervision_ids: Tensor) -> Tensor:
        batch, n = past_ids.shape
        x = self.items(past_ids) * self.dim**0.5
        valid = (torch.arange(n)[None, :] < past_lengths[:, None]).to(x.dtype).unsqueeze(-1)
        x = x * valid
        invalid = torch.tril(torch.ones(n, n)).to(x.dtype)
        bias = self.relative_bias(timestamps).unsqueeze(1)
        for uvqk, output in zip(self.uvqk, self.outputs):
            mixed = F.silu(torch.mm(F.layer_norm(x, (self.dim,)).view(-1, self.dim), uvqk)).view(batch, n, -1)
            u, v, q, k = torch.split(mixed, [self.dim] * 4, dim=-1)
            q, k = q.view(batch, n, self.heads, -1), k.view(batch, n, self.heads, -1)
            scores = torch.einsum("bnhd,bmhd->bhnm", q, k) + bias
            scores = F.silu(scores) / n * invalid.unsqueeze(0).unsqueeze(0)
            attended = torch.einsum("bhnm,bmhd->bnhd", scores, v.reshape(batch, n, self.heads, -1))
            attended = attended.reshape(batch, n, self.dim)
            x = (output(u * F.layer_norm(attended, (self.dim,))) + x) * valid
        x = x / torch.clamp(torch.linalg.norm(x, ord=None, dim=-1, keepdim=True), min=1e-6)
        logits = torch.mm(x.view(-1, self.dim), self.items.weight.t()) / 0.05
        weights = (supervision_ids.view(-1) != 0).to(x.dtype)
        losses = F.cross_entropy(logits, supervision_ids.view(-1), reduction="none")
        return (losses * weights).sum() / weights.sum()


class HSTUWithTargets(nn.Module):
    """HSTU for ranking: candidates stand behind the padded history, see it and themselves, and not each other.

    Peculiar: one sequence made by `torch.cat` of a ragged and a full part, so that padding lies in its middle.
    """

    def __init__(self, dim: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.items = nn.Embedding(ITEMS, dim)
        self.actions = nn.Embedding(3, dim)
        self.norm, self.mixed_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.uvqk, self.output = nn.Linear(dim, 4 * dim), nn.Linear(dim, dim)
        self.click = nn.Linear(dim, 1)

    def forward(self, history: Tensor, actions: Tensor, candidates: Tensor, labels: Tensor) -> Tensor:
        n, count = history.shape[1], candidates.shape[1]
        x = torch.cat([self.items(history) + self.actions(actions), self.items(candidates)], dim=1)
        valid = torch.cat([history != 0, torch.ones_like(candidates, dtype=torch.bool)], dim=1)
        place = torch.arange(n + count)
        seen = place[:, None] >= place[None, :]
        seen = seen & ((place[None, :] < n) | (place[:, None] == place[None, :]))
        mask = (seen.unsqueeze(0) & valid.unsqueeze(1)).unsqueeze(1)
        u, v, q, k = F.silu(self.uvqk(self.norm(x))).chunk(4, dim=-1)
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k = k.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        v = v.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        scores = F.silu(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])) * mask
        mixed = (scores @ v).transpose(1, 2).flatten(2) / (n + count)
        x = x + self.output(u * self.mixed_norm(mixed))
        logits = self.click(x[:, n:]).squeeze(-1)
        return F.binary_cross_entropy_with_logits(logits, labels)


class NextItNet(nn.Module):
    """NextItNet: a causal convolution along the sequence, here followed by a feed-forward.

    Peculiar: the convolution reads three neighbouring places, padded ones among them.
    """

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, dim, padding_idx=0)
        self.convolution = nn.Conv1d(dim, dim, kernel_size=3)
        self.feed = nn.Sequential(nn.Linear(dim, 64), nn.ReLU(), nn.Linear(64, dim))
        self.head = nn.Linear(dim, ITEMS)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.items(ids)
        shifted = F.pad(x.transpose(1, 2), (2, 0))
        x = x + F.relu(self.convolution(shifted).transpose(1, 2))
        x = x + self.feed(x)
        return F.cross_entropy(self.head(x).view(-1, ITEMS), labels.view(-1), ignore_index=0)


class GRU4Rec(nn.Module):
    """GRU4Rec on nn.GRU, which torch.compile leaves to Python."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, dim)
        self.gru = nn.GRU(dim, dim, batch_first=True)
        self.head = nn.Linear(dim, ITEMS)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        states, _ = self.gru(self.items(ids))
        last = states[torch.arange(ids.shape[0]), (lengths - 1).clamp(min=0)]
        return self.head(last)


class RecBoleSASRec(nn.Module):
    """SASRec as RecBole writes it: post-norm layers, one prediction a sequence, cross entropy over all items.

    Peculiar: the mask is `tril` of an expanded key mask turned into 0 or -10000, heads are split with view and permute,
    and `gather_indexes` picks the last place.
    """

    def __init__(self, dim: int = 32, heads: int = 2, layers: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.items = nn.Embedding(ITEMS, dim, padding_idx=0)
        self.positions = nn.Embedding(LONGEST, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-12)
        parts = ["query", "key", "value", "dense"]
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {name: nn.Linear(dim, dim) for name in parts}
                | {"first": nn.Linear(dim, 2 * dim), "second": nn.Linear(2 * dim, dim)}
                | {"norm": nn.LayerNorm(dim, eps=1e-12), "feed_norm": nn.LayerNorm(dim, eps=1e-12)}
            )
            for _ in range(layers)
        )

    def transpose_for_scores(self, x: Tensor) -> Tensor:
        shape = (*x.size()[:-1], self.heads, x.size(-1) // self.heads)
        return x.view(*shape).permute(0, 2, 1, 3)

    def get_attention_mask(self, item_seq: Tensor) -> Tensor:
        attention_mask = item_seq != 0
        extended = attention_mask.unsqueeze(1).unsqueeze(2)
        extended = torch.tril(extended.expand((-1, -1, item_seq.size(-1), -1)))
        return torch.where(extended, 0.0, -10000.0)

    @staticmethod
    def gather_indexes(output: Tensor, gather_index: Tensor) -> Tensor:
        gather_index = gather_index.view(-1, 1, 1).expand(-1, -1, output.shape[-1])
        return output.gather(dim=1, index=gather_index).squeeze(1)

    def forward(self, item_seq: Tensor, item_seq_len: Tensor, pos_items: Tensor) -> tuple[Tensor, Tensor]:
        position_ids = torch.arange(item_seq.size(1), dtype=torch.long)
        position_ids = position_ids.unsqueeze(0).expand_as(item_seq)
        x = self.norm(self.items(item_seq) + self.positions(position_ids))
        mask = self.get_attention_mask(item_seq)
        for layer in self.layers:
            q = self.transpose_for_scores(layer["query"](x))
            k = self.transpose_for_scores(layer["key"](x))
            v = self.transpose_for_scores(layer["value"](x))
            scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(q.size(-1)) + mask
            context = torch.matmul(nn.Softmax(dim=-1)(scores), v).permute(0, 2, 1, 3).contiguous()
            context = context.view(*context.size()[:-2], -1)
            x = layer["norm"](layer["dense"](context) + x)
            x = layer["feed_norm"](layer["second"](F.gelu(layer["first"](x))) + x)
        output = self.gather_indexes(x, (item_seq_len - 1).clamp(min=0))
        logits = torch.matmul(output, self.items.weight.transpose(0, 1))
        return nn.CrossEntropyLoss()(logits, pos_items), output


class SASRecBPR(nn.Module):
    """SASRec of pmixer's repository (nn.MultiheadAttention, sequence first), trained by BPR with K negatives a place.

    Peculiar: attention runs on [N, B, D] and has a causal mask alone; negatives are [B, N, K].
    """

    def __init__(self, dim: int = 32, heads: int = 2, layers: int = 2) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, dim, padding_idx=0)
        self.positions = nn.Embedding(LONGEST + 1, dim, padding_idx=0)
        self.attention_norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-8) for _ in range(layers))
        self.attentions = nn.ModuleList(nn.MultiheadAttention(dim, heads, 0.0) for _ in range(layers))
        self.forward_norms = nn.ModuleList(nn.LayerNorm(dim, eps=1e-8) for _ in range(layers))
        self.feeds = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim)) for _ in range(layers)
        )
        self.last_norm = nn.LayerNorm(dim, eps=1e-8)

    def log2feats(self, seq: Tensor) -> Tensor:
        n = seq.shape[1]
        x = self.items(seq) * self.items.embedding_dim**0.5
        x = x + self.positions(torch.arange(1, n + 1) * (seq != 0))
        mask = ~torch.tril(torch.ones((n, n), dtype=torch.bool))
        for norm, attention, forward_norm, feed in zip(
            self.attention_norms, self.attentions, self.forward_norms, self.feeds
        ):
            x = torch.transpose(x, 0, 1)
            queries = norm(x)
            outputs, _ = attention(queries, x, x, attn_mask=mask, need_weights=False)
            x = torch.transpose(queries + outputs, 0, 1)
            x = forward_norm(x)
            x = x + feed(x)
        return self.last_norm(x)

    def forward(self, seq: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        x = self.log2feats(seq)
        pos_scores = (x * self.items(pos)).sum(-1)
        neg_scores = (x.unsqueeze(2) * self.items(neg)).sum(-1)
        is_target = (pos > 0).to(x.dtype)
        losses = -F.logsigmoid(pos_scores.unsqueeze(-1) - neg_scores).mean(-1)
        return (losses * is_target).sum() / is_target.sum()


class SASRecBCE(SASRecBPR):
    """SASRec with one negative a place; both losses read `logits[pos > 0]`.

    Peculiar: a boolean index whose result, and `ones_like` of it, have a size that depends on the data.
    """

    def forward(self, seq: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        x = self.log2feats(seq)
        pos_logits = (x * self.items(pos)).sum(-1)[pos > 0]
        neg_logits = (x * self.items(neg)).sum(-1)[pos > 0]
        loss = F.binary_cross_entropy_with_logits(pos_logits, torch.ones_like(pos_logits))
        return loss + F.binary_cross_entropy_with_logits(neg_logits, torch.zeros_like(neg_logits))


class SASRecNLL(SASRecBPR):
    """SASRec over all items; `nll_loss` of a `log_softmax`, padding ignored by its index."""

    def forward(self, seq: Tensor, pos: Tensor) -> Tensor:
        logits = self.log2feats(seq) @ self.items.weight.T
        log_probabilities = F.log_softmax(logits, dim=-1)
        return F.nll_loss(log_probabilities.flatten(0, 1), pos.flatten(), ignore_index=0)


class GSASRec(nn.Module):
    """gSASRec: SASRec with generalised binary cross entropy over one positive and K negatives a place.

    Peculiar: positive and negatives are one [B, N, 1 + K] lookup, scored by an einsum, and the positive's logit is
    transformed through clamps and powers before it is concatenated back.
    """

    def __init__(self, dim: int = 32, heads: int = 2, calibration: float = 0.75) -> None:
        super().__init__()
        self.heads, self.calibration = heads, calibration
        self.items = nn.Embedding(ITEMS, dim)
        self.positions = nn.Embedding(LONGEST, dim)
        self.norm, self.forward_norm, self.last_norm = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.output = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.first, self.second = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def encode(self, ids: Tensor) -> Tensor:
        batch, n = ids.shape
        x = self.items(ids) + self.positions(torch.arange(n))
        x = x * (ids != 0).unsqueeze(-1)
        qkv = self.qkv(self.norm(x)).view(batch, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.output(mixed.transpose(1, 2).reshape(batch, n, -1))
        x = x + self.second(F.relu(self.first(self.forward_norm(x))))
        return self.last_norm(x)

    def forward(self, ids: Tensor, labels: Tensor, negatives: Tensor) -> Tensor:
        states = self.encode(ids)
        pos_neg = torch.cat([labels.unsqueeze(-1), negatives], dim=-1)
        logits = torch.einsum("bse,bsne->bsn", states, self.items(pos_neg))
        rate = negatives.shape[-1] / (ITEMS - 1)
        beta = rate * ((1 - 1 / rate) * self.calibration + 1 / rate)
        eps, most = 1e-10, torch.finfo(torch.float64).max
        positive = logits[:, :, 0:1].to(torch.float64)
        probability = torch.clamp(torch.sigmoid(positive), eps, 1 - eps)
        adjusted = torch.clamp(probability.pow(-beta), 1 + eps, most)
        positive = torch.clamp(torch.div(1.0, adjusted - 1), eps, most).log()
        logits = torch.cat([positive, logits[:, :, 1:]], dim=-1)
        truth = torch.zeros_like(logits)
        truth[:, :, 0] = 1
        mask = (labels != 0).to(logits.dtype)
        losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(-1) * mask
        return losses.sum() / mask.sum()


class ALiBiDecoder(nn.Module):
    """A decoder with ALiBi slopes and a sliding window, left-padded or right-padded.

    Peculiar: scores are filled with -inf by a window over distances, queries and keys come from one projection, and
    the loss reads `logits[labels > 0]`.
    """

    def __init__(self, dim: int = 32, heads: int = 4, window: int = 4) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.items = nn.Embedding(ITEMS, dim)
        self.norm, self.forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.output = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.feed = nn.Sequential(nn.Linear(dim, 2 * dim), nn.SiLU(), nn.Linear(2 * dim, dim))
        self.head = nn.Linear(dim, ITEMS)
        self.register_buffer("slopes", 2.0 ** -torch.arange(1, heads + 1).float(), persistent=False)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        batch, n = ids.shape
        x = self.items(ids)
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        q, k, v = (part.view(batch, n, self.heads, -1).transpose(1, 2) for part in (q, k, v))
        distance = torch.arange(n).view(-1, 1) - torch.arange(n).view(1, -1)
        scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1])
        scores = scores - self.slopes.view(1, -1, 1, 1) * distance
        scores = scores.masked_fill((distance < 0) | (distance >= self.window), float("-inf"))
        mixed = torch.einsum("bhij,bhjd->bihd", scores.softmax(dim=-1), v).reshape(batch, n, -1)
        x = x + self.output(mixed)
        x = x + self.feed(self.forward_norm(x))
        logits = self.head(x)
        return F.cross_entropy(logits[labels > 0], labels[labels > 0])


class PinnerFormer(nn.Module):
    """PinnerFormer's dense all-action loss: every place predicts each of the W actions that follow it.

    Peculiar: targets are windows made by `unfold` of the shifted ids, [B, N, W], and log-probabilities are gathered
    at them; places near a sequence's end have fewer than W.
    """

    def __init__(self, dim: int = 32, heads: int = 2, window: int = 3) -> None:
        super().__init__()
        self.window = window
        self.items = nn.Embedding(ITEMS, dim, padding_idx=0)
        self.input = nn.Linear(dim, dim)
        self.layer = nn.TransformerEncoderLayer(dim, heads, 2 * dim, dropout=0.0, batch_first=True, norm_first=True)
        self.user = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(self, ids: Tensor) -> Tensor:
        n = ids.shape[1]
        causal = torch.triu(torch.ones(n, n, dtype=torch.bool), diagonal=1)
        x = self.layer(self.input(self.items(ids)), src_mask=causal)
        users = F.normalize(self.user(x), dim=-1)
        logits = users @ F.normalize(self.items.weight, dim=-1).T / 0.1
        futures = F.pad(ids, (0, self.window)).unfold(1, self.window, 1)[:, 1:]
        log_probabilities = F.log_softmax(logits, dim=-1).gather(-1, futures)
        is_action = futures != 0
        return -(log_probabilities * is_action).sum() / is_action.sum()


class MixtureOfExperts(nn.Module):
    """A causal layer whose feed-forward is E experts mixed by softmax gates, with the usual load-balancing term.

    Peculiar: experts are stacked weights [E, D, F] in einsums over [B, N, E, F]; the balance averages gates over the
    valid places.
    """

    def __init__(self, dim: int = 16, heads: int = 2, experts: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.items = nn.Embedding(ITEMS, dim)
        self.qkv, self.output = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.norm, self.gate_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.gate = nn.Linear(dim, experts, bias=False)
        self.first = nn.Parameter(torch.randn(experts, dim, 2 * dim) * 0.2)
        self.second = nn.Parameter(torch.randn(experts, 2 * dim, dim) * 0.2)

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        batch, n = ids.shape
        x = self.items(ids)
        q, k, v = self.qkv(self.norm(x)).view(batch, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = torch.ones(n, n, dtype=torch.bool).tril()[None, None] & mask[:, None, None, :]
        seen = seen | torch.eye(n, dtype=torch.bool)[None, None]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = x + self.output(mixed.transpose(1, 2).flatten(2))
        normed = self.gate_norm(x)
        gates = F.softmax(self.gate(normed), dim=-1)
        hidden = F.gelu(torch.einsum("bnd,edf->bnef", normed, self.first))
        expert_outputs = torch.einsum("bnef,efd->bned", hidden, self.second)
        x = x + torch.einsum("bne,bned->bnd", gates, expert_outputs)
        load = (gates * mask.unsqueeze(-1)).sum(dim=(0, 1)) / mask.sum()
        balance = gates.shape[-1] * (load * load).sum()
        logits = F.linear(x, self.items.weight)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=0) + 0.01 * balance


class CL4SRec(nn.Module):
    """CL4SRec: next-item loss and InfoNCE between two augmented views of each sequence, left-padded.

    Peculiar: one encoder runs three times, on ids and on two views that are padded differently; the contrastive part
    reads the last place of each, and similarities are [2B, 2B] with the diagonal filled.
    """

    def __init__(self, dim: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, dim, padding_idx=0)
        self.positions = nn.Embedding(LONGEST, dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm, self.forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.feed = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def encode(self, ids: Tensor) -> Tensor:
        n = ids.size(1)
        x = self.items(ids) + self.positions.weight[:n]
        x = x * (ids > 0).unsqueeze(-1)
        causal = torch.triu(torch.full((n, n), float("-inf"), dtype=x.dtype), diagonal=1)
        mixed, _ = self.attention(x, x, x, attn_mask=causal, need_weights=False)
        x = self.norm(x + mixed)
        return self.forward_norm(x + self.feed(x))

    def info_nce(self, first: Tensor, second: Tensor) -> Tensor:
        batch = first.size(0)
        both = F.normalize(torch.cat([first, second], dim=0), dim=-1)
        similarity = both @ both.T / 0.2
        similarity = similarity.masked_fill(torch.eye(2 * batch, dtype=torch.bool), -1e9)
        partners = torch.cat([torch.arange(batch) + batch, torch.arange(batch)])
        return F.cross_entropy(similarity, partners)

    def forward(self, ids: Tensor, labels: Tensor, first_view: Tensor, second_view: Tensor) -> Tensor:
        logits = self.encode(ids) @ self.items.weight.T
        loss = F.cross_entropy(logits.reshape(-1, ITEMS), labels.reshape(-1), ignore_index=0)
        contrast = self.info_nce(self.encode(first_view)[:, -1], self.encode(second_view)[:, -1])
        return loss + 0.1 * contrast


class SSEPT(nn.Module):
    """SSE-PT: the user's embedding is concatenated to every item's before causal attention.

    Peculiar: a value without places joins each token, and positive and negative embeddings get it too.
    """

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.items, self.users = nn.Embedding(ITEMS, dim, padding_idx=0), nn.Embedding(20, dim)
        self.positions = nn.Parameter(torch.randn(LONGEST, 2 * dim) * 0.1)
        self.norm, self.last_norm = nn.LayerNorm(2 * dim), nn.LayerNorm(2 * dim)
        self.query, self.key, self.value = (nn.Linear(2 * dim, 2 * dim) for _ in range(3))
        self.feed = nn.Sequential(nn.Linear(2 * dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, 2 * dim))

    def forward(self, user: Tensor, ids: Tensor, pos: Tensor, neg: Tensor) -> Tensor:
        n = ids.shape[1]
        users = self.users(user).unsqueeze(1).repeat(1, n, 1)
        x = torch.cat([self.items(ids), users], dim=-1) + self.positions[:n]
        mask = (ids != 0).to(x.dtype).unsqueeze(-1)
        x = x * mask
        normed = self.norm(x)
        scores = torch.bmm(self.query(normed), self.key(x).transpose(1, 2)) / x.shape[-1] ** 0.5
        scores = scores.masked_fill(torch.triu(torch.ones(n, n), diagonal=1).bool(), -1e9)
        scores = scores.masked_fill((ids == 0).unsqueeze(1), -1e9)
        x = normed + torch.bmm(torch.softmax(scores, dim=-1), self.value(x))
        x = self.last_norm(x + self.feed(x)) * mask
        pos_logits = (x * torch.cat([self.items(pos), users], dim=-1)).sum(-1)
        neg_logits = (x * torch.cat([self.items(neg), users], dim=-1)).sum(-1)
        is_target = (pos != 0).to(x.dtype)
        losses = -torch.log(torch.sigmoid(pos_logits) + 1e-24) - torch.log(1 - torch.sigmoid(neg_logits) + 1e-24)
        return (losses * is_target).sum() / is_target.sum()


class STOSA(nn.Module):
    """STOSA: items are Gaussians, and attention is softmax of the negative Wasserstein distance between them.

    Peculiar: scores are no product of queries and keys but |q|^2 + |k|^2 - 2 q.k, twice, and one set of weights mixes
    means and, squared, covariances.
    """

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.means, self.covariances = nn.Embedding(ITEMS, dim), nn.Embedding(ITEMS, dim)
        self.mean_q, self.mean_k, self.mean_v = (nn.Linear(dim, dim) for _ in range(3))
        self.cov_q, self.cov_k, self.cov_v = (nn.Linear(dim, dim) for _ in range(3))
        self.mean_norm, self.cov_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)

    @staticmethod
    def wasserstein(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> Tensor:
        ret = -2 * torch.matmul(mean1, mean2.transpose(-1, -2))
        ret = ret + torch.sum(mean1**2, -1, keepdim=True) + torch.sum(mean2**2, -1, keepdim=True).transpose(-1, -2)
        cov1_sqrt, cov2_sqrt = torch.sqrt(torch.clamp(cov1, min=1e-24)), torch.sqrt(torch.clamp(cov2, min=1e-24))
        cov = -2 * torch.matmul(cov1_sqrt, cov2_sqrt.transpose(-1, -2))
        cov = cov + torch.sum(cov1, -1, keepdim=True) + torch.sum(cov2, -1, keepdim=True).transpose(-1, -2)
        return ret + cov

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        n = ids.shape[1]
        mean, cov = self.means(ids), F.elu(self.covariances(ids)) + 1
        mean_v, cov_v = self.mean_v(mean), F.elu(self.cov_v(cov)) + 1
        distance = self.wasserstein(
            self.mean_q(mean), F.elu(self.cov_q(cov)) + 1, self.mean_k(mean), F.elu(self.cov_k(cov)) + 1
        )
        seen = (ids > 0).unsqueeze(1) & torch.tril(torch.ones(n, n)).bool()
        scores = -distance / math.sqrt(mean.shape[-1]) + (1.0 - seen.to(mean.dtype)) * -10000.0
        weights = torch.softmax(scores, dim=-1)
        mean = self.mean_norm(mean + weights @ mean_v)
        cov = self.cov_norm(cov + (weights**2) @ cov_v)
        logits = mean @ self.means.weight.T + F.elu(cov) @ (F.elu(self.covariances.weight) + 1).T
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=0)


class FMLPRec(nn.Module):
    """FMLP-Rec: a learnable filter on the Fourier transform along the sequence replaces attention.

    Peculiar: `rfft` over places reads all of them, padded ones too; left-padded, the last place is the user.
    """

    def __init__(self, dim: int = 16, longest: int = 11) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, dim, padding_idx=0)
        self.filter = nn.Parameter(torch.randn(1, longest // 2 + 1, dim, 2) * 0.2)
        self.norm, self.forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.feed = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, ids: Tensor, target: Tensor) -> Tensor:
        n = ids.shape[1]
        x = self.items(ids)
        spectrum = torch.fft.rfft(x, dim=1, norm="ortho")
        spectrum = spectrum * torch.view_as_complex(self.filter[:, : spectrum.shape[1]].contiguous())
        x = self.norm(x + torch.fft.irfft(spectrum, n=n, dim=1, norm="ortho"))
        x = self.forward_norm(x + self.feed(x))
        return F.cross_entropy(x[:, -1] @ self.items.weight.T, target)


class S3Rec(nn.Module):
    """S3-Rec / FDSA: each item has a padded bag of attributes, averaged and fused with the item before attention.

    Peculiar: attributes are [B, N, A] with padding of their own inside the sequence's padding.
    """

    def __init__(self, dim: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.items, self.attributes = nn.Embedding(ITEMS, dim, padding_idx=0), nn.Embedding(30, dim, padding_idx=0)
        self.fuse = nn.Linear(2 * dim, dim)
        self.encoder = nn.TransformerEncoderLayer(dim, heads, 2 * dim, dropout=0.0, batch_first=True)
        self.item_head, self.attribute_head = nn.Linear(dim, ITEMS), nn.Linear(dim, 30)

    def forward(self, ids: Tensor, attributes: Tensor, labels: Tensor) -> Tensor:
        n = ids.shape[1]
        present = (attributes != 0).unsqueeze(-1)
        bag = (self.attributes(attributes) * present).sum(2) / present.sum(2).clamp(min=1)
        x = self.fuse(torch.cat([self.items(ids), bag], dim=-1))
        x = self.encoder(x, src_mask=torch.triu(torch.ones(n, n, dtype=torch.bool), diagonal=1))
        item_loss = F.cross_entropy(self.item_head(x).view(-1, ITEMS), labels.view(-1), ignore_index=0)
        wanted = F.one_hot(attributes, 30).amax(2)[..., 1:].to(x.dtype)
        losses = F.binary_cross_entropy_with_logits(self.attribute_head(x)[..., 1:], wanted, reduction="none")
        valid = (ids != 0).unsqueeze(-1)
        return item_loss + (losses * valid).sum() / valid.sum()


class TIGER(nn.Module):
    """TIGER: a T5 encoder over the history's codes and a decoder of C codes, with T5's relative position buckets.

    Peculiar: the encoder's bias is an embedding of logarithmic distance buckets without scaling of scores; C decoder
    places attend to the N padded ones across.
    """

    def __init__(self, dim: int = 32, heads: int = 4, buckets: int = 8) -> None:
        super().__init__()
        self.heads, self.buckets = heads, buckets
        self.codes = nn.Embedding(ITEMS, dim)
        self.relative = nn.Embedding(buckets, heads)
        self.encoder_qkv, self.encoder_o = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.wi, self.wo = nn.Linear(dim, 2 * dim, bias=False), nn.Linear(2 * dim, dim, bias=False)
        self.self_qkv, self.self_o = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.cross_q, self.cross_kv = nn.Linear(dim, dim, bias=False), nn.Linear(dim, 2 * dim, bias=False)
        self.cross_o = nn.Linear(dim, dim, bias=False)
        self.norms = nn.ModuleList(RMSNorm(dim) for _ in range(6))

    def shape(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], -1, self.heads, x.shape[-1] // self.heads).transpose(1, 2)

    def unshape(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous().view(x.shape[0], -1, self.heads * x.shape[-1])

    def relative_position_bucket(self, relative_position: Tensor) -> Tensor:
        """Bidirectional: half of the buckets for each sign, half of those exact, the rest logarithmic."""
        num_buckets = self.buckets // 2
        bucket = (relative_position > 0).long() * num_buckets
        distance = torch.abs(relative_position)
        max_exact = num_buckets // 2
        large = torch.log(distance.float() / max_exact) / math.log(16 / max_exact) * (num_buckets - max_exact)
        large = max_exact + large.clamp(min=0).long()
        large = torch.min(large, torch.full_like(large, num_buckets - 1))
        return bucket + torch.where(distance < max_exact, distance, large)

    def compute_bias(self, n: int) -> Tensor:
        context_position = torch.arange(n, dtype=torch.long)[:, None]
        memory_position = torch.arange(n, dtype=torch.long)[None, :]
        bucket = self.relative_position_bucket(memory_position - context_position)
        return self.relative(bucket).permute([2, 0, 1]).unsqueeze(0)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        scores = torch.matmul(q, k.transpose(3, 2)) + bias
        return self.unshape(torch.matmul(F.softmax(scores, dim=-1).type_as(scores), v))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> Tensor:
        x = self.codes(input_ids)
        extended_mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(torch.float32).min
        q, k, v = (self.shape(part) for part in self.encoder_qkv(self.norms[0](x)).chunk(3, dim=-1))
        x = x + self.encoder_o(self.attend(q, k, v, self.compute_bias(input_ids.shape[1]) + extended_mask))
        x = x + self.wo(F.relu(self.wi(self.norms[1](x))))
        memory = self.norms[2](x)

        count = labels.shape[1]
        y = self.codes(F.pad(labels[:, :-1], (1, 0)))
        causal = torch.triu(torch.full((count, count), torch.finfo(torch.float32).min, dtype=y.dtype), 1)
        q, k, v = (self.shape(part) for part in self.self_qkv(self.norms[3](y)).chunk(3, dim=-1))
        y = y + self.self_o(self.attend(q, k, v, causal))
        k, v = (self.shape(part) for part in self.cross_kv(memory).chunk(2, dim=-1))
        y = y + self.cross_o(self.attend(self.shape(self.cross_q(self.norms[4](y))), k, v, extended_mask))
        logits = self.norms[5](y) @ self.codes.weight.T
        return F.cross_entropy(logits.view(-1, ITEMS), labels.reshape(-1))


class LinRec(nn.Module):
    """LinRec: attention without softmax, elu of queries and keys normalised over features and over places.

    Peculiar: keys and values contract over places to [B, H, D, D] first; keys are divided by their norm along the
    sequence, padded keys being 0.
    """

    def __init__(self, dim: int = 32, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.items = nn.Embedding(ITEMS, dim)
        self.query, self.key, self.value, self.dense = (nn.Linear(dim, dim) for _ in range(4))
        self.norm, self.forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.feed = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        batch, n = ids.shape
        x = self.items(ids)
        mask = (ids != 0)[:, None, :, None]
        q = F.elu(self.query(x).view(batch, n, self.heads, -1).permute(0, 2, 1, 3))
        k = F.elu(self.key(x).view(batch, n, self.heads, -1).permute(0, 2, 1, 3)) * mask
        v = self.value(x).view(batch, n, self.heads, -1).permute(0, 2, 1, 3)
        q = q / torch.norm(q, dim=-1, keepdim=True)
        k = k / (torch.norm(k, dim=-2, keepdim=True) + 1e-6)
        context = torch.matmul(q, torch.matmul(k.transpose(-1, -2), v)) / math.sqrt(q.shape[-1])
        x = self.norm(self.dense(context.permute(0, 2, 1, 3).reshape(batch, n, -1)) + x)
        x = self.forward_norm(self.feed(x) + x)
        return F.cross_entropy((x @ self.items.weight.T).transpose(1, 2), labels, ignore_index=0)


class CausalLinearAttention(nn.Module):
    """Linear attention with elu + 1 features, made causal by cumulative sums along the sequence.

    Peculiar: `cumsum` of keys times values, [B, N, H, D, D], carries every earlier place on.
    """

    def __init__(self, dim: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.items = nn.Embedding(ITEMS, dim)
        self.qkv, self.dense = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.feed = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        batch, n = ids.shape
        x = self.items(ids)
        q, k, v = (part.view(batch, n, self.heads, -1) for part in self.qkv(x).chunk(3, dim=-1))
        q, k = F.elu(q) + 1, (F.elu(k) + 1) * (ids != 0)[:, :, None, None]
        outer = torch.einsum("bnhd,bnhe->bnhde", k, v)
        context = outer.cumsum(dim=1)
        total = k.cumsum(dim=1)
        mixed = torch.einsum("bnhd,bnhde->bnhe", q, context)
        mixed = mixed / (torch.einsum("bnhd,bnhd->bnh", q, total) + 1e-6).unsqueeze(-1)
        x = x + self.dense(mixed.flatten(2))
        x = x + self.feed(x)
        return F.cross_entropy((x @ self.items.weight.T).flatten(0, 1), labels.flatten(), ignore_index=0)


# ------------------------------------------------------------------------------------ sessions and pooled histories
class STAMP(nn.Module):
    """STAMP: additive attention of each click against the last click and the session's mean.

    Peculiar: the mean sums all places and trusts `padding_idx` rows to be 0; the last click is gathered by length.
    """

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, dim, padding_idx=0)
        self.w0 = nn.Linear(dim, 1, bias=False)
        self.w1, self.w2, self.w3 = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.b_a = nn.Parameter(torch.zeros(dim))
        self.mlp_a, self.mlp_b = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, ids: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        x = self.items(ids)
        last = x.gather(1, (lengths - 1).clamp(min=0).view(-1, 1, 1).expand(-1, 1, x.shape[-1])).squeeze(1)
        session_mean = x.sum(1) / lengths.clamp(min=1).unsqueeze(1)
        scores = self.w1(x) + self.w2(last).unsqueeze(1) + self.w3(session_mean).unsqueeze(1) + self.b_a
        alpha = self.w0(torch.sigmoid(scores))
        mask = (torch.arange(ids.shape[1]) < lengths.unsqueeze(1)).unsqueeze(-1)
        session = (alpha * mask * x).sum(1) + session_mean
        user = torch.tanh(self.mlp_a(session)) * torch.tanh(self.mlp_b(last))
        return F.cross_entropy(user @ self.items.weight.T, target)


class CORE(nn.Module):
    """CORE (RecBole): a session is a weighted sum of its own item embeddings, weights by a transformer.

    Peculiar: weights are softmax over places of one number a token, masked with -9e15 through `torch.where`, and
    scores are cosine similarities with every item.
    """

    def __init__(self, dim: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, dim, padding_idx=0)
        self.encoder = nn.TransformerEncoderLayer(dim, heads, 2 * dim, dropout=0.0, batch_first=True)
        self.fn = nn.Linear(dim, 1)

    def forward(self, ids: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        x = self.items(ids)
        mask = ids.gt(0)
        hidden = self.encoder(x, src_key_padding_mask=~mask)
        alpha = self.fn(hidden).to(torch.double)
        alpha = torch.where(mask.unsqueeze(-1), alpha, -9e15)
        alpha = torch.softmax(alpha, dim=1)
        session = F.normalize(torch.sum(alpha * x, dim=1), dim=-1)
        logits = torch.matmul(session, F.normalize(self.items.weight, dim=-1).transpose(0, 1)) / 0.07
        return F.cross_entropy(logits, target), session


class MeanOfTwoEmbeddings(nn.Module):
    """YouTube-DNN style: item and category embeddings, a feed-forward a token, a masked mean."""

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.items, self.categories = nn.Embedding(ITEMS, dim), nn.Embedding(ITEMS, dim)
        self.feed = nn.Sequential(nn.Linear(2 * dim, 32), nn.GELU(), nn.Linear(32, dim))
        self.head = nn.Linear(dim, ITEMS)

    def forward(self, ids: Tensor, categories: Tensor, target: Tensor) -> Tensor:
        mask = (ids != 0).unsqueeze(-1)
        x = self.feed(torch.cat([self.items(ids), self.categories(categories)], dim=-1))
        user = (x * mask).sum(1) / mask.sum(1).clamp(min=1)
        return F.cross_entropy(self.head(user), target)


class TwoTower(nn.Module):
    """A two-tower retriever: additive attention pools the history, in-batch softmax with log-Q correction.

    Peculiar: pooling weights are [B, N] and contract by einsum; logits are [B, B].
    """

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, dim)
        self.history = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
        self.attention = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, 1, bias=False))
        self.user, self.item = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, ids: Tensor, mask: Tensor, target: Tensor, log_q: Tensor) -> Tensor:
        x = self.history(self.items(ids))
        scores = self.attention(x).squeeze(-1).masked_fill(~mask, float("-inf"))
        weights = torch.softmax(scores, dim=-1)
        users = F.normalize(self.user(torch.einsum("bn,bnd->bd", weights, x)), dim=-1)
        items = F.normalize(self.item(self.items(target)), dim=-1)
        logits = users @ items.T / 0.05 - log_q.unsqueeze(0)
        return F.cross_entropy(logits, torch.arange(ids.shape[0]))


class ComiRecSA(nn.Module):
    """ComiRec-SA: K attention heads over the history give K interests; the one nearest to the target is trained.

    Peculiar: scores are [B, K, N] by a transpose, padding is a tiled mask with -2^32 + 1, and the chosen interest is
    an argmax that indexes the flattened [B * K, D].
    """

    def __init__(self, dim: int = 16, interests: int = 3) -> None:
        super().__init__()
        self.interests = interests
        self.items = nn.Embedding(ITEMS, dim, padding_idx=0)
        self.positions = nn.Parameter(torch.randn(1, LONGEST, dim) * 0.1)
        self.linear1 = nn.Sequential(nn.Linear(dim, 4 * dim, bias=False), nn.Tanh())
        self.linear2 = nn.Linear(4 * dim, interests, bias=False)

    def forward(self, ids: Tensor, mask: Tensor, target: Tensor) -> Tensor:
        x = self.items(ids)
        hidden = self.linear1(x + self.positions[:, : ids.shape[1]])
        weights = self.linear2(hidden).transpose(2, 1)
        tiled = mask.unsqueeze(1).repeat(1, self.interests, 1)
        paddings = torch.ones_like(tiled, dtype=x.dtype) * (-(2**32) + 1)
        weights = F.softmax(torch.where(tiled.eq(0), paddings, weights), dim=-1)
        interests = torch.matmul(weights, x)
        label = self.items(target)
        nearest = torch.argmax(torch.matmul(interests, label.unsqueeze(-1)).squeeze(-1), dim=-1)
        offsets = torch.arange(ids.shape[0]) * self.interests
        chosen = interests.view(-1, x.shape[-1])[nearest + offsets]
        return F.cross_entropy(chosen @ self.items.weight.T, target)


class MIND(nn.Module):
    """MIND: behaviours route to K interest capsules in three rounds, then label-aware attention over the capsules.

    Peculiar: routing logits start from a fixed buffer, are updated from detached capsules, and softmax runs over
    capsules with padded behaviours zeroed afterwards.
    """

    def __init__(self, dim: int = 16, interests: int = 3, rounds: int = 3) -> None:
        super().__init__()
        self.rounds = rounds
        self.items = nn.Embedding(ITEMS, dim)
        self.bilinear = nn.Linear(dim, dim, bias=False)
        self.feed = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
        self.register_buffer("routing", torch.randn(1, interests, LONGEST))

    @staticmethod
    def squash(x: Tensor) -> Tensor:
        length = x.pow(2).sum(-1, keepdim=True)
        return length / (1 + length) / torch.sqrt(length + 1e-9) * x

    def forward(self, ids: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        batch, n = ids.shape
        behaviours = self.bilinear(self.items(ids))
        fixed = behaviours.detach()
        mask = (torch.arange(n)[None, :] < lengths[:, None]).unsqueeze(1)
        logits = self.routing[:, :, :n].expand(batch, -1, -1)
        for _ in range(self.rounds - 1):
            weights = torch.where(mask, torch.softmax(logits, dim=1), 0.0)
            capsules = self.squash(torch.bmm(weights, fixed))
            logits = logits + torch.bmm(capsules, fixed.transpose(1, 2))
        weights = torch.where(mask, torch.softmax(logits, dim=1), 0.0)
        capsules = self.feed(self.squash(torch.bmm(weights, behaviours)))
        label = self.items(target)
        attention = torch.softmax(torch.bmm(capsules, label.unsqueeze(-1)).squeeze(-1) ** 2, dim=-1)
        user = (capsules * attention.unsqueeze(-1)).sum(1)
        return F.cross_entropy(user @ self.items.weight.T, target)


# ---------------------------------------------------------------------------------------- a candidate and a history
class DIN(nn.Module):
    """Deep Interest Network: an MLP on [candidate, item, difference, product] weighs each item; weights are summed.

    Peculiar: no softmax, weights are multiplied by the mask; PReLU in the attention MLP.
    """

    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, dim)
        self.attention = nn.Sequential(nn.Linear(4 * dim, 36), nn.PReLU(), nn.Linear(36, 1))
        self.mlp = nn.Sequential(nn.Linear(2 * dim, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, history: Tensor, candidate: Tensor, label: Tensor) -> Tensor:
        x, target = self.items(history), self.items(candidate)
        query = target.unsqueeze(1).expand(-1, history.shape[1], -1)
        weights = self.attention(torch.cat([query, x, query - x, query * x], dim=-1)).squeeze(-1)
        weights = weights * (history > 0).float()
        user = (weights.unsqueeze(-1) * x).sum(1)
        return F.binary_cross_entropy_with_logits(self.mlp(torch.cat([user, target], dim=-1)).squeeze(-1), label)


class SoftmaxDIN(DIN):
    """DIN with softmax over the history, as in FuxiCTR and many Kaggle notebooks.

    Peculiar: `repeat` of the candidate, softmax over dim 1 of [B, N, 1], pooling by bmm of the transpose.
    """

    def forward(self, history: Tensor, candidate: Tensor, label: Tensor) -> Tensor:
        x, target = self.items(history), self.items(candidate)
        query = target.unsqueeze(1).repeat(1, history.shape[1], 1)
        weights = self.attention(torch.cat([query, x, query - x, query * x], dim=-1))
        weights = weights.masked_fill((history == 0).unsqueeze(-1), -1e9)
        weights = F.softmax(weights / x.shape[-1] ** 0.5, dim=1)
        user = torch.bmm(weights.transpose(1, 2), x).squeeze(1)
        return F.binary_cross_entropy_with_logits(self.mlp(torch.cat([user, target], dim=-1)).squeeze(-1), label)


class CandidateQueriesHistory(nn.Module):
    """Target attention on nn.MultiheadAttention: one query a sequence, keys with a padding mask.

    Peculiar: an empty history gives NaN, which `nan_to_num` turns into 0.
    """

    def __init__(self, dim: int = 32) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, dim)
        self.feed = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
        self.attention = nn.MultiheadAttention(dim, 4, batch_first=True, dropout=0.0)
        self.head = nn.Linear(dim, 1)

    def forward(self, history: Tensor, candidate: Tensor, label: Tensor) -> Tensor:
        x = self.feed(self.items(history))
        query = self.items(candidate).unsqueeze(1)
        mixed, _ = self.attention(query, x, x, key_padding_mask=history == 0)
        mixed = torch.nan_to_num(mixed, nan=0.0)
        return F.binary_cross_entropy_with_logits(self.head(mixed.squeeze(1)).squeeze(-1), label)


class DCNPerToken(nn.Module):
    """DCN-v2 cross layers on each behaviour's features, then sum and masked maximum over the history.

    Peculiar: x0 * (W x + b) + x over tokens that carry float features beside ids; two poolings of one value.
    """

    def __init__(self, dim: int = 8, features: int = 3, layers: int = 2) -> None:
        super().__init__()
        width = 2 * dim + features
        self.items, self.categories = nn.Embedding(ITEMS, dim), nn.Embedding(ITEMS, dim)
        self.crosses = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.head = nn.Sequential(nn.Linear(2 * width, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, ids: Tensor, categories: Tensor, features: Tensor, label: Tensor) -> Tensor:
        x0 = torch.cat([self.items(ids), self.categories(categories), features], dim=-1)
        x = x0
        for cross in self.crosses:
            x = x0 * cross(x) + x
        mask = (ids != 0).unsqueeze(-1)
        summed = x.masked_fill(~mask, 0.0).sum(dim=1)
        largest = x.masked_fill(~mask, -1e4).max(dim=1).values
        return F.binary_cross_entropy_with_logits(self.head(torch.cat([summed, largest], -1)).squeeze(-1), label)


class BST(nn.Module):
    """Behaviour Sequence Transformer: the candidate is the last token; all outputs are flattened into an MLP.

    Peculiar: the MLP's input is N + 1 tokens wide, so lengths are fixed; padded tokens are zeroed before `flatten`.
    """

    def __init__(self, dim: int = 16, heads: int = 2, longest: int = 9) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, dim)
        self.positions = nn.Parameter(torch.randn(longest + 1, dim) * 0.1)
        self.encoder = nn.TransformerEncoderLayer(dim, heads, 2 * dim, dropout=0.0, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear((longest + 1) * dim, 32), nn.LeakyReLU(), nn.Linear(32, 1))

    def forward(self, history: Tensor, candidate: Tensor, label: Tensor) -> Tensor:
        ids = torch.cat([history, candidate.unsqueeze(1)], dim=1)
        padded = ids == 0
        x = self.encoder(self.items(ids) + self.positions, src_key_padding_mask=padded)
        x = x * (~padded).unsqueeze(-1)
        return F.binary_cross_entropy_with_logits(self.mlp(x.flatten(1)).squeeze(-1), label)


class SIM(nn.Module):
    """SIM soft search: the K behaviours most similar to the candidate are gathered, then attended to.

    Peculiar: `topk` over places reads all scores, and short histories leave padded places among the K.
    """

    def __init__(self, dim: int = 16, k: int = 4) -> None:
        super().__init__()
        self.k = k
        self.items = nn.Embedding(ITEMS, dim)
        self.history = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim))
        self.head = nn.Linear(2 * dim, 1)

    def forward(self, history: Tensor, candidate: Tensor, label: Tensor) -> Tensor:
        x, target = self.history(self.items(history)), self.items(candidate)
        similarity = torch.einsum("bnd,bd->bn", x, target)
        similarity = similarity.masked_fill(history == 0, -1e9)
        best, index = similarity.topk(self.k, dim=1)
        found = x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        weights = F.softmax(best, dim=-1) * (best > -1e8)
        user = (weights.unsqueeze(-1) * found).sum(1)
        return F.binary_cross_entropy_with_logits(self.head(torch.cat([user, target], -1)).squeeze(-1), label)


class TransAct(nn.Module):
    """TransAct: the candidate is concatenated to every action's features, then a transformer, then two read-outs.

    Peculiar: the first K outputs and the maximum over places go to the ranker; actions are most recent first.
    """

    def __init__(self, dim: int = 16, heads: int = 2, first: int = 3) -> None:
        super().__init__()
        self.first = first
        self.items, self.actions = nn.Embedding(ITEMS, dim), nn.Embedding(5, dim)
        layer = nn.TransformerEncoderLayer(3 * dim, heads, 2 * dim, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(3 * dim, dim)
        self.head = nn.Linear((first + 1) * dim, 1)

    def forward(self, ids: Tensor, actions: Tensor, candidate: Tensor, label: Tensor) -> Tensor:
        padding = ids == 0
        target = self.items(candidate).unsqueeze(1).expand(-1, ids.shape[1], -1)
        x = torch.cat([self.items(ids), self.actions(actions), target], dim=2)
        x = self.encoder(x, src_key_padding_mask=padding)
        x = self.out(x).masked_fill(padding.unsqueeze(2), 0.0)
        largest = x.max(dim=1)[0]
        user = torch.cat([x[:, : self.first].flatten(1), largest], dim=1)
        return F.binary_cross_entropy_with_logits(self.head(user).squeeze(-1), label)
