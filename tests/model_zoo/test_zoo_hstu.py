"""HSTU: against the paper's formulas, one sequence at a time in float64, without padding."""

import math

import pytest
import torch
from torch.nn.functional import layer_norm, silu

from gr_compile.model_zoo import HSTU, HSTUConfig

LENGTHS = [12, 1, 5, 0, 9]
CONFIG = HSTUConfig(
    num_items=40,
    max_seq_len=12,
    embedding_dim=16,
    num_layers=2,
    num_heads=3,
    attention_dim=5,
    linear_dim=4,
    dropout=0.0,
)


def make_model(**changes):
    torch.manual_seed(0)
    model = HSTU(HSTUConfig(**{**CONFIG.__dict__, **changes})).double()
    for name, parameter in model.named_parameters():
        if name.endswith(("pos_w", "ts_w", "o.bias")):
            torch.nn.init.normal_(parameter, std=0.5)  # biases large enough to be missed
    return model


def make_batch(n=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    valid = torch.arange(n) < torch.tensor(LENGTHS).unsqueeze(1)
    item_ids = torch.randint(1, 41, (len(LENGTHS), n), generator=generator) * valid
    gaps = torch.randint(0, 100_000, (len(LENGTHS), n), generator=generator)
    return item_ids, 880_000_000 + gaps.cumsum(1)


def bias(layer, timestamps, i, j, config):
    """pos_w[j - i + M - 1] + ts_w[floor(log(max(|t[i + 1] - t[j]|, 1)) / 0.301)]"""
    following = timestamps[i + 1] if i + 1 < len(timestamps) else timestamps[i]
    gap = torch.tensor(max(abs(int(following - timestamps[j])), 1))
    bucket = min(int(torch.log(gap) / 0.301), config.num_time_buckets)
    return layer.bias.pos_w[j - i + config.max_seq_len - 1] + layer.bias.ts_w[bucket]


def run_layer(layer, x, timestamps, config):
    heads, dqk, dv = config.num_heads, config.attention_dim, config.linear_dim
    mixed = silu(layer_norm(x, x.shape[-1:], eps=1e-6) @ layer.uvqk)
    u, v, q, k = mixed.split([heads * dv, heads * dv, heads * dqk, heads * dqk], dim=-1)
    rows = []
    for i in range(len(x)):
        attended = []
        for h in range(heads):
            total = torch.zeros(dv, dtype=torch.float64)
            for j in range(i + 1):
                score = q[i, h * dqk : (h + 1) * dqk] @ k[j, h * dqk : (h + 1) * dqk]
                weight = silu(score + bias(layer, timestamps, i, j, config)) / len(timestamps)
                total = total + weight * v[j, h * dv : (h + 1) * dv]
            attended.append(total)
        a = layer_norm(torch.cat(attended), [heads * dv], eps=1e-6)
        gated = torch.cat([u[i], a, u[i] * a]) if config.concat_u else u[i] * a
        rows.append(x[i] + layer.o.weight @ gated + layer.o.bias)
    return torch.stack(rows)


def run_sequence(model, items, timestamps):
    """Logits [L, V + 1] of one unpadded sequence; `timestamps` are those of the padded row."""
    config = model.config
    x = model.item_embedding.weight[items] * math.sqrt(config.embedding_dim)
    x = x + model.position_embedding.weight[: len(items)]
    for layer in model.layers:
        x = run_layer(layer, x, timestamps, config)
    table = model.item_embedding.weight
    unit = x / x.norm(dim=-1, keepdim=True)
    items_unit = table / table.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return unit @ items_unit.T / config.temperature


@pytest.mark.parametrize("concat_u", [False, True])
def test_scores_are_those_of_the_formulas_without_padding(concat_u):
    model = make_model(concat_u=concat_u).eval()
    item_ids, timestamps = make_batch()
    logits = model(item_ids, timestamps)
    for row, length in enumerate(LENGTHS):
        if length:
            expected = run_sequence(model, item_ids[row, :length], timestamps[row])[-1]
            torch.testing.assert_close(logits[row], expected, rtol=1e-9, atol=1e-9)


def test_loss_is_the_mean_over_places_with_a_target():
    model = make_model()
    item_ids, timestamps = make_batch()
    targets = torch.roll(item_ids, -1, dims=1) * (item_ids != 0)
    targets[:, -1] = 0
    parts = []
    for row, length in enumerate(LENGTHS):
        if length > 1:
            logits = run_sequence(model, item_ids[row, :length], timestamps[row])[:-1]
            wanted = targets[row, : len(logits)]
            parts.append(
                (logits.logsumexp(-1) - logits.gather(1, wanted.unsqueeze(1)).squeeze(1))[wanted > 0]
            )
    loss = model(item_ids, timestamps, targets)
    torch.testing.assert_close(loss, torch.cat(parts).mean(), rtol=1e-9, atol=1e-9)


def test_padded_places_change_nothing_but_the_slot_after_the_sequence():
    model = make_model().eval()
    item_ids, timestamps = make_batch()
    changed = timestamps.clone()
    changed[2, 6:] = 7  # row 2 has five items; slot 5 is the time of its prediction
    torch.testing.assert_close(model(item_ids, changed), model(item_ids, timestamps))
    changed[2, 5] = 7
    assert (model(item_ids, changed)[2] != model(item_ids, timestamps)[2]).any()


def test_the_divisor_is_the_padded_length_of_the_call():
    """SiLU(...) / N: at another N the same sequences score differently, unless the values ahead are zero."""
    model = make_model().eval()
    item_ids, timestamps = make_batch()
    short = model(item_ids[1:3, :8], timestamps[1:3, :8])
    assert not torch.allclose(short, model(item_ids, timestamps)[1:3], rtol=1e-12, atol=0)


def test_a_batch_of_empty_rows_is_finite_with_finite_gradients():
    model = make_model()
    item_ids = torch.zeros(2, 12, dtype=torch.int64)
    logits = model(item_ids, item_ids)
    assert logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_predict_is_forward_without_targets():
    model = make_model().eval()
    batch = make_batch()
    torch.testing.assert_close(model.predict(*batch), model(*batch), rtol=0, atol=0)


def test_dropout_acts_in_training_only():
    model = make_model(dropout=0.5)
    batch = make_batch()
    assert not torch.equal(model(*batch), model(*batch))
    model.eval()
    assert torch.equal(model(*batch), model(*batch))
