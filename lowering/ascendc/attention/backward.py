"""The kernel of `gr::jagged_attention_backward`: gradients by recomputation, as gr_compile.ops.attention_backward does.

Behind sizes its parameters are grad, then grad_q, grad_k, grad_v and grad_leaf0 ... of those that are wanted. The cube
core makes S = Q K^T and dP = dO V^T, the vector cores run the score program and its derivative on them, and the cube
core multiplies the results with dO, Q and K. Under a softmax the keys are gone over twice, statistics with the sum of
dP P of a row and then gradients, or three times where the program behind it is not linear in it.

Sums over items meet in global memory by atomic additions in float32: their order, and so the last bits, differ from run
to run. dQ of one item is summed in L0C, in order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from gr_compile.analysis.expr import TORCH_DTYPE, Expr, is_const, walk
from gr_compile.lowering.ascendc.attention.call import LEAF, Call
from gr_compile.lowering.ascendc.attention.instructions import PASS, Instruction, Register, Work
from gr_compile.lowering.ascendc.attention.masks import Extremes
from gr_compile.lowering.ascendc.attention.narrowing import unrounded
from gr_compile.lowering.ascendc.attention.operands_text import elements, read_runtime
from gr_compile.lowering.ascendc.attention.printer import Given, Printer
from gr_compile.lowering.ascendc.attention.scalar import constant, is_simple, place
from gr_compile.lowering.ascendc.attention.sharing import FIRST
from gr_compile.lowering.ascendc.attention.sizes import Part, common_parts
from gr_compile.lowering.ascendc.attention.table_gradients import Scatter, scatter_pairs, way
from gr_compile.lowering.ascendc.attention.vector import BESIDE, Function
from gr_compile.lowering.cpu.lanes import Unsupported
from gr_compile.lowering.cpu.stages import wanted_leaves
from gr_compile.ops.attention_blocks import KEY, QUERY, SEQUENCE
from gr_compile.ops.attention_reference import plan
from gr_compile.ops.evaluate import SPECIAL, reads_block
from gr_compile.ops.score_program import HEAD


@dataclasses.dataclass(frozen=True)
class LeafGradient:
    """How the gradient of a load reaches its leaf: "pair" (an element a pair), "column", or "row" (of no pair, too)."""

    load: Expr
    slope: Expr
    after_softmax: bool
    side: str

    @property
    def collected(self) -> bool:
        """Is it summed over heads before it reaches the leaf?"""
        return self.side == "pair" and "h" not in self.load.free


class Backward(Printer):
    """The backward of one call; `needs` says which of q, k, v and the leaves want a gradient."""

    operator: ClassVar[str] = "jagged_attention_backward"
    files: ClassVar[tuple[str, ...]] = ("vector_core.h", "gradients.h", "backward_cube.h")

    def __init__(self, call: Call, needs: Sequence[bool]) -> None:
        self.needs = dict(zip(("q", "k", "v", *call.program.leaves), needs))
        self.plan = plan(call.program, wanted_leaves(call.program, self.needs))
        product, softmax = call.program.product, call.program.softmax
        self.product_slope = None if product is None else self.plan.score_slopes.get(product)
        self.softmax_slope = None if softmax is None else self.plan.post_slopes.get(softmax)
        self.gradients = self._gradients()
        if TORCH_DTYPE[call.program.out_dtype] != call.v_dtype:
            raise Unsupported(f"a gradient in {call.program.out_dtype} against values in {call.v_dtype}")
        super().__init__(call)

    # ------------------------------------------------------------------------------------------ program
    def _gradients(self) -> list[LeafGradient]:
        found = []
        for after, slopes in ((False, self.plan.score_slopes), (True, self.plan.post_slopes)):
            for load, slope in slopes.items():
                if load.op == "load":
                    found.append(LeafGradient(load, slope, after, _side(load)))
        return found

    def roots(self) -> tuple[Expr, ...]:
        return self.plan.roots

    def pairs(self) -> tuple[Expr, ...]:
        return tuple(x for gradient in self._of_side("pair") if not gradient.collected for x in gradient.load.args[1])

    def functions(self, given: Given) -> dict[str, list[Instruction]]:
        found = {}
        if self.program.post is not None:
            found["statistics"] = self.statistics(given, self._beside if self._merges() else None)
            if not self._merges():
                found["inner"] = self._inner(given)
        return {**found, "gradients": self._last(given)}

    def _merges(self) -> bool:
        """Can the sum of dP P be made beside the statistics: is it linear in the softmax?"""
        slope = self.softmax_slope
        return slope is None or not any(x.op in SPECIAL for x in walk(slope))

    def _beside(self, f: Function, x: Register) -> None:
        """Add dsm times the exponentials `x` to the rows INNER, which become the sum of dsm sm."""
        work = (f.binary("Mul", x, self._weighted(f)), f.emit("", "row"))
        f.instructions.append(Instruction("add_to_rows(INNER, {0:f}, {1:f});", None, work, work=_TO_ROWS))

    def _inner(self, given: Given) -> list[Instruction]:
        f = self.function(given)
        sm = self.softmax(f)
        work = (f.binary("Mul", sm, self._weighted(f)), f.emit("", "row"))
        f.instructions.append(Instruction("add_to_rows(INNER, {0:f}, {1:f});", None, work, work=_TO_ROWS))
        return f.instructions

    def _weighted(self, f: Function) -> Register:
        """dsm: the gradient of the softmax."""
        given, slope = self._gradient(f), self.softmax_slope
        return given if slope is None else self._times(f, given, slope)

    def _gradient(self, f: Function) -> Register:
        """The gradient of a tile's weights, from the cube core, in float32."""
        return f.arrived(1, self.gradient_type)

    def _times(self, f: Function, gradient: Register, slope: Expr) -> Register:
        """gradient * slope, in float32; the gradients of what is added are one."""
        slope = unrounded(slope)
        if is_const(slope, 1):
            return gradient
        if (gradient, slope) not in f.products:
            value = f.value(slope)
            if value.register is None:
                number = constant(slope) if slope.op == "const" else value.text
                f.products[gradient, slope] = f.scalar("Muls", gradient, number)
            else:
                f.products[gradient, slope] = f.binary("Mul", gradient, value.register)
        return f.products[gradient, slope]

    def _last(self, given: Given) -> list[Instruction]:
        program, f = self.program, self.function(given)
        last = unrounded(program.score if program.post is None else program.post, self.v_dtype)
        if program.post is None:
            weights = f.tile(f.value(last), last.dtype)
            self._give_weights(f, weights)
            score_gradient = self._gradient(f)
        else:
            sm = self.softmax(f)
            weights = f.tile(f.value(last), last.dtype)
            self._give_weights(f, weights)
            weighted = self._weighted(f)
            less = f.emit("SubRow({d:f}, {0:f}, given_row<float>(INNER));", "tile", weighted, work=BESIDE)
            score_gradient = f.binary("Mul", sm, less)
        if self.product_slope is not None:
            self._give(f, "QT", "ds", "dst", self._times(f, score_gradient, self.product_slope))
        sums, given_away = {"row": 0, "column": 0}, set[int]()
        for gradient in self.gradients:
            tile = self._times(f, self._gradient(f) if gradient.after_softmax else score_gradient, gradient.slope)
            if gradient.collected:
                at = self._collections().index((gradient.after_softmax, unrounded(gradient.slope)))
                if at not in given_away:
                    f.instructions.append(Instruction(f"collect({at}, {{0:f}});", None, (tile,), work=PASS))
                given_away.add(at)
                continue
            if gradient.side == "pair":
                scatter_pairs(f, gradient.load, tile)
                continue
            copy = f.emit("DataCopy({d:f}, {0:f}, n);", "tile", tile, in_place=False)
            first = "ROW_SUMS" if gradient.side == "row" else "COLUMN_SUMS_AT"
            number = f"{first} + {sums[gradient.side]}"
            sums[gradient.side] += 1
            work = (f.emit("", "row"),) if gradient.side == "row" else ()
            extra = ", {1:f}" if work else ""
            text = f"add_to_{gradient.side}s({number}, {{0:f}}{extra});"
            cost = _TO_ROWS if work else _TO_COLUMNS
            f.instructions.append(Instruction(text, None, (copy, *work), work=cost))
        return f.instructions

    def _give_weights(self, f: Function, weights: Register) -> None:
        if self.needs["v"]:
            self._give(f, "VT", "p", "pt", weights)

    def _give(self, f: Function, kind: str, to: str, turned: str, tile: Register) -> None:
        f.instructions.append(Instruction(f"give<{kind}>(o.{to}, {{0:f}});", None, (tile,), work=PASS))
        if (self.call.v_dtype if kind == "VT" else self.call.qk_dtype).itemsize == 4:
            work = (tile, f.emit("", "tile"), f.emit("", "row"))
            cost = Work(passes=1, issues=1, strips=64)
            f.instructions.append(Instruction(f"turn(o.{turned}, {{0:f}}, {{1:f}}, {{2:i}});", None, work, work=cost))

    def _collections(self) -> list[tuple[bool, Expr]]:
        """Gradients that loads of pairs have in common, of which no head differs in its places."""
        found = [(x.after_softmax, unrounded(x.slope)) for x in self._of_side("pair") if x.collected]
        return list(dict.fromkeys(found))

    def collected(self) -> int:
        return len(self._collections())

    def scattering(self, extremes: Extremes) -> tuple[list[Instruction], list[int], list[int]]:
        collections, first = self._collections(), FIRST + len(self.shared)
        self.tables = Scatter(self.context, self.longest(), extremes)
        pairs = [
            (x.load, Register(-1, "tile", first + collections.index((x.after_softmax, unrounded(x.slope)))))
            for x in self._of_side("pair") if x.collected
        ]  # fmt: skip
        found = self.tables.function(pairs)
        return found, self.tables.rows, self.tables.columns

    # --------------------------------------------------------------------------------------------- sums
    def _of_side(self, side: str) -> list[LeafGradient]:
        return [x for x in self.gradients if x.side == side]

    def kept_sums(self) -> int:
        return (0 if self.program.post is None else 3) + len(self._of_side("row"))

    def slopes(self) -> int:
        return len(self.listings) - self.numbers()["GRADIENTS_FROM"]

    def column_sums(self) -> int:
        return len(self._of_side("column"))

    def _summed(self) -> list[int]:
        """The leaves that want a gradient."""
        return [at for at, name in enumerate(self.program.leaves) if self.needs[name]]

    def _in_buffer(self, at: int) -> bool:
        return self.program.leaves[at] in self.context.resident

    def table_sums(self) -> dict[str, int]:
        one_by_one = {
            x.load.args[0] for x in self.gradients
            if x.side != "pair" or not x.collected or way(x.load, self.context) == "pairs"
        }  # fmt: skip
        named = [(at, self.program.leaves[at]) for at in self._summed()]
        whole = {f"sum{at}": self.call.count(at) for at, name in named if self._in_buffer(at) and name in one_by_one}
        return whole | {name: 8 * len(steps.levels) for name, (_, steps) in self.tables.sums.items()}

    def sums(self) -> dict[str, str]:
        found = {"dk_first": "q_rows * q_heads * d", "dv_first": "dk_first + k_rows * k_heads * d"}
        end = "dv_first + k_rows * v_heads * dv"
        for at in self._summed():
            found[f"leaf{at}_first"] = end
            end = f"leaf{at}_first + {elements(self, at, '')}"
        return {**found, "sums_count": end}

    # --------------------------------------------------------------------------------------------- text
    def numbers(self) -> dict[str, int]:
        rows = max(len(self.rows) + len(self.head_rows), 1)
        return {
            "INNER": rows + 2, "ROW_SUMS": rows + (0 if self.program.post is None else 3),
            "COLUMN_SUMS_AT": len(self.columns) + len(self.head_columns), "NEEDS_V": int(self.needs["v"]),
            "GRADIENTS_FROM": int(self.program.post is not None and not self._merges()),
            "SLOPES": int(self.product_slope is not None),
        }  # fmt: skip

    def members(self) -> list[str]:
        lines = [read_runtime("sums.h"), read_runtime("collect.h")]
        for at in self._summed():
            target = f"add_one(o.sums[o.leaf{at}_first + at], value);"
            if f"sum{at}" in self.table_sums():
                target = f"sum{at}().SetValue(at, sum{at}().GetValue(at) + value);"
            lines.append(f"__aicore__ inline void add_to_leaf{at}(int64_t at, float value) {{ {target} }}")
        rows, columns = self._of_side("row"), self._of_side("column")
        lines += self._flush("flush_rows", QUERY, "query_positions", rows, "kept_row<float>(ROW_SUMS")
        lines += self._flush("flush_columns", KEY, "key_positions", columns, "given_column<float>(COLUMN_SUMS_AT")
        lines += ["__aicore__ inline void flush_tables() {", "order<HardEvent::V_S>();"]
        for name, (at, steps) in self.tables.sums.items():
            for k, value in enumerate(steps.levels):
                lines.append(f"add_to_leaf{at}({place(at, [f'{value}LL'])}, of_lanes({name}(), {k}));")
        for at in self._summed():
            if f"sum{at}" in self.table_sums():
                lines.append(f"add_many(o.sums[o.leaf{at}_first], sum{at}(), {self.call.count(at)});")
        return [*lines, "}", *self._finish()]

    def _flush(
        self, name: str, index: Expr, positions: str, gradients: list[LeafGradient], sums: str
    ) -> list[str]:
        """Sums of rows, or columns, reach their leaves."""
        lines = [f"__aicore__ inline void {name}(int64_t b, int64_t h, int64_t first, int32_t count) {{"]
        letter = index.args[0]
        for k, gradient in enumerate(gradients):
            at = self.program.leaves.index(gradient.load.args[0])
            scalars = self.scalars({SEQUENCE: "b", HEAD: "h", index: letter})
            values = [scalars.value(x) for x in gradient.load.args[1]]
            lines.append("for (int32_t y = 0; y < count; y++) {")
            lines.append(f"const int64_t {letter} = o.{positions}.GetValue(first + y);")
            value = f"{sums} + {k}).GetValue(y)"
            lines += [*scalars.lines, f"add_to_leaf{at}({place(at, values)}, {value});", "}"]
        return [*lines, "}"]

    def _finish(self) -> list[str]:
        lines = ["__aicore__ inline void finish(bool good) {"]
        firsts = {"grad_q": "0", "grad_k": "o.dk_first", "grad_v": "o.dv_first"}
        for name, (kind, count) in self.parameters().items():
            if name == "grad":
                continue
            first = firsts.get(name) or f"o.{name.removeprefix('grad_')}_first"
            lines.append(f"store<{kind}>(o.{name}, o.sums[{first}], {count.replace('t.', 'o.')}, good);")
        return [*lines, "}"]

    def parameters(self) -> dict[str, tuple[str, str]]:
        found = {"grad": ("VT", "t.q_rows * t.heads * t.dv")}
        counts = {x: f"t.{rows}_rows * t.{x}_heads * t.{d}" for x, rows, d in _OPERANDS}
        for name, count in counts.items():
            if self.needs[name] and (name == "v" or self.call.d):
                found[f"grad_{name}"] = ("VT" if name == "v" else "QT", count)
        for at in self._summed():
            found[f"grad_leaf{at}"] = (LEAF[self.call.leaf_dtypes[at]], elements(self, at))
        return found

    def parts(self) -> dict[str, Part]:
        call, common = self.call, common_parts(self)
        slots = common["p"][1]
        wide = {"v": call.v_dtype.itemsize == 4, "q": bool(call.d) and call.qk_dtype.itemsize == 4}
        blocks, key_tiles = "(q_rows // r + batch)", "(k_rows // c + batch)"
        return {
            **common, "g": ("GT", "cores * s_slots * r * c"), "ds": ("QT", slots if call.d else "0"),
            "pt": ("float", slots if wide["v"] else "0"), "dst": ("float", slots if wide["q"] else "0"),
            "grad_t": ("float", f"{blocks} * heads * dv * r" if wide["v"] else "0"),
            "qt": ("float", f"{blocks} * q_heads * d * r" if wide["q"] else "0"),
            "kt": ("float", f"{key_tiles} * k_heads * d * c" if wide["q"] else "0"),
            "sums": ("float", "sums_count"),
        }  # fmt: skip


_OPERANDS = (("q", "q", "d"), ("k", "k", "d"), ("v", "k", "dv"))
_TO_ROWS = Work(passes=1, issues=3, strips=1)  # of sums.h
_TO_COLUMNS = Work(passes=1, lines=1)


def _side(load: Expr) -> str:
    if reads_block(load):
        return "pair"
    if not all(is_simple(x) for x in load.args[1]):
        raise Unsupported(f"the gradient of a leaf at a place that the scalar unit cannot compute: {load}")
    return "column" if "j" in load.free else "row"


def wants(call: Call) -> list[bool]:
    """Every gradient that there is."""
    return [bool(call.d), bool(call.d), True, *(x.is_floating_point for x in call.leaf_dtypes)]
