"""Symbolic sizes in one form: torch leaves some divisions undone, as in (s * s) // s."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import sympy
import torch
from torch.utils._sympy.functions import FloorDiv


def size_expr(size: Any) -> sympy.Expr:
    """A size (int, SymInt or sympy expression) as a simplified sympy expression; no guard is made."""
    if isinstance(size, torch.SymInt):
        size = size.node.expr
    return simplified(size) if isinstance(size, sympy.Expr) else sympy.Integer(int(size))


@lru_cache(maxsize=4096)
def simplified(expr: sympy.Expr) -> sympy.Expr:
    """Exact divisions are carried out."""
    if not expr.has(FloorDiv):
        return sympy.expand(expr) if expr.is_Add or expr.is_Mul or expr.is_Pow else expr
    return sympy.expand(expr.replace(FloorDiv, _divided))


def _divided(base: sympy.Expr, divisor: sympy.Expr) -> sympy.Expr:
    symbols = sorted(base.free_symbols | divisor.free_symbols, key=str)
    if symbols and base.is_polynomial(*symbols) and divisor.is_polynomial(*symbols):
        quotient, rest = sympy.div(base, divisor, *symbols)
        if rest == 0 and all(c.is_Integer for c in sympy.Poly(quotient, *symbols).coeffs()):
            return quotient
    return FloorDiv(base, divisor)
