"""`struct Program` of an attention kernel in C++: tables, one-sided columns, the hull, the functions of tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gr_compile.analysis.expr import Expr, const
from gr_compile.lowering.ascendc.attention.call import LEAF
from gr_compile.lowering.ascendc.attention.operands_text import read_runtime
from gr_compile.lowering.ascendc.attention.scalar import CXX, Scalars
from gr_compile.lowering.ascendc.attention.values import Table
from gr_compile.lowering.ascendc.tiling import up
from gr_compile.lowering.cpu.lanes import INT64
from gr_compile.ops.attention_blocks import KEY, QUERY, SEQUENCE
from gr_compile.ops.score_program import HEAD

if TYPE_CHECKING:
    from gr_compile.lowering.ascendc.attention.printer import Printer


def program(printer: Printer) -> str:
    """The struct."""
    lines = ["struct Program : Tile {", "const Operands& o;", "bool fits = true;"]
    lines += [f"const GlobalTensor<{LEAF[x]}>& leaf{at};" for at, x in enumerate(printer.call.leaf_dtypes)]
    lines += [f"{CXX[x.dtype]} uniform{at};" for at, x in enumerate(printer.context.columns.uniforms)]
    leaves = "".join(f", leaf{at}(o.leaf{at})" for at in range(len(printer.call.leaf_dtypes)))
    lines.append(f"__aicore__ inline explicit Program(const Operands& o) : o(o){leaves} {{}}")
    lines += [_layout(printer), _tables(printer), _begin(printer), *_sides(printer), *_hull(printer)]
    lines += [*_extremes(printer), read_runtime("softmax.h"), read_runtime("shared.h"), *printer.members()]
    of_inside = ["if (inside_tables) {", *printer.share_inside.lines, "return;", "}"] if printer.shared else []
    lines += ["__aicore__ inline void share() {", *of_inside, *printer.share.lines, "}"]
    lines += ["__aicore__ inline void scatter() {", *printer.scatter.lines, "}"]
    for name in ("statistics", "inner", *list(printer.listings)[-1:]):
        kind = "LocalTensor<float>" if name == "weights" else "void"
        body = printer.listings[name].lines if name in printer.listings else []
        if name in printer.whole:
            ends = [] if name == "weights" else ["return;"]
            body = ["if (whole) {", *printer.whole[name].lines, *ends, "}", *body]
        lines += [f"__aicore__ inline {kind} {name}() {{", *body, "}"]
    return "\n".join([*lines, "};"])


def _layout(printer: Printer) -> str:
    need = printer.demand()
    takes = [
        f"tiles_at = take({need.tiles} * o.vr * o.vc * 4);",
        f"bits_at = take({need.bits} * up(o.vr * o.vc / 8, 32));",
        f"rows_at = take({need.rows} * o.vr * 4);", f"columns_at = take({need.columns} * o.vc * 4);",
        f"given_rows_at = take({need.kept_rows} * up(o.r / 2, 8) * 4);",
        f"given_columns_at = take({need.kept_columns} * o.c * 4);", "spread_at = take(o.vr * 32);",
    ]  # fmt: skip
    sums = [Table(name, "float", count) for name, count in printer.table_sums().items()]
    tables = [*printer.context.tables.values(), *sums]
    members = [f"uint32_t {', '.join([*(f'{x.name}_at' for x in tables), 'transpose_at'])};"]
    members += [_getter(x.name, f"{x.name}_at", x.count, x.kind) for x in tables]
    takes += [f"{x.name}_at = take({4 * x.count});" for x in tables]
    if printer.run_rows:
        length = "8 * up(o.vr + o.vc, 8)"
        takes.append(f"strips_at = take({length} * 4);")
        members.append("uint32_t strips_at;")
        members.append(
            f"__aicore__ inline LocalTensor<float> strips() {{ return piece<float>(strips_at, {length}); }}"
        )
    shape = (
        "most_rows = (int32_t)o.vr, most_columns = (int32_t)o.vc, "
        "given_columns = (int32_t)o.c, given_rows = (int32_t)up(o.r / 2, 8);"
    )
    transpose = ["if (sizeof(VT) == 4 || sizeof(QT) == 4) transpose_at = take(64 * up(most(o.d, o.dv), 8) + 256);"]
    return "\n".join([*members, "__aicore__ inline void layout() {", shape, *takes, *transpose, "}"])


def _tables(printer: Printer) -> str:
    """Tables into the unified buffer: leaves, and the cells of step functions."""
    lines = ["__aicore__ inline void load_tables() {"]
    for table in printer.context.tables.values():
        lines += table.fill if table.leaf is None else _whole_leaf(printer, table, table.leaf)
    lines += [f"Duplicate({name}(), 0.0f, {up(count, 8)});" for name, count in printer.table_sums().items()]
    return "\n".join([*lines, "order<HardEvent::MTE2_V>();", "order<HardEvent::S_V>();", "}"])


def _whole_leaf(printer: Printer, table: Table, leaf: int) -> list[str]:
    dtype, count = printer.call.leaf_dtypes[leaf], table.count
    if dtype in (torch.float32, torch.int32):
        return [
            f"DataCopyPad({table.name}().ReinterpretCast<int32_t>(), leaf{leaf}.ReinterpretCast<int32_t>(),",
            f"DataCopyExtParams(1, {4 * count}, 0, 0, 0),",
            f"DataCopyPadExtParams<int32_t>(true, 0, {up(count, 8) - count}, 0));",
        ]
    read = f"leaf{leaf}.GetValue(x)"
    read = f"ToFloat({read})" if dtype == torch.bfloat16 else f"({table.kind}){read}"
    return [f"for (int32_t x = 0; x < {count}; x++) {table.name}().SetValue(x, {read});"]


def _begin(printer: Printer) -> str:
    scalars = printer.scalars({SEQUENCE: "b", HEAD: "h"})
    stores = []
    for at, node in enumerate(printer.context.columns.uniforms):
        value = scalars.value(node)
        stores.append(f"uniform{at} = {value};")
        stores += _check_range(printer, node, scalars)
    return "\n".join(["__aicore__ inline void begin(int64_t b, int64_t h) {", *scalars.lines, *stores, "}"])


def _check_range(printer: Printer, node: Expr, scalars: Scalars) -> list[str]:
    """Is a whole number, or one that a float stands for, what instructions were proved for?"""
    whole = node.args[0] if node.op == "cast" and node.args[0].dtype == "i" else node
    interval = printer.context.lanes.interval(whole) if whole.dtype == "i" else INT64
    if interval == INT64:
        return []
    value, (low, high) = scalars.value(whole), interval
    return [f"fits = fits && {value} >= {low}LL && {value} <= {high}LL;"]


def _sides(printer: Printer) -> list[str]:
    """What a row, and a key, give: the scalar unit's functions that fill the columns."""
    row, column = "kept_row", "given_column"
    return [
        _side(printer, "row_values", "b, i", QUERY, printer.rows, row, 0),
        _side(printer, "head_row_values", "b, h, i", QUERY, printer.head_rows, row, len(printer.rows)),
        _side(printer, "column_values", "b, j", KEY, printer.columns, column, 0),
        _side(printer, "head_column_values", "b, h, j", KEY, printer.head_columns, column, len(printer.columns)),
    ]


