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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from gr_compile.analysis.expr import Expr, size, sub
from gr_compile.lowering.ascendc.attention import sizes
from gr_compile.lowering.ascendc.attention.call import ELEMENT, LEAF, Call
from gr_compile.lowering.ascendc.attention.instructions import Instruction, Register, Shape, Work, allocate
from gr_compile.lowering.ascendc.attention.masks import proof, provable
from gr_compile.lowering.ascendc.attention.operands_text import entry, operands, read_runtime, run
from gr_compile.lowering.ascendc.attention.program_text import program
from gr_compile.lowering.ascendc.attention.scalar import Scalars
from gr_compile.lowering.ascendc.attention.sharing import making, shared_values
from gr_compile.lowering.ascendc.attention.values import Context, Value
from gr_compile.lowering.ascendc.attention.vector import Function
from gr_compile.lowering.ascendc.kernel import Kernel
from gr_compile.lowering.ascendc.machine import Machine
from gr_compile.lowering.ascendc.tiling import Demand, Tiling, solve, up
from gr_compile.lowering.cpu.buckets import find_tables
from gr_compile.lowering.cpu.emit import rough_nodes
from gr_compile.lowering.cpu.lanes import Lanes, Unsupported
from gr_compile.ops.attention_blocks import KEY, QUERY, SEQUENCE
from gr_compile.ops.score_program import HEAD

_RESIDENT = 32768  # bytes of a leaf up to which it lies in the unified buffer
_MOST_CELLS = 4096  # of a bucket's table, which the scalar unit writes one by one
_STATISTICS = Work(passes=4, issues=12, strips=3)  # of softmax.h
_NORMALISE = Work(passes=2, issues=5, strips=1)
_EXPECTED_SEQUENCES, _EXPECTED_KEYS = 16, 2048  # where only a call will tell
_PLACE = (0, sizes.PLACES - 1)  # positions and sizes: assumed, and every column that is made of them is checked


