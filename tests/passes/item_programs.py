"""What models compute of an item before it meets its token, and how they write it; each gives one scalar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

ITEMS, WIDTH, GROUPS = 37, 6, 5
Program = Callable[["Items", Tensor], Tensor]


class Items(nn.Module):
    """A table with the item's features beside it; `program(model, ids)` is read at every place by a token of its own."""

    def __init__(self, program: Program, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.program = program
        self.items = nn.Embedding(ITEMS, WIDTH, **options)
        self.groups, self.experts = nn.Embedding(GROUPS, 4), nn.Parameter(torch.randn(ITEMS, 2, WIDTH))
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 8), nn.GELU(), nn.Linear(8, WIDTH))
        self.wide, self.norm = nn.Linear(WIDTH, 4 * WIDTH), nn.LayerNorm(WIDTH)
        self.mixed = nn.Linear(WIDTH + 4 + 2, WIDTH)
        self.weight = nn.Parameter(torch.randn(3, WIDTH, WIDTH))
        self.register_buffer("group_of", torch.randint(GROUPS, (ITEMS,)))
        self.register_buffer("price", torch.rand(ITEMS, 2))
        self.token = nn.Linear(1, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.program(self, ids)
        places = torch.arange(ids.numel(), dtype=x.dtype).reshape(ids.shape)
        token = self.token((places / 7).sin()[..., None]).to(x.dtype)
        return (x * token[..., :1].cos() + x.flip(0)).float().square().sum() + (x[..., 0] * token[..., 0]).sum()


def tower(m: Items, ids: Tensor) -> Tensor:
    return m.mlp(m.items(ids))


def features(m: Items, ids: Tensor) -> Tensor:
    return m.mixed(torch.cat([m.items(ids), m.groups(m.group_of[ids]), m.price[ids]], -1)).relu()


def stacked(m: Items, ids: Tensor) -> Tensor:
    both = torch.stack([m.items(ids), m.mlp(m.items(ids))], -2)
    return (both.softmax(-2) * both).sum(-2)


def cosine(m: Items, ids: Tensor) -> Tensor:
    return F.normalize(m.items(ids), dim=-1) * 3


def normed(m: Items, ids: Tensor) -> Tensor:
    return m.norm(m.items(ids) * WIDTH**0.5)


def root_mean_square(m: Items, ids: Tensor) -> Tensor:
    x = m.items(ids)
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * m.norm.weight


def gated(m: Items, ids: Tensor) -> Tensor:
    a, b, c, d = F.silu(m.wide(m.items(ids))).chunk(4, -1)
    return a * b + c.tanh() * d


def halves(m: Items, ids: Tensor) -> Tensor:
    x = m.wide(m.items(ids))
    return torch.cat([x[..., :WIDTH], x[..., 2 * WIDTH :].flip(-1)], -1)


def masked(m: Items, ids: Tensor) -> Tensor:
    return torch.where((ids % 3 == 0)[..., None], -1.0, tower(m, ids)) * (ids != 0).unsqueeze(-1)


def selected(m: Items, ids: Tensor) -> Tensor:
    rows = m.items.weight.index_select(0, ids.flatten())
    return m.mlp(rows).reshape(*ids.shape, WIDTH)


def from_the_end(m: Items, ids: Tensor) -> Tensor:
    return m.mlp(m.items.weight[ids - ITEMS // 2])


def flattened(m: Items, ids: Tensor) -> Tensor:
    return m.mlp(m.items(ids).view(-1, WIDTH)).view(*ids.shape, WIDTH)


def of_a_computed_table(m: Items, ids: Tensor) -> Tensor:
    return m.mlp(F.normalize(m.items.weight, dim=-1)[ids])


def several_rows(m: Items, ids: Tensor) -> Tensor:
    return torch.einsum("...kd,kde->...ke", m.experts[ids], m.weight[:2]).amax(-2)


def heads(m: Items, ids: Tensor) -> Tensor:
    return torch.einsum("...d,kde->...ke", m.items(ids), m.weight).flatten(-2).softmax(-1)


def bilinear(m: Items, ids: Tensor) -> Tensor:
    x, y = m.items(ids), tower(m, ids)
    return torch.einsum("...d,...e->...de", x, y).flatten(-2).relu()


def transposed(m: Items, ids: Tensor) -> Tensor:
    return torch.matmul(m.weight[0], tower(m, ids).transpose(-1, -2)).transpose(-1, -2)


def in_a_checkpoint(m: Items, ids: Tensor) -> Tensor:
    return checkpoint(tower, m, ids, use_reentrant=False)


def autocast(m: Items, ids: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return tower(m, ids).float()


def detached(m: Items, ids: Tensor) -> Tensor:
    return tower(m, ids) + 2 * tower(m, ids).detach()


def of_a_group(m: Items, ids: Tensor) -> Tensor:
    """Of a hundred items five groups: what depends on the group alone goes by group."""
    return m.groups(m.group_of[ids]).exp().matmul(m.mixed.weight[:, :4].T)


def twice(m: Items, ids: Tensor) -> Tensor:
    """The row, and what is made of it."""
    return torch.cat([m.items(ids), tower(m, ids)], -1)


PROGRAMS: dict[str, Program] = {
    x.__name__.replace("_", " "): x
    for x in (
        tower, features, stacked, cosine, normed, root_mean_square, gated, halves, masked, selected, from_the_end,
        flattened, of_a_computed_table, several_rows, heads, bilinear, transposed, in_a_checkpoint, detached, of_a_group,
        twice,
    )
}  # fmt: skip
