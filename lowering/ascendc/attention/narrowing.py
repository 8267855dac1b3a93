"""Roundings that need not be written: of a value that is rounded to the same dtype right behind.

    cast(where(mask, x, 0) to f16), copied to the cube core in f16     ->     where(mask, x, 0)
"""

from __future__ import annotations

from gr_compile.analysis.expr import Expr, const, where
from gr_compile.analysis.node import rounded


def unrounded(node: Expr, dtype: str = "") -> Expr:
    """What `node` rounds to its half precision last, in float32; `node` where it does not, or not to `dtype`."""
    if dtype and node.dtype != dtype:
        return node
    found = _before(node)
    return node if found is None else found


def _before(node: Expr) -> Expr | None:
    if node.dtype not in ("f16", "bf16"):
        return None
    if node.op == "cast":
        inner: Expr = node.args[0]
        return inner if inner.dtype == "f32" else None
    if node.op == "const":
        value = float(node.args[0])
        return const(value, "f32") if rounded(value, node.dtype) == value else None
    if node.op != "where":
        return None
    left, right = (_before(x) for x in node.args[1:])
    return None if left is None or right is None else where(node.args[0], left, right, "f32")
