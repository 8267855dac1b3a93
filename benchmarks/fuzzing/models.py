"""One random model as source text, with the batches it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fuzzing.attention import Attention
from fuzzing.draw import Draw, Source
from fuzzing.heads import write_outputs
from fuzzing.sequences import checkpointed, joined, written
from fuzzing.tokens import embed, mixing_block, token_block, zero

_HEADER = '''"""{title}

Run it with: python benchmarks/fuzz_models.py --file THIS_FILE
"""
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

DYNAMIC = {dynamic}
MODE = "{mode}"
BATCHES = {batches}


class Model(nn.Module):
    def __init__(self):
        super().__init__()
'''
OWN_SIZES = {"sizes": 7}
"""For `generate`: every batch has sizes of its own. Without Dynamo each of them costs a graph, so that few models do."""
_ARGUMENTS = "ids, lengths, mask, times, targets, negatives, features, given, context_ids"

PLANS = ("a", "ta", "at", "tat", "ata", "t", "tt", "am", "mt", "a", "aa", "w", "tw", "at", "wa", "t", "a", "c", "ca", "j", "m")
"""Blocks of a model: a attention, t by place, m across places, w written in place, c computed again, j two sequences."""
_BLOCKS = {"t": token_block, "m": mixing_block, "w": written, "c": checkpointed}


@dataclass(frozen=True)
class Generated:
    """A model's source, and the choices that made it."""

    seed: int
    text: str
    choices: dict[str, int]


def generate(seed: int, fixed: Mapping[str, int] | None = None) -> Generated:
    """The model of a seed; `fixed` overrides some of its choices."""
    draw = Draw(seed, fixed)
    heads = draw.pick("heads", [2, 1, 2, 3, 4])
    source = Source(width=draw.pick("width", [4, 2, 4, 8]) * {3: 3, 4: 2}.get(heads, 1), heads=heads)
    _write_body(draw, source)
    dynamic = draw.pick("dynamic", [None, None, None, None, None, True])
    mode = draw.pick("mode", ["train"] * 9 + ["no_grad", "autocast", "eval"])
    batches = "[\n" + "".join(f"    {_batch(draw, k, source.width)},\n" for k in range(draw.pick("batches", [2, 3]))) + "]"
    lines = [_HEADER.format(title=f"Fuzz model {seed}.", dynamic=dynamic, mode=mode, batches=batches).rstrip("\n")]
    lines += ["        " + line for line in source.setup]
    lines += ["", f"    def forward(self, {_ARGUMENTS}):", "        B, N = ids.shape"]
    lines += ["        " + line for line in source.body]
    lines += [f"        return {', '.join(source.outputs)}" + ("," if len(source.outputs) == 1 else ""), ""]
    return Generated(seed, "\n".join(lines), draw.taken)


def _write_body(draw: Draw, source: Source) -> None:
    source.setup.append('self.register_buffer("causal", torch.tril(torch.ones(24, 24, dtype=torch.bool)))')
    x = embed(draw, source)
    context = _context(draw, source) if draw.flag("context", 8) else None
    for k, kind in enumerate(draw.pick("plan", PLANS)):
        at = f"block{k}."
        if kind == "a":
            across = context is not None and draw.flag(at + "cross")
            x = Attention(draw, source, at, x, context if across else None).write()
        elif kind == "j":
            x = joined(draw, source, x, context or _context(draw, source), at)
        else:
            x = _BLOCKS[kind](draw, source, x, at)
        x = zero(draw, source, x, at, 4)
    write_outputs(draw, source, x, context)


def _context(draw: Draw, source: Source) -> str:
    source.setup.append(f"self.context_item = nn.Embedding(20, {source.width})")
    source.do("M = context_ids.shape[1]", "context_valid = context_ids != 0")
    context = source.let("context", "self.context_item(context_ids)")
    if draw.flag("context_block"):
        layer = source.module("context_layer", f"nn.Linear({source.width}, {source.width})")
        context = source.let("context", f"{context} + torch.tanh({layer}({context}))")
    return context


def _sizes(draw: Draw, number: int, width: int) -> tuple[int, int, int]:
    at = f"batch{number}."
    B = draw.pick(at + "B", [3, 2, 4, 5, width, 1] if number != 1 else [4, 5, 2, 3, 6])
    N = draw.pick(at + "N", [5, 4, 6, 7, width, B, 1] if number != 1 else [6, 5, 7, 9, 3, B])
    return B, N, draw.pick(at + "M", [4, 3, N, B, 6])


def _batch(draw: Draw, number: int, width: int) -> dict[str, Any]:
    """Sizes and fill of one batch. Sizes collide with each other and with the width now and then."""
    at = f"batch{number}."
    B, N, M = _sizes(draw, number if draw.flag("sizes", 8) else 0, width)
    return {
        "B": B, "N": N, "D": width, "M": M,
        "fill": draw.pick(at + "fill", ["random", "random", "random", "full", "empty", "some_empty", "half"]),
        "side": draw.pick(f"batch{0 if draw.flag('one_side', 4) else number}.side", ["right", "right", "left", "holes"]),
        "targets": draw.pick(at + "targets", ["same", "other", "shifted", "same"]),
        "junk": draw.pick(at + "junk", ["none", "none", "none", "large", "nan"]), "mask_dtype": draw.pick("mask_dtype", ["bool", "int64", "float64"]),
        "float_grad": draw.pick("float_grad", [False, True]), "seed": draw.seed * 10 + number,
    }  # fmt: skip
