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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from gr_compile.analysis.expr import Expr, size, sub
from gr_compile.lowering.ascendc.attention import sizes
from gr_compile.lowering.ascendc.attention.call import ELEMENT, LEAF, Call
from gr_compile.lowering.ascendc.attention.instructions import Instruction, Register, Shape, Work, allocate
from gr_compile.lowering.ascendc.attention.lookups import Sides, sides, steps_of
from gr_compile.lowering.ascendc.attention.masks import Extremes, inside, proof, provable
from gr_compile.lowering.ascendc.attention.operands_text import entry, operands, read_runtime, run
from gr_compile.lowering.ascendc.attention.program_text import program
from gr_compile.lowering.ascendc.attention.scalar import Scalars, literal
from gr_compile.lowering.ascendc.attention.scaling import scaled
from gr_compile.lowering.ascendc.attention.sharing import making, reached, shared_values
from gr_compile.lowering.ascendc.attention.values import HALF, Context, Value
from gr_compile.lowering.ascendc.attention.vector import Function
from gr_compile.lowering.ascendc.kernel import Kernel
from gr_compile.lowering.ascendc.machine import Machine
from gr_compile.lowering.ascendc.tiling import Demand, Tiling, solve, up
from gr_compile.lowering.cpu.buckets import EXACT, find_tables
from gr_compile.lowering.cpu.emit import rough_nodes
from gr_compile.lowering.cpu.lanes import Lanes, Unsupported
from gr_compile.ops.attention_blocks import KEY, QUERY, SEQUENCE
from gr_compile.ops.score_program import HEAD

_RESIDENT = 32768  # bytes of a leaf up to which it lies in the unified buffer
_MOST_CELLS = 4096  # of a bucket's table, which the scalar unit writes one by one
_STATISTICS = Work(passes=3, issues=9, strips=2)  # of softmax.h
_SUMS = Work(passes=1, issues=2, strips=1)
_NORMALISE = Work(passes=2, issues=2, strips=1)
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


@dataclass(frozen=True)
class Given:
    """What a function of tiles knows: values, and loads that lie inside their tables."""

    values: Mapping[Expr, Value]
    inside: Mapping[Expr, Sides] = field(default_factory=dict)


