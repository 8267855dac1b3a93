"""Every small case at once: expressions by brute force over all sizes, indices, lengths and masks."""

from __future__ import annotations

import functools
import itertools
import operator
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gr_compile.analysis.expr import (
    BINARY,
    TORCH_DTYPE,
    UNARY,
    Expr,
    Ranges,
    add,
    and_,
    binary,
    cast,
    compare,
    const,
    index,
    load,
    make,
    mul,
    not_,
    or_,
    scale,
    size,
    sub,
    unary,
    walk,
    where,
)

B, I, J = index("b"), index("i"), index("j")  # noqa: E741
N = size("N")
LENGTH = load("len", (B,), "i")
SLOTS = 3
FACTS = (LENGTH, sub(N, LENGTH))
COMPARE = {"lt": operator.lt, "le": operator.le, "eq": operator.eq}


def ranges() -> Ranges:
    """b, i and j of a grid with N keys and N queries."""
    found = Ranges()
    found.bound("b", const(1))
    found.bound("i", N)
    found.bound("j", N)
    return found


@dataclass
class Grid:
    """Assignments: index and size names -> [A] integers; tensor names -> [A, SLOTS] by the last index."""

    values: Mapping[str, torch.Tensor]

    def evaluate(self, expr: Expr) -> torch.Tensor:
        """`expr` in every assignment."""
        done: dict[Expr, Any] = {}
        for node in walk(expr):
            done[node] = self._node(node, done)
        result: torch.Tensor = done[expr]
        count = next(iter(self.values.values())).shape[0]
        return result.expand(count) if result.dim() == 0 else result

    def _node(self, node: Expr, done: dict[Expr, Any]) -> Any:
        op, args = node.op, node.args
        if op == "const":
            return torch.tensor(args[0], dtype=TORCH_DTYPE[node.dtype])
        if op in ("index", "size"):
            return self.values[args[0]]
        if op in ("s", "sm"):
            return self.values[op]
        if op == "load":
            return self._load(args[0], [done[x] for x in args[1]])
        if op == "poly":
            return sum(c * torch.stack([done[x] + 0 * self.values["i"] for x in m]).prod(0) if m else c
                       for m, c in args)  # fmt: skip
        if op in ("ge0", "eq0"):
            return done[args[0]] >= 0 if op == "ge0" else done[args[0]] == 0
        if op == "compare":
            return COMPARE[args[0]](done[args[1]], done[args[2]])
        if op == "and":
            return torch.stack(torch.broadcast_tensors(*(done[x] for x in args))).all(0)
        if op == "not":
            return ~done[args[0]]
        if op == "where":
            return torch.where(*(done[x] for x in args))
        if op == "cast":
            return done[args[0]].to(TORCH_DTYPE[node.dtype])
        if op in UNARY:
            return UNARY[op](done[args[0]])
        return BINARY[op](*(done[x] for x in args))

    def _load(self, name: str, places: list[torch.Tensor]) -> torch.Tensor:
        tensor = self.values[name]
        if tensor.dim() == 1:
            return tensor
        last = (places[-1] + 0 * self.values["i"]).clamp(0, SLOTS - 1)
        return tensor.gather(1, last[:, None])[:, 0]

    @functools.cached_property
    def groups(self) -> dict[str, torch.Tensor]:
        """For i and for j: a number for every assignment, the same where only the other index differs."""
        found = {}
        for kept, hidden in (("i", "j"), ("j", "i")):
            columns = [v.reshape(len(v), -1).long() for k, v in self.values.items() if k != hidden]
            found[kept] = torch.unique(torch.cat(columns, 1), dim=0, return_inverse=True)[1]
        return found


@functools.cache
def small_grid(suffix_closed: bool = False) -> Grid:
    """All cases with N <= 3: i, j < N, length <= N, a boolean tensor S, and ids of zeros and ones."""
    rows = []
    masks = list(itertools.product((0, 1), repeat=SLOTS))
    closed = [mask for mask in masks if list(mask) == sorted(mask, reverse=True)]
    for n in range(1, SLOTS + 1):
        places = range(n)
        for i, j, length, mask, ids in itertools.product(
            places, places, range(n + 1), closed if suffix_closed else masks, masks
        ):
            rows.append((i, j, n, length, *mask, *ids))
    table = torch.tensor(rows)
    return Grid({
        "b": torch.zeros(len(rows), dtype=torch.int64), "i": table[:, 0], "j": table[:, 1], "N": table[:, 2],
        "len": table[:, 3], "S": table[:, 4:7].bool(), "ids": table[:, 7:10],
    })  # fmt: skip


class MaskGenerator:
    """Random masks as models write them, and worse."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def integer(self, depth: int = 2) -> Expr:
        """An integer over i, j, N, the length and ids."""
        pick = self.random.choice
        place = pick([I, J])
        leaf = pick([I, J, I, J, N, LENGTH, LENGTH, const(self.random.randint(-1, 3)), load("ids", (B, place), "i")])
        if depth == 0 or self.random.random() < 0.4:
            return leaf
        left, right = self.integer(depth - 1), self.integer(depth - 1)
        kind = pick(["add", "sub", "sub", "min", "max", "abs", "where", "mod", "div", "twice", "mask"])
        if kind in ("min", "max"):
            return binary(f"{kind}imum", left, right, "i")
        if kind == "where":
            return where(self.literal(0), left, right, "i")
        if kind in ("mod", "div"):
            return binary("mod" if kind == "mod" else "floordiv", left, const(self.random.randint(2, 3)), "i")
        if kind == "mask":
            return mul(cast(self.literal(0), "i"), left)
        simple = {
            "add": add(left, right),
            "sub": sub(left, right),
            "abs": unary("abs", left),
            "twice": scale(left, 2),
        }
        return simple[kind]

    def literal(self, depth: int) -> Expr:
        """A comparison or a boolean load."""
        choice = self.random.random()
        if choice < 0.15:
            shifted = self.random.choice([I, J, sub(I, const(1)), sub(N, add(J, const(1)))])
            found = load("S", (B, shifted), "b")
        elif choice < 0.55:
            plain = self.random.choice
            found = compare(plain(["ge", "gt", "le", "lt", "eq"]), plain([I, J]), plain([I, J, LENGTH, N, const(1)]))
        else:
            found = compare(self.random.choice(["ge", "lt", "eq"]), self.integer(depth), self.integer(depth))
        return not_(found) if self.random.random() < 0.25 else found

    def mask(self, depth: int = 2) -> Expr:
        """A boolean combination of literals."""
        if depth == 0 or self.random.random() < 0.3:
            return self.literal(1)
        parts = [self.mask(depth - 1) for _ in range(self.random.randint(2, 3))]
        return (and_ if self.random.random() < 0.65 else or_)(*parts)


S = make("s", (), "f32")
