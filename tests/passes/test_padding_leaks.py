"""What stands at padded places, and what stands in other sequences, reaches no output and no gradient."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from pass_bench import FUSE, PACK, PassBench
from torch import Tensor, nn

LENGTHS, N = torch.tensor([3, 6, 0, 1]), 6
VALID = torch.arange(N) < LENGTHS[:, None]


class Features(nn.Module):
    """Attention over given features; junk never meets a mask by multiplication."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.activation = activation
        self.inner, self.query, self.key = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        n = features.shape[1]
        valid = torch.arange(n) < lengths[:, None]
        x = self.inner(torch.where(valid[..., None], features, 0.0))
        scores = self.query(x) @ self.key(x).transpose(1, 2)
        seen = valid[:, None] & torch.ones(n, n, dtype=torch.bool).tril()
        if self.activation == "silu":
            weights = torch.where(seen, F.silu(scores) / n, 0.0)
        else:
            weights = torch.softmax(scores.masked_fill(~seen, -1e30), -1)
        x = x + weights @ x
        return torch.where(valid[..., None], x, 0.0).sum(1)


@pytest.fixture(scope="module", params=["silu", "softmax"])
def made(request: pytest.FixtureRequest) -> PassBench:
    torch.manual_seed(0)
    batch = torch.randn(4, N, 4, dtype=torch.float64, requires_grad=True), LENGTHS
    return PassBench(Features(request.param).double(), [batch]).assert_fires(PACK, FUSE).assert_parity()


def results(made: PassBench, features: Tensor, rows: slice = slice(None)) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Outputs, gradient of the features, gradients of the parameters; of some sequences' outputs only."""
    leaf = features.clone().requires_grad_()
    parameters = list(made.model.parameters())
    output = made.fast(leaf, LENGTHS)
    gradients = torch.autograd.grad(output[rows].square().sum(), [leaf, *parameters])
    return output.detach(), gradients[0], list(gradients[1:])


@pytest.mark.parametrize("junk", [1e30, -1e30, float("inf"), float("nan")])
def test_junk_at_padded_places_changes_nothing(made: PassBench, junk: float) -> None:
    clean = torch.randn(4, N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    clean = torch.where(VALID[..., None], clean, 0.0)
    dirty = torch.where(VALID[..., None], clean, junk)
    for a, b in zip(flat(results(made, clean)), flat(results(made, dirty))):
        assert a.equal(b)


def flat(found: tuple[Tensor, Tensor, list[Tensor]]) -> list[Tensor]:
    return [found[0], found[1], *found[2]]


def test_gradients_at_padded_places_are_zero(made: PassBench) -> None:
    features = torch.randn(4, N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    gradient = results(made, features)[1]
    assert not gradient[~VALID].any() and gradient[VALID].any()


def test_an_edit_in_another_sequence_changes_no_output_and_no_gradient(made: PassBench) -> None:
    features = torch.randn(4, N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    edited = features.clone()
    edited[1] += 1.0
    before, after = (results(made, x, slice(0, 1)) for x in (features, edited))
    assert before[0][0].equal(after[0][0]) and not before[0][1].equal(after[0][1])
    assert before[1].equal(after[1])
    assert not before[1][1:].any()


def test_a_later_place_does_not_reach_an_earlier_one_of_a_causal_model() -> None:
    class States(Features):
        def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
            n = features.shape[1]
            valid = torch.arange(n) < lengths[:, None]
            x = self.inner(features)
            weights = F.silu(self.query(x) @ self.key(x).transpose(1, 2)) / n
            weights = weights * (valid[:, None] & torch.ones(n, n, dtype=torch.bool).tril())
            return (x + weights @ x) * valid[..., None]

    torch.manual_seed(0)
    features = torch.randn(4, N, 4, dtype=torch.float64)
    bench = PassBench(States("silu").double(), [(features, LENGTHS)]).assert_fires(PACK, FUSE)
    edited = features.clone()
    edited[1, 4] += 1.0
    before, after = bench.fast(features, LENGTHS), bench.fast(edited, LENGTHS)
    assert before[1, :4].equal(after[1, :4]) and not before[1, 4].equal(after[1, 4])
