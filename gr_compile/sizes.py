"""Symbolic sizes in one form: torch leaves some divisions undone, as in (s * s) // s."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.functions import FloorDiv


def size_expr(size: Any) -> sympy.Expr:
    """A size (int, SymInt or sympy expression) as a simplified sympy expression; no guard is made."""
    if isinstance(size, torch.SymInt):
        size = size.node.expr
    return simplified(size) if isinstance(size, sympy.Expr) else sympy.Integer(int(size))


def same_sizes(sizes: Sequence[Any], others: Sequence[Any]) -> bool:
    """Equal as expressions: no guard is made."""
    return len(sizes) == len(others) and all(size_expr(a) == size_expr(b) for a, b in zip(sizes, others))


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


def settle_flattened_sizes(shape_env: ShapeEnv) -> None:
    """Where the graph asks for B * N == B' * N', guard on B == B' and N == N'.

    Dynamo gives every input symbols of its own. Logits and targets that a loss flattens then say of their sizes only
    that the products are equal, and nothing relates their places. Sizes are matched that are the same dimension of
    their inputs and equal in the batch at hand; a batch that breaks the guard compiles anew.
    """
    for guard in list(shape_env.guards):
        relation = shape_env.replace(guard.expr)
        if not isinstance(relation, sympy.Eq):
            continue
        left, right = (_symbols(side) for side in relation.args)
        if left is None or right is None:
            continue
        left, right = left - right, right - left
        for symbol in left.elements():
            twin = next((s for s in right if right[s] and _alike(shape_env, symbol, s)), None)
            if twin is not None:
                right[twin] -= 1
                shape_env.evaluate_expr(sympy.Eq(symbol, twin))


def _symbols(product: Any) -> Counter[sympy.Symbol] | None:
    """The symbols of a product of symbols and numbers; None for anything else."""
    powers = [factor.as_base_exp() for factor in sympy.Mul.make_args(product) if not factor.is_Integer]
    if not all(base.is_Symbol and exponent.is_Integer and exponent > 0 for base, exponent in powers):
        return None
    return Counter({base: int(exponent) for base, exponent in powers})


def _alike(shape_env: ShapeEnv, first: sympy.Symbol, second: sympy.Symbol) -> bool:
    values = shape_env.backed_var_to_val
    if first not in values or values[first] != values.get(second):
        return False
    dims = [{getattr(source, "idx", None) for source in shape_env.var_to_sources.get(s, ())} for s in (first, second)]
    return bool(dims[0] & dims[1])
