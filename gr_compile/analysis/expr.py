"""Element expressions: what one element of a value is, over grid indices, sizes and loads.

A typed, immutable, hash-consed DAG (`Expr`). Integers are canonical polynomials. Floats keep the order and
the dtype in which the model wrote them. Functions here simplify; `make` does not.
This module is the front of node, algebra, ranges, pointwise and expr_text.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

from gr_compile.analysis.algebra import (
    add,
    alternatives,
    and_,
    atoms,
    choose,
    coefficient_of,
    eq0,
    ge0,
    mul,
    not_,
    or_,
    poly,
    scale,
    split_mask,
    sub,
    terms,
)
from gr_compile.analysis.expr_text import parse, show, to_text
from gr_compile.analysis.node import (
    FALSE,
    FLOAT_DTYPES,
    TORCH_DTYPE,
    TRUE,
    Expr,
    const,
    index,
    is_const,
    is_mask_cast,
    load,
    make,
    operands_of,
    order,
    size,
    walk,
)
from gr_compile.analysis.pointwise import (
    BINARY,
    UNARY,
    binary,
    cast,
    clamp,
    compare,
    elu,
    leaky_relu,
    promote,
    unary,
    where,
)
from gr_compile.analysis.ranges import Ranges, divide, divmod_

__all__ = [
    "BINARY", "FALSE", "FLOAT_DTYPES", "TORCH_DTYPE", "TRUE", "UNARY", "Expr", "Ranges", "add",
    "alternatives", "and_", "atoms", "binary", "cast", "choose", "clamp", "coefficient_of", "compare",
    "const", "divide", "divmod_", "elu", "eq0", "ge0", "index", "is_const", "is_mask_cast", "leaky_relu",
    "load", "make", "mul", "not_", "operands_of", "or_", "order", "parse", "poly", "promote", "rebuild", "scale",
    "show", "size", "split_mask", "sub", "substitute", "terms", "to_text", "unary", "walk", "where",
]  # fmt: skip

_BOOLEAN: dict[str, Callable[..., Expr]] = {"and": and_, "not": not_, "ge0": ge0, "eq0": eq0}


def substitute(expr: Expr, mapping: Mapping[Expr, Expr]) -> Expr:
    """`expr` with every node in `mapping` replaced, all at once, and simplified again."""
    done: dict[Expr, Expr] = dict(mapping)
    names = {key.args[0] for key in mapping if key.op == "index"}
    indices_only = len(names) == len(mapping)
    stack = [expr]
    while stack:
        node = stack[-1]
        if node in done:
            stack.pop()
        elif indices_only and names.isdisjoint(node.free):
            done[stack.pop()] = node
        else:
            waiting = [x for x in operands_of(node.args) if x not in done]
            stack.extend(waiting)
            if not waiting:
                done[stack.pop()] = rebuild(node, done.__getitem__)
    return done[expr]


def rebuild(node: Expr, new: Callable[[Expr], Expr]) -> Expr:
    """`node` over `new(operand)` for each operand, through the functions above."""
    op, args, dtype = node.op, node.args, node.dtype
    if all(new(x) is x for x in operands_of(args)):
        return node
    if op == "poly":
        products = (functools.reduce(mul, map(new, m), const(c)) for m, c in args)
        return add(*products)
    if op == "load":
        return load(args[0], map(new, args[1]), dtype)
    if op == "compare":
        return compare(args[0], new(args[1]), new(args[2]))
    if op == "where":
        return where(new(args[0]), new(args[1]), new(args[2]), dtype)
    if op == "cast":
        return cast(new(args[0]), dtype)
    if op in _BOOLEAN:
        return _BOOLEAN[op](*map(new, args))
    if op in UNARY:
        return unary(op, new(args[0]))
    if op in BINARY:
        return binary(op, new(args[0]), new(args[1]), dtype)
    return make(op, tuple(new(x) if isinstance(x, Expr) else x for x in args), dtype)
