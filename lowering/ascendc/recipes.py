"""Recipes of the vector kernels: which files of kernels/ a kernel consists of, and the formulas of its tiling.

    gr::pack   common.h rows.h pack.cpp   row_bytes, tile, ... from the sizes of `dense` and `index`

One list of formulas serves the functional model, which evaluates it, and the operator project, whose host code is
printed from it. Two of the names are no fields of the tiling: `blocks` (of the launch) and `workspace` (bytes).
"""

from __future__ import annotations

from collections.abc import Mapping

from gr_compile.lowering.ascendc.formulas import Formula
from gr_compile.lowering.ascendc.recipe import Recipe
from gr_compile.lowering.ascendc.recipe import fields as _fields
from gr_compile.lowering.ascendc.recipe import local_formula as _local
from gr_compile.lowering.ascendc.sampled_recipes import SAMPLED_RECIPES
from gr_compile.lowering.ascendc.token_recipes import TOKEN_RECIPES

_NO_WORKSPACE = _local("workspace", "0")


def _rows(item: str, rows: str, **sizes: str) -> tuple[Formula, ...]:
    """Of a kernel that moves `rows` rows of bytes: two tiles take half of the unified buffer, a filling a quarter.

    A block gets 8 KiB at least: below that, starting it costs more than it does.
    """
    return (
        *_fields(**sizes),
        _local("room", "(unified_buffer - 16384) // 128 * 32"),
        *_fields(
            item=item,
            width="min(max(round_up(row_bytes, 32), 32), room)",
            parts="ceil_div(row_bytes, width)",
            tile="1 if parts > 1 else min(4095, max(1, room // width))",
            fill="min(room, 16384)",
        ),
        _local("blocks", f"min(vector_cores, max(1, min({rows} * parts, ceil_div({rows} * row_bytes, 8192))))"),
        _NO_WORKSPACE,
    )


_MOVED = (
    "{tile} rows of {row_bytes} bytes a tile ({parts} parts a row), two tiles in turn; {blocks} blocks of 8 KiB or more"
)
_COUNTED = (
    _local("room", "min((unified_buffer - 16384) // 20, 8192)"),
    *_fields(elements="elements(mask)", tile="room // 64 * 64"),
    _local("blocks", "min(vector_cores, max(1, ceil_div(elements, 4096)))"),
    _local("workspace", "blocks * 32"),
)

_RECIPES = (
    Recipe(
        "gr::pack", ("size(index, 0)", "rest(dense, 2)"), ("common.h", "rows.h", "pack.cpp"),
        _rows(
            "item(dense)", "tokens", tokens="size(index, 0)", places="size(dense, 0) * size(dense, 1)",
            row_bytes="product(dense, 2) * item(dense)",
        ),
        _MOVED,
    ),
    Recipe(
        "gr::unpack", ("number(batch)", "number(length)", "rest(values, 1)"),
        ("common.h", "rows.h", "fill.h", "unpack.cpp"),
        _rows(
            "item(values)", "places", tokens="size(index, 0)", places="number(batch) * number(length)",
            row_bytes="product(values, 1) * item(values)",
        ),
        _MOVED,
        meets=True,
    ),
    Recipe(
        "gr::segment_expand", ("number(total)", "rest(values, 1)"),
        ("common.h", "rows.h", "fill.h", "segment_expand.cpp"),
        _rows(
            "item(values)", "total", sequences="size(values, 0)", total="number(total)",
            row_bytes="product(values, 1) * item(values)",
        ),
        _MOVED,
    ),
    Recipe(
        "gr::segment_sum", ("size(offsets, 0) - 1", "rest(values, 1)"), ("common.h", "segment_sum.cpp"),
        (
            *_fields(rows="size(values, 0)", features="product(values, 1)", sequences="size(offsets, 0) - 1"),
            _local("room", "unified_buffer - 16384"),
            *_fields(
                width="min(round_up(max(features, 1), 32), room // 2048 * 32)",
                tile="min(4095, max(1, (room - width * 24) // (width * (2 * item(values) + 4))))",
                slot="round_up(features, 8)",
            ),
            _local("blocks", "min(vector_cores, max(1, ceil_div(rows * features * item(values), 8192)))"),
            _local("workspace", "blocks * 2 * slot * 8"),
        ),
        "{tile} rows of {width} columns a tile, summed pairwise; {blocks} blocks share {rows} rows, whatever sequences "
        "they are of",
        meets=True,
    ),
    Recipe(
        "gr::suffix_any", ("rest(mask, 0)",), ("common.h", "suffix_any.cpp"),
        (
            *_fields(
                rows="size(mask, 0)", length="size(mask, 1)",
                tile="min(round_up(max(length, 1), 32), (unified_buffer - 8192) // 640 * 32)",
            ),
            _local("blocks", "min(vector_cores, max(1, rows))"),
            _NO_WORKSPACE,
        ),
        "{tile} places a tile, 18 bytes each in the unified buffer; {blocks} blocks share {rows} rows",
    ),
    Recipe(
        "gr::count_true", (), ("common.h", "counts.h", "count_true.cpp"), _COUNTED,
        "{tile} bytes a tile; {blocks} blocks share {elements} elements, 4096 or more each", meets=True,
    ),
    Recipe(
        "gr::true_places", ("number(count)",), ("common.h", "counts.h", "true_places.cpp"),
        (*_COUNTED, *_fields(total="number(count)")),
        "{tile} bytes a tile; {blocks} blocks share {elements} elements, 4096 or more each", meets=True,
    ),
    Recipe(
        "gr::lookup_gradient", ("number(rows)", "size(grad, -1)"),
        ("common.h", "fill.h", "owned_rows.h", "lookup_gradient.cpp"),
        (
            *_fields(
                rows="number(rows)", lookups="elements(ids)", features="size(grad, -1)", padding="attribute(padding)"
            ),
            _local("room", "(unified_buffer - 32768) // 256 * 16"),
            *_fields(
                width="min(round_up(max(features, 1), 16), room)",
                tile="min(32, max(1, room // width))",
                fill="min(room, 16384)",
                group="16",
            ),
            _local("blocks", "min(vector_cores, max(1, ceil_div(rows, group)))"),
            _local("workspace", "0 if is_float32(grad) else rows * features * 4"),
        ),
        "{tile} lookups of {width} columns a tile; {blocks} blocks own groups of {group} rows in turn; each reads all "
        "{lookups} ids, so that a row that most lookups want bounds the time",
    ),
)  # fmt: skip
RECIPES: Mapping[str, Recipe] = {recipe.operator: recipe for recipe in (*_RECIPES, *TOKEN_RECIPES, *SAMPLED_RECIPES)}
