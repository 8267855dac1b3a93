"""Values of pairs that every head shares: computed once for a block of rows, kept in the workspace, read by each head.

    s + (position[j - i] + time[bucket(|t_i - t_j|)])     ->     s + shared0,   shared0 = position[...] + time[...]

The core that goes over a block's heads makes them at the first head, and under a softmax in the first phase. What costs
less than a copy is worth is left where it stands.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping

from gr_compile.analysis.expr import Expr
from gr_compile.lowering.ascendc.attention.instructions import Instruction, Register, Work
from gr_compile.lowering.ascendc.attention.lookups import Sides
from gr_compile.lowering.ascendc.attention.values import Context, Value
from gr_compile.lowering.ascendc.attention.vector import Function
from gr_compile.ops.evaluate import SPECIAL, operands

FIRST = 2  # tiles that arrive before them: scores, gradients of weights
_MOST = 4
_LEAST_PASSES = 3


def shared_values(roots: Iterable[Expr], context: Context) -> dict[Expr, Value]:
    """The outermost numbers of pairs, without masks, that no head differs in and that are worth it, as registers."""
    found: dict[Expr, Value] = {}
    seen: set[Expr] = set()
    stack = list(roots)
    while stack and len(found) < _MOST:
        node = stack.pop()
        if node in seen or node.dtype == "b":
            continue
        seen.add(node)
        if not _is_of_places(node):
            stack.extend(operands(node))
        elif {"i", "j"} <= node.free and _is_worth_it(node, context):
            found[node] = Value(Register(-1, "tile", FIRST + len(found)))
    return found


def reached(roots: Iterable[Expr], known: Collection[Expr]) -> set[Expr]:
    """Every node that roots are made of, but for what is known."""
    found: set[Expr] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in found and node not in known:
            found.add(node)
            stack.extend(operands(node))
    return found


@functools.lru_cache(maxsize=65536)
def _is_of_places(node: Expr) -> bool:
    """Is `node` the same for all heads and scores, with no mask that a tile may pass?"""
    if node.op in SPECIAL or node.dtype == "b" or "h" in node.free:
        return False
    return all(_is_of_places(x) for x in operands(node))


def _is_worth_it(node: Expr, context: Context) -> bool:
    function = Function(context)
    function.value(node)
    work = sum((x.work for x in function.instructions), Work())
    return work.passes >= _LEAST_PASSES or work.scalars > 0


def making(shared: Iterable[Expr], context: Context, inside: Mapping[Expr, Sides] | None = None) -> list[Instruction]:
    """The function of a tile that makes shared values; `inside`: loads that are proved to lie in their tables."""
    f = Function(context, inside=inside or {})
    for at, node in enumerate(shared):
        tile = f.tile(f.value(node), node.dtype)
        f.instructions.append(Instruction(f"keep({at}, {{0:f}});", None, (tile,)))
    return f.instructions
