"""The tiling of an attention kernel as formulas: one list for Python and for the host code of an operator project.

    q_rows     = size(query_positions, 0)                     known when the kernel is called
    r          = 128                                          of the tile, which is chosen when the kernel is printed
    p_at       = s_at + round_up(s_count * 4, 512)            where a part of the workspace begins, in bytes

Ports are those of the operator; leaf0, leaf1 ... are the leaves in the program's order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gr_compile.lowering.ascendc.attention.call import Call
from gr_compile.lowering.ascendc.formulas import Formula, evaluate
from gr_compile.lowering.ascendc.tiling import SELECT_WORKSPACE, Tiling, scratch, up
from gr_compile.lowering.cpu.lanes import Unsupported

if TYPE_CHECKING:
    from gr_compile.lowering.ascendc.attention.printer import Printer

DEPTH = 3  # tiles under way; walk of runtime/cube.h
PLACES = 1 << 24  # positions, sizes and sequences are below
_ROWS = 1 << 30
_MOST_KEPT_TILES = 64  # of a block of rows whose scores several phases read; those of longer ones are made again
_MOST_SHARED_TILES = 64  # of a block of rows; shared values of further tiles are made every time
COMMON = (
    *("batch", "heads", "q_rows", "k_rows", "q_heads", "k_heads", "v_heads", "d", "dv"),
    *("r", "c", "vr", "vc", "s_step", "d_step", "c_step", "left", "right"),
    *("kept", "s_slots", "shared_tiles", "cores", "scratch"),
)
Part = tuple[str, str]


@dataclass(frozen=True)
class Limit:
    """What a call must keep: the formula `name` gives 1, or there is no kernel for it, because of `reason`."""

    name: str
    text: str
    reason: str


def fields(printer: Printer) -> list[str]:
    """The numbers of the tiling struct that the kernel holds as operands, in order."""
    return [*COMMON, *(name for name, _ in _extents(printer.call)), *printer.sums()]


def formulas(printer: Printer, tiling: Tiling) -> list[Formula]:
    """Of the tiling's fields, `blocks`, `workspace`, and the limits."""
    call = printer.call
    phases = len(printer.listings)
    need = scratch(printer.demand(), tiling)
    texts: dict[str, object] = {
        "batch": "size(query_offsets, 0) - 1", "heads": call.heads, "q_rows": "size(query_positions, 0)",
        "k_rows": "size(key_positions, 0)", "q_heads": call.q_heads, "k_heads": call.k_heads, "v_heads": call.v_heads,
        "d": call.d, "dv": call.dv, "r": tiling.rows, "c": tiling.columns, "vr": tiling.vector_rows,
        "vc": tiling.vector_columns or tiling.columns,
        "s_step": tiling.s_step or tiling.columns, "d_step": tiling.d_step, "c_step": tiling.c_step,
        "left": tiling.buffers["L0A"] // 2,
        "right": tiling.buffers["L0B"] // 2, "cores": "cube_cores", "scratch": need,
        "kept": f"min(k_rows // c + 1, {_MOST_KEPT_TILES})" if phases > 1 else "0",
        "s_slots": f"kept + {DEPTH * (3 if phases > 1 else 1)}",
        "shared_tiles": f"min(k_rows // c + 1, {_MOST_SHARED_TILES})",
    }  # fmt: skip
    found = [Formula(name, str(texts[name])) for name in COMMON]
    found += [Formula(name, text) for name, text in (*_extents(call), *printer.sums().items())]
    found += _workspace(printer)
    found += [Formula(limit.name, limit.text, field=False) for limit in limits(printer, tiling)]
    return [*found, Formula("blocks", "cores", field=False)]


def limits(printer: Printer, tiling: Tiling) -> list[Limit]:
    """What the sizes of a call, and its machine, must keep."""
    need = tiling.buffers.get("UB", 0) + SELECT_WORKSPACE
    found = [
        Limit("rows_fit", f"max(q_rows, k_rows) < {_ROWS}", "more than 2^30 rows: places are 30 bits wide"),
        Limit("batch_fits", f"batch < {PLACES}", "more than 2^24 sequences"),
        Limit("buffer_fits", f"{need} <= unified_buffer", f"the tile needs {need} bytes of the unified buffer"),
    ]
    for at, dim in sorted(printer.call.open):
        name = f"extent{at}_{dim}"
        reason = f"leaf {printer.program.leaves[at]} is empty in dimension {dim}"
        found.append(Limit(f"{name}_fits", f"min(q_rows + k_rows, 1) <= {name}", reason))
    return found


