"""Print expressions of a score program as C++ statements, for one element or for lanes of keys.

A `Scope` is a list of statements with names for nodes. What a scope is given (columns, products, what heads
share) is put in first; everything else is printed once, operands first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from gr_compile.analysis.expr import BINARY, FLOAT_DTYPES, UNARY, Expr, coefficient_of, index, is_const
from gr_compile.analysis.node import rounded
from gr_compile.lowering.cpu.buckets import Bucket, is_step
from gr_compile.lowering.cpu.lanes import ELEMENT, HALF, INT32, SCALAR_TYPE, Lanes, Unsupported, fits
from gr_compile.ops.evaluate import operands, side_groups
from gr_compile.ops.program_walk import OperandsFirst

VECTORS = {"vf": "float", "vd": "double", "vi": "int32_t", "vl": "i64", "vm": "int32_t"}
_OPERATORS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
_COMPARE = {"lt": "<", "le": "<=", "eq": "=="}
_UNROUNDED = frozenset({"add", "sub", "mul", "div", "floordiv", "truncdiv", "mod", "pow"})
KEY = index("j")


@dataclass(frozen=True)
class Value:
    """A C++ name or literal and its type: float, double, i64, bool, or lanes vf, vd, vi, vl, vm."""

    text: str
    type: str


@dataclass
class Kernel:
    """What every scope of one kernel shares.

    Attributes:
        leaves: names of leaf operands, in order.
        first_extent: place of each leaf's first extent in the flat list of extents.
        buckets: steps that are tables, with the table's number.
        rough: nodes that a step reads, so that a last bit matters.
        exact: every bfloat16 operation rounds, as torch's do one by one (before a softmax: a mask of -1e4 absorbs the
            score that it is added to). Otherwise rough ones do, and the others keep float32, as between the
            operators of a fused kernel of TorchInductor. float16 always rounds: it overflows where float32 does not.
    """

    lanes: Lanes
    leaves: tuple[str, ...]
    first_extent: dict[str, int]
    ranks: dict[str, int]
    buckets: dict[Expr, tuple[int, Bucket]]
    rough: set[Expr]
    exact: bool = True

    def rounds(self, node: Expr) -> bool:
        """Is a value of this node one of its half-precision dtype?"""
        return node.dtype == "f16" or (node.dtype == "bf16" and (self.exact or node in self.rough))

    def element_type(self, leaf: str) -> str:
        return ELEMENT[self.lanes.leaves[leaf]]

    def pointer(self, leaf: str) -> str:
        return f"((const {self.element_type(leaf)}*)a.leaves[{self.leaves.index(leaf)}])"

    def extent(self, leaf: str, dim: int) -> str:
        return f"extent[{self.first_extent[leaf] + dim}]"

    def stride(self, leaf: str, dim: int) -> str:
        return f"stride[{self.first_extent[leaf] + dim}]"


def rough_nodes(roots: Iterable[Expr]) -> set[Expr]:
    """Everything that a step reads: computed as written, to the last bit."""
    found: set[Expr] = set()
    seen: set[Expr] = set()
    stack = [(x, False) for x in roots]
    while stack:
        node, rough = stack.pop()
        if (node in found) if rough else (node in seen):
            continue
        (found if rough else seen).add(node)
        below = rough or is_step(node) or node.dtype in ("i", "b")
        stack.extend((x, below) for x in operands(node))
    return found


@dataclass
class Scope(OperandsFirst[Value]):
    """Statements. With `pairs` nodes that differ from key to key are lanes; without, everything is one element."""

    kernel: Kernel
    pairs: bool
    known: dict[Expr, Value] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    prefix: str = "x"

    def give(self, node: Expr, text: str, type_: str) -> None:
        self.known[node] = Value(text, type_)

    def is_lanes(self, node: Expr) -> bool:
        return self.pairs and self.kernel.lanes.is_vector(node)

    def type_of(self, node: Expr) -> str:
        return self.kernel.lanes.vector_type(node) if self.is_lanes(node) else SCALAR_TYPE[node.dtype]

    def name(self, text: str, type_: str) -> Value:
        name = f"{self.prefix}{len(self.lines)}"
        self.lines.append(f"{'vi' if type_ == 'vm' else type_} {name} = {text};")
        return Value(name, type_)

    def to(self, value: Value, type_: str) -> str:
        """`value` as lanes or as an element of another width; masks stay masks."""
        if value.type == type_:
            return value.text
        if type_ == "vm":
            return f"lanes<vi>({value.text})"
        if type_ == "bool":
            raise AssertionError(f"{value} is no element")
        if type_ == "vi" and value.type == "i64":
            return f"as<vi>((int32_t)({value.text}))"
        return f"as<{type_}>({value.text})"

    # -------------------------------------------------------------------------------------------- nodes
    def needs(self, node: Expr) -> tuple[Expr, ...]:
        found = self.kernel.buckets.get(node)
        return (found[1].argument,) if found else operands(node)

    def make(self, node: Expr) -> Value:
        if node.op == "const":
            return _constant(node)
        type_ = self.type_of(node)
        if node in self.kernel.buckets:
            return self._bucket(node, type_)
        if node.op in UNARY:
            inner = self.to(self.known[node.args[0]], type_)
            return self.name(self._rounded(f"{node.op}_({inner})", node), type_)
        if node.op in BINARY:
            return self.name(self._rounded(self._binary(node, type_), node), type_)
        rule = _RULES.get(node.op)
        if rule is None:
            raise Unsupported(f"there is no code for {node.op!r}")
        return rule(self, node, type_)

    def _rounded(self, text: str, node: Expr) -> str:
        return f"round_{node.dtype}({text})" if self.kernel.rounds(node) else text

    def _operand(self, node: Expr, by: Expr, type_: str) -> str:
        """An operand in the type of its user; half-precision constants are rounded where torch makes a tensor."""
        if node.op == "const" and node.dtype in HALF and by.op not in _UNROUNDED:
            return self.to(Value(_literal(rounded(node.args[0], node.dtype)), "float"), type_)
        return self.to(self.known[node], type_)

    def _binary(self, node: Expr, type_: str) -> str:
        left, right = (self._operand(x, node, type_) for x in node.args)
        divisor = node.args[1]
        if node.op == "div" and node.dtype == "f32" and divisor.op == "const" and divisor.args[0]:
            inverse = rounded(1 / divisor.args[0], "f32")
            exact = math.frexp(divisor.args[0])[0] in (0.5, -0.5)
            if math.isfinite(inverse) and inverse and (exact or node not in self.kernel.rough):
                return f"{left} * {self.to(Value(_literal(inverse), 'float'), type_)}"
        if node.op in _OPERATORS:
            return f"{left} {_OPERATORS[node.op]} {right}"
        return f"{node.op}_({left}, {right})"

    def _bucket(self, node: Expr, type_: str) -> Value:
        number, table = self.kernel.buckets[node]
        argument = self.known[table.argument]
        cells = f"bucket{number}, {len(table.values)}, {table.shift}, {table.base}"
        found = self.name(f"bucket({cells}, {argument.text})", argument.type)
        if type_ in ("vm", "bool"):
            return self.name(f"mask({found.text} != 0)", type_)
        return found if found.type == type_ else self.name(self.to(found, type_), type_)

    def place(self, node: Expr) -> tuple[str, str | None, str, bool]:
        """(offset of one element, lanes of places or None, their type, do they follow one another) of a load."""
        leaf = node.args[0]
        offset = "(i64)0"
        moving: list[tuple[int, Expr]] = []
        for dim, at in enumerate(node.args[1]):
            if self.is_lanes(at):
                moving.append((dim, at))
            else:
                clamped = f"clamp({self.value(at).text}, {self.kernel.extent(leaf, dim)})"
                offset += f" + {clamped} * {self.kernel.stride(leaf, dim)}"
        if not moving:
            return offset, None, "", False
        last = self.kernel.ranks[leaf] - 1
        if len(moving) == 1 and moving[0][0] == last and _runs(moving[0][1]):
            at = self.value(moving[0][1])
            return offset, at.text, at.type, True
        type_ = "vi" if self.kernel.lanes.narrow and all(self.value(at).type == "vi" for _, at in moving) else "vl"
        parts = []
        for dim, at in moving:
            extent, stride = self.kernel.extent(leaf, dim), self.kernel.stride(leaf, dim)
            clamped = f"clamp({self.to(self.value(at), type_)}, {extent})"
            step = f"as<{type_}>((int32_t){stride})" if type_ == "vi" else f"as<vl>({stride})"
            parts.append(clamped if dim == last else f"{clamped} * {step}")
        return offset, self.name(" + ".join(parts), type_).text, type_, False


def _runs(at: Expr) -> bool:
    """Is a place j plus something that is the same for all keys?"""
    found = coefficient_of(at, KEY)
    return found is not None and is_const(found[0], 1) and "j" not in found[1].free


def _literal(value: float, double: bool = False) -> str:
    if math.isnan(value):
        return "NAN"
    if math.isinf(value):
        return "INFINITY" if value > 0 else "-INFINITY"
    return value.hex() + ("" if double else "f")


def _constant(node: Expr) -> Value:
    value = node.args[0]
    if node.dtype == "b":
        return Value("true" if value else "false", "bool")
    if node.dtype == "i":
        return Value(f"((i64){value}LL)" if value > -(1 << 63) else "INT64_MIN", "i64")
    double = node.dtype == "f64"
    return Value(f"({_literal(value, double)})", "double" if double else "float")


def _poly(scope: Scope, node: Expr, type_: str) -> Value:
    groups = side_groups(node)
    if len(groups) > 1:
        return scope.name(" + ".join(scope.to(scope.known[x], type_) for x in groups), type_)
    sums = []
    for monomial, coefficient in node.args:
        factor = scope.to(Value(f"((i64){coefficient}LL)", "i64"), type_)
        atoms = [scope.to(scope.known[x], type_) for x in monomial]
        sums.append(" * ".join([*([] if coefficient == 1 and atoms else [factor]), *atoms]))
    return scope.name(" + ".join(sums), type_)


def _common(scope: Scope, values: list[Value]) -> str:
    types = {x.type for x in values}
    if not types & set(VECTORS):
        return "double" if "double" in types else "float" if "float" in types else "i64"
    for wide in ("vd", "vf", "vl"):
        if wide in types:
            return wide
    return "vi"


def _ge0(scope: Scope, node: Expr, type_: str) -> Value:
    sides = [scope.known[x] for x in operands(node)]
    if len(sides) == 1:
        sides.append(Value("((i64)0)", "i64"))
    common = _integers(scope, operands(node), sides)
    sign = ">=" if node.op == "ge0" else "=="
    return scope.name(f"mask({scope.to(sides[0], common)} {sign} {scope.to(sides[1], common)})", type_)


def _integers(scope: Scope, nodes: tuple[Expr, ...], values: list[Value]) -> str:
    """The type in which integers are compared: 64 bits where one of them needs that."""
    if not any(x.type in VECTORS for x in values):
        return "i64"
    small = all(fits(scope.kernel.lanes.interval(x), INT32) for x in nodes)
    return "vi" if small and all(x.type != "vl" for x in values) else "vl"


def _compare(scope: Scope, node: Expr, type_: str) -> Value:
    values = [scope.known[x] for x in node.args[1:]]
    common = _common(scope, values)
    left, right = (scope._operand(x, node, common) for x in node.args[1:])
    return scope.name(f"mask({left} {_COMPARE[node.args[0]]} {right})", type_)


def _and(scope: Scope, node: Expr, type_: str) -> Value:
    sign = " & " if type_ == "vm" else " && "
    return scope.name(sign.join(scope.to(scope.known[x], type_) for x in node.args), type_)


def _not(scope: Scope, node: Expr, type_: str) -> Value:
    return scope.name(f"{'~' if type_ == 'vm' else '!'}{scope.known[node.args[0]].text}", type_)


def _where(scope: Scope, node: Expr, type_: str) -> Value:
    condition = scope.known[node.args[0]]
    mask = scope.to(condition, "vm" if type_ in VECTORS else "bool")
    left, right = (scope._operand(x, node, type_) for x in node.args[1:])
    return scope.name(f"where({mask}, {left}, {right})", type_)


def _cast(scope: Scope, node: Expr, type_: str) -> Value:
    inner, source = scope.known[node.args[0]], node.args[0].dtype
    if source == "b":
        return scope.name(f"number<{type_}>({scope.to(inner, 'vm') if type_ in VECTORS else inner.text})", type_)
    text = scope.to(inner, type_)
    narrower = node.dtype in HALF and source != node.dtype
    return scope.name(scope._rounded(text, node) if narrower else text, type_)


def _load(scope: Scope, node: Expr, type_: str) -> Value:
    leaf = node.args[0]
    offset, at, _, runs = scope.place(node)
    pointer = f"({scope.kernel.pointer(leaf)} + {offset})"
    if at is None:
        text = f"element(*{pointer})"
        return scope.name(text if node.dtype in (*FLOAT_DTYPES, "b") else f"(i64){text}", type_)
    lanes = "vi" if type_ == "vm" else type_
    if runs:
        last = scope.kernel.extent(leaf, scope.kernel.ranks[leaf] - 1)
        return scope.name(f"run<{lanes}>({pointer}, {at}, {last}, w.contiguous)", type_)
    read = "lookup" if type_ == "vf" and any(x in scope.kernel.buckets for x in node.args[1]) else "gather"
    return scope.name(f"{read}<{lanes}>({pointer}, {at})", type_)


def _dropout(scope: Scope, node: Expr, type_: str) -> Value:
    p = node.args[1].args[0]
    scale = 0.0 if p >= 1 else rounded(1 / (1 - p), node.dtype if node.dtype in HALF else "f32")
    drop = "0xFFFFFFFFu" if p >= 1 else f"{min(int(p * 2**32), 2**32 - 1)}u"
    kept = f"keep(noise, j, {drop}, {_literal(scale)})"
    inner = scope.to(scope.known[node.args[0]], type_)
    return scope.name(scope._rounded(f"{inner} * as<{type_}>({kept})", node), type_)


_RULES: dict[str, Callable[[Scope, Expr, str], Value]] = {
    "poly": _poly,
    "ge0": _ge0,
    "eq0": _ge0,
    "compare": _compare,
    "and": _and,
    "not": _not,
    "where": _where,
    "cast": _cast,
    "load": _load,
    "dropout": _dropout,
}
