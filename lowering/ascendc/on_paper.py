"""What part of the time the cube multiplies in attention kernels, by tiling.py's costs: docs/ascend.md's table.

    python -m gr_compile.lowering.ascendc.on_paper [MACHINE]

Sequences of 4096 tokens, D = 128, operands in float16, scores and weights rounded to float16 as torch's products and
autocast have them, and float32 between. Nothing is measured; the assumptions are tiling.py's and traffic.py's.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gr_compile.analysis import expr as E
from gr_compile.analysis.expr import Expr, const, index, load, make, size
from gr_compile.lowering.ascendc.attention.backward import Backward, wants
from gr_compile.lowering.ascendc.attention.call import Call
from gr_compile.lowering.ascendc.attention.forward import Forward
from gr_compile.lowering.ascendc.attention.printer import Printer
from gr_compile.lowering.ascendc.machine import Machine, machine
from gr_compile.lowering.ascendc.tiling import Tiling, solve
from gr_compile.ops.score_program import ScoreProgram

LENGTH, WIDTH, BATCH = 4096, 128, 16
_LEAVES: Mapping[str, tuple[torch.dtype, tuple[int, ...]]] = {
    "position": (torch.float32, (2 * LENGTH - 1,)), "time": (torch.float32, (64,)),
    "times": (torch.int64, (BATCH, LENGTH)),
}  # fmt: skip
_b, _i, _j, _N = index("b"), index("i"), index("j"), size("N")
_CAUSAL = E.ge0(E.sub(_i, _j))


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    name: str
    heads: int
    program: ScoreProgram


def _scores(half: bool) -> Expr:
    return E.cast(make("s", (), "f16"), "f32") if half else make("s", (), "f32")


def _weights(expression: Expr, half: bool) -> Expr:
    return E.cast(expression, "f16") if half else expression


def _silu(score: Expr, mask: Expr, half: bool) -> Expr:
    over_n = E.binary("div", E.unary("silu", score), E.cast(_N, "f32"), "f32")
    return _weights(E.where(mask, over_n, const(0.0, "f32"), "f32"), half)


def _program(score: Expr, width: int = 0, post: Expr | None = None) -> ScoreProgram:
    leaves = tuple(x for x in _LEAVES if any(y.op == "load" and y.args[0] == x for y in E.walk(score)))
    return ScoreProgram(
        score=score, post=post, leaves=leaves, sizes=("N",), key_high=E.add(_i, const(1)),
        key_low=E.sub(_i, const(width - 1)) if width else None, out_dtype="f16",
        fully_masked="zero" if post is not None else "natural",
    )  # fmt: skip


def _biased(score: Expr) -> Expr:
    """With a bias by position and by the logarithm of the time between."""
    position = load("position", [E.add(E.sub(_j, _i), _N, const(-1))], "f32")
    apart = E.unary("abs", E.sub(load("times", [_b, _i], "i"), load("times", [_b, _j], "i")))
    log = E.unary("log", E.cast(E.binary("maximum", apart, const(1), "i"), "f32"))
    step = E.cast(E.unary("floor", E.binary("div", log, const(0.301, "f32"), "f32")), "i")
    time = load("time", [E.binary("minimum", step, const(63), "i")], "f32")
    return E.binary("add", score, E.binary("add", position, time, "f32"), "f32")


def _softmax(half: bool) -> ScoreProgram:
    scaled = E.binary("mul", _scores(half), const(0.088388, "f32"), "f32")
    score = E.where(_CAUSAL, scaled, const(-math.inf, "f32"), "f32")
    return _program(score, post=_weights(make("sm", (), "f32"), half))


def rows() -> list[Row]:
    """The programs of the table."""
    near = E.and_(_CAUSAL, E.ge0(E.sub(const(1023), E.sub(_i, _j))))
    plain = _program(_silu(_scores(True), _CAUSAL, True))
    wide = _program(_silu(_scores(False), _CAUSAL, False))
    biased = _program(_silu(_biased(_scores(True)), _CAUSAL, True))
    return [
        Row("SiLU / N, causal", 4, plain),
        Row("SiLU / N, causal, window of 1024", 4, _program(_silu(_scores(True), near, True), 1024)),
        Row("SiLU / N with bias by position and time, causal", 4, biased),
        Row("the same", 8, biased),
        Row("softmax, causal", 4, _softmax(True)),
        Row("SiLU / N, causal, scores and weights in float32", 4, wide),
        Row("softmax, causal, scores and weights in float32", 4, _softmax(False)),
    ]


def call(row: Row) -> Call:
    """The call of a row."""
    half, tokens = torch.float16, BATCH * LENGTH
    found = [_LEAVES[x] for x in row.program.leaves]
    return Call(
        program=row.program, qk_dtype=half, v_dtype=half, leaf_dtypes=tuple(x for x, _ in found),
        extents=tuple(x for _, x in found), batch=BATCH, heads=row.heads, query_rows=tokens, key_rows=tokens,
        q_heads=row.heads, k_heads=row.heads, v_heads=row.heads, d=WIDTH, dv=WIDTH,
    )  # fmt: skip


def tilings(row: Row, on: Machine) -> tuple[Tiling, Tiling]:
    """Of the forward and of the backward."""
    of = call(row)
    printers: tuple[Printer, Printer] = (Forward(of), Backward(of, wants(of)))
    forward, backward = (solve(x.demand(), on) for x in printers)
    return forward, backward


def table(on: Machine) -> str:
    """In Markdown: the part of the time that the cube multiplies, the part of its pairs that masks do not cut off, what
    bounds it, and the first if L2 bounded nothing.
    """
    free = dataclasses.replace(on, l2_bandwidth=math.inf)
    lines = [
        "| score | heads | forward | needed | bound by | without L2 | backward | needed | bound by | without L2 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows():
        cells = [row.name, "any" if "bias" not in row.name and row.name != "the same" else f"{row.heads}"]
        for bound, unbound in zip(tilings(row, on), tilings(row, free)):
            cells += [f"{bound.utilisation:.0%}", f"{bound.needed:.0%}", bound.bound, f"{unbound.utilisation:.0%}"]
        lines.append(f"| {' | '.join(cells).replace('%', ' %')} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(machine(sys.argv[1] if len(sys.argv) > 1 else "910b1")))
