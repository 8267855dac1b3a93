"""Models that write to their own buffers: running statistics, counters, caches; what a call leaves behind is eager's."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from models import graphs, optimize
from torch import Tensor, nn

import gr_compile

N = 6


class Pooled(nn.Module):
    """A sequence model whose head has a batch norm, and which counts the tokens that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.project = nn.Embedding(20, 8, padding_idx=0), nn.Linear(8, 8)
        self.head = nn.Sequential(nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("steps", torch.zeros(3))

    def forward(self, ids: Tensor) -> Tensor:
        valid = ids != 0
        if self.training:
            self.seen += valid.sum()
            self.steps[1:] = self.steps[:-1].clone()
            self.steps[0] = 7.0
        x = torch.tanh(self.project(self.items(ids))) * valid[..., None]
        return self.head(x.sum(1)) * (1 + self.seen)


def batch(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, N + 1, (5, 1), generator=generator)
    return torch.randint(1, 20, (5, N), generator=generator) * (torch.arange(N) < lengths)


def step(model: Any, ids: Tensor) -> Tensor:
    model.zero_grad()
    out = model(ids)
    out.square().sum().backward()
    return out.detach()


@pytest.mark.parametrize("target", ["eager", "inductor"])
def test_a_buffer_stays_the_tensor_that_it_was(target: str) -> None:
    """Whoever holds it, an optimizer or a checkpoint, sees what the next calls make of it."""
    model = Pooled()
    held = dict(model.named_buffers())
    fast = gr_compile.optimize(model, target=target)
    for seed in range(3):
        step(fast, batch(seed))
        assert all(x.data_ptr() == held[name].data_ptr() for name, x in model.named_buffers())
    assert int(held["seen"]) == sum(int((batch(seed) != 0).sum()) for seed in range(3))


@pytest.mark.parametrize("target", ["eager", "inductor"])
@pytest.mark.parametrize("verify", ["shapes", "numerics"])
def test_steps_leave_what_eager_leaves(target: str, verify: str) -> None:
    torch.manual_seed(0)
    model = Pooled()
    eager = copy.deepcopy(model)
    fast = gr_compile.optimize(model, target=target, verify=verify)
    for seed in range(4):
        torch.testing.assert_close(step(fast, batch(seed)), step(eager, batch(seed)), rtol=1e-4, atol=1e-4)
        for (name, got), want in zip(model.state_dict().items(), eager.state_dict().values()):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5, msg=name)
        for got, want in zip(model.parameters(), eager.parameters()):
            torch.testing.assert_close(got.grad, want.grad, rtol=1e-3, atol=1e-3)
    (report,) = gr_compile.report(fast)
    assert report.not_captured is None
    assert any(record.name == "eliminate-padding" and record.matches for record in report.passes)


def test_evaluation_writes_nothing_and_training_goes_on() -> None:
    torch.manual_seed(0)
    model = Pooled()
    eager = copy.deepcopy(model)
    fast = optimize(model)
    for training in (True, False, True, False):
        for m in (fast, eager):
            m.train(training)
        before = {name: x.clone() for name, x in model.state_dict().items()}
        torch.testing.assert_close(fast(batch(1)), eager(batch(1)))
        changed = [name for name, x in model.state_dict().items() if not torch.equal(x, before[name])]
        assert bool(changed) == training
    assert graphs(fast) == 2
    for got, want in zip(model.state_dict().values(), eager.state_dict().values()):
        torch.testing.assert_close(got, want)


class Decoder(nn.Module):
    """Causal attention whose mask is a buffer; the call writes to it afterwards."""

    def __init__(self, writes: bool) -> None:
        super().__init__()
        self.items, self.writes = nn.Embedding(20, 8, padding_idx=0), writes
        self.register_buffer("causal", torch.ones(N, N).tril())

    def forward(self, ids: Tensor) -> Tensor:
        x = self.items(ids)
        scores = torch.relu(x @ x.mT) * self.causal * (ids != 0)[:, None]
        out = (scores @ x * (ids != 0)[..., None]).sum(1)
        if self.writes:
            self.causal.mul_(0.5)
        return out


def test_a_buffer_that_is_written_is_not_taken_for_a_constant() -> None:
    torch.manual_seed(0)
    for writes in (False, True):
        model = Decoder(writes)
        eager, fast = copy.deepcopy(model), optimize(model)
        for seed in range(3):
            torch.testing.assert_close(fast(batch(seed)), eager(batch(seed)))
        assert graphs(fast) == 1
        torch.testing.assert_close(model.causal, eager.causal)


def test_a_parameter_or_an_argument_that_is_written_is_left_to_torch_compile() -> None:
    def f(x: Tensor) -> Tensor:
        x.add_(1)
        return x * 2

    fast, x, y = optimize(f), torch.zeros(3), torch.zeros(3)
    torch.testing.assert_close(fast(x), f(y))
    torch.testing.assert_close(x, y)
    assert "changed in place" in gr_compile.report(fast)[0].not_captured.reason


class Overlapping(nn.Module):
    """One buffer is a part of the other: what is written to one is read from both."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("whole", torch.ones(4))
        self.register_buffer("part", self.whole[:2])

    def forward(self, x: Tensor) -> Tensor:
        self.whole.mul_(2)
        return x * self.part.sum()


def test_buffers_that_share_memory_are_left_to_torch_compile() -> None:
    fast, eager, x = optimize(Overlapping()), Overlapping(), torch.ones(3)
    for _ in range(3):
        torch.testing.assert_close(fast(x), eager(x))
    assert "shares its memory" in gr_compile.report(fast)[0].not_captured.reason


class Literals(nn.Module):
    """Tensors made of numbers inside the model, in the spellings that people use."""

    def forward(self, x: Tensor) -> Tensor:
        return (
            x + x.new_tensor([1.0, 2.0]) * torch.FloatTensor([0.5]) - torch.tensor(3.0)
            + x.new_tensor(2.0, dtype=torch.float64).to(x.dtype) + torch.LongTensor([4, 5])
        )  # fmt: skip


def test_literals_keep_their_content() -> None:
    fast, x = optimize(Literals()), torch.randn(4, 2)
    torch.testing.assert_close(fast(x), Literals()(x))
    assert gr_compile.report(fast)[0].not_captured is None
