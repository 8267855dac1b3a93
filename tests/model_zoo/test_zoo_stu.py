"""STU: the mask by its rules, the layer one sequence at a time in float64, without padding."""

import math

import pytest
import torch
from torch.nn.functional import silu

from gr_compile.model_zoo import STU, STUConfig
from gr_compile.model_zoo.stu import valid_attention_mask

N = 10
LENGTHS = [10, 6, 3, 0, 8]
TARGETS = [2, 3, 0, 0, 1]
CONFIG = STUConfig(
    num_items=30,
    max_seq_len=N,
    embedding_dim=12,
    num_heads=2,
    attention_dim=5,
    hidden_dim=4,
    contextual_seq_len=2,
    num_context_ids=6,
    max_attn_len=3,
    dropout=0.0,
)


def allowed(i, j, length, targets, window, context):
    """The rules of Meta's `_get_valid_attn_mask` for one pair of places of one sequence."""
    top = length - targets - (context - 1 if context else 0)

    def place(index):
        return min(max(index - context + 1, 0) if context else index, top)

    ahead = place(i) - place(j)
    answer = i == j or ahead > 0
    if window:
        answer = answer and ahead <= window
    if context:
        answer = answer or (place(i) == 0 and place(j) < top)
    return answer


@pytest.mark.parametrize("window", [0, 3])
@pytest.mark.parametrize("context", [0, 2])
def test_mask_follows_the_rules(window, context):
    mask = valid_attention_mask(N, torch.tensor(LENGTHS), torch.tensor(TARGETS), window, context)
    for row, (length, targets) in enumerate(zip(LENGTHS, TARGETS)):
        for i in range(N):
            for j in range(N):
                assert mask[row, i, j] == allowed(i, j, length, targets, window, context), (row, i, j)


def test_targets_see_the_history_and_themselves_only():
    mask = valid_attention_mask(6, torch.tensor([6]), torch.tensor([3]))[0]
    assert mask[3:, :3].all()
    assert torch.equal(mask[3:, 3:], torch.eye(3, dtype=torch.bool))


def test_valid_places_never_see_padded_ones():
    for window in (0, 3):
        for context in (0, 2):
            mask = valid_attention_mask(N, torch.tensor(LENGTHS), torch.tensor(TARGETS), window, context)
            for row, length in enumerate(LENGTHS):
                assert not mask[row, :length, length:].any()


def make_model():
    torch.manual_seed(0)
    model = STU(CONFIG).double().eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("uvqk.bias"):
            torch.nn.init.normal_(parameter, mean=0.5, std=0.5)
    return model


def make_batch():
    generator = torch.Generator().manual_seed(1)
    lengths, num_targets = torch.tensor(LENGTHS), torch.tensor(TARGETS)
    item_ids = torch.randint(1, 31, (len(LENGTHS), N), generator=generator)
    item_ids[:, :2] = torch.randint(31, 37, (len(LENGTHS), 2), generator=generator)
    item_ids = item_ids * (torch.arange(N) < lengths.unsqueeze(1))
    timestamps = 1_650_000_000 + torch.randint(0, 5000, (len(LENGTHS), N), generator=generator).cumsum(1)
    return item_ids, timestamps, lengths, num_targets


def normed(x, norm):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight + norm.bias


def run_layer(layer, x, length, targets):
    heads, dqk, dv = CONFIG.num_heads, CONFIG.attention_dim, CONFIG.hidden_dim
    mixed = normed(x, layer.input_norm) @ layer.uvqk.weight.T + layer.uvqk.bias
    u, v, q, k = mixed.split([heads * dv, heads * dv, heads * dqk, heads * dqk], dim=-1)
    u = silu(u)
    attended = torch.zeros_like(v)
    for i in range(length):
        for j in range(length):
            if allowed(i, j, length, targets, CONFIG.max_attn_len, CONFIG.contextual_seq_len):
                for h in range(heads):
                    qk = slice(h * dqk, (h + 1) * dqk)
                    vs = slice(h * dv, (h + 1) * dv)
                    attended[i, vs] += silu(q[i, qk] @ k[j, qk] / math.sqrt(dqk)) / N * v[j, vs]
    gated = torch.cat([u, attended, u * normed(attended, layer.output_norm)], dim=-1)
    return x + gated @ layer.output.weight.T


def run_sequence(model, items, timestamps, length, targets):
    context, encoder = CONFIG.contextual_seq_len, model.positional_encoder
    rows = []
    for i in range(length):
        place = i if i < context else (length - targets) - min(i, length - targets) + context
        minutes = torch.tensor(max(int(timestamps[length - 1] - timestamps[i]), 1e-6)) / 60.0
        bucket = int(min(max(torch.log(minutes).item(), 0), CONFIG.num_time_buckets))
        row = model.item_embedding.weight[items[i]] * math.sqrt(CONFIG.embedding_dim)
        rows.append(row + encoder.position.weight[place] + encoder.time.weight[bucket])
    x = torch.stack(rows).detach()
    for layer in model.layers:
        x = run_layer(layer, x, length, targets)
    state = x[length - targets - 1]
    table = model.item_embedding.weight[: CONFIG.num_items + 1]
    cosine = (table @ state) / (table.norm(dim=-1).clamp(min=1e-6) * state.norm())
    return cosine / CONFIG.temperature


@torch.no_grad()
def test_scores_are_those_of_the_formulas_without_padding():
    model = make_model()
    item_ids, timestamps, lengths, num_targets = make_batch()
    logits = model(item_ids, timestamps, lengths, num_targets)
    assert logits.shape == (len(LENGTHS), CONFIG.num_items + 1)
    for row, (length, targets) in enumerate(zip(LENGTHS, TARGETS)):
        if length - targets > 0:
            expected = run_sequence(model, item_ids[row], timestamps[row], length, targets)
            torch.testing.assert_close(logits[row], expected, rtol=1e-9, atol=1e-9)


def test_empty_rows_and_negative_targets_stay_finite():
    model = make_model()
    item_ids, timestamps, _, _ = make_batch()
    lengths = torch.zeros(len(LENGTHS), dtype=torch.int64)
    logits = model(item_ids * 0, timestamps, lengths, lengths - 3)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_loss_counts_places_with_a_target():
    model = make_model()
    item_ids, timestamps, lengths, _ = make_batch()
    targets = torch.zeros_like(item_ids)
    targets[0, 9] = 5
    loss = model(item_ids, timestamps, lengths, None, targets)
    logits = model.predict(item_ids, timestamps, lengths)[0]
    torch.testing.assert_close(loss, logits.logsumexp(0) - logits[5])
