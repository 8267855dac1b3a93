"""Which other tokens of a batch each token is paired with.

    gr::other_tokens   seed, T, count -> int64 [count, T]   row i - 1: the token i places behind t in a random cycle

The tokens are put into a random order, which is read as a cycle. Each row is then a permutation that gives no token
itself, and the rows of a token differ. The order comes from the seed alone: it is that of hashes of the tokens'
numbers (`noise.row_noise`), which differ from token to token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gr_compile.ops.noise import row_noise
from gr_compile.ops.registry import define_operator, require


def _fake(seed: Tensor, tokens: int, count: int) -> Tensor:
    require(
        seed.dtype == torch.int64 and seed.dim() == 0, lambda: "gr::other_tokens: seed must be an int64 scalar tensor"
    )
    require(tokens >= 0, lambda: f"gr::other_tokens: tokens must not be negative, not {tokens}")
    require(count >= 0, lambda: f"gr::other_tokens: count must not be negative, not {count}")
    return seed.new_empty((count, tokens))


def other_tokens_reference(seed: Tensor, tokens: int, count: int) -> Tensor:
    """int64 [count, tokens]: `count` other tokens of each of `tokens` tokens, or t itself where none is left.

    With `tokens` tokens there are tokens - 1 others: rows behind those are 0, 1, 2, ... Does not wait for the device.
    """
    _fake(seed, tokens, count)
    numbers = torch.arange(tokens, device=seed.device)
    start = torch.zeros((), dtype=torch.int64, device=seed.device)
    order = torch.argsort(row_noise(seed, start, start, numbers), stable=True)
    place = torch.empty_like(order).index_copy_(0, order, numbers)
    behind = torch.arange(1, count + 1, device=seed.device).unsqueeze(1)
    others = order[(place + behind) % max(tokens, 1)]
    return torch.where(behind < tokens, others, numbers)


other_tokens = define_operator(
    "other_tokens(Tensor seed, SymInt tokens, int count) -> Tensor", other_tokens_reference, _fake
)
