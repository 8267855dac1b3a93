"""`gr::` operators that GE's own operators compute: no kernel is written for them, and no node is of their type.

    gr::other_tokens            a hash of each token's number, a sort, a gather
    gr::linear_cross_entropy    logits of a block of the catalogue at a time: a product, a log-sum-exp; sums of blocks

Blocks are parts of the catalogue, whose size is the model's: a graph holds each of them, whatever T is. There are 32 at
most, of 4096 items at least: the largest value of a graph is [T, V / 32] where V is 131,072 or more, and never [T, V]
where V is above 4096. Where there are several blocks, the gradients make the logits of each again: the log-sum-exp of
the whole comes first.

A target that is no row of the table makes its token's loss NaN, where the operators in torch raise an IndexError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gr_compile.ops.linear_cross_entropy import new_gradients, wide_dtype
from gr_compile.ops.noise import row_noise

gr = torch.ops.gr
_FEWEST_ITEMS, _MOST_BLOCKS = 4096, 32


# ------------------------------------------------------------------------------------------ other tokens
def other_tokens(seed: Tensor, tokens: int, count: int) -> Tensor:
    """`count` other tokens of each of `tokens`, [count, tokens]: the same ones as gr_compile.ops.other_tokens.

    No two hashes are equal, so that the sort need not be stable.
    """
    numbers = torch.arange(tokens, device=seed.device)
    start = torch.zeros((), dtype=torch.int64, device=seed.device)
    order = torch.sort(row_noise(seed, start, start, numbers), dim=0)[1]
    place = torch.zeros_like(order).scatter(0, order, numbers)
    behind = torch.arange(1, count + 1, device=seed.device).unsqueeze(1)
    left = behind < tokens
    index = torch.where(left, place + behind, numbers)
    index = torch.where(index >= tokens, index - tokens, index)
    return torch.where(left, order[index], numbers)


# ----------------------------------------------------------------------------------- the whole catalogue
@dataclass(frozen=True)
class _Loss:
    """The operands of gr::linear_cross_entropy, and what losses and gradients share."""

    x: Tensor
    table: Tensor
    bias: Tensor | None
    target: Tensor
    weight: Tensor
    scale: float

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """First item and number of items; of a size of the call, which a graph cannot count, there is one."""
        items = self.table.shape[0]
        if not isinstance(items, int) or items <= _FEWEST_ITEMS:
            return [(0, items)]
        step = max(_FEWEST_ITEMS, -(-items // _MOST_BLOCKS))
        return [(first, min(step, items - first)) for first in range(0, items, step)]

    @cached_property
    def counts(self) -> Tensor:
        return self.weight != 0

    @cached_property
    def rows(self) -> Tensor:
        """x in the dtype that is computed in; what a token of weight 0 holds does not matter."""
        return self.x.to(wide_dtype(self.x)).masked_fill(~self.counts.unsqueeze(1), 0)

    @cached_property
    def there(self) -> Tensor:
        return (self.target >= 0) & (self.target < self.table.shape[0])

    @cached_property
    def at(self) -> Tensor:
        """The targets; row 0 for those that are none."""
        return self.target.masked_fill(~self.there, 0)

    @cached_property
    def factor(self) -> Tensor:
        """What a token's loss is multiplied by."""
        return self.weight.to(self.rows.dtype).masked_fill(self.counts & ~self.there, float("nan"))

    @cached_property
    def wanted(self) -> Tensor:
        """The rows of the targets."""
        return self.table.index_select(0, self.at).to(self.rows.dtype)

    @cached_property
    def log_sums(self) -> Tensor:
        """[T]: log sum over the catalogue of exp(logit)."""
        sums = [torch.logsumexp(self.logits(*block), 1) for block in self.blocks]
        return sums[0] if len(sums) == 1 else torch.logsumexp(torch.stack(sums, 1), 1)

    def items(self, first: int, count: int) -> Tensor:
        return self.table.narrow(0, first, count).to(self.rows.dtype)

    def logits(self, first: int, count: int) -> Tensor:
        return self.all_logits if count == self.table.shape[0] else self._logits(first, count)

    @cached_property
    def all_logits(self) -> Tensor:
        """Where one block is all there is, it is made once."""
        return self._logits(0, self.table.shape[0])

    def _logits(self, first: int, count: int) -> Tensor:
        logits = self.rows @ self.items(first, count).T * self.scale
        return logits if self.bias is None else logits + self.bias.narrow(0, first, count).to(logits.dtype)

    def losses(self) -> Tensor:
        logits = (self.rows * self.wanted).sum(1) * self.scale
        if self.bias is not None:
            logits = logits + self.bias.index_select(0, self.at).to(logits.dtype)
        return (self.factor * (self.log_sums - logits)).masked_fill(~self.counts, 0)

    def slopes(self, first: int, count: int) -> Tensor:
        """The gradient of the logits of a block, [T, count], but for the targets'."""
        weights = torch.exp(self.logits(first, count) - self.log_sums.unsqueeze(1))
        return (weights * self.factor.unsqueeze(1)).masked_fill(~self.counts.unsqueeze(1), 0)

    def gradients(self, needs: Sequence[bool]) -> tuple[Tensor, Tensor, Tensor]:
        grad_x, grad_table, grad_bias = new_gradients(self.x, self.table, self.bias, needs)
        scaled, tables, biases = self.factor.unsqueeze(1) * self.scale, [], []
        if needs[0]:
            grad_x = -scaled * self.wanted
        for block in self.blocks:
            slopes = self.slopes(*block)
            if needs[0]:
                grad_x = grad_x + slopes @ self.items(*block) * self.scale
            tables += [slopes.T @ self.rows * self.scale] if needs[1] else []
            biases += [slopes.sum(0)] if needs[2] else []
        if needs[1]:
            grad_table = torch.cat(tables) - self._by_target(scaled * self.rows)
        if needs[2] and self.bias is not None:
            grad_bias = torch.cat(biases) - self._by_target(self.factor.unsqueeze(1)).squeeze(1)
        return grad_x, grad_table, grad_bias

    def _by_target(self, values: Tensor) -> Tensor:
        """Rows [T, *] summed by their tokens' targets, in a fixed order."""
        summed: Tensor = gr.lookup_gradient(values, self.at, self.table.shape[0], -1)
        return summed


def linear_cross_entropy_tokens(*operands: Any) -> Tensor:
    """What each token counts, [T]."""
    return _Loss(*operands).losses()


def linear_cross_entropy(*operands: Any) -> Tensor:
    """The sum over tokens."""
    return _Loss(*operands).losses().sum()


def linear_cross_entropy_gradients(*operands: Any) -> tuple[Tensor, ...]:
    """The sum over tokens, and its gradients of x, table and bias."""
    *given, needs = operands
    loss = _Loss(*given)
    return (loss.losses().sum(), *loss.gradients(needs))


COMPOSED: Mapping[str, Callable[..., Any]] = {
    "gr::other_tokens": other_tokens,
    "gr::linear_cross_entropy": linear_cross_entropy,
    "gr::linear_cross_entropy_tokens": linear_cross_entropy_tokens,
    "gr::linear_cross_entropy_gradients": linear_cross_entropy_gradients,
}
