"""Expression nodes: typed, immutable and hash-consed, so that equal expressions are one object.

Import these names from `gr_compile.analysis.expr`, which adds arithmetic to them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any, NoReturn, TypeAlias
from weakref import WeakValueDictionary

import torch

TORCH_DTYPE = {
    "i": torch.int64,
    "b": torch.bool,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f32": torch.float32,
    "f64": torch.float64,
}
FLOAT_DTYPES = frozenset({"f16", "bf16", "f32", "f64"})


class Expr:
    """One node of an expression DAG; `make` is its only constructor, and equality is identity.

    Attributes:
        op: what it computes, e.g. "load" or "add".
        args: operands; strings, numbers and nested tuples where the op needs them (see `make`).
        dtype: "i" (an integer of any width), "b", "f16", "bf16", "f32" or "f64".
        free: names of the indices that it depends on.
        key: a digest of the content, the same in every process.
        rank: a total order that ends in `key`: it orders the operands of commutative ops.
    """

    __slots__ = ("__weakref__", "args", "dtype", "free", "key", "op", "rank")
    op: str
    args: tuple[Any, ...]
    dtype: str
    free: frozenset[str]
    key: bytes
    rank: tuple[str, str, bytes]

    def __init__(self) -> None:
        raise TypeError("expressions are made by gr_compile.analysis.expr.make and its relatives")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"expressions are immutable: cannot set {name}")

    def __copy__(self) -> Expr:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Expr:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return make, (self.op, self.args, self.dtype)

    def __repr__(self) -> str:
        from gr_compile.analysis.expr_text import show

        return show(self)


Key: TypeAlias = tuple[Any, ...]
_NODES: WeakValueDictionary[Key, Expr] = WeakValueDictionary()
_RECENT: deque[Expr] = deque(maxlen=1 << 16)  # keeps intermediate results alive for a while
_LOCK = threading.Lock()


def make(op: str, args: tuple[Any, ...] = (), dtype: str = "i") -> Expr:
    """The node `op(args)`, without any simplification.

    Shapes of args: const (value,), index/size (name,), load (name, (index, ...)),
    poly ((monomial, coefficient), ...), ge0/eq0 (polynomial,), compare ("lt" | "le" | "eq", a, b),
    and (a, b, ...), not (a,), where (condition, a, b), cast (a,), dot (query, key), dropout (x, const p),
    s () for the product of query and key, sm () for the softmax value in a post program; the names in `UNARY`
    and `BINARY` take one and two operands.
    """
    if op == "const":
        value = args[0]
        lookup: Key = (op, dtype, type(value).__name__, value.hex() if isinstance(value, float) else value)
    else:
        lookup = (op, dtype, args)
    with _LOCK:
        node = _NODES.get(lookup)
        if node is None:
            node = _new(op, args, dtype)
            _NODES[lookup] = node
            _RECENT.append(node)
    return node


def _new(op: str, args: tuple[Any, ...], dtype: str) -> Expr:
    if dtype not in TORCH_DTYPE:
        raise ValueError(f"unknown dtype {dtype!r} of {op}: one of {', '.join(TORCH_DTYPE)}")
    node = Expr.__new__(Expr)
    free = frozenset({args[0]}) if op == "index" else frozenset().union(*(x.free for x in operands_of(args)))
    key = blake2b(_encode((op, dtype, args)), digest_size=16).digest()
    rank = (op, args[0] if op in ("index", "size", "load") else "", key)
    for name, value in zip(Expr.__slots__[1:], (args, dtype, free, key, op, rank)):
        object.__setattr__(node, name, value)
    return node


def _encode(value: Any) -> bytes:
    """An injective encoding of an argument: 1, True and 1.0 differ, and so do 0.0 and -0.0."""
    if isinstance(value, Expr):
        return b"E" + value.key
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_encode, value)) + b")"
    text = value.hex() if isinstance(value, float) else str(value)
    return f"{type(value).__name__}:{len(text)}:{text};".encode()


def operands_of(args: Iterable[Any]) -> Iterator[Expr]:
    """The expressions among `args`, left to right, nested tuples opened."""
    for value in args:
        if isinstance(value, Expr):
            yield value
        elif isinstance(value, tuple):
            yield from operands_of(value)


def walk(*roots: Expr) -> list[Expr]:
    """Every node below `roots`, once, operands before users, in an order that depends on content only."""
    done: dict[Expr, None] = {}
    for root in roots:
        stack = [root]
        while stack:
            node = stack[-1]
            if node in done:
                stack.pop()
                continue
            waiting = [x for x in operands_of(node.args) if x not in done]
            if waiting:
                stack.extend(reversed(waiting))
            else:
                done[stack.pop()] = None
    return list(done)


# ---------------------------------------------------------------------- leaves
def const(value: bool | int | float, dtype: str | None = None) -> Expr:
    """A constant; `dtype` defaults to "b", "i" or "f32" by the Python type.

    float32 values are rounded here. float16 and bfloat16 values are kept as written, because torch computes
    `half_tensor * 0.3` with the unrounded scalar; `cast` and `where` round them.
    """
    if dtype is None:
        dtype = "b" if isinstance(value, bool) else "i" if isinstance(value, int) else "f32"
    if dtype == "b":
        return make("const", (bool(value),), "b")
    if dtype == "i":
        if value != int(value):
            raise ValueError(f"{value} is not an integer")
        return make("const", (int(value),), "i")
    number = float(value)
    return make("const", (rounded(number, dtype) if dtype == "f32" else number,), dtype)


def rounded(value: float, dtype: str) -> float:
    """`value` as a tensor of `dtype` holds it."""
    return float(torch.tensor(value, dtype=torch.float64).to(TORCH_DTYPE[dtype]).item())


TRUE, FALSE = const(True), const(False)


def index(name: str) -> Expr:
    """The index `name` of the grid, e.g. "b", "h", "i" (query) or "j" (key)."""
    return make("index", (name,), "i")


def size(name: str) -> Expr:
    """The size `name`: an integer known at run time, the same for the whole grid."""
    return make("size", (name,), "i")


def load(name: str, indices: Iterable[Expr], dtype: str) -> Expr:
    """The element of tensor `name` at `indices`."""
    return make("load", (name, tuple(indices)), dtype)


def is_const(expr: Expr, value: bool | int | float | None = None) -> bool:
    """Is `expr` a constant (equal to `value`, when given; zeros of both signs are equal)?"""
    return expr.op == "const" and (value is None or bool(expr.args[0] == value))


def is_mask_cast(expr: Expr) -> bool:
    """Is `expr` a boolean read as a number, 0 or 1?"""
    return expr.op == "cast" and expr.args[0].dtype == "b"


def order(expr: Expr) -> tuple[str, str, bytes]:
    """A total order of expressions that is the same in every process."""
    return expr.rank
