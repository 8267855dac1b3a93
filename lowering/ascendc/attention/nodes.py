"""A rule for each kind of node that is neither a function nor arithmetic of floats: see vector.py."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from gr_compile.analysis.expr import FLOAT_DTYPES, Expr
from gr_compile.lowering.ascendc.attention.instructions import Register
from gr_compile.lowering.ascendc.attention.scalar import constant, place
from gr_compile.lowering.ascendc.attention.values import HALF, Value
from gr_compile.lowering.cpu.lanes import INT32, Unsupported, fits
from gr_compile.ops.evaluate import operands, side_groups

if TYPE_CHECKING:
    from gr_compile.lowering.ascendc.attention.vector import Function

_COMPARE = {"lt": "LT", "le": "LE", "eq": "EQ"}


def _poly(f: Function, node: Expr) -> Value:
    groups = side_groups(node)
    if len(groups) > 1:
        return Value(functools.reduce(lambda x, y: _sum(f, x, y), (f.known[x] for x in groups)).register)
    total: Value = Value(text="0")
    for monomial, coefficient in node.args:
        factors = (f.known[x] for x in monomial)
        term = functools.reduce(lambda x, y: _times(f, x, y), factors, Value(text=f"{coefficient}"))
        total = _sum(f, total, term)
    return total


def _whole(name: str, sign: str, neutral: str) -> Callable[[Function, Value, Value], Value]:
    """An operation of whole numbers that commutes; `neutral` changes nothing."""

    def compute(f: Function, x: Value, y: Value) -> Value:
        if x.register is None:
            x, y = y, x
        if x.register is None:
            return Value(text=f"({x.text} {sign} {y.text})")
        if y.register is None:
            return x if y.text == neutral else Value(f.scalar(f"{name}s", x.register, f"(int32_t)({y.text})", "i"))
        return Value(f.binary(name, x.register, y.register, "i"))

    return compute


_sum, _times = _whole("Add", "+", "0"), _whole("Mul", "*", "1")


def _sign_of(f: Function, node: Expr) -> Value:
    """ge0, eq0: of a difference of two sides, or of one number."""
    if not fits(f.context.lanes.interval(node.args[0]), INT32):
        raise Unsupported(f"whole numbers whose difference may need more than 32 bits: {node}")
    sides = [f.known[x] for x in operands(node)]
    if len(sides) == 1:
        x = f.tile(sides[0], "i")
    else:
        x = f.binary("Sub", f.tile(sides[0], "i"), f.tile(sides[1], "i") if sides[1].register is None
                     else sides[1].register, "i")  # fmt: skip
    if node.op == "ge0":
        return Value(f.emit("CompareScalar({d:b}, {0:i}, 1, CMPMODE::EQ, n);", "bits", f.sign(x)))
    return Value(f.emit("CompareScalar({d:b}, {0:i}, 0, CMPMODE::EQ, n);", "bits", x))


def _compare(f: Function, node: Expr) -> Value:
    op, left, right = node.args
    x = f.tile(Value(f.register(left, node)), left.dtype)
    mode = f"CMPMODE::{_COMPARE[op]}"
    if right.op == "const" and right.dtype in FLOAT_DTYPES:
        return Value(f.emit(f"CompareScalar({{d:b}}, {{0:f}}, {constant(right, node)}, {mode}, n);", "bits", x))
    y = f.tile(Value(f.register(right, node)), right.dtype)
    return Value(f.emit(f"Compare({{d:b}}, {{0:f}}, {{1:f}}, {mode}, n);", "bits", x, y))


def _and(f: Function, node: Expr) -> Value:
    masks = [f.tile(f.known[x], "b") for x in node.args]
    return Value(functools.reduce(lambda x, y: f.emit("And({d:w}, {0:w}, {1:w}, n / 16);", "bits", x, y), masks))


def _not(f: Function, node: Expr) -> Value:
    return Value(f.emit("Not({d:w}, {0:w}, n / 16);", "bits", f.tile(f.known[node.args[0]], "b")))


def _where(f: Function, node: Expr) -> Value:
    mask = f.tile(f.known[node.args[0]], "b")
    left, right = (f.tile(Value(f.register(x, node)), x.dtype) for x in node.args[1:])
    return Value(f.choose(mask, left, right))


def _cast(f: Function, node: Expr) -> Value:
    inner = node.args[0]
    if inner.dtype == "b":
        one = f.ones(f.tile(f.known[inner], "b"))
        return Value(f.emit("Cast({d:i}, {0:f}, RoundMode::CAST_TRUNC, n);", "tile", one) if node.dtype == "i" else one)
    x = f.register(inner, node)
    if inner.dtype == "i":
        return f.rounded(f.emit("Cast({d:f}, {0:i}, RoundMode::CAST_RINT, #);", x.shape, x), node)
    if node.dtype == "i":
        return Value(f.emit("Cast({d:i}, {0:f}, RoundMode::CAST_TRUNC, #);", x.shape, x))
    if node.dtype == "b":
        return Value(f.emit("CompareScalar({d:b}, {0:f}, 0.0f, CMPMODE::NE, n);", "bits", f.spread(x)))
    return f.rounded(x, node) if node.dtype in HALF else Value(x)


def _load(f: Function, node: Expr) -> Value:
    """A lookup: Gather from a table that lies in the unified buffer, else the scalar unit's loop over global memory."""
    name, indices = node.args
    at = f.context.leaves.index(name)
    values = [f.known[x] for x in indices]
    if name in f.context.resident:
        offset = f.scalar("Muls", _flat(f, at, values), "4", "i")
        x = f.gather(f"table{at}()", offset)
    else:
        x = _by_scalars(f, node, at, values)
    if node.dtype == "b":
        return Value(f.emit("CompareScalar({d:b}, {0:f}, 0.0f, CMPMODE::NE, n);", "bits", x))
    return Value(x)


