"""Recipes of sampled logits: rows of a table by their ids, a tile of (token, sample) pairs at a time.

For each number of a tile of `tile` pairs the unified buffer holds two buffers of the table's dtype and float32 beside
them; for each number of a query two buffers of its dtype and float32; for each pair 512 bytes of partial sums and
numbers.
"""

from __future__ import annotations

from gr_compile.lowering.ascendc.formulas import Formula
from gr_compile.lowering.ascendc.recipe import Recipe, fields, local_formula

_PAIR = 512  # bytes beside the rows
_LANES = 64  # of float32 in a repeat: no row takes less
_HEAD = ("common.h", "tokens.h", "sampled.h")


def _sizes(**more: str) -> tuple[Formula, ...]:
    return fields(
        tokens="size(query, 0)", samples="size(ids, 1)", id_rows="size(ids, 0)", rows="size(table, 0)",
        features="size(table, 1)", group_words="item(group) // 4 if has(group) else 0", eps="bits(eps)",
        cosine="min(features, 1) if given(eps) else 0", **more,
    )  # fmt: skip


def _width(number: str) -> str:
    """Of a tile of one pair at least, in whole repeats where a row is wider."""
    return f"min(round_up(max(features, 1), 16), room // ({number} + {_PAIR // _LANES}) // {_LANES} * {_LANES})"


def _forward() -> tuple[Formula, ...]:
    """A tile's pairs are those of tile / samples + 2 tokens at most."""
    return (
        *_sizes(),
        local_formula("room", "unified_buffer - 24576"),
        local_formula("number", "2 * item(table) + 8"),
        local_formula("state", "2 * item(query) + 4"),
        *fields(width=_width("number + 3 * state")),
        local_formula("parts", "ceil_div(features, width)"),
        local_formula("pair", f"width * number + {_PAIR} + ceil_div(width * state, max(samples, 1))"),
        *fields(
            tile="1 if parts > 1 else max(1, min(128, (room - 2 * width * state) // pair))",
            spans="(tile + max(samples, 1) - 2) // max(samples, 1) + 1",
        ),
        local_formula("pairs", "tokens * samples"),
        local_formula(
            "blocks", "min(vector_cores, max(1, min(pairs, ceil_div(pairs * features * item(table), 8192))))"
        ),
        local_formula("workspace", "0"),
    )


def _backward() -> tuple[Formula, ...]:
    """Both gradients have tiles of one size: pairs with their rows, queries, and what goes out in float32."""
    return (
        *_sizes(
            padding="attribute(padding)", need_query="truth(need_query)", need_table="truth(need_table)", group="16",
            fill="4096",
        ),
        local_formula("room", "unified_buffer - 32768"),
        local_formula("number", "2 * item(table) + 2 * item(query) + 20"),
        *fields(width=_width("number + 4"), parts="ceil_div(features, width)"),
        *fields(tile=f"1 if parts > 1 else max(1, min(64, (room - 4 * width) // (width * number + {_PAIR})))"),
        local_formula("shares", "max(tokens if need_query else 0, ceil_div(rows, group) if need_table else 0)"),
        local_formula("blocks", "min(vector_cores, max(1, shares))"),
        local_formula("workspace", "0 if is_float32(table) else need_table * rows * features * 4"),
    )  # fmt: skip


SAMPLED_RECIPES = (
    Recipe(
        "gr::sampled_logits", ("size(query, 0)", "size(ids, 1)"), (*_HEAD, "sampled_logits.cpp"), _forward(),
        "{tile} pairs of {width} columns a tile ({parts} parts a row), of {spans} tokens at most, two tiles in turn; "
        "{blocks} blocks share {tokens} x {samples} pairs",
    ),
    Recipe(
        "gr::sampled_logits_backward", ("gradient(query, need_query)",),
        ("common.h", "fill.h", "tokens.h", "owned_rows.h", "sampled.h", "sampled_logits_backward.cpp"), _backward(),
        "{tile} pairs of {width} columns a tile ({parts} parts a row); {blocks} blocks share {tokens} tokens, and own "
        "groups of {group} rows in turn: each reads all {tokens} x {samples} ids, and a row that most pairs want "
        "bounds the time",
        others=(("gradient(table, need_table)",),),
    ),
)  # fmt: skip
