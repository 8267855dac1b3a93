"""Print one-sided parts of a score program for the scalar unit: whole numbers, masks, loads, simple arithmetic.

They are computed once a row, not once a pair. The scalar unit has no exponential and no rounding of floats: such nodes
are computed by the vector unit, from what stands here.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gr_compile.analysis.expr import FLOAT_DTYPES, Expr, operands_of
from gr_compile.analysis.node import rounded

CXX: Mapping[str, str] = {"i": "int64_t", "b": "bool", "f32": "float", "f16": "float", "bf16": "float"}
_INFIX: Mapping[str, str] = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_COMPARE: Mapping[str, str] = {"lt": "<", "le": "<=", "eq": "=="}
_SIMPLE = frozenset(
    {"const", "index", "size", "poly", "load", "ge0", "eq0", "compare", "and", "not", "where", "cast", "neg", "abs"}
)
_BINARY = frozenset({*_INFIX, "maximum", "minimum"})
_UNROUNDED = frozenset({*_INFIX, "floordiv", "truncdiv", "mod", "pow"})
_WHOLE = frozenset({"floordiv", "truncdiv", "mod"})


@functools.lru_cache(maxsize=65536)
def is_simple(node: Expr) -> bool:
    """Can the scalar unit compute `node`?"""
    known = node.op in _SIMPLE or node.op in _BINARY or (node.op in _WHOLE and node.dtype == "i")
    return known and node.dtype != "f64" and all(is_simple(x) for x in operands_of(node.args))


def literal(value: float) -> str:
    """A float32 constant in C++."""
    if math.isnan(value):
        return "from_bits(0x7fc00000u)"
    if math.isinf(value):
        return "from_bits(0x7f800000u)" if value > 0 else "from_bits(0xff800000u)"
    return f"{rounded(value, 'f32').hex()}f"


def constant(node: Expr, by: Expr | None = None) -> str:
    """A constant node in C++. Arithmetic takes a half-precision one as it was written, others as a tensor holds it."""
    value = node.args[0]
    if node.dtype == "b":
        return "true" if value else "false"
    if node.dtype == "i":
        return f"((int64_t){value}LL)" if value > -(1 << 63) else "INT64_MIN"
    return f"({literal(number(node, by))})"


def number(node: Expr, by: Expr | None) -> float:
    """The value of a float constant as the node `by` reads it."""
    value = float(node.args[0])
    exact = node.dtype not in ("f16", "bf16") or (by is not None and by.op in _UNROUNDED)
    return value if exact else float(rounded(value, node.dtype))


def rounding(text: str, dtype: str) -> str:
    """`text` rounded to a half-precision dtype and widened again."""
    return {"f16": f"(float)(half)({text})", "bf16": f"ToFloat(ToBfloat16({text}))"}.get(dtype, text)


@dataclass
class Scalars:
    """Statements of the scalar unit. `known` holds what is given, and fills with what is printed.

    Attributes:
        leaves: names of leaf operands, in order.
    """

    leaves: tuple[str, ...]
    known: dict[Expr, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    def value(self, node: Expr) -> str:
        """The C++ name or literal of a simple node."""
        found = self.known.get(node)
        if found is None:
            if node.op == "const":
                return constant(node)
            text = self._text(node)
            found = self.known[node] = f"x{len(self.lines)}"
            self.lines.append(f"const {CXX[node.dtype]} {found} = {text};")
        return found

    def _text(self, node: Expr) -> str:
        args = [constant(x, node) if x.op == "const" else self.value(x) for x in operands_of(node.args)]
        rule = _RULES.get(node.op)
        if rule is not None:
            return rule(node, args)
        if node.op == "load":
            return self._load(node, args)
        if node.op == "poly":
            return self._poly(node)
        if node.op in _INFIX:
            return rounding(f"{args[0]} {_INFIX[node.op]} {args[1]}", node.dtype)
        if node.op in ("maximum", "minimum"):
            return f"{args[0]} {'<' if node.op == 'maximum' else '>'} {args[1]} ? {args[1]} : {args[0]}"
        return f"{node.op}({args[0]}, {args[1]})"

    def _poly(self, node: Expr) -> str:
        sums = []
        for monomial, coefficient in node.args:
            factors = [f"(int64_t){coefficient}LL", *(self.value(x) for x in monomial)]
            sums.append(" * ".join(factors))
        return " + ".join(sums) or "0"

    def _load(self, node: Expr, args: list[str]) -> str:
        number = self.leaves.index(node.args[0])
        text = f"leaf{number}.GetValue({place(number, args)})"
        return _loaded(text, node.dtype)


def place(number: int, indices: list[str]) -> str:
    """The flat place in leaf `number` of clamped indices."""
    parts = [f"within({x}, o.extent{number}_{dim}) * o.stride{number}_{dim}" for dim, x in enumerate(indices)]
    return " + ".join(parts) or "0"


def _loaded(text: str, dtype: str) -> str:
    if dtype == "bf16":
        return f"ToFloat({text})"
    return f"({CXX[dtype]}){text}"


def _cast(node: Expr, args: list[str]) -> str:
    if node.dtype in FLOAT_DTYPES:
        return rounding(f"(float){args[0]}", node.dtype)
    return f"({CXX[node.dtype]}){args[0]}"


_RULES: Mapping[str, Callable[[Expr, list[str]], str]] = {
    "ge0": lambda node, args: f"{args[0]} >= 0",
    "eq0": lambda node, args: f"{args[0]} == 0",
    "compare": lambda node, args: f"{args[0]} {_COMPARE[node.args[0]]} {args[1]}",
    "and": lambda node, args: " && ".join(args),
    "not": lambda node, args: f"!{args[0]}",
    "where": lambda node, args: f"{args[0]} ? {args[1]} : {args[2]}",
    "cast": _cast,
    "neg": lambda node, args: f"-{args[0]}",
    "abs": lambda node, args: f"{args[0]} < 0 ? -{args[0]} : {args[0]}",
}
