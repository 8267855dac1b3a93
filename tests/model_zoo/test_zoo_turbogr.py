"""TurboGR's configurations: what was published of them, and what follows from the sizes that were inferred."""

import pytest
import torch

from gr_compile.benchmarking.model_cost import cost_of
from gr_compile.model_zoo import turbogr_config, turbogr_model
from gr_compile.model_zoo.turbogr import DEVICES, PEAK_FLOPS, PUBLISHED

MILLIONS = {"hstu-large": 83.97, "hstu-long": 84.04, "fuxi-large": 201.41, "fuxi-long": 201.48}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_without_the_embeddings(name):
    with torch.device("meta"):
        model = turbogr_model(name, num_items=10)
    count = sum(p.numel() for who, p in model.named_parameters() if "_embedding" not in who) / 1e6
    assert round(count, 2) == MILLIONS[name] and abs(count / PUBLISHED[name].parameters - 1) < 1e-3


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_samples_a_second_give_the_published_mfu(name):
    """6 FLOPs a weight and place, 6 a pair of the whole square and each number of q, k and v that it meets."""
    config, row = turbogr_config(name, 10), PUBLISHED[name]
    cost = cost_of(config)
    n = row.max_seq_len
    flops = 6 * (n * cost.token_weights + n * n * cost.pair_width)
    mfu = 100 * row.samples_per_second * flops / (DEVICES * PEAK_FLOPS)
    assert config.max_seq_len == n and abs(mfu - row.mfu) < 0.055


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown model 'hstu-huge'; there are hstu-large, hstu-long, fuxi-large, fuxi-long"):
        turbogr_config("hstu-huge", 10)