@dataclass(frozen=True)
class Listing:
    """A printed function of tiles: C++ statements, the slots they need, and what they cost a vector core."""

    lines: list[str]
    slots: dict[Shape, int]
    work: Work

    @staticmethod
    def of(instructions: list[Instruction], places: Mapping[Shape, Sequence[int]]) -> Listing:
        return Listing(*allocate(instructions, places), sum((x.work for x in instructions), Work()))


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
        masks = provable(self.roots(), Function(self.context))
        self.proof, extremes = proof(masks, Function(self.context))
        self.shared = self._shared()
        functions, whole = self.functions(self.shared), self.functions({**self.shared, **masks})
        share = making(self.shared, self.context)
        self.rows, self.head_rows, row_places = _by_head(self.context.columns.rows)
        self.columns, self.head_columns, column_places = _by_head(self.context.columns.columns)
        places: dict[Shape, Sequence[int]] = {"row": row_places, "column": column_places, "tile": range(8)}
        self.extreme_rows = [row_places[at] for at in extremes.rows]
        self.extreme_columns = [column_places[at] for at in extremes.columns]
        self.listings = {name: Listing.of(found, places) for name, found in functions.items()}
        self.share = Listing.of(share, places)
        self.whole = {name: Listing.of(found, places) for name, found in whole.items() if self.proof != "false"}

    # -------------------------------------------------------------------------------------- what differs
    @abstractmethod
    def roots(self) -> tuple[Expr, ...]:
        """Every expression that tiles compute."""

    @abstractmethod
    def functions(self, given: Mapping[Expr, Value]) -> dict[str, list[Instruction]]:
        """The functions of tiles that know the values `given`, one a phase, the last one last."""

    @abstractmethod
    def numbers(self) -> dict[str, int]:
        """Constants of the C++."""

    @abstractmethod
    def members(self) -> list[str]:
        """Further members of Program."""

    @abstractmethod
    def parts(self) -> dict[str, sizes.Part]:
        """Type and number of elements, a formula, of each part of the workspace."""

    @abstractmethod
    def parameters(self) -> dict[str, tuple[str, str]]:
        """Type and number of elements, in C++, of each parameter behind sizes."""

    def pairs(self) -> tuple[Expr, ...]:
        """Values of pairs that functions need beside their roots."""
        return ()

    def _shared(self) -> dict[Expr, Value]:
        again = self.call.heads > 1 or self.program.post is not None
        return shared_values((*self.roots(), *self.pairs()), self.context) if again else {}

    def sums(self) -> dict[str, str]:
        """Formulas: where each sum begins in global memory, in elements, and at last `sums_count`."""
        return {}

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
        if any(call.is_fixed(at) and 0 in x for at, x in enumerate(call.extents)):
            raise Unsupported("an empty leaf")
        wide = max(call.q_heads * call.d, call.k_heads * call.d, call.v_heads * call.dv)
        if wide > 65535:
            raise Unsupported(f"rows of {wide} elements: a copy into L1 steps by 65535 at most")

    def _context(self) -> Context:
        call, program = self.call, self.program
        lanes = Lanes(dict(zip(program.leaves, call.leaf_dtypes)), narrow=True)
        lanes.ranges[HEAD] = (0, call.heads - 1)
        lanes.ranges |= dict.fromkeys((SEQUENCE, QUERY, KEY, *map(size, program.sizes)), _PLACE)
        bounds = tuple(x for x in (program.key_low, program.key_high) if x is not None)
        roots = self.roots()
        loads = tuple(place for x in program.loads() for place in x.args[1])
        tables = find_tables((*roots, *bounds, *loads), lanes)
        if any(len(x.values) > _MOST_CELLS for x in tables.values()):
            raise Unsupported(f"a step function with more than {_MOST_CELLS} cells")
        resident = {
            name for at, name in enumerate(program.leaves)
            if call.is_fixed(at) and call.count(at) * 4 <= _RESIDENT
        }  # fmt: skip
        return Context(
            lanes, program.leaves, {node: (at, table) for at, (node, table) in enumerate(tables.items())},
            rough_nodes((*roots, *bounds)), exact=program.post is not None, resident=frozenset(resident),
        )  # fmt: skip

    def function(self, given: Mapping[Expr, Value]) -> Function:
        """A function of tiles that is given the scores, and the values `given`."""
        function = Function(self.context, dict(given))
        product = self.program.product
        if product is not None:
            function.known[product] = function.rounded(Register(0, "tile", 0), product)
        return function

    def statistics(self, given: Mapping[Expr, Value]) -> list[Instruction]:
        """The first phase of a softmax: every row's largest score and sum of exponentials so far."""
        f = self.function(given)
        score = f.tile(f.value(self.program.score), self.program.score.dtype)
        work, rows = f.emit("", "tile"), (f.emit("", "row"), f.emit("", "row"))
        text = "gather_statistics({0:f}, {1:f}, {2:f}, {3:f});"
        f.instructions.append(Instruction(text, None, (score, work, *rows), work=_STATISTICS))
        return f.instructions

    def softmax(self, f: Function) -> Register:
        """The softmax, from the statistics, in a later phase."""
        assert self.program.softmax is not None
        score = f.tile(f.value(self.program.score), self.program.score.dtype)
        sm = f.emit("normalise({d:f}, {0:f}, {1:f});", "tile", score, f.emit("", "row"), work=_NORMALISE)
        found = f.known[self.program.softmax] = f.rounded(sm, self.program.softmax)
        assert found.register is not None
        return found.register

    # ------------------------------------------------------------------------------------------- demand
    def demand(self) -> Demand:
        call = self.call
        shapes: tuple[Shape, ...] = ("tile", "row", "column", "bits")
        printed = [*self.listings.values(), *self.whole.values(), self.share]
        slots = {shape: max(x.slots[shape] for x in printed) for shape in shapes}
        edge = sum((x.work for x in self.listings.values()), Work())
        whole = sum((x.work for x in self.whole.values()), Work()) if self.whole else edge
        cells = [len(table.values) for _, table in self.context.buckets.values()]
        tables = sum(up(8 * x, 32) + up(4 * x, 32) for x in cells)
        tables += sum(up(4 * call.count(at), 32) for at in self.resident())
        tables += sum(up(4 * count, 32) for count in self.table_sums().values())
        return Demand(
            d=call.d, dv=call.dv, qk_bytes=call.qk_dtype.itemsize, v_bytes=call.v_dtype.itemsize,
            tiles=max(slots["tile"], 1), bits=slots["bits"], rows=slots["row"], columns=slots["column"],
            kept_rows=max(len(self.rows) + len(self.head_rows), 1) + self.kept_sums(),
            kept_columns=len(self.columns) + len(self.head_columns) + self.column_sums(), tables=tables,
            edge=edge, whole=whole, share=self.share.work, shared=len(self.shared), heads=call.heads,
            query_rows=call.query_rows or _EXPECTED_SEQUENCES * _EXPECTED_KEYS, keys=self._keys(),
            bounds=(self.program.key_low is not None, self.program.key_high is not None),
            phases=len(self.listings), backward=self.operator == "jagged_attention_backward",
        )  # fmt: skip

    def _keys(self) -> float:
        """How many keys a row reads on average: a part of its sequence, or the width of a window."""
        low, high = self.program.key_low, self.program.key_high
        longest = self.call.key_rows / self.call.batch if self.call.batch else _EXPECTED_KEYS
        mean = longest / (1 if low is None and high is None else 2)
        window = None if low is None or high is None else sub(high, low)
        return mean if window is None or window.op != "const" else min(mean, window.args[0])

    def resident(self) -> list[int]:
        """Leaves that lie in the unified buffer whole."""
        return [at for at, name in enumerate(self.program.leaves) if name in self.context.resident]

    # -------------------------------------------------------------------------------------------- text
    def scalars(self, given: dict[Expr, str]) -> Scalars:
        """Statements of the scalar unit that know the program's sizes."""
        known = {size(name): f"o.sizes.GetValue({at})" for at, name in enumerate(self.program.sizes)}
        return Scalars(self.program.leaves, {**given, **known})

    def body(self) -> str:
        """The C++ behind AscendC's header, up to `run`. Equal constants of a call give equal text."""
        after = [read_runtime(x) for x in self.files]
        before = [read_runtime("tile.h"), operands(self), read_runtime("walk.h"), program(self)]
        shared = [read_runtime("columns.h"), read_runtime("product.h")]
        return "\n".join([*before, *shared, *after, run(self)])

    def source(self, name: str) -> str:
        """The C++ file of a kernel of this name alone."""
        return "\n".join(['#include "kernel_operator.h"', self.body(), entry(self, name)])

    # ------------------------------------------------------------------------------------------- tiling
    def kernel(self, machine: Machine, tiling: Tiling | None = None, cores: int | None = None) -> Kernel:
        """The kernel with a tiling for a machine: the solver's, on all its cube cores, where not given.

        Raises:
            Unsupported: the sizes of the call are beyond what the kernel takes.
        """
        tiling = tiling or solve(self.demand(), machine)
        source = self.source("gr_attention_name")
        name = f"gr_{self.operator}_{hashlib.sha256(source.encode()).hexdigest()[:12]}"
        found = sizes.numbers(self, tiling, self.call, machine.unified_buffer, cores or machine.cube_cores)
        workspace, blocks = found.pop("workspace"), found.pop("blocks")
        fields = tuple((x, "int64_t") for x in found)
        return Kernel(name, source.replace("gr_attention_name", name), fields, found, blocks, workspace, tiling.reason)

    def dump(self) -> str:
        """The sequence of vector instructions, function by function."""
        lines: list[str] = []
        if self.shared:
            lines += ["shared by heads:", *(f"  {x}" for x in self.share.lines)]
        for title, listings in (("{}, of tiles that pass the masks", self.whole), ("{}", self.listings)):
            for name, each in listings.items():
                lines += [f"{title.format(name)}:", *(f"  {x}" for x in each.lines if x)]
        return "\n".join(lines)


def _by_head(nodes: list[Expr]) -> tuple[list[Expr], list[Expr], list[int]]:
    """Nodes that no head differs in, the others, and where each one is then."""
    same = [x for x in nodes if "h" not in x.free]
    by_head = [x for x in nodes if "h" in x.free]
    ordered = [*same, *by_head]
    return same, by_head, [ordered.index(x) for x in nodes]
