"""Recipes of the fused token operators: rows of tokens in float32 in the unified buffer, as many as fit.

A tile of `tile` rows of `width` columns takes, for each number, two buffers of each copy's dtype and `scratch` bytes of
float32; for each row 512 bytes of partial sums, means and scales; for each column weights and sums of gradients.
"""

from __future__ import annotations

from gr_compile.lowering.ascendc.formulas import Formula
from gr_compile.lowering.ascendc.recipe import Recipe, fields, local_formula

_SHARED = "min(vector_cores, max(1, min(rows, ceil_div(rows * features * item(x), 8192))))"


def _norm(scratch: int, column: int, weighted: str, biased: str, centered: str, workspace: str) -> tuple[Formula, ...]:
    """Of norms; scratch, column: bytes for a number, and for a column beside. Buffers hold a float32 row at least."""
    tile = f"(room - {column} * width) // (width * (4 * item(x) + {scratch}) + 512)"
    return (
        *fields(
            features="size(x, -1)", rows="elements(x) // max(features, 1)", eps="bits(eps)", centered=centered,
            weighted=weighted, biased=biased,
        ),
        local_formula("room", "unified_buffer - 24576"),
        *fields(
            width=f"min(round_up(max(features, 1), 16), room // {16 + scratch + column} // 64 * 64)",
            parts="ceil_div(features, width)",
            tile=f"1 if parts > 1 else max(1, min(128, {tile}))",
            slot="round_up(features, 8)",
        ),
        local_formula("blocks", _SHARED),
        local_formula("workspace", workspace),
    )  # fmt: skip


_SLOTS = "blocks * (weighted + biased) * slot * 4"
_NORMALISED = (
    "{tile} rows of {width} columns a tile ({parts} parts a row), two tiles in turn; {blocks} blocks share {rows} rows"
)
_SUMMED = _NORMALISED + "; gradients of weights: a sum a block, added in order"


def _split(scratch: int, widths: tuple[str, str, str, str]) -> tuple[Formula, ...]:
    return (
        *fields(
            features="size(x, -1)", rows="elements(x) // max(features, 1)", u_width=widths[0], v_width=widths[1],
            q_width=widths[2], k_width=widths[3], activated="attribute(activated)",
        ),
        local_formula("room", f"(unified_buffer - 16384) // (4 * item(x) + {scratch})"),
        local_formula("widest", "max(max(u_width, v_width), max(max(q_width, k_width), 1))"),
        *fields(
            width="min(round_up(widest, 16), room // 64 * 64)",
            tile="max(1, min(4095, room // width))",
        ),
        local_formula("blocks", _SHARED),
        local_formula("workspace", "0"),
    )  # fmt: skip


_ATTRIBUTES = ("attribute(u_width)", "attribute(v_width)", "attribute(q_width)", "attribute(k_width)")
_GRADIENTS = ("size(grad_u, -1)", "size(grad_v, -1)", "size(grad_q, -1)", "size(grad_k, -1)")
_SPLIT = (
    "{tile} rows of {width} columns a tile, two tiles in turn, one part after the other; {blocks} blocks share {rows} "
    "rows"
)
_WEIGHT, _BIAS = ("size(x, -1) if has(weight) else 0",), ("size(x, -1) if has(bias) else 0",)
_HEAD = ("common.h", "tokens.h")
_X = ("rest(x, 0)",)

TOKEN_RECIPES = (
    Recipe(
        "gr::norm_gate", _X, (*_HEAD, "norm.h", "norm_forward.h", "norm_gate.cpp"),
        _norm(8, 8, "has(weight)", "has(bias)", "truth(centered)", "0"), _NORMALISED,
    ),
    Recipe(
        "gr::norm_gate_backward", _X, (*_HEAD, "norm.h", "norm_backward.h", "norm_gate_backward.cpp"),
        _norm(16, 16, "has(weight)", "has(bias)", "truth(centered)", _SLOTS), _SUMMED,
        meets=True, others=(_X, _WEIGHT, _BIAS),
    ),
    Recipe(
        "gr::rms_norm", _X, (*_HEAD, "norm.h", "norm_forward.h", "rms_norm.cpp"),
        _norm(8, 8, "has(weight)", "0", "0", "0"), _NORMALISED,
    ),
    Recipe(
        "gr::rms_norm_backward", _X, (*_HEAD, "norm.h", "norm_backward.h", "rms_norm_backward.cpp"),
        _norm(16, 16, "has(weight)", "0", "0", _SLOTS), _SUMMED, meets=True, others=(_WEIGHT,),
    ),
    Recipe(
        "gr::silu_split", ("lead(x)", _ATTRIBUTES[0]), (*_HEAD, "silu.h", "silu_split.cpp"),
        _split(8, _ATTRIBUTES), _SPLIT, others=tuple(("lead(x)", width) for width in _ATTRIBUTES[1:]),
    ),
    Recipe(
        "gr::silu_split_backward", _X, (*_HEAD, "silu.h", "silu_split_backward.cpp"),
        _split(16, _GRADIENTS), _SPLIT,
    ),
)  # fmt: skip
