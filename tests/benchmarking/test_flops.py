"""The FLOP formula against counts by hand, by brute force and by torch."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gr_compile.benchmarking.flops import (
    ModelCost,
    causal_area,
    forward_flops,
    peak_flops,
    recomputed_flops,
    step_flops,
    utilisation,
)
from gr_compile.benchmarking.model_cost import fuxi_cost, hstu_cost, sasrec_cost, stu_cost
from gr_compile.model_zoo import HSTU, STU, FuXi, FuXiConfig, HSTUConfig, SASRec, SASRecConfig, STUConfig


@pytest.mark.parametrize("window", [0, 1, 4])
def test_causal_area_counts_pairs(window):
    lengths = torch.tensor([0, 1, 5, 9])
    pairs = sum(
        1 for n in lengths.tolist() for i in range(n) for j in range(i + 1) if not window or i - j <= window
    )
    assert causal_area(lengths, window) == pairs


def test_flops_of_a_step_are_three_forwards_of_valid_work():
    cost = ModelCost(token_weights=100, pair_width=10, head_weights=1000, score_width=4)
    lengths = torch.tensor([2, 3])
    assert forward_flops(cost, lengths, places=4) == 2 * (5 * 100 + (3 + 6) * 10 + 4 * 1000)
    assert step_flops(cost, lengths, 4) == 3 * forward_flops(cost, lengths, 4)


def test_recomputed_scores_count_for_hardware_only():
    cost = ModelCost(token_weights=100, pair_width=10, head_weights=1000, score_width=4)
    assert recomputed_flops(cost, torch.tensor([2, 3])) == 2 * (3 + 6) * 4


def products_of(module, *arguments):
    """FLOPs of every matrix product that a run of the padded module does, by torch's own counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        module.eval().requires_grad_(False)(*arguments)
    return counter.get_total_flops()


@pytest.mark.parametrize("model", ["hstu", "fuxi", "stu", "sasrec"])
def test_flops_of_one_full_sequence_are_those_that_torch_counts(model):
    n, items = 12, 20
    ids, stamps = torch.randint(1, items, (1, n)), torch.arange(n).unsqueeze(0)
    lengths = torch.tensor([n])
    if model == "hstu":
        config = HSTUConfig(items, n, 8, 2, 2, attention_dim=3, linear_dim=5)
        cost, counted = hstu_cost(config), products_of(HSTU(config), ids, stamps)
    elif model == "fuxi":
        config = FuXiConfig(items, n, 8, 2, 2, attention_dim=3, linear_dim=5, ffn_multiply=2)
        cost, counted = fuxi_cost(config), products_of(FuXi(config), ids, stamps)
    elif model == "stu":
        config = STUConfig(items, n, 8, 2, 2, attention_dim=3, hidden_dim=5)
        cost, counted = stu_cost(config), products_of(STU(config), ids, stamps, lengths)
    else:
        config = SASRecConfig(items, n, 8, 2, 2, feedforward_dim=24)
        cost, counted = sasrec_cost(config), products_of(SASRec(config), ids)
    masked_pairs = n * n - causal_area(lengths)  # the padded model computes them, and they are not useful
    assert forward_flops(cost, lengths, places=1) == counted - 2 * masked_pairs * cost.pair_width


def test_hstu_counted_by_hand():
    cost = hstu_cost(HSTUConfig(9, 4, embedding_dim=8, num_layers=1, num_heads=2, attention_dim=3, linear_dim=5))
    uvqk, output, scores, values, head = 8 * 2 * 2 * (3 + 5), 2 * 5 * 8, 2 * 3, 2 * 5, 8 * 10
    # Two sequences, of 1 and of 2 tokens: 3 tokens, 1 + 3 causal pairs, 2 places scored.
    by_hand = 2 * (3 * (uvqk + output) + 4 * (scores + values) + 2 * head)
    assert forward_flops(cost, torch.tensor([1, 2]), 2) == by_hand
    assert recomputed_flops(cost, torch.tensor([1, 2])) == 2 * 4 * scores


def test_utilisation_is_a_share_of_the_peak():
    assert utilisation(flops=5e9, seconds=0.5, peak=2e10) == 0.5
    assert utilisation(5e9, 0.5, peak=0.0) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_peak_is_measured_in_the_dtype_asked_for(dtype):
    assert peak_flops(size=64, repeats=3, dtype=dtype) > 0
