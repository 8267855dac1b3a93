"""Huawei's operators: taken where the program is proved to be theirs, left where it is anything else."""

from __future__ import annotations

import math

import pytest
import torch
from torch import fx

from gr_compile.analysis.expr import (
    Expr,
    binary,
    cast,
    const,
    ge0,
    index,
    load,
    make,
    not_,
    size,
    sub,
    unary,
    where,
)
from gr_compile.lowering.torchair import library
from gr_compile.lowering.torchair.library import LOWER_TRIANGLE, NO_MASK, Formula, Misfit, formula
from gr_compile.ops.score_program import ScoreProgram

aten, gr = torch.ops.aten, torch.ops.gr
S, ZERO = make("s", (), "f32"), const(0.0, "f32")
CAUSAL = ge0(sub(index("i"), index("j")))
SILU = unary("silu", S)


def times(x: Expr, number: float) -> Expr:
    return binary("mul", x, const(number, "f32"), "f32")


def over(x: Expr, divisor: Expr) -> Expr:
    return binary("div", x, divisor, "f32")


def masked(x: Expr, mask: Expr = CAUSAL) -> Expr:
    return binary("mul", x, cast(mask, "f32"), "f32")


GATE = binary("mul", S, unary("sigmoid", S), "f32")
FITS = {
    "HSTU's": (masked(over(unary("silu", times(S, 0.25)), const(8.0, "f32"))), Formula(0.25, 0.125, LOWER_TRIANGLE)),
    "no mask": (times(SILU, 0.5), Formula(1.0, 0.5, NO_MASK)),
    "where": (where(CAUSAL, times(SILU, 0.5), ZERO, "f32"), Formula(1.0, 0.5, LOWER_TRIANGLE)),
    "where not": (where(not_(CAUSAL), ZERO, times(SILU, 0.5), "f32"), Formula(1.0, 0.5, LOWER_TRIANGLE)),
    "mask in front": (over(masked(SILU), const(4.0, "f32")), Formula(1.0, 0.25, LOWER_TRIANGLE)),
    "written out": (times(GATE, 2.0), Formula(1.0, 2.0, NO_MASK)),
    "divided scores": (unary("silu", over(S, const(4.0, "f32"))), Formula(0.25, 1.0, NO_MASK)),
}
BIAS = load("bias", (index("i"), index("j")), "f32")
CUT = make("cast", (const(2.5, "f32"),), "i")  # as it stands where nothing has folded it
LEFT = {
    "a scale that a cast to an integer cuts": (
        ScoreProgram(binary("mul", SILU, cast(CUT, "f32"), "f32")), "not a number times SiLU"
    ),
    "a bias": (ScoreProgram(unary("silu", binary("add", S, BIAS, "f32")), leaves=("bias",)), "reads tables or columns"),
    "a softmax": (ScoreProgram(S, post=make("sm", (), "f32")), "is a softmax"),
    "GELU": (ScoreProgram(unary("gelu", S)), "not a number times SiLU"),
    "the upper triangle": (ScoreProgram(masked(SILU, ge0(sub(index("j"), index("i"))))), "neither the lower triangle"),
    "a strict triangle": (
        ScoreProgram(masked(SILU, not_(ge0(sub(index("j"), index("i")))))), "neither the lower triangle"
    ),
    "a mask inside": (ScoreProgram(unary("silu", masked(S))), "not a number times q . k"),
    "something added": (ScoreProgram(unary("silu", binary("add", S, const(1.0, "f32"), "f32"))), "a number times q . k"),
    "another gate": (ScoreProgram(binary("mul", S, unary("sigmoid", times(S, 2.0)), "f32")), "not a number times SiLU"),
    "a scale of 0": (ScoreProgram(times(SILU, 1e-60)), "silu_scale = 0"),
    "a scale that is no number": (ScoreProgram(times(SILU, math.inf)), "scale is inf"),
    "N of the call": (ScoreProgram(over(SILU, cast(size("n"), "f32")), sizes=("n",)), "size of the call"),
    "shared key heads": (ScoreProgram(SILU, k_head=const(0)), "heads share keys"),
    "dropout": (ScoreProgram(make("dropout", (SILU, const(0.5, "f32")), "f32")), "drops attention weights"),
}


@pytest.mark.parametrize("name", FITS)
def test_spellings_of_the_librarys_formula(name):
    score, expected = FITS[name]
    assert formula(ScoreProgram(score)) == expected


@pytest.mark.parametrize("name", LEFT)
def test_other_programs_are_left_with_the_reason(name):
    program, why = LEFT[name]
    with pytest.raises(Misfit, match=why):
        formula(program)