def numbers(printer: Printer, tiling: Tiling, call: Call, unified_buffer: int, cores: int) -> dict[str, int]:
    """Every formula's value for a call whose constants are the printer's.

    Raises:
        Unsupported: a limit is not kept.
    """
    machine = {"vector_cores": 2 * cores, "cube_cores": cores, "unified_buffer": unified_buffer}
    found = evaluate(formulas(printer, tiling), Sizes(call), machine)
    for limit in limits(printer, tiling):
        if not found.pop(limit.name):
            raise Unsupported(limit.reason)
    return found


class Sizes:
    """What formulas ask of a call."""

    def __init__(self, call: Call) -> None:
        self.sizes: Mapping[tuple[str, int], int] = {
            ("query_offsets", 0): call.batch + 1, ("query_positions", 0): call.query_rows,
            ("key_positions", 0): call.key_rows,
            **{(f"leaf{at}", dim): x for at, all_ in enumerate(call.extents) for dim, x in enumerate(all_)},
        }  # fmt: skip

    def fact(self, name: str, words: Sequence[str | int]) -> int:
        port, dim = words
        if name != "size":
            raise ValueError(f"{name} is nothing that the tiling of attention asks")
        return self.sizes[str(port), int(dim)]


def common_parts(printer: Printer) -> dict[str, Part]:
    """Parts of the workspace of both kernels: type and number of elements; scores have DEPTH tiles a core."""
    slots = f"cores * {DEPTH} * r * c"
    rows, columns = len(printer.rows), len(printer.columns)
    return {
        "blocks": ("int32_t", f"{block_words(printer)} * (q_rows // r + batch)"),
        "key_tiles": ("int32_t", f"{key_words(printer)} * (k_rows // c + batch)"),
        "status": ("int32_t", "16 * cores"),
        "row_columns": ("int32_t", f"({rows} + {len(printer.head_rows)} * heads) * q_rows"),
        "key_columns": ("int32_t", f"({columns} + {len(printer.head_columns)} * heads) * k_rows"),
        "s": ("ST", "cores * s_slots * r * c" if printer.call.d else "0"), "p": ("VT", slots),
        "shared": ("float", f"cores * (shared_tiles + 1) * {len(printer.shared)} * r * c"),
        "collected": ("float", f"cores * (shared_tiles + 1) * {printer.collected()} * r * c"),
    }  # fmt: skip


def block_words(printer: Printer) -> int:
    """Of a block of rows in the list of blocks: its tiles and last key, extremes, and by how much values step."""
    return up(3 + 2 * len(printer.extreme_rows) + 2 * len(printer.run_rows), 8)


def key_words(printer: Printer) -> int:
    """Of a tile of keys in the list of extremes."""
    return up(2 * len(printer.extreme_columns) + 2 * len(printer.run_columns), 8)


def _extents(call: Call) -> Iterable[tuple[str, str]]:
    """Extents and strides of the leaves, the last dimension first."""
    for at, extents in enumerate(call.extents):
        step = "1"
        for dim, extent in reversed(list(enumerate(extents))):
            yield f"extent{at}_{dim}", f"size(leaf{at}, {dim})" if (at, dim) in call.open else str(extent)
            yield f"stride{at}_{dim}", step
            step = f"stride{at}_{dim} * extent{at}_{dim}"


def _workspace(printer: Printer) -> list[Formula]:
    """Where the parts of the workspace begin, in bytes, and how many elements they have."""
    bytes_ = {
        "float": 4, "int32_t": 4, "ST": printer.bytes_of[printer.score_type],
        "GT": printer.bytes_of[printer.gradient_type], "VT": printer.call.v_dtype.itemsize,
        "QT": printer.call.qk_dtype.itemsize,
    }  # fmt: skip
    found: list[Formula] = []
    end = "0"
    for name, (kind, count) in printer.parts().items():
        found.append(Formula(f"{name}_at", end))
        if name != "sums":  # whose count is a number of the sums
            found.append(Formula(f"{name}_count", count))
        end = f"{name}_at + round_up({name}_count * {bytes_[kind]}, 512)"
    return [*found, Formula("workspace", end, field=False)]
