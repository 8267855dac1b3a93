"""Attention as published models have it, as score programs with operands; q, k and v of any dtype, leaves in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gr_compile.analysis import expr as E
from gr_compile.analysis.expr import Expr, const, index, load, make, size
from gr_compile.ops import ScoreProgram

b, h, i, j = (index(x) for x in "bhij")
S = make("s", (), "f32")
N = size("N")
CAUSAL = E.ge0(E.sub(i, j))
LENGTH = 70


@dataclass(frozen=True)
class Sample:
    """A program's expressions, and its leaves by name."""

    fields: dict[str, Any]
    leaves: dict[str, Tensor]
    needs_product: bool = True
    dense_keys: int = 0


def _over_n(score: Expr) -> Expr:
    return E.binary("div", score, E.cast(N, "f32"), "f32")


def _masked(mask: Expr, score: Expr) -> Expr:
    return E.where(mask, score, const(0.0, "f32"), "f32")


def _position() -> Expr:
    return load("position", [E.add(E.sub(j, i), N, const(-1))], "f32")


def _bucket() -> Expr:
    apart = E.unary("abs", E.sub(load("times", [b, i], "i"), load("times", [b, j], "i")))
    seconds = E.unary("log", E.cast(E.binary("maximum", apart, const(1), "i"), "f32"))
    step = E.cast(E.unary("floor", E.binary("div", seconds, const(0.301, "f32"), "f32")), "i")
    return E.binary("minimum", step, const(63), "i")


def _tables(batch: int) -> dict[str, Tensor]:
    times = 1_700_000_000 + torch.randint(0, 10**7, (batch, LENGTH)).sort(1).values
    return {"position": torch.randn(2 * LENGTH - 1), "time": torch.randn(64), "times": times}


def _silu_rab_time(batch: int) -> Sample:
    biased = E.binary("add", S, E.binary("add", _position(), load("time", [_bucket()], "f32"), "f32"), "f32")
    score = _masked(CAUSAL, _over_n(E.unary("silu", biased)))
    return Sample({"score": score, "key_high": E.add(i, const(1))}, _tables(batch))


def _softmax(batch: int) -> Sample:
    scaled = E.binary("mul", S, const(0.25, "f32"), "f32")
    score = E.where(CAUSAL, scaled, const(float("-inf"), "f32"), "f32")
    shared = E.binary("floordiv", h, const(2), "i")
    fields = {"score": score, "post": make("sm", (), "f32"), "k_head": shared, "v_head": shared, "fully_masked": "zero"}
    return Sample({**fields, "key_high": E.add(i, const(1))}, {})


def _window(batch: int) -> Sample:
    near = E.and_(CAUSAL, E.ge0(E.sub(const(9), E.sub(i, j))))
    score = _masked(near, _over_n(E.unary("silu", S)))
    return Sample({"score": score, "key_low": E.sub(i, const(9)), "key_high": E.add(i, const(1))}, {})


def _targets(batch: int) -> Sample:
    history = load("history", [b], "i")
    x, y = (E.binary("minimum", place, history, "i") for place in (i, j))
    mask = E.or_(E.compare("gt", x, y), E.eq0(E.sub(i, j)))
    score = _masked(mask, _over_n(E.unary("silu", S)))
    leaves = {"history": torch.randint(1, LENGTH, (batch,))}
    return Sample({"score": score, "key_high": E.add(i, const(1))}, leaves)


def _valid_keys(batch: int) -> Sample:
    """A mask of keys that is multiplied with: whole tiles pass it, and the last keys of a long sequence do not."""
    mask = E.and_(CAUSAL, E.not_(E.eq0(load("valid", [b, j], "i"))))
    score = E.binary("mul", _over_n(E.unary("silu", S)), E.cast(mask, "f32"), "f32")
    valid = (torch.arange(LENGTH) < 66).long().expand(batch, LENGTH).contiguous()
    return Sample({"score": score, "key_high": E.add(i, const(1))}, {"valid": valid})


def _fuxi_position(batch: int) -> Sample:
    return Sample({"score": _masked(CAUSAL, _position()), "key_high": E.add(i, const(1))},
                  {"position": torch.randn(2 * LENGTH - 1)}, needs_product=False)  # fmt: skip


