"""One call of an attention operator, as a kernel is made for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gr_compile.ops.attention_blocks import Inputs
from gr_compile.ops.score_program import ScoreProgram

ELEMENT = {torch.float32: "float", torch.float16: "half", torch.bfloat16: "bfloat16_t"}
LEAF = {**ELEMENT, torch.int64: "int64_t", torch.int32: "int32_t", torch.bool: "uint8_t"}


@dataclass(frozen=True)
class Call:
    """What a kernel is made for: dtypes, widths, and the sizes of one call.

    Attributes:
        extents: of each leaf.
    """

    program: ScoreProgram
    qk_dtype: torch.dtype
    v_dtype: torch.dtype
    leaf_dtypes: tuple[torch.dtype, ...]
    extents: tuple[tuple[int, ...], ...]
    batch: int
    heads: int
    query_rows: int
    key_rows: int
    q_heads: int
    k_heads: int
    v_heads: int
    d: int
    dv: int

    @staticmethod
    def of(inputs: Inputs) -> Call:
        """The call with these operands."""
        q, k, v = inputs.q, inputs.k, inputs.v
        has = inputs.program.product is not None and q is not None and k is not None
        return Call(
            program=inputs.program, qk_dtype=q.dtype if has and q is not None else v.dtype, v_dtype=v.dtype,
            leaf_dtypes=tuple(x.dtype for x in inputs.leaves.values()),
            extents=tuple(tuple(x.shape) for x in inputs.leaves.values()),
            batch=inputs.query_offsets.shape[0] - 1, heads=inputs.heads,
            query_rows=inputs.query_positions.shape[0], key_rows=inputs.key_positions.shape[0],
            q_heads=q.shape[1] if has and q is not None else 1, k_heads=k.shape[1] if has and k is not None else 1,
            v_heads=v.shape[1], d=q.shape[2] if has and q is not None else 0, dv=v.shape[2],
        )  # fmt: skip
