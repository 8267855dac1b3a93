"""Small padded models that the tests of the interface share, and how to compare two runs of one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gr_compile

ITEMS, WIDTH, LONGEST = 30, 8, 32


class Mlp(nn.Module):
    """No padding at all: for what has nothing to do with it."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.drop = nn.Dropout(rate)
        self.second = nn.Linear(6, 3)
        self.register_buffer("scale", torch.ones(3))
        self.tag = "mlp"

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.drop(F.silu(self.first(x)))) * self.scale


class OldStyle(nn.Module):
    """Written for Python 2: the name in `super` is the decorated class."""

    def __init__(self, out: int = 3) -> None:
        super(OldStyle, self).__init__()  # noqa: UP008
        self.linear = nn.Linear(4, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).relu()


class Layer(nn.Module):
    """One HSTU-like layer over padded places."""

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.drop = nn.Dropout(rate)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = F.silu(self.qkv(self.norm(x))).chunk(3, -1)
        scores = F.silu(torch.einsum("bid,bjd->bij", q, k)) / x.shape[1]
        return x + self.drop(self.out(torch.einsum("bij,bjd->bid", scores * mask, v)))


class Sequences(nn.Module):
    """Padded ids and lengths -> one vector a sequence."""

    def __init__(self, layers: int = 1, rate: float = 0.0, recompute: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(ITEMS, WIDTH)
        self.layers = nn.ModuleList(Layer(rate) for _ in range(layers))
        self.recompute = recompute
        self.register_buffer("causal", torch.ones(LONGEST, LONGEST, dtype=torch.bool).tril())

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        n = ids.shape[1]
        valid = torch.arange(n, device=ids.device) < lengths[:, None]
        mask = self.causal[:n, :n] & valid[:, None, :]
        x = self.embedding(ids)
        for layer in self.layers:
            x = checkpoint(layer, x, mask, use_reentrant=False) if self.recompute else layer(x, mask)
        return (x * valid[..., None]).sum(1) / n


class Places(Sequences):
    """The same, with an output for every place."""

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        n = ids.shape[1]
        valid = torch.arange(n) < lengths[:, None]
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x, self.causal[:n, :n] & valid[:, None, :])
        return x * valid[..., None]


def batch(lengths: list[int], n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Right-padded ids (0 at padded places) and the lengths as given, which may be above n."""
    generator = torch.Generator().manual_seed(seed)
    given = torch.tensor(lengths, dtype=torch.int64)
    ids = torch.randint(1, ITEMS, (len(lengths), n), generator=generator)
    return ids * (torch.arange(n) < given[:, None]), given


def vectors(rows: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))


def optimize(model: Any, **options: Any) -> Any:
    """`gr_compile.optimize` without Inductor, which is slow and not what most tests are about."""
    return gr_compile.optimize(model, **{"target": "eager", **options})


def graphs(fast: Any) -> int:
    return len(gr_compile.report(fast))


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """The gradients of all parameters; the model's own are cleared."""
    model.zero_grad()
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same_run(fast: Any, model: nn.Module, *args: Any) -> None:
    """Equal outputs and parameter gradients, within float32's rounding."""
    eager = copy.deepcopy(model)
    want, got = eager(*args), fast(*args)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    if want.requires_grad:
        wanted, found = gradients(eager, want.square().sum()), gradients(model, got.square().sum())
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


class Events:
    """Collects what hooks are told."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def hook(self, name: str) -> Callable[..., None]:
        def note(*args: Any) -> None:
            self.seen.append(name)

        return note