def graph(
    batch=3, length=4, heads=2, width=16, value_width=None, dtype=torch.float32, keys="same", places=None, score=SILU
):
    """Attention over the true places of one mask, as packing writes it; fake values only."""
    made = fx.Graph()

    def node(target, *args, value):
        found = made.call_function(target, args)
        found.meta["val"] = value
        return found

    def placeholder(name, value):
        found = made.placeholder(name)
        found.meta["val"] = value
        return found

    meta = {"device": "meta"}
    mask = placeholder("mask", torch.empty(batch, length, dtype=torch.bool, **meta))
    q, k = (placeholder(name, torch.empty(5, heads, width, dtype=dtype, **meta)) for name in "qk")
    v = placeholder("v", torch.empty(5, heads, value_width or width, dtype=dtype, **meta))
    other = placeholder("other", torch.empty(batch, length, dtype=torch.bool, **meta))
    numbers = torch.empty(5, dtype=torch.int64, **meta)

    def rows(of, summed):
        flat = node(aten.reshape.default, of, [-1], value=None)
        index = node(gr.true_places.default, flat, 5, value=numbers)
        positions = node(aten.remainder.Scalar, index, places or length, value=numbers)
        total = node(aten.cumsum.default, node(aten.sum.dim_IntList, summed, [1], value=None), 0, value=None)
        offsets = torch.empty(batch + 1, dtype=torch.int64, **meta)
        return node(aten.constant_pad_nd.default, total, [1, 0], value=offsets), positions

    queries = rows(mask, other if keys == "mixed" else mask)
    owned = rows(mask, mask) if keys == "other" else queries
    text = ScoreProgram(score).text()
    call = node(gr.jagged_attention.default, q, k, v, [], *queries, *owned, heads, [], None, text, value=None)
    made.output((call,))
    return fx.GraphModule(torch.nn.Module(), made)


def chosen(training=False, **options):
    """The choice for the one attention of such a graph."""
    (choice,) = [one for one in library.choices(graph(**options), training) if one.program]
    return choice


def test_a_call_that_fits():
    choice = chosen()
    assert (choice.chosen, choice.calls) == ("HstuJaggedForward", 1)
    assert choice.attributes == {
        "mask_type": NO_MASK, "max_seqlen_q": 4, "max_seqlen_k": 4, "silu_scale": 1.0, "target_group_size": 0,
        "alpha": 1.0, "deterministic": False,
    }  # fmt: skip


LIMITS = {
    "keys of other rows": ({"keys": "other"}, "queries and keys are different rows"),
    "offsets of another mask": ({"keys": "mixed"}, "not shown to be all true places of one mask"),
    "places of another length": ({"places": 2}, "not those of the mask"),
    "batch": ({"batch": 2049}, "B = 2049"),
    "length": ({"length": 20481}, "N = 20481"),
    "heads": ({"heads": 17}, "17 heads"),
    "width, no multiple": ({"width": 24}, "D = 24"),
    "width, too wide": ({"width": 528}, "D = 528"),
    "values of another width": ({"value_width": 32}, "differ in heads or width"),
    "dtype": ({"dtype": torch.float64}, "dtypes float64"),
    "program": ({"score": unary("relu", S)}, "not a number times SiLU"),
}


@pytest.mark.parametrize("name", LIMITS)
def test_what_is_beyond_a_limit_is_generated(name):
    options, why = LIMITS[name]
    choice = chosen(**options)
    assert choice.chosen == library.GENERATED and why in choice.why and not choice.attributes


@pytest.mark.parametrize("options", [{"batch": 2048}, {"length": 20480}, {"heads": 16}, {"width": 512}])
def test_limits_are_inclusive(options):
    choice = chosen(**options)
    assert choice.chosen == library.ATTENTION


def test_other_operators_say_why_they_are_generated():
    (other,) = [one for one in library.choices(graph(), False) if not one.program]
    assert (other.operator, other.chosen) == ("gr::true_places", library.GENERATED) and "no such" in other.why


def test_training_is_generated():
    choice = chosen(training=True)
    assert choice.chosen == library.GENERATED and "backward" in choice.why


@pytest.mark.parametrize("name", FITS)
def test_the_formula_is_the_programs_value(name):
    """Held against the expression itself, evaluated number by number."""
    score, found = FITS[name][0], formula(ScoreProgram(FITS[name][0]))
    for i, j, s in ((0, 0, 0.7), (3, 1, -1.2), (1, 3, 2.0)):
        kept = found.mask_type == NO_MASK or j <= i
        expected = found.scale * float(torch.nn.functional.silu(torch.tensor(found.alpha * s))) * kept
        assert value(score, i, j, s) == pytest.approx(expected, rel=1e-5)


def value(expr, i, j, s):
    """An expression of these tests at one pair."""
    if expr.op == "s":
        return s
    if expr.op == "index":
        return {"i": i, "j": j}[expr.args[0]]
    if expr.op == "const":
        return expr.args[0]
    if expr.op == "poly":
        return sum(c * math.prod(value(x, i, j, s) for x in m) for m, c in expr.args)
    args = [value(x, i, j, s) if isinstance(x, Expr) else x for x in expr.args]
    rules = {
        "ge0": lambda x: x >= 0, "not": lambda x: not x, "cast": float, "mul": lambda x, y: x * y,
        "div": lambda x, y: x / y, "where": lambda c, x, y: x if c else y,
        "silu": lambda x: x / (1 + math.exp(-x)), "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    }  # fmt: skip
    return rules[expr.op](*args)
