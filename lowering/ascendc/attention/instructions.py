"""Vector instructions over registers, and where the registers lie in the unified buffer.

A register holds a value of a tile of scores, [rows, width] elements, or of its rows or columns alone. Instructions are
listed in single assignment; `allocate` gives every register a slot, which is free again after its last reader. What
one function of a kernel needs is the most that is alive at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Literal

Shape = Literal["tile", "row", "column", "bits"]
_VIEWS: Mapping[tuple[Shape, str], str] = {
    ("tile", "f"): "tile<float>", ("tile", "i"): "tile<int32_t>", ("tile", "u"): "tile<uint32_t>",
    ("row", "f"): "row<float>", ("row", "i"): "row<int32_t>",
    ("column", "f"): "column<float>", ("column", "i"): "column<int32_t>",
    ("bits", "b"): "bits<uint8_t>", ("bits", "w"): "bits<uint16_t>",
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What a statement costs a vector core, tile by tile.

    Attributes:
        passes: how often the vector unit goes over all elements of the tile.
        issues: instructions that are started; `strips`: more of them for every 64 columns, `lines`: for every row.
        scalars: how often the scalar unit goes over all pairs, one by one.
    """

    passes: float = 0
    issues: float = 0
    strips: float = 0
    lines: float = 0
    scalars: float = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(x + y for x, y in zip(astuple(self), astuple(other))))


NO_WORK, PASS = Work(), Work(passes=1, issues=1)
_OF_SHAPE: Mapping[Shape, Work] = {
    "tile": PASS, "row": Work(issues=1), "column": Work(issues=1), "bits": Work(passes=1 / 32, issues=1),
}  # fmt: skip


def work_of(shape: Shape, operands: Sequence[Register]) -> Work:
    """Of one instruction; a comparison of tiles gives bits, and goes over the tiles."""
    return PASS if any(x.shape == "tile" for x in operands) else _OF_SHAPE[shape]


@dataclass(frozen=True)
class Register:
    """A value. `fixed` is the slot of what is there before the function starts: one-sided columns; else None."""

    number: int
    shape: Shape
    fixed: int | None = None


@dataclass(frozen=True)
class Instruction:
    """One instruction, or a loop of the scalar unit.

    Attributes:
        text: C++ with `{d:f}` for the result and `{0:i}`, `{1:f}` ... for the operands; the letter is the view: f, i, u
            (float, int32_t, uint32_t), b, w (the bytes and words of bits).
        in_place: whether the result may lie where an operand lies that nobody reads afterwards.
        work: what it costs; of runtime/'s functions what their text does.
    """

    text: str
    result: Register | None
    operands: tuple[Register, ...]
    in_place: bool = True
    work: Work = Work()


@dataclass
class Slots:
    """Slots by shape: how many there are, and which one each register has."""

    counts: dict[Shape, int] = field(default_factory=lambda: {"tile": 0, "row": 0, "column": 0, "bits": 0})
    of: dict[Register, int] = field(default_factory=dict)
    free: dict[Shape, list[int]] = field(default_factory=lambda: {"tile": [], "row": [], "column": [], "bits": []})

    def take(self, register: Register) -> None:
        free = self.free[register.shape]
        if not free:
            free.append(self.counts[register.shape])
            self.counts[register.shape] += 1
        self.of[register] = free.pop()

    def give_back(self, register: Register) -> None:
        self.free[register.shape].append(self.of[register])


@dataclass(frozen=True)
class _Name:
    """How C++ spells a register: the format is the view."""

    register: Register
    slot: int

    def __format__(self, view: str) -> str:
        kind = _VIEWS[self.register.shape, view]
        return f"{kind if self.register.fixed is None else f'given_{kind}'}({self.slot})"


def allocate(
    instructions: Sequence[Instruction], places: Mapping[Shape, Sequence[int]]
) -> tuple[list[str], dict[Shape, int]]:
    """The C++ statements, and how many slots of each shape they need. `places`: where the fixed registers lie."""
    last = {x: at for at, each in enumerate(instructions) for x in (each.result, *each.operands) if x is not None}
    slots = Slots()
    lines = []
    for at, each in enumerate(instructions):
        dying = [x for x in dict.fromkeys(each.operands) if x.fixed is None and last[x] == at and x != each.result]
        for register in dying if each.in_place else []:
            slots.give_back(register)
        if each.result is not None and each.result not in slots.of:
            slots.take(each.result)
        names = {str(n): _Name(x, _slot(x, slots, places)) for n, x in enumerate(each.operands)}
        result = {} if each.result is None else {"d": _Name(each.result, slots.of[each.result])}
        lines.append(_Text(each.text).format_map({**names, **result}))
        for register in [] if each.in_place else dying:
            slots.give_back(register)
        if each.result is not None and last[each.result] == at:
            slots.give_back(each.result)
    return lines, slots.counts


def _slot(register: Register, slots: Slots, places: Mapping[Shape, Sequence[int]]) -> int:
    return slots.of[register] if register.fixed is None else places[register.shape][register.fixed]


class _Text(str):
    """A template whose `{0:f}` may be looked up by name."""

    def format_map(self, mapping: Mapping[str, object]) -> str:  # type: ignore[override]
        text = str(self)
        for name, value in mapping.items():
            for view in "fiubw":
                field_text = f"{{{name}:{view}}}"
                if field_text in text:
                    text = text.replace(field_text, format(value, view))
        return text
