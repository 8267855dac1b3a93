"""What the models of the zoo cost, for the FLOP formula: weights of matrix products and widths of attention."""

from __future__ import annotations

from gr_compile.benchmarking.flops import ModelCost
from gr_compile.model_zoo.fuxi import FuXiConfig
from gr_compile.model_zoo.hstu import HSTUConfig
from gr_compile.model_zoo.sasrec import SASRecConfig
from gr_compile.model_zoo.stu import STUConfig

Config = HSTUConfig | FuXiConfig | STUConfig | SASRecConfig


def cost_of(config: Config) -> ModelCost:
    """The cost of a model by its configuration."""
    if isinstance(config, HSTUConfig):
        return hstu_cost(config)
    if isinstance(config, FuXiConfig):
        return fuxi_cost(config)
    return stu_cost(config) if isinstance(config, STUConfig) else sasrec_cost(config)


def hstu_cost(config: HSTUConfig) -> ModelCost:
    """uvqk: D x 2H(dqk + dv); o: H dv x D, or three times as high with `concat_u`."""
    scores, values = config.num_heads * config.attention_dim, config.num_heads * config.linear_dim
    out_height = values * (3 if config.concat_u else 1)
    weights = config.embedding_dim * (2 * (scores + values) + out_height)
    return _cost(config, weights, scores, values)


def fuxi_cost(config: FuXiConfig) -> ModelCost:
    """uvqk: D x H(4 dv + 2 dqk); the feed-forward: 3 H dv x D, then D x F twice and F x D. Three maps meet v."""
    scores, values = config.num_heads * config.attention_dim, config.num_heads * config.linear_dim
    dim = config.embedding_dim
    weights = dim * (4 * values + 2 * scores + 3 * values + 3 * dim * config.ffn_multiply)
    return _cost(config, weights, scores, 3 * values)


def stu_cost(config: STUConfig) -> ModelCost:
    """uvqk: D x 2H(dqk + dv); output: 3 H dv x D."""
    scores, values = config.num_heads * config.attention_dim, config.num_heads * config.hidden_dim
    weights = config.embedding_dim * (2 * (scores + values) + 3 * values)
    return _cost(config, weights, scores, values, config.max_attn_len)


def sasrec_cost(config: SASRecConfig) -> ModelCost:
    """Query, key, value, out: D x D each; the feed-forward: D x F and F x D."""
    dim = config.embedding_dim
    return _cost(config, dim * (4 * dim + 2 * config.feedforward_dim), dim, dim)


def _cost(config: Config, weights: int, scores: int, values: int, window: int = 0) -> ModelCost:
    return ModelCost(
        token_weights=config.num_layers * weights,
        pair_width=config.num_layers * (scores + values),
        head_weights=config.embedding_dim * (config.num_items + 1),
        window=window,
        score_width=config.num_layers * scores,
    )