def _side(printer: Printer, name: str, indices: str, index: Expr, nodes: list[Expr], to: str, first: int) -> str:
    letter = index.args[0]
    scalars = printer.scalars({SEQUENCE: "b", HEAD: "h", index: letter})
    stores = []
    for at, node in enumerate(nodes):
        value = scalars.value(node)
        kind = "int32_t" if node.dtype == "i" else "float"
        stores += [f"{to}<{kind}>({first + at}).SetValue(y, ({kind}){value});", *_check_range(printer, node, scalars)]
    arguments = ", ".join(f"int64_t {x}" for x in indices.split(", "))
    head = f"__aicore__ inline bool {name}({arguments}, int32_t y) {{"
    return "\n".join([head, "bool fits = true;", *scalars.lines, *stores, "return fits;", "}"])


def _hull(printer: Printer) -> list[str]:
    lines = []
    for name in ("key_low", "key_high"):
        scalars = printer.scalars({SEQUENCE: "b", QUERY: "i"})
        value = scalars.value(getattr(printer.program, name) or const(0))
        body = " ".join(scalars.lines)
        lines.append(f"__aicore__ inline int64_t {name}(int64_t b, int64_t i) {{ {body} return {value}; }}")
    return lines


def _extremes(printer: Printer) -> list[str]:
    """What is kept of a block of rows, and of a tile of keys: extremes, steps of values; and what they prove."""
    lines = []
    for side, first, to, slots, runs in (
        ("row", "FIRST_WORD + ", "kept_row", printer.extreme_rows, printer.run_rows),
        ("key", "", "given_column", printer.extreme_columns, printer.run_columns),
    ):
        parameters = "const LocalTensor<int32_t>& words, int32_t count, bool fresh"
        lines.append(f"__aicore__ inline void {side}_extremes({parameters}) {{")
        for at, slot in enumerate(slots):
            lines.append(f"extremes(words, {first}{2 * at}, {to}<int32_t>({slot}), count, fresh);")
        for at, slot in enumerate(runs, len(slots)):
            lines.append(f"run_of(words, {first}{2 * at}, {to}<int32_t>({slot}), count, fresh);")
        lines.append("}")
    proofs = (("proved", printer.proof), ("inside", printer.inside))
    return [*lines, *(f"__aicore__ inline bool {name}() {{ return {text}; }}" for name, text in proofs)]


def _getter(name: str, at: str, count: int, kind: str = "int32_t") -> str:
    return f"__aicore__ inline LocalTensor<{kind}> {name}() {{ return piece<{kind}>({at}, {up(count, 8)}); }}"
