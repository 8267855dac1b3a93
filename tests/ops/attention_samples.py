"""Hand-made operands of jagged_attention, and gradients of a random projection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gr_compile.analysis import expr as E
from gr_compile.analysis.expr import const, index, load, make, size
from gr_compile.ops import ScoreProgram

h, i, j = (index(name) for name in "hij")
attention = torch.ops.gr.jagged_attention


def gradients(out: Tensor, operands: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Gradients of a random projection of `out`; zeros for what it does not depend on."""
    torch.manual_seed(seed)
    weight = torch.randn(out.shape, dtype=torch.float64).to(out.dtype)
    found = torch.autograd.grad(out, operands, weight, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(operands, found)]


def causal_softmax(dtype: str = "f64", fully_masked: str = "zero", p: float = 0.0, bias: bool = True) -> str:
    """Causal softmax with a relative bias and, with p, dropout."""
    s = make("s", (), dtype)
    relative = E.add(E.sub(j, i), size("N"), const(-1))
    score = E.binary("add", s, load("bias", [relative], dtype), dtype) if bias else s
    masked = E.where(E.ge0(E.sub(i, j)), score, const(float("-inf"), dtype), dtype)
    post = make("sm", (), dtype)
    program = ScoreProgram(
        score=masked, post=make("dropout", (post, const(p, "f32")), dtype) if p else post,
        fully_masked=fully_masked,  # type: ignore[arg-type]
        k_head=E.binary("floordiv", h, const(2), "i"), v_head=E.binary("floordiv", h, const(2), "i"),
        leaves=("bias",) if bias else (), sizes=("N",), key_high=E.add(i, const(1)), out_dtype=dtype,
    )  # fmt: skip
    return program.text()


def rows_of(lengths: list[int], length: int) -> tuple[Tensor, Tensor]:
    counts = torch.tensor(lengths, dtype=torch.int64)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    mask = torch.arange(length) < counts[:, None]
    return offsets, (mask.flatten().nonzero().flatten() % max(length, 1)).to(torch.int64)


def sample(
    lengths: list[int], p: float = 0.0, dtype: torch.dtype = torch.float64, grad: bool = True
) -> list[Any]:
    """Operands of `causal_softmax` with N = 5, H = 4 and two shared heads."""
    torch.manual_seed(len(lengths))
    offsets, positions = rows_of(lengths, 5)
    total = positions.shape[0]
    shapes = ((total, 4, 3), (total, 2, 3), (total, 2, 2), (9,))
    q, k, v, bias = (torch.randn(x, dtype=torch.float64).to(dtype).requires_grad_(grad) for x in shapes)
    seed = torch.tensor(7) if p else None
    name = {torch.float64: "f64", torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    program = causal_softmax(name, p=p)
    return [q, k, v, [bias], offsets, positions, offsets, positions, 4, [5], seed, program]
