"""Scores as a number times something, for instructions that multiply and add at once.

    where(mask, s * 0.25, -inf)     ->     0.25, where(mask, s, -inf)
"""

from __future__ import annotations

import math

from gr_compile.analysis.expr import Expr, where


def scaled(score: Expr) -> tuple[float, Expr]:
    """A positive float32 number and what it is multiplied with; 1 and `score` where there is none."""
    found = _factor(score) if score.dtype == "f32" else None
    return (1.0, score) if found is None else found


def _factor(node: Expr) -> tuple[float, Expr] | None:
    if node.op == "mul":
        for number, other in (node.args, node.args[::-1]):
            if number.op == "const" and 0 < number.args[0] < math.inf:
                return float(number.args[0]), other
    if node.op == "where" and node.args[2].op == "const" and node.args[2].args[0] == -math.inf:
        inner = _factor(node.args[1])
        if inner is not None:
            return inner[0], where(node.args[0], inner[1], node.args[2], "f32")
    return None
