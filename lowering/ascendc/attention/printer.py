"""What the kernels of `gr::jagged_attention` and of its backward share: C++ around functions of tiles.

    q, k, v, leaves..., query_offsets, query_positions, key_offsets, key_positions, sizes, ..., workspace, tiling

are a kernel's parameters; sizes is an int64 tensor of the program's sizes. Operands are contiguous. A program without a
product is given any q and k. Whole numbers that the model stores in 64 bits are assumed to lie in [-1, 2^31 - 2] where
they reach a pair, positions and sizes in 24 bits; the kernel checks what it makes of them, and answers NaN everywhere
where it does not fit.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from gr_compile.analysis.expr import Expr, const, size
from gr_compile.lowering.ascendc.attention.call import ELEMENT, LEAF, Call
from gr_compile.lowering.ascendc.attention.instructions import Instruction, Register, Shape, allocate
from gr_compile.lowering.ascendc.attention.scalar import CXX, Scalars
from gr_compile.lowering.ascendc.attention.values import Context
from gr_compile.lowering.ascendc.attention.vector import Function
from gr_compile.lowering.ascendc.kernel import Kernel
from gr_compile.lowering.ascendc.machine import Machine
from gr_compile.lowering.ascendc.tiling import Demand, Tiling, scratch, solve, up
from gr_compile.lowering.cpu.buckets import find_tables
from gr_compile.lowering.cpu.emit import rough_nodes
from gr_compile.lowering.cpu.lanes import INT64, Lanes, Unsupported
from gr_compile.ops.attention_blocks import KEY, QUERY, SEQUENCE
from gr_compile.ops.score_program import HEAD

_OUT = {"f32": "float", "f16": "half", "bf16": "bfloat16_t"}
_RUNTIME = Path(__file__).parent / "runtime"
_DEPTH = 3  # tiles under way; walk of runtime/cube.h
_RESIDENT = 32768  # bytes of a leaf up to which it lies in the unified buffer
_MOST_CELLS = 4096  # of a bucket's table, which the scalar unit writes one by one
_FAR = 1 << 30
_PLACE = (0, (1 << 24) - 1)  # positions and sizes: assumed, and every column that is made of them is checked


@dataclass(frozen=True)
class Listing:
    """A printed function of tiles: C++ statements, the slots they need, and the instruction list for a dump."""

    lines: list[str]
    slots: dict[Shape, int]


class Printer(ABC):
    """The kernel of one call, tiling apart.

    Attributes:
        operator: the graph operator.
        files: of runtime/, behind the Program.
    """

    operator: ClassVar[str]
    files: ClassVar[tuple[str, ...]]

    def __init__(self, call: Call) -> None:
        self.call, self.program = call, call.program
        self._check()
        self.context = self._context()
        functions = self.functions()
        self.rows, self.head_rows, row_places = _by_head(self.context.columns.rows)
        self.columns, self.head_columns, column_places = _by_head(self.context.columns.columns)
        places: dict[Shape, Sequence[int]] = {"row": row_places, "column": column_places, "tile": [0, 1]}
        self.listings = {name: Listing(*allocate(found, places)) for name, found in functions.items()}

    # -------------------------------------------------------------------------------------- what differs
    @abstractmethod
    def roots(self) -> tuple[Expr, ...]:
        """Every expression that tiles compute."""

    @abstractmethod
    def functions(self) -> dict[str, list[Instruction]]:
        """The functions of tiles, one a phase, the last one last."""

    @abstractmethod
    def numbers(self) -> dict[str, int]:
        """Constants of the C++."""

    @abstractmethod
    def members(self) -> list[str]:
        """Further members of Program."""

    @abstractmethod
    def parts(self, tiling: Tiling, cores: int) -> dict[str, tuple[str, int]]:
        """Type and number of elements of each part of the workspace."""

    @abstractmethod
    def parameters(self) -> dict[str, tuple[str, str]]:
        """Type and number of elements, in C++, of each parameter behind sizes."""

    def kept_sums(self) -> int:
        """Rows of sums that last an item."""
        return 0 if self.program.post is None else 2

    def column_sums(self) -> int:
        """Columns of sums that last a tile."""
        return 0

    def table_sums(self) -> dict[str, int]:
        """Sums of tables in the unified buffer: elements by name."""
        return {}

    # ------------------------------------------------------------------------------------------ program
    def _check(self) -> None:
        call, program = self.call, self.program
        for dtype in (call.qk_dtype, call.v_dtype):
            if dtype not in ELEMENT:
                raise Unsupported(f"operands in {dtype}")
        strange = [x for x in call.leaf_dtypes if x not in LEAF]
        if strange or program.out_dtype == "f64":
            raise Unsupported(f"a leaf of {strange[0]}" if strange else "an output in float64")
        if any(0 in x for x in call.extents):
            raise Unsupported("an empty leaf")
        wide = max(call.q_heads * call.d, call.k_heads * call.d, call.v_heads * call.dv)
        if wide > 65535:
            raise Unsupported(f"rows of {wide} elements: a copy into L1 steps by 65535 at most")
        if max(call.query_rows, call.key_rows, call.batch) >= _FAR:
            raise Unsupported(f"{max(call.query_rows, call.key_rows)} rows: places are 30 bits wide")

    def _context(self) -> Context:
        call, program = self.call, self.program
        lanes = Lanes(dict(zip(program.leaves, call.leaf_dtypes)), narrow=True)
        lanes.ranges |= {HEAD: (0, call.heads - 1), SEQUENCE: (0, max(call.batch - 1, 0))}
        lanes.ranges |= dict.fromkeys((QUERY, KEY, *map(size, program.sizes)), _PLACE)
        bounds = tuple(x for x in (program.key_low, program.key_high) if x is not None)
        roots = self.roots()
        loads = tuple(place for x in program.loads() for place in x.args[1])
        tables = find_tables((*roots, *bounds, *loads), lanes)
        if any(len(x.values) > _MOST_CELLS for x in tables.values()):
            raise Unsupported(f"a step function with more than {_MOST_CELLS} cells")
        resident = {
            name for name, extents in zip(program.leaves, call.extents)
            if torch.Size(extents).numel() * 4 <= _RESIDENT
        }  # fmt: skip
        return Context(
            lanes, program.leaves, {node: (at, table) for at, (node, table) in enumerate(tables.items())},
            rough_nodes((*roots, *bounds)), exact=program.post is not None, resident=frozenset(resident),
        )  # fmt: skip

    def function(self) -> Function:
        """A function of tiles that is given the scores."""
        function = Function(self.context)
        product = self.program.product
        if product is not None:
            function.known[product] = function.rounded(Register(0, "tile", 0), product)
        return function

    def statistics(self) -> list[Instruction]:
        """The first phase of a softmax: every row's largest score and sum of exponentials so far."""
        f = self.function()
        score = f.tile(f.value(self.program.score), self.program.score.dtype)
        work, rows = f.emit("", "tile"), (f.emit("", "row"), f.emit("", "row"))
        text = "gather_statistics({0:f}, {1:f}, {2:f}, {3:f});"
        f.instructions.append(Instruction(text, None, (score, work, *rows)))
        return f.instructions

    def softmax(self, f: Function) -> Register:
        """The softmax, from the statistics, in a later phase."""
        assert self.program.softmax is not None
        score = f.tile(f.value(self.program.score), self.program.score.dtype)
        sm = f.emit("normalise({d:f}, {0:f}, {1:f});", "tile", score, f.emit("", "row"))
        found = f.known[self.program.softmax] = f.rounded(sm, self.program.softmax)
        assert found.register is not None
        return found.register

    # ------------------------------------------------------------------------------------------- demand
    def demand(self) -> Demand:
        call = self.call
        shapes: tuple[Shape, ...] = ("tile", "row", "column", "bits")
        slots = {shape: max(x.slots[shape] for x in self.listings.values()) for shape in shapes}
        cells = [len(table.values) for _, table in self.context.buckets.values()]
        tables = sum(up(8 * x, 32) + up(4 * x, 32) for x in cells)
        tables += sum(up(4 * torch.Size(self.call.extents[at]).numel(), 32) for at in self._resident())
        tables += sum(up(4 * count, 32) for count in self.table_sums().values())
        return Demand(
            d=call.d, dv=call.dv, qk_bytes=call.qk_dtype.itemsize, v_bytes=call.v_dtype.itemsize,
            tiles=max(slots["tile"], 1), bits=slots["bits"], rows=slots["row"], columns=slots["column"],
            kept_rows=max(len(self.rows) + len(self.head_rows), 1) + self.kept_sums(),
            kept_columns=len(self.columns) + len(self.head_columns) + self.column_sums(), tables=tables,
            instructions=sum(sum(";" in line for line in x.lines) for x in self.listings.values()),
            phases=len(self.listings), backward=self.operator == "jagged_attention_backward",
        )  # fmt: skip

    def _resident(self) -> list[int]:
        return [at for at, name in enumerate(self.program.leaves) if name in self.context.resident]

    # ----------------------------------------------------------------------------------------------- text
    def source(self, name: str) -> str:
        """The C++ file."""
        after = [read_runtime(x) for x in self.files]
        before = [read_runtime("tile.h"), self._operands(), read_runtime("walk.h"), self._program()]
        shared = [read_runtime("columns.h"), read_runtime("product.h")]
        return "\n".join([*before, *shared, *after, self._entry(name)])

    def _fields(self) -> list[str]:
        dims = [f"{at}_{dim}" for at, x in enumerate(self.call.extents) for dim in range(len(x))]
        leaves = [f"{kind}{x}" for x in dims for kind in ("extent", "stride")]
        return [*_FIELDS, *leaves, *(f"{x}_first" for x in SUMS), "sums_count"]

    def _operands(self) -> str:
        call, program = self.call, self.program
        lines = [f"typedef {ELEMENT[call.qk_dtype]} QT;", f"typedef {ELEMENT[call.v_dtype]} VT;"]
        lines.append(f"typedef {_OUT[program.out_dtype]} OT;")
        rows = max(len(self.rows) + len(self.head_rows), 1)
        numbers = {
            "PHASES": len(self.listings), "ROW_VALUES": len(self.rows), "HEAD_ROW_VALUES": len(self.head_rows),
            "COLUMN_VALUES": len(self.columns), "HEAD_COLUMN_VALUES": len(self.head_columns),
            "MOST": rows, "SUM": rows + 1, "KEPT_SUMS": self.kept_sums(), "COLUMN_SUMS": self.column_sums(),
        } | self.numbers()  # fmt: skip
        flags = {
            "PRODUCT": program.product is not None, "HAS_LOW": program.key_low is not None,
            "HAS_HIGH": program.key_high is not None, "BACKWARD": self.operator != "jagged_attention",
            "NATURAL": program.post is not None and program.fully_masked == "natural",
        }  # fmt: skip
        lines += [f"constexpr int {name} = {number};" for name, number in numbers.items()]
        lines += [f"constexpr bool {name} = {str(flag).lower()};" for name, flag in flags.items()]
        lines += ["struct Operands {", f"int64_t {', '.join(self._fields())};"]
        lines.append("GlobalTensor<QT> q, k; GlobalTensor<VT> v, p, grad; GlobalTensor<QT> ds; GlobalTensor<OT> out;")
        lines.append("GlobalTensor<float> s, g, vt, kt, qt, grad_t, pt, dst, sums;")
        lines.append("GlobalTensor<int64_t> query_offsets, query_positions, key_offsets, key_positions, sizes;")
        lines.append("GlobalTensor<int32_t> blocks, status, row_columns, key_columns;")
        lines += [f"GlobalTensor<{LEAF[dtype]}> leaf{at};" for at, dtype in enumerate(call.leaf_dtypes)]
        own = {x: kind for x, (kind, _) in self.parameters().items() if x not in ("out", "grad")}
        lines += [f"GlobalTensor<{kind}> {x};" for x, kind in own.items()]
        lines.append("};")
        for letter, expr in (("q", program.q_head), ("k", program.k_head), ("v", program.v_head)):
            body, value = self._scalar({HEAD: "h"}, expr)
            head = f"__aicore__ inline int64_t head_{letter}(const Operands& o, int64_t h)"
            lines.append(f"{head} {{ {body} return {value}; }}")
        return "\n".join(lines)

    def _scalar(self, given: dict[Expr, str], node: Expr) -> tuple[str, str]:
        scalars = self._scalars(given)
        value = scalars.value(node)
        return " ".join(scalars.lines), value

    def _scalars(self, given: dict[Expr, str]) -> Scalars:
        sizes = {size(name): f"o.sizes.GetValue({at})" for at, name in enumerate(self.program.sizes)}
        return Scalars(self.program.leaves, {**given, **sizes})

    def _program(self) -> str:
        lines = ["struct Program : Tile {", "const Operands& o;", "bool fits = true;"]
        lines += [f"const GlobalTensor<{LEAF[x]}>& leaf{at};" for at, x in enumerate(self.call.leaf_dtypes)]
        lines += [f"{CXX[x.dtype]} uniform{at};" for at, x in enumerate(self.context.columns.uniforms)]
        leaves = "".join(f", leaf{at}(o.leaf{at})" for at in range(len(self.call.leaf_dtypes)))
        lines.append(f"__aicore__ inline explicit Program(const Operands& o) : o(o){leaves} {{}}")
        lines += [self._layout(), self._tables(), self._begin(), *self._sides(), *self._hull()]
        lines.append(read_runtime("softmax.h"))
        lines += self.members()
        for name in ("statistics", "inner", *list(self.listings)[-1:]):
            kind = "LocalTensor<float>" if name == "weights" else "void"
            body = self.listings[name].lines if name in self.listings else []
            lines += [f"__aicore__ inline {kind} {name}() {{", *body, "}"]
        return "\n".join([*lines, "};"])

    def _layout(self) -> str:
        need = self.demand()
        takes = [
            f"tiles_at = take({need.tiles} * o.vr * o.c * 4);",
            f"bits_at = take({need.bits} * up(o.vr * o.c / 8, 32));",
            f"rows_at = take({need.rows} * o.vr * 4);", f"columns_at = take({need.columns} * o.c * 4);",
            f"given_rows_at = take({need.kept_rows} * up(o.r / 2, 8) * 4);",
            f"given_columns_at = take({need.kept_columns} * o.c * 4);", "spread_at = take(o.vr * 32);",
        ]  # fmt: skip
        tables = [f"table{at}_at = take({4 * torch.Size(self.call.extents[at]).numel()});" for at in self._resident()]
        for name, count in self.table_sums().items():
            tables.append(f"{name}_at = take({4 * count});")
        for at, table in self.context.buckets.values():
            cells = len(table.values)
            tables += [f"limits{at}_at = take({4 * cells});", f"values{at}_at = take({8 * cells});"]
        names = [x.split(" ")[0] for x in tables]
        members = [f"uint32_t {', '.join([*names, 'transpose_at'])};"]
        for at in self._resident():
            members.append(_getter(f"table{at}", f"table{at}_at", torch.Size(self.call.extents[at]).numel()))
        for name, count in self.table_sums().items():
            members.append(_getter(name, f"{name}_at", count, "float"))
        for at, table in self.context.buckets.values():
            members.append(_getter(f"limits{at}", f"limits{at}_at", len(table.values)))
            members.append(_getter(f"values{at}", f"values{at}_at", 2 * len(table.values)))
        shape = "most_rows = (int32_t)o.vr, most_columns = (int32_t)o.c, given_rows = (int32_t)up(o.r / 2, 8);"
        transpose = ["if (sizeof(VT) == 4 || sizeof(QT) == 4) transpose_at = take(64 * up(most(o.d, o.dv), 8) + 256);"]
        return "\n".join([*members, "__aicore__ inline void layout() {", shape, *takes, *tables, *transpose, "}"])

    def _tables(self) -> str:
        """Tables into the unified buffer: leaves, and the cells of step functions."""
        lines = ["__aicore__ inline void load_tables() {"]
        for at in self._resident():
            dtype, count = self.call.leaf_dtypes[at], torch.Size(self.call.extents[at]).numel()
            if not count:
                continue
            if dtype in (torch.float32, torch.int32):
                lines.append(f"DataCopyPad(table{at}(), leaf{at}.ReinterpretCast<int32_t>(),")
                lines.append(f"DataCopyExtParams(1, {4 * count}, 0, 0, 0),")
                lines.append(f"DataCopyPadExtParams<int32_t>(true, 0, {up(count, 8) - count}, 0));")
                continue
            kind = "float" if dtype in ELEMENT or dtype == torch.bool else "int32_t"
            read = f"ToFloat(leaf{at}.GetValue(x))" if dtype == torch.bfloat16 else f"({kind})leaf{at}.GetValue(x)"
            loop = f"for (int32_t x = 0; x < {count}; x++)"
            lines.append(f"{loop} table{at}().ReinterpretCast<{kind}>().SetValue(x, {read});")
        for at, table in self.context.buckets.values():
            lines += [f"limits{at}().SetValue({x}, {limit});" for x, limit in enumerate(table.thresholds)]
            values = [value for pair in table.values for value in pair]
            lines += [f"values{at}().SetValue({x}, {value});" for x, value in enumerate(values)]
        lines += [f"Duplicate({name}(), 0.0f, {up(count, 8)});" for name, count in self.table_sums().items()]
        return "\n".join([*lines, "order<HardEvent::MTE2_V>();", "order<HardEvent::S_V>();", "}"])

    def _begin(self) -> str:
        scalars = self._scalars({SEQUENCE: "b", HEAD: "h"})
        stores = []
        for at, node in enumerate(self.context.columns.uniforms):
            value = scalars.value(node)
            stores.append(f"uniform{at} = {value};")
            stores += self._check_range(node, value)
        return "\n".join(["__aicore__ inline void begin(int64_t b, int64_t h) {", *scalars.lines, *stores, "}"])

    def _check_range(self, node: Expr, value: str) -> list[str]:
        interval = self.context.lanes.interval(node) if node.dtype == "i" else INT64
        if interval == INT64:
            return []
        low, high = interval
        return [f"fits = fits && {value} >= {low}LL && {value} <= {high}LL;"]

    def _sides(self) -> list[str]:
        """What a row, and a key, give: the scalar unit's functions that fill the columns."""
        row, column = "kept_row", "given_column"
        return [
            self._side("row_values", "b, i", QUERY, self.rows, row, 0),
            self._side("head_row_values", "b, h, i", QUERY, self.head_rows, row, len(self.rows)),
            self._side("column_values", "b, j", KEY, self.columns, column, 0),
            self._side("head_column_values", "b, h, j", KEY, self.head_columns, column, len(self.columns)),
        ]

    def _side(self, name: str, indices: str, index: Expr, nodes: list[Expr], to: str, first: int) -> str:
        letter = index.args[0]
        scalars = self._scalars({SEQUENCE: "b", HEAD: "h", index: letter})
        stores = []
        for at, node in enumerate(nodes):
            value = scalars.value(node)
            kind = "int32_t" if node.dtype == "i" else "float"
            stores += [f"{to}<{kind}>({first + at}).SetValue(y, ({kind}){value});", *self._check_range(node, value)]
        arguments = ", ".join(f"int64_t {x}" for x in indices.split(", "))
        head = f"__aicore__ inline bool {name}({arguments}, int32_t y) {{"
        return "\n".join([head, "bool fits = true;", *scalars.lines, *stores, "return fits;", "}"])

    def _hull(self) -> list[str]:
        lines = []
        for name in ("key_low", "key_high"):
            body, value = self._scalar({SEQUENCE: "b", QUERY: "i"}, getattr(self.program, name) or const(0))
            lines.append(f"__aicore__ inline int64_t {name}(int64_t b, int64_t i) {{ {body} return {value}; }}")
        return lines

    def _entry(self, name: str) -> str:
        call = self.call
        leaves = [f"leaf{at}" for at in range(len(call.leaf_dtypes))]
        parameters = ["q", "k", "v", *leaves, *_ROWS, "sizes", *self.parameters(), "workspace", "tiling"]
        lines = [f'extern "C" __global__ __aicore__ void {name}({", ".join(f"GM_ADDR {x}" for x in parameters)}) {{']
        lines += ["GET_TILING_DATA(t, tiling);", "Operands o;", *(f"o.{x} = t.{x};" for x in self._fields())]
        counts = {
            "q": "t.q_rows * t.q_heads * t.d", "k": "t.k_rows * t.k_heads * t.d", "v": "t.k_rows * t.v_heads * t.dv",
            "sizes": str(len(self.program.sizes)), "query_positions": "t.q_rows",
            "key_positions": "t.k_rows", "query_offsets": "t.batch + 1", "key_offsets": "t.batch + 1",
        }  # fmt: skip
        types = {"q": "QT", "k": "QT", "v": "VT"}
        for x, count in counts.items():
            lines.append(f"o.{x}.SetGlobalBuffer((__gm__ {types.get(x, 'int64_t')}*){x}, {count});")
        for x, (kind, count) in self.parameters().items():
            lines.append(f"o.{x}.SetGlobalBuffer((__gm__ {kind}*){x}, {count});")
        for at, (dtype, extents) in enumerate(zip(call.leaf_dtypes, call.extents)):
            lines.append(f"o.leaf{at}.SetGlobalBuffer((__gm__ {LEAF[dtype]}*)leaf{at}, {torch.Size(extents).numel()});")
        lines.append("GM_ADDR user = GetUserWorkspace(workspace);")
        for x, (kind, _) in self.parts(NOTHING, 1).items():
            lines.append(f"o.{x}.SetGlobalBuffer((__gm__ {kind}*)(user + t.{x}_at), t.{x}_count);")
        lines += ["if ASCEND_IS_AIC Cube(o).run();", "if ASCEND_IS_AIV Vector(o).run();", "}"]
        return "\n".join(lines) + "\n"

    # ------------------------------------------------------------------------------------------- tiling
    def values(self, tiling: Tiling, cores: int) -> dict[str, int]:
        """The tiling struct's numbers."""
        call, need = self.call, self.demand()
        numbers = {
            "batch": call.batch, "heads": call.heads, "q_rows": call.query_rows, "k_rows": call.key_rows,
            "q_heads": call.q_heads, "k_heads": call.k_heads, "v_heads": call.v_heads, "d": call.d, "dv": call.dv,
            "r": tiling.rows, "c": tiling.columns, "vr": tiling.vector_rows, "d_step": tiling.d_step,
            "c_step": tiling.c_step, "left": tiling.buffers["L0A"] // 2, "right": tiling.buffers["L0B"] // 2,
            "cores": cores, "scratch": scratch(need, tiling.rows, tiling.columns, tiling.vector_rows),
        }  # fmt: skip
        for at, extents in enumerate(call.extents):
            step = torch.Size(extents).numel()
            for dim, extent in enumerate(extents):
                step = step // extent if extent else 0
                numbers |= {f"extent{at}_{dim}": extent, f"stride{at}_{dim}": step}
        return numbers | self.sums() | self._workspace(tiling, cores)

    def sums(self) -> dict[str, int]:
        """Where each sum begins in global memory, in elements, and how many there are."""
        return {**{f"{x}_first": 0 for x in SUMS}, "sums_count": 0}

    def _workspace(self, tiling: Tiling, cores: int) -> dict[str, int]:
        """Where the parts of the workspace begin, in bytes, and how many elements they have."""
        bytes_ = {"float": 4, "int32_t": 4, "VT": self.call.v_dtype.itemsize, "QT": self.call.qk_dtype.itemsize}
        at = 0
        found: dict[str, int] = {}
        for name, (kind, count) in self.parts(tiling, cores).items():
            found |= {f"{name}_at": at} | ({} if name == "sums" else {f"{name}_count": count})
            at += up(count * bytes_[kind], 512)
        return {**found, "workspace": at}

    def common_parts(self, tiling: Tiling, cores: int) -> dict[str, tuple[str, int]]:
        """Parts of the workspace of both kernels; scores and weights have three tiles a core."""
        call = self.call
        slots = cores * _DEPTH * tiling.rows * tiling.columns
        return {
            "blocks": ("int32_t", 8 * (call.query_rows // tiling.rows + call.batch)),
            "status": ("int32_t", 8 * 2 * cores),
            "row_columns": ("int32_t", (len(self.rows) + len(self.head_rows) * call.heads) * call.query_rows),
            "key_columns": ("int32_t", (len(self.columns) + len(self.head_columns) * call.heads) * call.key_rows),
            "s": ("float", slots if call.d else 0), "p": ("VT", slots),
        }  # fmt: skip

    def kernel(self, machine: Machine, tiling: Tiling | None = None, cores: int | None = None) -> Kernel:
        """The kernel with a tiling for a machine: the solver's, on all its cube cores, where not given."""
        tiling = tiling or solve(self.demand(), machine)
        cores = cores or machine.cube_cores
        source = self.source("gr_attention_name")
        name = f"gr_{self.operator}_{hashlib.sha256(source.encode()).hexdigest()[:12]}"
        values = self.values(tiling, cores)
        workspace = values.pop("workspace")
        fields = tuple((x, "int64_t") for x in values)
        return Kernel(name, source.replace("gr_attention_name", name), fields, values, cores, workspace, tiling.reason)

    def dump(self) -> str:
        """The sequence of vector instructions, function by function."""
        lines: list[str] = []
        for name, each in self.listings.items():
            lines += [f"{name}:", *(f"  {x}" for x in each.lines if x)]
        return "\n".join(lines)


_FIELDS = (
    *("batch", "heads", "q_rows", "k_rows", "q_heads", "k_heads", "v_heads", "d", "dv"),
    *("r", "c", "vr", "d_step", "c_step", "left", "right", "cores", "scratch"),
)
_ROWS = ("query_offsets", "query_positions", "key_offsets", "key_positions")
SUMS = ("dk", "dv", "leaves")
NOTHING = Tiling(16, 64, 8, 16, 16, {}, 0.0, 0.0)


def _getter(name: str, at: str, count: int, kind: str = "int32_t") -> str:
    return f"__aicore__ inline LocalTensor<{kind}> {name}() {{ return piece<{kind}>({at}, {up(count, 8)}); }}"


def _by_head(nodes: list[Expr]) -> tuple[list[Expr], list[Expr], list[int]]:
    """Nodes that no head differs in, the others, and where each one is then."""
    same = [x for x in nodes if "h" not in x.free]
    by_head = [x for x in nodes if "h" in x.free]
    ordered = [*same, *by_head]
    return same, by_head, [ordered.index(x) for x in nodes]


def read_runtime(name: str) -> str:
    return (_RUNTIME / name).read_text()
