"""FuXi-α: against the paper's formulas, one sequence at a time in float64, without padding."""

import math

import torch
from torch.nn.functional import silu

from gr_compile.model_zoo import FuXi, FuXiConfig

LENGTHS = [9, 1, 4, 0]
CONFIG = FuXiConfig(
    num_items=30, max_seq_len=9, embedding_dim=10, num_layers=2, num_heads=3, attention_dim=5, linear_dim=4,
    ffn_multiply=2, dropout=0.0,
)  # fmt: skip


def make_model():
    torch.manual_seed(0)
    model = FuXi(CONFIG).double()
    for name, parameter in model.named_parameters():
        if name.endswith(("pos_w", "ts_w", "combine.bias")):
            torch.nn.init.normal_(parameter, std=0.5)  # maps large enough to be missed
    return model


def make_batch(n=9):
    generator = torch.Generator().manual_seed(1)
    valid = torch.arange(n) < torch.tensor(LENGTHS).unsqueeze(1)
    ids = torch.randint(1, 31, (len(LENGTHS), n), generator=generator) * valid
    return ids, 880_000_000 + torch.randint(0, 100_000, ids.shape, generator=generator).cumsum(1)


def rms(x):
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def channels(layer, q, k, v, timestamps, i):
    """[position, time, score] for each head, one head after the other."""
    found = []
    for h in range(CONFIG.num_heads):
        qk, vs = slice(h * 5, h * 5 + 5), slice(h * 4, h * 4 + 4)
        sums = [torch.zeros(4, dtype=torch.float64) for _ in range(3)]
        for j in range(i + 1):
            following = timestamps[i + 1] if i + 1 < len(timestamps) else timestamps[i]
            gap = torch.tensor(max(abs(int(following - timestamps[j])), 1))
            bucket = min(int(torch.log(gap) / 0.301), CONFIG.num_time_buckets)
            weights = (
                layer.maps.pos_w[j - i + CONFIG.max_seq_len - 1], layer.maps.ts_w[bucket],
                silu(q[i, qk] @ k[j, qk]) / len(timestamps),
            )  # fmt: skip
            sums = [total + weight * v[j, vs] for total, weight in zip(sums, weights)]
        found += sums
    return torch.cat(found)


def run_layer(layer, x, timestamps):
    u, v, q, k = silu(rms(x) @ layer.uvqk).split([36, 12, 15, 15], dim=-1)
    ffn = layer.feed_forward
    rows = []
    for i in range(len(x)):
        gated = u[i] * rms(channels(layer, q, k, v, timestamps, i))
        y = ffn.combine.weight @ gated + ffn.combine.bias + x[i]
        n = rms(y)
        rows.append(y + ffn.contract.weight @ (silu(ffn.gate.weight @ n) * (ffn.expand.weight @ n)))
    return torch.stack(rows)


def states(model, items, timestamps):
    """States [L, D] of one unpadded sequence; `timestamps` are those of the padded row."""
    x = model.item_embedding.weight[items] * math.sqrt(CONFIG.embedding_dim)
    x = x + model.position_embedding.weight[: len(items)]
    for layer in model.layers:
        x = run_layer(layer, x, timestamps)
    return x / x.norm(dim=-1, keepdim=True)


def unit_items(model):
    table = model.item_embedding.weight
    return table / table.norm(dim=-1, keepdim=True).clamp(min=1e-6)


@torch.no_grad()
def test_scores_and_loss_are_those_of_the_formulas_without_padding():
    model, (ids, stamps) = make_model(), make_batch()
    targets = torch.roll(ids, -1, dims=1) * (ids != 0)
    targets[:, -1] = 0
    logits, losses = model.predict(ids, stamps), []
    for row, length in enumerate(LENGTHS):
        if length:
            expected = states(model, ids[row, :length], stamps[row]) @ unit_items(model).T / CONFIG.temperature
            torch.testing.assert_close(logits[row], expected[-1], rtol=1e-9, atol=1e-9)
            wanted = targets[row, :length]
            losses.append((expected.logsumexp(-1) - expected[torch.arange(length), wanted])[wanted > 0])
    torch.testing.assert_close(model(ids, stamps, targets), torch.cat(losses).mean(), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_the_loss_over_negatives_tells_each_target_from_its_own():
    model, (ids, stamps) = make_model(), make_batch()
    targets = torch.roll(ids, -1, dims=1) * (ids != 0)
    targets[:, -1] = 0
    negatives = torch.randint(1, 31, (*ids.shape, 3), generator=torch.Generator().manual_seed(2))
    losses = []
    for row, length in enumerate(LENGTHS[:3]):
        found = states(model, ids[row, :length], stamps[row])
        for place in range(length):
            if targets[row, place]:
                candidates = unit_items(model)[torch.cat([targets[row, place : place + 1], negatives[row, place]])]
                likely = (candidates @ found[place] / CONFIG.temperature).softmax(0)[0]
                losses.append(-likely.log())
    loss = model(ids, stamps, targets, negatives)
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-9, atol=1e-9)


def test_a_batch_of_empty_rows_is_finite_with_finite_gradients():
    model = make_model()
    ids = torch.zeros(2, 9, dtype=torch.int64)
    logits = model(ids, ids)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
