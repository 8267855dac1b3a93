"""What TorchInductor makes of our operators."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._inductor.utils import run_and_get_code

import gr_compile

BUFFER = re.compile(r"empty_strided_cpu\(\(([^()]*)\), \(([^()]*)\)")


class Attention(nn.Module):
    """q, k and v are parts of one value."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.project = nn.Embedding(31, 16), nn.Linear(16, 48)

    def forward(self, ids: Tensor) -> Tensor:
        valid = ids != 0
        q, k, v = F.silu(self.project(self.items(ids))).chunk(3, -1)
        scores = F.silu(q @ k.mT) * valid[:, None]
        return ((scores @ v) * valid[..., None]).sum(1)


def numbers(text: str) -> list[int | None]:
    return [int(x) if x.strip().isdigit() else None for x in text.split(",") if x.strip()]


def gaps(size: list[int | None], stride: list[int | None]) -> bool:
    """Whether the rows of a buffer lie further apart than they are long."""
    pairs = zip(size[1:], stride[1:], stride[:-1])
    return any(n is not None and s is not None and above is not None and above > n * s for n, s, above in pairs)


def test_operands_that_are_parts_of_one_value_get_no_buffers_with_gaps() -> None:
    torch.manual_seed(0)
    model = Attention()
    ids = torch.tensor([[1, 2, 3, 0, 0], [4, 0, 0, 0, 0], [5, 6, 7, 8, 9]])
    with torch.no_grad():
        result, codes = run_and_get_code(gr_compile.optimize(model), ids)
        torch.testing.assert_close(result, model(ids), rtol=1e-5, atol=1e-6)
    buffers = [(numbers(size), numbers(stride)) for code in codes for size, stride in BUFFER.findall(code)]
    assert "gr.jagged_attention" in "".join(codes) and buffers
    assert not [b for b in buffers if gaps(*b)]


def test_deterministic_algorithms_train_with_the_same_bits() -> None:
    torch.manual_seed(0)
    model = Attention()
    ids = torch.randint(0, 31, (4, 40)) * (torch.rand(4, 40) < 0.7)
    compiled = gr_compile.optimize(model)

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(compiled(ids).square().sum(), list(model.parameters())))

    torch.use_deterministic_algorithms(True)
    try:
        first, second = gradients(), gradients()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(x, y) for x, y in zip(first, second))
    for got, want in zip(first, torch.autograd.grad(model(ids).square().sum(), list(model.parameters()))):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
