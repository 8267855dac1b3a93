"""Evaluate expressions on a block of the grid with torch operators, as eager would in the same dtype.

A value is a tensor that broadcasts to [H, I, J], or a Python number where the model had one (constants,
sizes, sums of sizes). Every sub-expression keeps the smallest shape that it needs: what is free of h is
computed once for all heads, what is free of j once for a row.

    steps = schedule((score,), given=frozenset({index("i"), index("j"), s}))
    evaluator.run(steps, values)          # values: the given ones; filled with every step's result
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from gr_compile.analysis.expr import (
    BINARY,
    FLOAT_DTYPES,
    TORCH_DTYPE,
    UNARY,
    Expr,
    operands_of,
    poly,
    scale,
    terms,
)

Value: TypeAlias = Any  # Tensor | int | float | bool
Noise: TypeAlias = Callable[[float, torch.dtype], Tensor]
SPECIAL = frozenset({"s", "sm", "dropout"})
_COMPARE = {"lt": operator.lt, "le": operator.le, "eq": operator.eq}
_SCALAR_RIGHT = frozenset({"add", "sub", "mul", "div", "floordiv", "truncdiv", "mod", "pow"})


# ------------------------------------------------------------------------------------------------ schedule


@functools.lru_cache(maxsize=65536)
def operands(node: Expr) -> tuple[Expr, ...]:
    """What has to be known before `node`.

    A polynomial of both i and j is the sum of a column over i, a column over j and a rest, so that
    j - i + N - 1 costs one addition on the block; a comparison of such a sum with 0 compares the columns.
    """
    if node.op == "poly":
        groups = side_groups(node)
        return groups if len(groups) > 1 else tuple(dict.fromkeys(operands_of(node.args)))
    if node.op in ("ge0", "eq0"):
        sides = side_groups(node.args[0])
        if len(sides) == 2:
            return sides[0], scale(sides[1], -1)
        return (node.args[0],)
    return tuple(operands_of(node.args))


@functools.lru_cache(maxsize=4096)
def side_groups(node: Expr) -> tuple[Expr, ...]:
    """The parts of a polynomial by which of i and j they depend on; constants join the first part."""
    parts: dict[str, dict[tuple[Expr, ...], int]] = {}
    for monomial, coefficient in terms(node).items():
        free: frozenset[str] = frozenset().union(*(atom.free for atom in monomial))
        special = any(reads_block(atom) for atom in monomial)
        side = "pair" if special else "".join(sorted(free & {"i", "j"}))
        parts.setdefault(side, {})[monomial] = coefficient
    common = parts.pop("", {})
    if not parts:
        return (poly(common),)
    ordered = [parts[side] for side in sorted(parts)]
    ordered[0] = {**ordered[0], **common}
    return tuple(poly(part) for part in ordered)


@functools.lru_cache(maxsize=65536)
def reads_block(node: Expr) -> bool:
    """Does `node` depend on the block: on both i and j, or on the product, the softmax or dropout?"""
    if node.op in SPECIAL or {"i", "j"} <= node.free:
        return True
    return any(reads_block(x) for x in operands_of(node.args))


@dataclass(frozen=True)
class Schedule:
    """Nodes to compute, operands first, and after each of them the nodes that nobody needs any more."""

    nodes: tuple[Expr, ...]
    dead: tuple[tuple[Expr, ...], ...]


def schedule(roots: Iterable[Expr], given: Collection[Expr], keep: Iterable[Expr] = ()) -> Schedule:
    """What to compute for `roots`, none of `given`. Values of `roots` and `keep` stay afterwards."""
    wanted = tuple(roots)
    done: dict[Expr, None] = {}
    stack = [x for x in reversed(wanted) if x not in given]
    while stack:
        node = stack[-1]
        if node in done:
            stack.pop()
            continue
        waiting = [x for x in operands(node) if x not in done and x not in given]
        if waiting:
            stack.extend(reversed(waiting))
        else:
            done[stack.pop()] = None
    last = {x: step for step, node in enumerate(done) for x in operands(node) if x in done}
    kept = {*wanted, *keep}
    dead: list[list[Expr]] = [[] for _ in done]
    for node, step in last.items():
        if node not in kept:
            dead[step].append(node)
    return Schedule(tuple(done), tuple(map(tuple, dead)))


# ------------------------------------------------------------------------------------------------ evaluate


class Evaluator:
    """Runs schedules against fixed operands.

    Attributes:
        leaves: tensors by name, dense, in padded coordinates.
        sizes: integers by name.
        device: of the 0-dimensional tensors that it makes.
        noise: gives dropout's factors (0 or 1 / (1 - p)) over the whole block; None without dropout.
    """

    def __init__(self, leaves: Mapping[str, Tensor], sizes: Mapping[str, int], device: torch.device) -> None:
        self.leaves, self.sizes, self.device = leaves, sizes, device
        self.noise: Noise | None = None

    def run(self, steps: Schedule, values: dict[Expr, Value]) -> None:
        """Compute `steps` in order into `values`; what is dead leaves it, and its memory is free again."""
        for node, dead in zip(steps.nodes, steps.dead):
            values[node] = self._apply(node, [values[x] for x in operands(node)])
            for x in dead:
                del values[x]

    def tensor(self, value: Value, dtype: str) -> Tensor:
        """`value` as a tensor: a Python number becomes a 0-dimensional one."""
        if isinstance(value, Tensor):
            return value
        return torch.tensor(value, dtype=TORCH_DTYPE[dtype], device=self.device)

    def places(self, node: Expr, values: Mapping[Expr, Value]) -> tuple[Tensor, Tensor]:
        """(leaf, flat place in the contiguous leaf) of the load `node`, its indices clamped."""
        leaf = self.leaves[node.args[0]]
        flat = torch.zeros((), dtype=torch.int64, device=self.device)
        for place, extent, stride in zip(node.args[1], leaf.shape, _strides(leaf.shape)):
            flat = flat + _clamp(values[place], extent) * stride
        return leaf, flat

    def _apply(self, node: Expr, args: list[Any]) -> Value:
        op = node.op
        if op in BINARY:
            return self._binary(op, args[0], args[1], node.dtype)
        if op in UNARY:
            return UNARY[op](self.tensor(args[0], node.args[0].dtype))
        rule = _RULES.get(op)
        if rule is None:
            raise NotImplementedError(f"no rule to evaluate {op!r}")
        return rule(self, node, args)

    def _binary(self, op: str, left: Value, right: Value, dtype: str) -> Value:
        scalar_left, scalar_right = not isinstance(left, Tensor), not isinstance(right, Tensor)
        if scalar_left and scalar_right:
            return BINARY[op](self.tensor(left, dtype), self.tensor(right, dtype))
        if scalar_right and op in _SCALAR_RIGHT:
            return BINARY[op](left, right)
        if scalar_left and op in ("add", "mul"):
            return BINARY[op](right, left)
        if scalar_left and op == "sub" and dtype in FLOAT_DTYPES:
            return torch.rsub(right, left)
        if scalar_left and op == "pow":
            return torch.pow(left, right)
        return BINARY[op](self.tensor(left, dtype), self.tensor(right, dtype))

    # -------------------------------------------------------------------------------------------- rules
    def _const(self, node: Expr, args: list[Any]) -> Value:
        return node.args[0]

    def _size(self, node: Expr, args: list[Any]) -> Value:
        return self.sizes[node.args[0]]

    def _poly(self, node: Expr, args: list[Any]) -> Value:
        if len(side_groups(node)) > 1:
            return functools.reduce(operator.add, args)
        known = dict(zip(operands(node), args))
        return functools.reduce(operator.add, (_monomial(m, c, known) for m, c in node.args))

    def _load(self, node: Expr, args: list[Any]) -> Value:
        leaf = self.leaves[node.args[0]]
        dtype = TORCH_DTYPE[node.dtype]
        if not args:
            return leaf.to(dtype)
        if leaf.numel() == 0:
            places: Tensor = functools.reduce(operator.add, (self.tensor(x, "i") for x in args))
            return leaf.new_zeros(places.shape, dtype=dtype)
        at = tuple(_clamp(x, extent) for x, extent in zip(args, leaf.shape))
        if len(at) == 1 and isinstance(at[0], Tensor):
            return leaf.index_select(0, at[0].reshape(-1)).view(at[0].shape).to(dtype)
        return leaf[at].to(dtype)

    def _ge0(self, node: Expr, args: list[Any]) -> Value:
        return args[0] >= (args[1] if len(args) == 2 else 0)

    def _eq0(self, node: Expr, args: list[Any]) -> Value:
        return args[0] == (args[1] if len(args) == 2 else 0)

    def _compare(self, node: Expr, args: list[Any]) -> Value:
        if not isinstance(args[0], Tensor) and isinstance(args[1], Tensor):
            args = [self.tensor(args[0], node.args[1].dtype), args[1]]
        return _COMPARE[node.args[0]](args[0], args[1])

    def _and(self, node: Expr, args: list[Any]) -> Value:
        ordered = sorted(args, key=lambda x: x.numel() if isinstance(x, Tensor) else 0)
        return functools.reduce(operator.and_, ordered)

    def _not(self, node: Expr, args: list[Any]) -> Value:
        return ~args[0] if isinstance(args[0], Tensor) else not args[0]

    def _where(self, node: Expr, args: list[Any]) -> Value:
        condition = self.tensor(args[0], "b")
        return torch.where(condition, self.tensor(args[1], node.dtype), self.tensor(args[2], node.dtype))

    def _cast(self, node: Expr, args: list[Any]) -> Value:
        if isinstance(args[0], Tensor):
            return args[0].to(TORCH_DTYPE[node.dtype])
        return bool(args[0]) if node.dtype == "b" else int(args[0]) if node.dtype == "i" else float(args[0])

    def _dropout(self, node: Expr, args: list[Any]) -> Value:
        assert self.noise is not None, "a program with dropout needs a seed"
        return self.tensor(args[0], node.dtype) * self.noise(args[1], TORCH_DTYPE[node.dtype])


_RULES: dict[str, Callable[[Evaluator, Expr, list[Any]], Value]] = {
    "const": Evaluator._const,
    "size": Evaluator._size,
    "poly": Evaluator._poly,
    "load": Evaluator._load,
    "ge0": Evaluator._ge0,
    "eq0": Evaluator._eq0,
    "compare": Evaluator._compare,
    "and": Evaluator._and,
    "not": Evaluator._not,
    "where": Evaluator._where,
    "cast": Evaluator._cast,
    "dropout": Evaluator._dropout,
}


def evaluate(
    expr: Expr,
    values: Mapping[Expr, Value],
    leaves: Mapping[str, Tensor] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Tensor:
    """`expr` as a tensor that broadcasts to [H, I, J]. `values`: the indices as integer tensors of shapes
    [H, 1, 1], [1, I, 1], [1, 1, J] (b as an int), and the leaves s and sm where `expr` reads them."""
    device = next((x.device for x in values.values() if isinstance(x, Tensor)), torch.device("cpu"))
    evaluator = Evaluator(leaves or {}, sizes or {}, device)
    known = dict(values)
    evaluator.run(schedule((expr,), known), known)
    return evaluator.tensor(known[expr], expr.dtype)


def _monomial(monomial: tuple[Expr, ...], coefficient: int, known: Mapping[Expr, Value]) -> Value:
    factors: list[Any] = [known[atom] for atom in monomial]
    if not factors:
        return coefficient
    product: Value = functools.reduce(operator.mul, factors)
    return product if coefficient == 1 else product * coefficient


def _clamp(place: Value, extent: int) -> Any:
    if isinstance(place, Tensor):
        return place.clamp(0, max(extent - 1, 0))
    return min(max(int(place), 0), extent - 1)


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for extent in reversed(shape):
        strides.append(step)
        step *= extent
    return tuple(reversed(strides))