class Printer(ABC):
    """The kernel of one call, tiling apart.

    Attributes:
        operator: the graph operator.
        files: of runtime/, behind the Program.
    """

    bytes_of: ClassVar[Mapping[str, int]] = {"float": 4, "half": 2, "bfloat16_t": 2}
    operator: ClassVar[str]
    files: ClassVar[tuple[str, ...]]

    def __init__(self, call: Call) -> None:
        self.call, self.program = call, call.program
        self._check()
        self.context = self._context()
        extremes, masks = Extremes(), provable(self.roots(), Function(self.context))
        self.shared = self._shared()
        lookups = self._lookups()
        self.inside = inside(lookups, Function(self.context), extremes)
        self.proof = self._proof(masks, lookups, extremes)
        functions = self.functions(Given(self.shared))
        whole = self.functions(Given({**self.shared, **masks}, lookups))
        share, share_inside = making(self.shared, self.context), making(self.shared, self.context, lookups)
        scatter, run_rows, run_columns = self.scattering(extremes)
        self.rows, self.head_rows, row_places = _by_head(self.context.columns.rows)
        self.columns, self.head_columns, column_places = _by_head(self.context.columns.columns)
        places: dict[Shape, Sequence[int]] = {"row": row_places, "column": column_places, "tile": range(8)}
        self.extreme_rows = [row_places[at] for at in extremes.rows]
        self.extreme_columns = [column_places[at] for at in extremes.columns]
        self.run_rows, self.run_columns = [row_places[x] for x in run_rows], [column_places[x] for x in run_columns]
        self.scatter = Listing.of(scatter, places)
        self.listings = {name: Listing.of(found, places) for name, found in functions.items()}
        self.share, self.share_inside = Listing.of(share, places), Listing.of(share_inside, places)
        self.whole = {name: Listing.of(found, places) for name, found in whole.items() if self.proof != "false"}

    @property
    def score_type(self) -> str:
        """What scores are in the workspace, in C++: half where the program's product is, for then it rounds there."""
        product = self.program.product
        return "float" if product is None else HALF.get(product.dtype, "float")

    @property
    def v_dtype(self) -> str:
        """The dtype of V, as score programs name it."""
        return {2: "bf16" if self.call.v_dtype == torch.bfloat16 else "f16"}.get(self.call.v_dtype.itemsize, "f32")

    @property
    def gradient_type(self) -> str:
        """What gradients of weights are in the workspace: of the weights' dtype, as the reference makes them."""
        last = self.program.score if self.program.post is None else self.program.post
        return HALF.get(last.dtype, "float")

    # -------------------------------------------------------------------------------------- what differs
    @abstractmethod
    def roots(self) -> tuple[Expr, ...]:
        """Every expression that tiles compute."""

    @abstractmethod
    def functions(self, given: Given) -> dict[str, list[Instruction]]:
        """The functions of tiles that know what is `given`, one a phase, the last one last."""

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

    def _lookups(self) -> dict[Expr, Sides]:
        """Loads of pairs from tables in the unified buffer, at the sum of a number of the row and one of the key."""
        read = reached((*self.roots(), *self.pairs()), ())
        loads = [x for x in self.program.loads() if x in read and x.args[0] in self.context.resident]
        found = {x: sides(x, self.context.lanes) for x in loads}
        return {x: both for x, both in found.items() if both is not None}

    def _proof(self, masks: Mapping[Expr, Value], lookups: Mapping[Expr, Sides], extremes: Extremes) -> str:
        """When a tile runs without masks, and without cutting the indices of loads that heads do not share."""
        own = [x for x in reached((*self.roots(), *self.pairs()), self.shared) if x in lookups]
        parts = [proof(masks, Function(self.context), extremes)] if masks else []
        return " && ".join([*parts, *([self.inside] if own else [])]) or "false"

    def sums(self) -> dict[str, str]:
        """Formulas: where each sum begins in global memory, in elements, and at last `sums_count`."""
        return {}

    def kept_sums(self) -> int:
        """Rows of sums that last an item."""
        return 0 if self.program.post is None else 2

    def scattering(self, extremes: Extremes) -> tuple[list[Instruction], list[int], list[int]]:
        """The function that takes what heads collect to tables, and the rows and columns whose steps it asks for."""
        return [], [], []

    def collected(self) -> int:
        """Tiles that heads collect gradients of tables in."""
        return 0

    def slopes(self) -> int:
        """How often gradients of weights are made."""
        return 0

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
        tables = find_tables((*roots, *bounds, *loads), lanes, EXACT - {"sqrt", "reciprocal"})
        if any(len(x.values) > _MOST_CELLS for x in tables.values()):
            raise Unsupported(f"a step function with more than {_MOST_CELLS} cells")
        resident = {
            name: call.count(at) for at, name in enumerate(program.leaves)
            if call.is_fixed(at) and call.count(at) * 4 <= _RESIDENT
        }  # fmt: skip
        steps = {node: steps_of(table, lanes) for node, table in tables.items()}
        return Context(
            lanes, program.leaves, {node: (at, table) for at, (node, table) in enumerate(tables.items())},
            rough_nodes((*roots, *bounds)), exact=program.post is not None, resident=resident,
            steps={node: found for node, found in steps.items() if found is not None},
        )  # fmt: skip

    def function(self, given: Given) -> Function:
        """A function of tiles that is given the scores, and what is `given`."""
        function = Function(self.context, dict(given.values), inside=given.inside)
        product = self.program.product
        if product is not None:
            function.known[product] = Value(function.arrived(0, self.score_type))
        return function

    def _score(self, f: Function) -> tuple[Register, str, float]:
        """Scores, a block with a number that they are still to be multiplied with, or "", and the number.

        The register may be overwritten: nothing else is made of it.
        """
        number, inner = scaled(self.program.score)
        x = f.tile(f.value(inner), inner.dtype)
        if number == 1 or x.fixed is not None:
            number, x = 1.0, f.tile(f.value(self.program.score), self.program.score.dtype)
        f.forget(x)
        fill = [f"Duplicate(scale(), {literal(number)}, 8);"]
        return x, self.context.use("scale", "float", 8, fill) if number != 1 else "", number

    def statistics(self, given: Given, inner: Callable[[Function, Register], None] | None = None) -> list[Instruction]:
        """The first phase of a softmax: every row's largest score and sum of exponentials so far.

        `inner` adds what is summed beside them of the exponentials, in their register, to the rows INNER.
        """
        f = self.function(given)
        x, block, number = self._score(f)
        work, now, scale = f.emit("", "tile"), f.emit("", "row"), f.emit("", "row")
        text = (
            f"begin_statistics<{str(bool(block)).lower()}>({{0:f}}, {{1:f}}, {{2:f}}, {{3:f}}, {block or '{1:f}'}, "
            f"{literal(number)}, {-1 if inner is None else 'INNER'});"
        )
        f.instructions.append(Instruction(text, None, (x, work, now, scale), work=_STATISTICS))
        if inner is not None:
            inner(f, x)
        f.instructions.append(Instruction("end_statistics({0:f}, {1:f});", None, (x, now), work=_SUMS))
        return f.instructions

    def softmax(self, f: Function) -> Register:
        """The softmax, from the statistics, in a later phase."""
        assert self.program.softmax is not None
        x, block, _ = self._score(f)
        text = f"normalise<{str(bool(block)).lower()}>({{0:f}}, {block or '{0:f}'});"
        f.instructions.append(Instruction(text, None, (x,), work=_NORMALISE))
        found = f.known[self.program.softmax] = f.rounded(x, self.program.softmax)
        assert found.register is not None
        return found.register

    # ------------------------------------------------------------------------------------------- demand
    def demand(self) -> Demand:
        call = self.call
        shapes: tuple[Shape, ...] = ("tile", "row", "column", "bits")
        printed = [*self.listings.values(), *self.whole.values(), self.share, self.share_inside, self.scatter]
        slots = {shape: max(x.slots[shape] for x in printed) for shape in shapes}
        edge = sum((x.work for x in self.listings.values()), Work())
        whole = sum((x.work for x in self.whole.values()), Work()) if self.whole else edge
        tables = sum(up(4 * table.count, 32) for table in self.context.tables.values())
        tables += sum(up(4 * count, 32) for count in self.table_sums().values())
        return Demand(
            d=call.d, dv=call.dv, qk_bytes=call.qk_dtype.itemsize, v_bytes=call.v_dtype.itemsize,
            tiles=max(slots["tile"], 1), bits=slots["bits"], rows=slots["row"], columns=slots["column"],
            kept_rows=max(len(self.rows) + len(self.head_rows), 1) + self.kept_sums(),
            kept_columns=len(self.columns) + len(self.head_columns) + self.column_sums(), tables=tables,
            edge=edge, whole=whole, share=self.share_inside.work, shared=len(self.shared), heads=call.heads,
            query_rows=call.query_rows or _EXPECTED_SEQUENCES * _EXPECTED_KEYS, keys=self._keys(),
            bounds=(self.program.key_low is not None, self.program.key_high is not None),
            phases=len(self.listings), backward=self.operator == "jagged_attention_backward", slopes=self.slopes(),
            collected=self.collected(), scatter=self.scatter.work, strips=bool(self.run_rows),
            score_bytes=self.bytes_of[self.score_type], gradient_bytes=self.bytes_of[self.gradient_type],
        )  # fmt: skip

    def longest(self) -> float:
        """How many keys a sequence has."""
        return self.call.key_rows / self.call.batch if self.call.batch else _EXPECTED_KEYS

    def _keys(self) -> float:
        """How many keys a row reads on average: a part of its sequence, or the width of a window."""
        low, high = self.program.key_low, self.program.key_high
        mean = self.longest() / (1 if low is None and high is None else 2)
        window = None if low is None or high is None else sub(high, low)
        return mean if window is None or window.op != "const" else min(mean, window.args[0])

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
            lines += ["shared by heads, of tiles that lie in the tables:", *(f"  {x}" for x in self.share_inside.lines)]
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
