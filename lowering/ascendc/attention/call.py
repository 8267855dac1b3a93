"""One call of an attention operator, as a kernel is made for it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gr_compile.ops.attention_blocks import Inputs
from gr_compile.ops.score_program import ScoreProgram

ELEMENT = {torch.float32: "float", torch.float16: "half", torch.bfloat16: "bfloat16_t"}
LEAF = {**ELEMENT, torch.int64: "int64_t", torch.int32: "int32_t", torch.bool: "uint8_t"}


@dataclass(frozen=True)
class Call:
    """Dtypes, widths and heads, which a kernel is printed for, and the sizes of one call, which its tiling holds.

    Attributes:
        extents: of each leaf.
        open: (leaf, dimension) of extents that are sizes of the call; a kernel is printed for the others.
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
    open: frozenset[tuple[int, int]] = frozenset()

    @staticmethod
    def of(inputs: Inputs) -> Call:
        """The call with these operands; a leaf's extents are constants."""
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

    def constants(self) -> Call:
        """The same call with 0 for every size: what its kernel is printed for, and nothing else."""
        extents = tuple(
            tuple(0 if (at, dim) in self.open else extent for dim, extent in enumerate(found))
            for at, found in enumerate(self.extents)
        )
        return dataclasses.replace(self, extents=extents, batch=0, query_rows=0, key_rows=0)

    def is_fixed(self, at: int) -> bool:
        """Are all extents of a leaf constants?"""
        return not any(leaf == at for leaf, _ in self.open)

    def count(self, at: int) -> int:
        """Elements of a leaf whose extents are constants."""
        return math.prod(self.extents[at])

    # ----------------------------------------------------------------------------------------- as JSON
    def described(self) -> dict[str, Any]:
        """The call as JSON."""
        found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return found | {
            "program": self.program.text(), "qk_dtype": dtype_name(self.qk_dtype), "v_dtype": dtype_name(self.v_dtype),
            "leaf_dtypes": [dtype_name(x) for x in self.leaf_dtypes], "extents": [list(x) for x in self.extents],
            "open": sorted(map(list, self.open)),
        }  # fmt: skip

    @staticmethod
    def read(described: Mapping[str, Any]) -> Call:
        """The call that `described` wrote."""
        found = {
            "program": ScoreProgram.parse(described["program"]),
            "qk_dtype": getattr(torch, described["qk_dtype"]), "v_dtype": getattr(torch, described["v_dtype"]),
            "leaf_dtypes": tuple(getattr(torch, x) for x in described["leaf_dtypes"]),
            "extents": tuple(map(tuple, described["extents"])), "open": frozenset(map(tuple, described["open"])),
        }  # fmt: skip
        return Call(**{**described, **found})


def dtype_name(dtype: torch.dtype) -> str:
    """As torch's module spells it: float32."""
    return str(dtype).removeprefix("torch.")