def _fuxi_time(batch: int) -> Sample:
    score = _masked(CAUSAL, load("time", [_bucket()], "f32"))
    tables = _tables(batch)
    return Sample({"score": score, "key_high": E.add(i, const(1))}, {x: tables[x] for x in ("time", "times")},
                  needs_product=False)  # fmt: skip


def _gelu_dense_keys(batch: int) -> Sample:
    scaled = E.binary("mul", S, load("tau", [h], "f32"), "f32")
    return Sample({"score": E.unary("gelu", scaled)}, {"tau": torch.rand(4) + 0.5}, dense_keys=12)


def _functions_of_time(batch: int) -> Sample:
    """Steps of a logarithm and of roots, cut to their table and not, and powers: of a distance in time, and 1."""
    apart = E.unary("abs", E.sub(load("times", [b, i], "i"), load("times", [b, j], "i")))
    later = E.cast(E.add(apart, const(1)), "f32")
    step = E.cast(E.binary("mul", E.unary("log2", later), const(2.0, "f32"), "f32"), "i")
    root = E.unary("sqrt", E.cast(apart, "f32"))
    cut = E.binary("minimum", E.cast(root, "i"), const(63), "i")
    wide = E.cast(E.binary("div", root, const(500.0, "f32"), "f32"), "i")
    biases = [load("time", [x], "f32") for x in (step, cut, wide)]
    biases += [E.binary("pow", later, const(-0.3, "f32"), "f32"), E.unary("rsqrt", later)]
    biased = S
    for bias in biases:
        biased = E.binary("add", biased, bias, "f32")
    grown = E.binary("add", E.unary("softplus", biased), const(0.25, "f32"), "f32")
    score = _masked(CAUSAL, _over_n(E.binary("pow", grown, const(1.7, "f32"), "f32")))
    tables = _tables(batch)
    return Sample({"score": score, "key_high": E.add(i, const(1))}, {x: tables[x] for x in ("time", "times")})


PROGRAMS: dict[str, Callable[[int], Sample]] = {
    "silu_rab_time": _silu_rab_time, "softmax": _softmax, "window": _window, "targets": _targets,
    "valid_keys": _valid_keys,
    "fuxi_position": _fuxi_position, "fuxi_time": _fuxi_time, "gelu_dense_keys": _gelu_dense_keys,
    "functions_of_time": _functions_of_time,
}  # fmt: skip


IN_FLOAT32 = {"window", "gelu_dense_keys"}  # scores and weights of half-precision operands, too


def as_autocast(fields: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Fields whose products are in `dtype`, as torch's autocast gives them, and all between them in float32."""
    if dtype == "f32":
        return fields
    last = "post" if "post" in fields else "score"
    narrow = E.cast(make("s", (), dtype), "f32")
    return fields | {"score": E.substitute(fields["score"], {S: narrow})} | {
        last: E.cast(E.substitute(fields[last], {S: narrow}), dtype)
    }


def operands(name: str, lengths: list[int], dtype: torch.dtype = torch.float32, d: int = 12, dv: int = 20) -> list[Any]:
    """The operands of `gr::jagged_attention` for a program; places of a sequence follow one another."""
    torch.manual_seed(len(lengths))
    sample = PROGRAMS[name](len(lengths))
    counts = torch.tensor(lengths)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    places = torch.cat([torch.arange(x) for x in lengths])
    keys, key_places = offsets, places
    if sample.dense_keys:
        keys = torch.arange(len(lengths) + 1) * sample.dense_keys
        key_places = torch.arange(sample.dense_keys).repeat(len(lengths))
    few = 2 if "k_head" in sample.fields else 4
    q, k = torch.randn(places.numel(), 4, d).to(dtype), torch.randn(key_places.numel(), few, d).to(dtype)
    v = torch.randn(key_places.numel(), few, dv).to(dtype)
    out = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}[dtype]
    fields = sample.fields if name in IN_FLOAT32 else as_autocast(sample.fields, out)
    program = ScoreProgram(leaves=tuple(sample.leaves), sizes=("N",), out_dtype=out, **fields)
    q, k = (q, k) if sample.needs_product else (None, None)
    leaves = list(sample.leaves.values())
    return [q, k, v, leaves, offsets, places, keys, key_places, 4, [LENGTH], None, program.text()]
