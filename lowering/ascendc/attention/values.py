"""What functions of tiles share, and the values that they compute with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from gr_compile.analysis.expr import Expr
from gr_compile.lowering.ascendc.attention.instructions import Register
from gr_compile.lowering.ascendc.attention.lookups import Steps
from gr_compile.lowering.cpu.buckets import Bucket
from gr_compile.lowering.cpu.lanes import Lanes

HALF = {"f16": "half", "bf16": "bfloat16_t"}


@dataclass
class Columns:
    """What tiles are given, for every function of a kernel: by side, in the order in which it was asked for.

    Attributes:
        rows, columns: one-sided nodes; "i" stands in rows where a tile's rows are queries.
        uniforms: nodes of the sequence and the head alone.
        row_index: the index that rows run over, "i" or "j".
    """

    row_index: str = "i"
    rows: list[Expr] = field(default_factory=list)
    columns: list[Expr] = field(default_factory=list)
    uniforms: list[Expr] = field(default_factory=list)


@dataclass(frozen=True)
class Value:
    """A register, or a number of the scalar unit in C++ (`text`)."""

    register: Register | None = None
    text: str = ""

    @property
    def shape(self) -> str:
        return "uniform" if self.register is None else self.register.shape


@dataclass(frozen=True)
class Table:
    """What lies in the unified buffer while a kernel runs: `count` numbers of 4 bytes, and C++ that fills them.

    `leaf` is the leaf that it is, whole; else None.
    """

    name: str
    kind: str
    count: int
    fill: tuple[str, ...] = ()
    leaf: int | None = None


ONE = Value(text="1.0f")  # of a mask that is multiplied with
PROVED, REFUTED = Value(text="true"), Value(text="false")  # a mask that holds for every pair of a tile, or for none


@dataclass
class Context:
    """What every function of a kernel shares.

    Attributes:
        leaves: names of leaf operands, in order.
        resident: leaves that may lie in the unified buffer as tables, whole, and how many elements they have.
        steps: bucket functions as steps of float32, those that are.
        tables: that functions printed so far read, by name.
        exact: every operation in bfloat16 rounds; else only what a step reads (`rough`), and float16 always.
    """

    lanes: Lanes
    leaves: tuple[str, ...]
    buckets: dict[Expr, tuple[int, Bucket]]
    rough: set[Expr]
    exact: bool
    columns: Columns = field(default_factory=Columns)
    resident: Mapping[str, int] = field(default_factory=dict)
    steps: Mapping[Expr, Steps] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)

    def use(self, name: str, kind: str, count: int, fill: Iterable[str] = (), leaf: int | None = None) -> str:
        """C++ that names a table, which is there from now on."""
        self.tables.setdefault(name, Table(name, kind, count, tuple(fill), leaf))
        return f"{name}()"

    def composed(self, node: Expr) -> tuple[int, Steps] | None:
        """The number of a bucket, and its steps, where `node` reads a small leaf there and nowhere else."""
        if node.op != "load" or len(node.args[1]) != 1 or node.args[0] not in self.resident or node.dtype == "b":
            return None
        index = node.args[1][0]
        return (self.buckets[index][0], self.steps[index]) if index in self.steps else None

    def rounds(self, node: Expr) -> bool:
        return node.dtype == "f16" or (node.dtype == "bf16" and (self.exact or node in self.rough))
