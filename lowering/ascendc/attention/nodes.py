"""A rule for each kind of node that is neither a function nor arithmetic of floats: see vector.py."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from gr_compile.analysis.expr import FLOAT_DTYPES, Expr, cast
from gr_compile.lowering.ascendc.attention.instructions import Register, Work
from gr_compile.lowering.ascendc.attention.scalar import constant, place
from gr_compile.lowering.ascendc.attention.tables import composed_load
from gr_compile.lowering.ascendc.attention.values import HALF, PROVED, REFUTED, Value
from gr_compile.lowering.cpu.lanes import INT32, Lanes, Unsupported, fits
from gr_compile.ops.evaluate import operands, side_groups

if TYPE_CHECKING:
    from gr_compile.lowering.ascendc.attention.vector import Function

_WHOLE_FLOATS = (-(1 << 24), 1 << 24)  # which float32 holds
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
    real = real_sides(node, f.context.lanes, f.given)
    if real is not None:
        x = f.binary("Sub", f.side(f.known[real[0]]), f.side(f.known[real[1]]))
        mode = "GE" if node.op == "ge0" else "EQ"
        return Value(f.emit(f"CompareScalar({{d:b}}, {{0:f}}, 0.0f, CMPMODE::{mode}, n);", "bits", x))
    if not fits(f.context.lanes.interval(node.args[0]), INT32):
        raise Unsupported(f"whole numbers whose difference may need more than 32 bits: {node}")
    sides = [f.known[x] for x in operands(node)]
    if len(sides) == 1:
        x = f.tile(sides[0], "i")
    else:
        left, right = (f.tile(x, "i") if x.register is None else x.register for x in sides)
        x = f.binary("Sub", left, right, "i")
    if node.op == "ge0":
        x = f.below(x)
    return Value(f.emit("CompareScalar({d:b}, {0:i}, 0, CMPMODE::EQ, n);", "bits", x))


def real_sides(node: Expr, lanes: Lanes, given: Callable[[Expr], bool]) -> tuple[Expr, Expr] | None:
    """Both sides of a sign in float32, where they hold what they stand for: the difference's sign is exact then."""
    sides = operands(node) if node.op in ("ge0", "eq0") else ()
    if len(sides) != 2 or not all(given(x) and fits(lanes.interval(x), _WHOLE_FLOATS) for x in sides):
        return None
    left, right = (cast(x, "f32") for x in sides)
    return left, right


def _compare(f: Function, node: Expr) -> Value:
    op, left, right = node.args
    x = f.tile(Value(f.register(left, node)), left.dtype)
    mode = f"CMPMODE::{_COMPARE[op]}"
    if right.op == "const" and right.dtype in FLOAT_DTYPES:
        return Value(f.emit(f"CompareScalar({{d:b}}, {{0:f}}, {constant(right, node)}, {mode}, n);", "bits", x))
    y = f.tile(Value(f.register(right, node)), right.dtype)
    return Value(f.emit(f"Compare({{d:b}}, {{0:f}}, {{1:f}}, {mode}, n);", "bits", x, y))


def _and(f: Function, node: Expr) -> Value:
    if any(f.known[x] == REFUTED for x in node.args):
        return REFUTED
    masks = [f.tile(f.known[x], "b") for x in node.args if f.known[x] != PROVED]
    if not masks:
        return PROVED
    return Value(functools.reduce(lambda x, y: f.emit("And({d:w}, {0:w}, {1:w}, n / 16);", "bits", x, y), masks))


def _not(f: Function, node: Expr) -> Value:
    if f.known[node.args[0]] in (PROVED, REFUTED):
        return REFUTED if f.known[node.args[0]] == PROVED else PROVED
    return Value(f.emit("Not({d:w}, {0:w}, n / 16);", "bits", f.tile(f.known[node.args[0]], "b")))


def _where(f: Function, node: Expr) -> Value:
    condition, left, right = node.args
    if f.known[condition] in (PROVED, REFUTED):
        chosen = left if f.known[condition] == PROVED else right
        if chosen.op == "const":
            return Value(text=constant(chosen, node))
        return Value(f.tile(Value(f.register(chosen, node)), chosen.dtype))
    mask = f.tile(f.known[condition], "b")
    if left.op == "const" and right.op != "const":
        mask, left, right = f.emit("Not({d:w}, {0:w}, n / 16);", "bits", mask), right, left
    chosen = f.tile(Value(f.register(left, node)), left.dtype)
    if right.op == "const" and right.dtype in FLOAT_DTYPES:
        return Value(f.choose_number(mask, chosen, constant(right, node)))
    return Value(f.choose(mask, chosen, f.tile(Value(f.register(right, node)), right.dtype)))


def _cast(f: Function, node: Expr) -> Value:
    inner = node.args[0]
    if f.known[inner] in (PROVED, REFUTED):
        number = int(f.known[inner] == PROVED)
        return Value(text=f"{number}" if node.dtype == "i" else f"{number}.0f")
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
    composed = f.context.composed(node)
    if composed is not None:
        return Value(composed_load(f, node, *composed))
    row_and_key = f.inside.get(node)
    values = [f.known[x] for x in indices] if row_and_key is None else []
    if name in f.context.resident:
        if row_and_key is None:
            offset = f.scalar("Muls", _flat(f, at, values), "4", "i")
        else:
            offset = f.tile(_sum(f, *(f.known[x] for x in row_and_key)), "i")
        kind = "int32_t" if node.dtype == "i" else "float"
        x = f.gather(f.context.use(f"table{at}", kind, f.context.resident[name], leaf=at), offset)
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
    return f.emit(text, "tile", *registers, in_place=False, work=Work(passes=1, issues=1, scalars=1))


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
