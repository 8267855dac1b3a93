"""SASRec: against the paper's formulas, one sequence at a time in float64, without padding."""

import math

import torch

from gr_compile.model_zoo import SASRec, SASRecConfig

LENGTHS = [8, 1, 5, 0]
CONFIG = SASRecConfig(
    num_items=25, max_seq_len=8, embedding_dim=12, num_heads=3, feedforward_dim=20, dropout=0.0
)


def make_model():
    torch.manual_seed(0)
    model = SASRec(CONFIG).double()
    for name, parameter in model.named_parameters():
        if "embedding" not in name:
            torch.nn.init.normal_(parameter, std=0.4)
    return model


def make_items():
    generator = torch.Generator().manual_seed(1)
    valid = torch.arange(8) < torch.tensor(LENGTHS).unsqueeze(1)
    return torch.randint(1, 26, (4, 8), generator=generator) * valid


def normed(x, norm):
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def run_layer(layer, x):
    width = CONFIG.embedding_dim // CONFIG.num_heads
    q, k, v = (x @ linear.weight.T + linear.bias for linear in (layer.query, layer.key, layer.value))
    attended = torch.zeros_like(x)
    for i in range(len(x)):
        for h in range(CONFIG.num_heads):
            part = slice(h * width, (h + 1) * width)
            scores = k[: i + 1, part] @ q[i, part] / math.sqrt(width)
            weights = scores.exp() / scores.exp().sum()
            attended[i, part] = weights @ v[: i + 1, part]
    x = normed(x + attended @ layer.out.weight.T + layer.out.bias, layer.attention_norm)
    hidden = (x @ layer.expand.weight.T + layer.expand.bias).clamp(min=0)
    return normed(x + hidden @ layer.contract.weight.T + layer.contract.bias, layer.feedforward_norm)


def run_sequence(model, items):
    x = model.item_embedding.weight[items] + model.position_embedding.weight[: len(items)]
    x = normed(x, model.input_norm)
    for layer in model.layers:
        x = run_layer(layer, x)
    return x @ model.item_embedding.weight.T


@torch.no_grad()
def test_scores_and_loss_are_those_of_the_formulas_without_padding():
    model, items = make_model().eval(), make_items()
    targets = torch.roll(items, -1, dims=1) * (items != 0)
    targets[:, -1] = 0
    logits, losses = model(items), []
    for row, length in enumerate(LENGTHS):
        if length:
            expected = run_sequence(model, items[row, :length])
            torch.testing.assert_close(logits[row], expected[-1], rtol=1e-9, atol=1e-9)
            wanted = targets[row, :length]
            losses.append((expected.logsumexp(-1) - expected[torch.arange(length), wanted])[wanted > 0])
    torch.testing.assert_close(model(items, targets), torch.cat(losses).mean(), rtol=1e-9, atol=1e-9)


def test_an_all_empty_batch_is_finite_with_finite_gradients():
    model = make_model()
    logits = model(torch.zeros(3, 8, dtype=torch.int64))
    logits.sum().backward()
    assert logits.isfinite().all()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
