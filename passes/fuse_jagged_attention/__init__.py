"""fuse-jagged-attention: an attention-like region, however spelled, becomes one operator with a score program.

    before   a = einsum("bihd,bjhd->bhij", q, k); a = silu(a + bias[j - i]) / N * mask
             o = einsum("bhij,bjhd->bihd", a, v)
    after    o = gr.jagged_attention(q, k, v, [bias], offsets, ..., "silu(s + leaf0[j - i + 63]) / s21 * ...")

Nothing with both a query and a key dimension is materialised, forward or backward. Sides that eliminate-padding has
packed stay packed; other sides are dense (every place of every sequence).
"""

from __future__ import annotations

from gr_compile.passes.fuse_jagged_attention.rewrite import FuseJaggedAttention

__all__ = ["FuseJaggedAttention"]
