"""SASRec as a user would write it by hand for FlexAttention and for nested tensors; parameters as in the zoo."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from gr_compile.model_zoo.retrieval import next_item_loss, state_at
from gr_compile.model_zoo.sasrec import SASRec, SASRecLayer


class FlexSASRec(nn.Module):
    """Padded as before; attention through `flex_attention` with a block mask of causal and valid pairs.

    The block mask depends on the lengths, so every call makes one, outside of what is compiled.
    """

    def __init__(self, model: SASRec, compiled: bool = False) -> None:
        super().__init__()
        self.model = model
        self.run = torch.compile(self.run_masked) if compiled else self.run_masked

    def forward(self, item_ids: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """As SASRec's."""
        lengths = (item_ids != 0).sum(dim=1)
        return self.run(item_ids, lengths, causal_mask(lengths, *item_ids.shape), targets)

    def run_masked(
        self, item_ids: torch.Tensor, lengths: torch.Tensor, mask: BlockMask, targets: torch.Tensor | None
    ) -> torch.Tensor:
        """The model, given who attends to whom. `lengths` [B] int64."""
        model = self.model
        n = item_ids.size(1)
        x = model.item_embedding(item_ids) + model.position_embedding(torch.arange(n, device=item_ids.device))
        x = model.input_norm(x)
        for layer in cast("list[SASRecLayer]", model.layers):
            x = _after_attention(layer, x, _flex_attend(layer, x, mask))
        states = x * (item_ids != 0).unsqueeze(-1)
        if targets is None:
            return F.linear(state_at(states, lengths - 1), model.item_embedding.weight)
        return next_item_loss(F.linear(states, model.item_embedding.weight), targets)


def causal_mask(lengths: torch.Tensor, batch_size: int, n: int) -> BlockMask:
    """Pairs whose key is valid and not after the query. Right padding: `lengths` [B] int64."""

    def pair(b: torch.Tensor, h: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        return (i >= j) & (j < lengths[b])

    return create_block_mask(pair, batch_size, None, n, n, device=str(lengths.device))


class NestedSASRec(nn.Module):
    """Token-wise layers over a jagged nested tensor. Attention goes sequence by sequence through `unbind`:
    scaled_dot_product_attention of nested tensors has no causal kernel on the CPU."""

    def __init__(self, model: SASRec) -> None:
        super().__init__()
        self.model = model

    def forward(self, item_ids: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """As SASRec's; every sequence holds at least one item."""
        model = self.model
        valid = item_ids != 0
        lengths = valid.sum(dim=1)
        offsets = F.pad(lengths.cumsum(0), (1, 0))
        place = torch.arange(item_ids.size(1), device=item_ids.device).expand_as(item_ids)[valid]
        values = model.input_norm(model.item_embedding(item_ids[valid]) + model.position_embedding(place))
        x = torch.nested.nested_tensor_from_jagged(values, offsets)
        for layer in cast("list[SASRecLayer]", model.layers):
            x = _after_attention(layer, x, _attend_by_sequence(layer, x, offsets))
        states = x.values()
        if targets is None:
            return F.linear(states[offsets[1:] - 1], model.item_embedding.weight)
        logits = F.linear(states, model.item_embedding.weight)
        return F.cross_entropy(logits, targets[valid], ignore_index=0)


def _flex_attend(layer: SASRecLayer, x: torch.Tensor, mask: BlockMask) -> torch.Tensor:
    batch_size, n, dim = x.shape
    heads = (batch_size, n, layer.num_heads, dim // layer.num_heads)
    # Contiguous: inductor's CPU template reads the four sizes from the buffer that a query is a view of.
    q, k, v = (
        linear(x).view(heads).transpose(1, 2).contiguous() for linear in (layer.query, layer.key, layer.value)
    )
    attended = flex_attention(q, k, v, block_mask=mask)
    out: torch.Tensor = layer.out(attended.transpose(1, 2).reshape(batch_size, n, dim))
    return out


def _attend_by_sequence(layer: SASRecLayer, x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    found = []
    for q, k, v in zip(layer.query(x).unbind(), layer.key(x).unbind(), layer.value(x).unbind()):
        q, k, v = (part.view(len(part), layer.num_heads, -1).transpose(0, 1) for part in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        found.append(attended.transpose(0, 1).flatten(1))
    out: torch.Tensor = layer.out(torch.nested.nested_tensor_from_jagged(torch.cat(found), offsets))
    return out


def _after_attention(layer: SASRecLayer, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    x = layer.attention_norm(x + attended)
    out: torch.Tensor = layer.feedforward_norm(x + layer.contract(torch.relu(layer.expand(x))))
    return out
