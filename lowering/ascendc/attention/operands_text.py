"""C++ around a kernel's operands: their struct, which head reads which, `run`, and the entry of a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gr_compile.lowering.ascendc.attention import sizes
from gr_compile.lowering.ascendc.attention.call import ELEMENT, LEAF
from gr_compile.ops.score_program import HEAD

if TYPE_CHECKING:
    from gr_compile.lowering.ascendc.attention.printer import Printer

_OUT = {"f32": "float", "f16": "half", "bf16": "bfloat16_t"}
_RUNTIME = Path(__file__).parent / "runtime"
_ROWS = ("query_offsets", "query_positions", "key_offsets", "key_positions")


def read_runtime(name: str) -> str:
    """A file of runtime/."""
    return (_RUNTIME / name).read_text()


def operands(printer: Printer) -> str:
    """Types and constants, `struct Operands`, and the heads of q, k and v."""
    call, program = printer.call, printer.program
    lines = [f"typedef {ELEMENT[call.qk_dtype]} QT;", f"typedef {ELEMENT[call.v_dtype]} VT;"]
    lines.append(f"typedef {_OUT[program.out_dtype]} OT;")
    lines.append(f"typedef {printer.score_type} ST;")
    lines.append(f"typedef {printer.gradient_type} GT;")
    lines += [*_constants(printer), "struct Operands {", f"int64_t {', '.join(sizes.fields(printer))};"]
    lines.append("GlobalTensor<QT> q, k; GlobalTensor<VT> v, p, grad; GlobalTensor<QT> ds; GlobalTensor<OT> out;")
    lines.append("GlobalTensor<ST> s; GlobalTensor<GT> g;")
    lines.append("GlobalTensor<float> vt, kt, qt, grad_t, pt, dst, sums, shared, collected;")
    lines.append("GlobalTensor<int64_t> query_offsets, query_positions, key_offsets, key_positions, sizes;")
    lines.append("GlobalTensor<int32_t> blocks, key_tiles, status, row_columns, key_columns;")
    lines += [f"GlobalTensor<{LEAF[dtype]}> leaf{at};" for at, dtype in enumerate(call.leaf_dtypes)]
    own = {x: kind for x, (kind, _) in printer.parameters().items() if x not in ("out", "grad")}
    lines += [f"GlobalTensor<{kind}> {x};" for x, kind in own.items()]
    lines.append("};")
    for letter, expr in (("q", program.q_head), ("k", program.k_head), ("v", program.v_head)):
        scalars = printer.scalars({HEAD: "h"})
        value = scalars.value(expr)
        head = f"__aicore__ inline int64_t head_{letter}(const Operands& o, int64_t h)"
        lines.append(f"{head} {{ {' '.join(scalars.lines)} return {value}; }}")
    return "\n".join(lines)


def _constants(printer: Printer) -> list[str]:
    program = printer.program
    rows = max(len(printer.rows) + len(printer.head_rows), 1)
    numbers = {
        "PHASES": len(printer.listings), "ROW_VALUES": len(printer.rows), "HEAD_ROW_VALUES": len(printer.head_rows),
        "COLUMN_VALUES": len(printer.columns), "HEAD_COLUMN_VALUES": len(printer.head_columns),
        "EXTREME_ROWS": len(printer.extreme_rows), "EXTREME_COLUMNS": len(printer.extreme_columns),
        "BLOCK_WORDS": sizes.block_words(printer), "KEY_WORDS": sizes.key_words(printer),
        "RUN_ROWS": len(printer.run_rows), "RUN_COLUMNS": len(printer.run_columns), "COLLECTED": printer.collected(),
        "SHARED": len(printer.shared), "MOST": rows, "SUM": rows + 1, "KEPT_SUMS": printer.kept_sums(),
        "COLUMN_SUMS": printer.column_sums(),
    } | printer.numbers()  # fmt: skip
    flags = {
        "PRODUCT": program.product is not None, "HAS_LOW": program.key_low is not None,
        "HAS_HIGH": program.key_high is not None, "BACKWARD": printer.operator != "jagged_attention",
        "NATURAL": program.post is not None and program.fully_masked == "natural",
    }  # fmt: skip
    lines = [f"constexpr int {name} = {number};" for name, number in numbers.items()]
    return [*lines, *(f"constexpr bool {name} = {str(flag).lower()};" for name, flag in flags.items())]


def pointers(printer: Printer) -> list[str]:
    """What `run` takes in front of the workspace and the tiling, in order."""
    leaves = [f"leaf{at}" for at in range(len(printer.call.leaf_dtypes))]
    return ["q", "k", "v", *leaves, *_ROWS, "sizes", *printer.parameters()]


def run(printer: Printer) -> str:
    """The kernel as a function of its operands, for whatever struct holds the tiling."""
    parameters = ", ".join(f"GM_ADDR {x}" for x in [*pointers(printer), "user"])
    lines = [f"template <class T> __aicore__ inline void run({parameters}, const T& t) {{", "Operands o;"]
    lines += [f"o.{x} = t.{x};" for x in sizes.fields(printer)]
    counts = {
        "q": "t.q_rows * t.q_heads * t.d", "k": "t.k_rows * t.k_heads * t.d", "v": "t.k_rows * t.v_heads * t.dv",
        "sizes": str(len(printer.program.sizes)), "query_positions": "t.q_rows",
        "key_positions": "t.k_rows", "query_offsets": "t.batch + 1", "key_offsets": "t.batch + 1",
    }  # fmt: skip
    types = {"q": "QT", "k": "QT", "v": "VT"}
    for x, count in counts.items():
        lines.append(f"o.{x}.SetGlobalBuffer((__gm__ {types.get(x, 'int64_t')}*){x}, {count});")
    for x, (kind, count) in printer.parameters().items():
        lines.append(f"o.{x}.SetGlobalBuffer((__gm__ {kind}*){x}, {count});")
    for at, dtype in enumerate(printer.call.leaf_dtypes):
        lines.append(f"o.leaf{at}.SetGlobalBuffer((__gm__ {LEAF[dtype]}*)leaf{at}, {elements(printer, at)});")
    for x, (kind, _) in printer.parts().items():
        lines.append(f"o.{x}.SetGlobalBuffer((__gm__ {kind}*)(user + t.{x}_at), t.{x}_count);")
    lines += ["if ASCEND_IS_AIC Cube(o).run();", "if ASCEND_IS_AIV Vector(o).run();", "}"]
    return "\n".join(lines) + "\n"


def entry(printer: Printer, name: str) -> str:
    """The kernel's function, of a file that holds one program."""
    passed = pointers(printer)
    parameters = ", ".join(f"GM_ADDR {x}" for x in [*passed, "workspace", "tiling"])
    lines = [f'extern "C" __global__ __aicore__ void {name}({parameters}) {{']
    lines += ["GET_TILING_DATA(t, tiling);", f"run({', '.join(passed)}, GetUserWorkspace(workspace), t);", "}"]
    return "\n".join(lines) + "\n"


def elements(printer: Printer, at: int, of: str = "t.") -> str:
    """How many elements a leaf has, in C++."""
    return " * ".join(f"{of}extent{at}_{dim}" for dim in range(len(printer.call.extents[at]))) or "1"
