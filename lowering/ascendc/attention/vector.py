"""Print a score program as vector instructions over a tile of scores.

`Function.value(node)` is the register of a node; what it needs is emitted first, and nothing twice. Values are float32
(also those of half precision, which are rounded after every operation that torch rounds), int32, or bits of a mask.
A one-sided value is a *column*: the scalar unit computes it once, for all rows of a side (scalar.py), and tiles are
given it.
A value of neither side is a number of the scalar unit.

    silu(s + table[j - i + N - 1])     ->     SubRow, SubColumn ... Gather, Add, Muls, Exp, Adds, Div

Whole numbers of a tile are int32: the intervals of lanes.py prove that they fit, or the program has no kernel. Whole
numbers are compared by the sign of their difference, since Atlas A2 compares int32 for equality only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from gr_compile.analysis.expr import BINARY, UNARY, Expr
from gr_compile.lowering.ascendc.attention import functions
from gr_compile.lowering.ascendc.attention.instructions import PASS, Instruction, Register, Shape, Work, work_of
from gr_compile.lowering.ascendc.attention.lookups import Steps
from gr_compile.lowering.ascendc.attention.nodes import RULES, real_sides
from gr_compile.lowering.ascendc.attention.scalar import constant, is_simple, number
from gr_compile.lowering.ascendc.attention.tables import bucket_by_cells, bucket_by_steps
from gr_compile.lowering.ascendc.attention.values import HALF, ONE, PROVED, REFUTED, Context, Value
from gr_compile.lowering.cpu.lanes import INT32, Unsupported, fits
from gr_compile.ops.evaluate import operands, reads_block
from gr_compile.ops.program_walk import OperandsFirst

COUNT: Mapping[Shape, str] = {"tile": "n", "row": "rows8", "column": "width"}
BESIDE = Work(passes=1, issues=1, strips=1)  # Brcb of a row, and an instruction for every 64 columns
ROUND = Work(passes=2, strips=8)  # two Casts of 16 columns' elements at a time
_VECTOR_BINARY = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "maximum": "Max", "minimum": "Min"}


_K = TypeVar("_K")


def _without(register: Register, values: dict[_K, Register]) -> dict[_K, Register]:
    return {key: value for key, value in values.items() if value != register}


@dataclass
class Function(OperandsFirst[Value]):
    """A list of instructions under way.

    Attributes:
        inside: loads that are proved to lie in their table, and the byte offsets of their row and key.
        the others: values that instructions share, by what they are of.
    """

    context: Context
    known: dict[Expr, Value] = field(default_factory=dict)
    instructions: list[Instruction] = field(default_factory=list)
    registers: int = 0
    inside: Mapping[Expr, tuple[Expr, Expr]] = field(default_factory=dict)
    one_plus_exp: dict[Register, Register] = field(default_factory=dict)
    silu: dict[Register, Register] = field(default_factory=dict)
    products: dict[tuple[Register, Expr], Register] = field(default_factory=dict)
    places: dict[Steps, Register] = field(default_factory=dict)
    widened: dict[int, Register] = field(default_factory=dict)

    # -------------------------------------------------------------------------------------- instructions
    def new(self, shape: Shape) -> Register:
        self.registers += 1
        return Register(self.registers, shape)

    def emit(
        self, text: str, shape: Shape, *operands: Register, in_place: bool = True, work: Work | None = None
    ) -> Register:
        """An instruction with a result; `#` in its text is the count of elements of its shape."""
        result = self.new(shape)
        work = (work_of(shape, operands) if text else Work()) if work is None else work
        text = text.replace("#", COUNT.get(shape, "n"))
        self.instructions.append(Instruction(text, result, operands, in_place, work))
        return result

    def unary(self, name: str, x: Register, view: str = "f") -> Register:
        return self.emit(f"{name}({{d:{view}}}, {{0:{view}}}, #);", x.shape, x)

    def scalar(self, name: str, x: Register, by: str, view: str = "f") -> Register:
        """Adds, Muls, Maxs, Mins, ShiftLeft, ShiftRight."""
        return self.emit(f"{name}({{d:{view}}}, {{0:{view}}}, {by}, #);", x.shape, x)

    def binary(self, name: str, x: Register, y: Register, view: str = "f") -> Register:
        """Add, Sub, Mul, Div, Max, Min; one of the operands may be a row or a column beside a tile."""
        if x.shape == y.shape:
            return self.emit(f"{name}({{d:{view}}}, {{0:{view}}}, {{1:{view}}}, #);", x.shape, x, y)
        if x.shape != "tile" and y.shape == "tile":
            if name in ("Add", "Mul", "Max", "Min"):
                return self.binary(name, y, x, view)
            return self.binary(name, self.spread(x, view), y, view)
        sides = "".join({"row": "Row", "column": "Column"}.get(z.shape, "") for z in (x, y))
        return self.emit(f"{name}{sides}({{d:{view}}}, {{0:{view}}}, {{1:{view}}});", "tile", x, y, work=BESIDE)

    def spread(self, x: Register, view: str = "f") -> Register:
        """A row or a column as a tile."""
        if x.shape == "tile":
            return x
        name = "SpreadRow" if x.shape == "row" else "SpreadColumn"
        return self.emit(f"{name}({{d:{view}}}, {{0:{view}}});", "tile", x, work=BESIDE)

    def side(self, value: Value) -> Register:
        """A number of a row or of a key; a number of neither as a tile of float32."""
        return self.tile(value, "f32") if value.register is None else value.register

    def tile(self, value: Value, dtype: str) -> Register:
        """A value as a tile; a mask as bits."""
        view = "i" if dtype == "i" else "f"
        if value.register is None:
            text = f"(int32_t)({value.text})" if dtype == "i" else f"(float)({value.text})"
            x = self.emit(f"Duplicate({{d:{view}}}, {text}, #);", "tile")
        else:
            x = value.register
        if x.shape == "bits":
            return x
        x = self.spread(x, view)
        if dtype != "b":
            return x
        return self.emit("CompareScalar({d:b}, {0:f}, 0.0f, CMPMODE::NE, n);", "bits", x)

    def arrived(self, at: int, kind: str) -> Register:
        """A tile from the cube core in float32; halves are widened."""
        if kind == "float":
            return Register(-1, "tile", at)
        if at not in self.widened:
            text = f"Cast({{d:f}}, given_tile<{kind}>({at}), RoundMode::CAST_NONE, n);"
            self.widened[at] = self.emit(text, "tile", work=PASS)
        return self.widened[at]

    def forget(self, register: Register) -> None:
        """A register is about to be overwritten: its values are made again where they are asked for again."""
        self.known = {node: value for node, value in self.known.items() if value.register != register}
        self.one_plus_exp, self.silu = _without(register, self.one_plus_exp), _without(register, self.silu)
        self.products, self.places = _without(register, self.products), _without(register, self.places)
        self.widened = _without(register, self.widened)

    def choose(self, mask: Register, x: Register, y: Register) -> Register:
        """x where the bits are set, else y."""
        text = "Select({d:f}, {0:b}, {1:f}, {2:f}, SELMODE::VSEL_TENSOR_TENSOR_MODE, n);"
        return self.emit(text, "tile", mask, x, y)

    def choose_number(self, mask: Register, x: Register, number: str) -> Register:
        """x where the bits are set, else a float of the scalar unit."""
        text = f"Select({{d:f}}, {{0:b}}, {{1:f}}, {number}, SELMODE::VSEL_TENSOR_SCALAR_MODE, n);"
        return self.emit(text, "tile", mask, x)

    def ones(self, mask: Register) -> Register:
        """Bits as a tile of 1 and 0 in float32."""
        return self.choose_number(mask, self.emit("Duplicate({d:f}, 1.0f, n);", "tile"), "0.0f")

    # --------------------------------------------------------------------------------------------- nodes
    def given(self, node: Expr) -> bool:
        """Does the scalar unit compute `node`?"""
        return not reads_block(node) and is_simple(node) and node not in self.context.buckets

    def needs(self, node: Expr) -> tuple[Expr, ...]:
        if self.given(node):
            return ()
        if node.op == "where":
            found = self.known.get(node.args[0])
            if found is None:
                return (node.args[0],)
            if found in (PROVED, REFUTED):
                return (node.args[1 if found == PROVED else 2],)
        inner = functions.silu_slope_of(node)
        if inner is not None:
            return (inner,)
        if node in self.context.steps:
            return (self.context.steps[node].argument,)
        bucket = self.context.buckets.get(node)
        if bucket is not None:
            return (bucket[1].argument,)
        if node in self.inside:
            return self.inside[node]
        real = real_sides(node, self.context.lanes, self.given)
        if real is not None:
            return real
        composed = self.context.composed(node)
        return operands(node) if composed is None else (composed[1].argument,)

    def make(self, node: Expr) -> Value:
        if node.op == "const":
            return Value(text=constant(node))
        if self.given(node):
            return self._given(node)
        if node in self.context.buckets:
            return Value(self.bucket(node))
        if node.dtype == "f64":
            raise Unsupported(f"float64 on the vector unit: {node}")
        if node.dtype == "i" and not fits(self.context.lanes.interval(node), INT32):
            raise Unsupported(f"a whole number of a pair that may need more than 32 bits: {node}")
        rule = RULES.get(node.op)
        if rule is not None:
            return rule(self, node)
        inner = functions.silu_slope_of(node)
        if inner is not None and self.known[inner].register is not None:
            return Value(functions.silu_slope(self, self.register(inner, node)))
        if node.op in UNARY:
            return self._unary(node)
        if node.op in BINARY:
            return self._binary(node)
        raise Unsupported(f"no instruction computes {node.op!r}")

    def _given(self, node: Expr) -> Value:
        columns = self.context.columns
        if not node.free & {"i", "j"}:
            if node not in columns.uniforms:
                columns.uniforms.append(node)
            return Value(text=f"uniform{columns.uniforms.index(node)}")
        if node.dtype == "i" and not fits(self.context.lanes.interval(node), INT32):
            raise Unsupported(f"a whole number of a row that may need more than 32 bits: {node}")
        is_row = columns.row_index in node.free
        side = columns.rows if is_row else columns.columns
        if node not in side:
            side.append(node)
        at = side.index(node)
        return Value(Register(-1 - at, "row" if is_row else "column", at))

    def register(self, node: Expr, by: Expr) -> Register:
        """The operand `node` of `by` as a register; a uniform becomes a tile."""
        value = self.known[node]
        if value.register is not None:
            return value.register
        text = constant(node, by) if node.op == "const" else value.text
        return self.tile(Value(text=text), node.dtype)

    def rounded(self, x: Register, node: Expr) -> Value:
        if not self.context.rounds(node):
            return Value(x)
        narrow = HALF[node.dtype]
        work = ROUND if x.shape == "tile" else Work(issues=2)
        return Value(self.emit(f"round_to<{narrow}>({{d:f}}, {{0:f}}, #);", x.shape, x, work=work))

    def _unary(self, node: Expr) -> Value:
        x = self.register(node.args[0], node)
        if node.dtype == "i":
            if node.op != "abs":
                raise Unsupported(f"no instruction computes {node.op!r} of whole numbers")
            return Value(self.binary("Max", x, self.scalar("Muls", x, "-1", "i"), "i"))
        compute = functions.UNARY.get(node.op)
        if compute is None:
            raise Unsupported(f"no instruction computes {node.op!r}, and it is not composed of others")
        return self.rounded(compute(self, x), node)

    def _binary(self, node: Expr) -> Value:
        left, right = node.args
        if node.dtype == "i":
            return Value(self._whole(node))
        if node.op not in _VECTOR_BINARY:
            return self.rounded(functions.power(self, node), node)
        a, b = self.known[left], self.known[right]
        if node.op == "mul" and ONE in (a, b) and (a.register or b.register) is not None:
            return self.rounded(self.register(right if a == ONE else left, node), node)
        if b.register is None and a.register is not None:
            found = self._with_scalar(node, a.register, constant(right, node) if right.op == "const" else b.text)
        elif a.register is None and b.register is not None:
            found = self._scalar_with(node, constant(left, node) if left.op == "const" else a.text, b.register)
        else:
            found = self.binary(_VECTOR_BINARY[node.op], self.register(left, node), self.register(right, node))
        return self.rounded(found, node)

    def _with_scalar(self, node: Expr, x: Register, by: str) -> Register:
        if node.op == "sub":
            return self.scalar("Adds", x, f"-({by})")
        if node.op != "div":
            return self.scalar({"add": "Adds", "mul": "Muls", "maximum": "Maxs", "minimum": "Mins"}[node.op], x, by)
        divisor = node.args[1]
        power_of_two = divisor.op == "const" and abs(math.frexp(number(divisor, node))[0]) == 0.5
        if power_of_two or node not in self.context.rough:
            return self.scalar("Muls", x, f"1.0f / {by}")
        return self.binary("Div", x, self.emit(f"Duplicate({{d:f}}, {by}, #);", x.shape))

    def _scalar_with(self, node: Expr, by: str, x: Register) -> Register:
        if node.op == "sub":
            return self.scalar("Adds", self.scalar("Muls", x, "-1.0f"), by)
        if node.op == "div":
            return self.binary("Div", self.emit(f"Duplicate({{d:f}}, {by}, #);", x.shape), x)
        return self._with_scalar(node, x, by)

    def _whole(self, node: Expr) -> Register:
        """minimum and maximum of int32; floor division and remainder by a positive number."""
        left, right = node.args
        a, b = self.known[left], self.known[right]
        if node.op in ("minimum", "maximum"):
            name = _VECTOR_BINARY[node.op]
            if a.register is None:
                a, b = b, a
            assert a.register is not None, "a number of the scalar unit is given"
            if b.register is None:
                return self.scalar(f"{name}s", a.register, f"(int32_t)({b.text})", "i")
            return self.binary(name, a.register, b.register, "i")
        low, high = self.context.lanes.interval(right)
        if a.register is None or b.register is not None or low < 1 or high > 1 << 22 or node.op == "truncdiv":
            raise Unsupported(f"no instructions for {node.op!r} of whole numbers but by a positive constant: {node}")
        quotient, rest = functions.divide(self, a.register, b.text)
        return quotient if node.op == "floordiv" else rest

    def bucket(self, node: Expr) -> Register:
        """A step function, from tables of its cells."""
        at, table = self.context.buckets[node]
        if not fits(self.context.lanes.interval(table.argument), INT32):
            raise Unsupported(f"a whole number of a pair that may need more than 32 bits: {table.argument}")
        found = bucket_by_steps(self, node) if node in self.context.steps else bucket_by_cells(self, at, table)
        if node.dtype == "i":
            return found
        return self.emit("CompareScalar({d:b}, {0:i}, 1, CMPMODE::EQ, n);", "bits", found)

    def gather(self, table: str, offset: Register) -> Register:
        """Elements of a table in the unified buffer at byte offsets."""
        text = f"Gather({{d:i}}, {table}.ReinterpretCast<int32_t>(), {{0:u}}, 0, n);"
        return self.emit(text, "tile", offset, in_place=False)

    def below(self, x: Register) -> Register:
        """-1 where an int32 is negative, else 0: its sign's bit, moved through."""
        return self.scalar("ShiftRight", x, "31", "i")