def _flat(f: Function, at: int, values: list[Value]) -> Register:
    """The flat places of clamped indices, in int32: a table in the unified buffer is small."""
    total = Value(text="0")
    for dim, value in enumerate(values):
        limit, step = f"o.extent{at}_{dim}", f"o.stride{at}_{dim}"
        if value.register is None:
            term = Value(text=f"within({value.text}, {limit}) * {step}")
        else:
            low = f.scalar("Maxs", value.register, "0", "i")
            inside = f.scalar("Mins", low, f"(int32_t)({limit} - 1)", "i")
            last = dim == len(values) - 1
            term = Value(inside if last else f.scalar("Muls", inside, f"(int32_t){step}", "i"))
        total = _sum(f, total, term)
    return f.tile(total, "i")


def _by_scalars(f: Function, node: Expr, at: int, values: list[Value]) -> Register:
    registers = tuple(dict.fromkeys(x.register for x in values if x.register is not None))
    view, kind = ("i", "int32_t") if node.dtype == "i" else ("f", "float")
    spelled = [
        x.text if x.register is None else f"at_{x.shape}({{{registers.index(x.register)}:i}}, y, x)" for x in values
    ]
    read = f"leaf{at}.GetValue({place(at, spelled)})"
    read = f"ToFloat({read})" if node.dtype == "bf16" else f"({kind}){read}"
    loop = "for (int32_t y = 0; y < rows; y++) for (int32_t x = 0; x < columns; x++)"
    text = f"Duplicate({{d:{view}}}, ({kind})0, n); {loop} {{d:{view}}}.SetValue(y * width + x, {read});"
    return f.emit(text, "tile", *registers, in_place=False)


def _dropout(f: Function, node: Expr) -> Value:
    raise Unsupported("dropout: no instruction mixes the bits of its counter")


RULES: Mapping[str, Callable[[Function, Expr], Value]] = {
    "poly": _poly,
    "ge0": _sign_of,
    "eq0": _sign_of,
    "compare": _compare,
    "and": _and,
    "not": _not,
    "where": _where,
    "cast": _cast,
    "load": _load,
    "dropout": _dropout,
}
