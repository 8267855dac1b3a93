"""The forward kernel of `gr::jagged_attention`; its parameters are those of printer.py, with `out` behind sizes.

A softmax goes over the keys twice: statistics first, weights then, so that the program behind it may be anything. Its
scores are made once, and stay in the workspace in between.
"""

from __future__ import annotations

from typing import ClassVar

from gr_compile.analysis.expr import Expr
from gr_compile.lowering.ascendc.attention.instructions import PASS, Instruction
from gr_compile.lowering.ascendc.attention.narrowing import unrounded
from gr_compile.lowering.ascendc.attention.printer import Given, Printer
from gr_compile.lowering.ascendc.attention.sizes import Part, common_parts


class Forward(Printer):
    """The kernel of one call, tiling apart."""

    operator: ClassVar[str] = "jagged_attention"
    files: ClassVar[tuple[str, ...]] = ("vector_core.h", "vector.h", "cube.h")

    def roots(self) -> tuple[Expr, ...]:
        post = self.program.post
        return (self.program.score, *(() if post is None else (post,)))

    def functions(self, given: Given) -> dict[str, list[Instruction]]:
        program, f = self.program, self.function(given)
        found = {}
        if program.post is None:
            last = program.score
        else:
            found["statistics"] = self.statistics(given)
            self.softmax(f)
            last = program.post
        last = unrounded(last, self.v_dtype)
        weights = f.tile(f.value(last), last.dtype)
        f.instructions.append(Instruction("return {0:f};", None, (weights,), work=PASS))
        return {**found, "weights": f.instructions}

    def numbers(self) -> dict[str, int]:
        return {}

    def members(self) -> list[str]:
        return []

    def parameters(self) -> dict[str, tuple[str, str]]:
        return {"out": ("OT", "t.q_rows * t.heads * t.dv")}

    def parts(self) -> dict[str, Part]:
        call = self.call
        turned = "0"
        if call.v_dtype.itemsize == 4:
            turned = "(k_rows // c + batch) * v_heads * dv * c"
        return {**common_parts(self), "vt": ("float", turned)}
