"""Masks that whole tiles pass: what is provable, what is not, and that a proof never lies."""

from __future__ import annotations

import pytest
import torch
from attention_programs import CAUSAL, PROGRAMS, operands

from gr_compile.analysis import expr as E
from gr_compile.analysis.expr import Expr, const, index
from gr_compile.lowering.ascendc.attention.call import Call
from gr_compile.lowering.ascendc.attention.forward import Forward
from gr_compile.lowering.ascendc.attention.masks import Extremes, proof, provable
from gr_compile.lowering.ascendc.attention.values import PROVED
from gr_compile.lowering.ascendc.attention.vector import Function
from gr_compile.ops.evaluate import evaluate
from gr_compile.ops.jagged_attention import inputs_of

h, i, j = (index(x) for x in "hij")
ZERO, ONE = const(0.0, "f32"), const(1.0, "f32")
TILES = [((0, 4), (0, 4)), ((8, 12), (0, 9)), ((8, 9), (4, 8)), ((0, 3), (6, 9)), ((5, 6), (5, 6))]
WITHIN = E.ge0(E.sub(const(9), E.sub(i, j)))
EITHER = E.or_(E.and_(CAUSAL, WITHIN), E.ge0(E.sub(const(4), i)))
MASKS = {
    "causal": CAUSAL, "window": E.and_(CAUSAL, WITHIN), "either": EITHER, "apart": E.not_(E.eq0(E.sub(i, j))),
    "same": E.eq0(E.sub(i, j)), "nobody": E.not_(EITHER), "row": E.ge0(E.sub(i, const(5))),
    "key": E.and_(CAUSAL, E.not_(E.ge0(E.sub(j, const(8))))),
}  # fmt: skip


def _function() -> Function:
    return Function(Forward(Call.of(inputs_of(*operands("window", [5])))).context)


def _where(mask: Expr) -> Expr:
    return E.where(mask, E.make("s", (), "f32"), ZERO, "f32")


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize(("rows", "keys"), TILES, ids=str)
def test_what_is_proved_of_a_tile_holds_for_all_its_pairs(
    name: str, rows: tuple[int, int], keys: tuple[int, int]
) -> None:
    function = _function()
    masks = provable([_where(MASKS[name])], function)
    extremes = Extremes()
    condition = proof(masks, function, extremes)
    values = {i: torch.arange(*rows).view(1, -1, 1), j: torch.arange(*keys).view(1, 1, -1)}
    columns = function.context.columns

    def numbers(nodes: list[Expr], at: list[int]) -> list[torch.Tensor]:
        return [evaluate(nodes[x], values) for x in at]

    sides = {"row": numbers(columns.rows, extremes.rows), "key": numbers(columns.columns, extremes.columns)}
    names = {f"{side}_least": lambda at, found=found: int(found[at].min()) for side, found in sides.items()}
    names |= {f"{side}_most": lambda at, found=found: int(found[at].max()) for side, found in sides.items()}
    python = condition.replace("&&", "and").replace("||", "or").replace("(int64_t)", "").replace("LL", "")
    proved = eval(python, {"false": False, **names})
    holds = all(bool((evaluate(x, values) == (wanted == PROVED)).all()) for x, wanted in masks.items())
    assert proved <= holds
    if name in ("causal", "window", "same", "apart", "row", "key"):  # of one comparison, or several that must all hold
        assert proved == holds


@pytest.mark.parametrize(
    "mask",
    [
        E.compare("lt", E.make("s", (), "f32"), ZERO), E.ge0(E.add(E.sub(i, j), h)), E.ge0(E.sub(i, h)),
    ],
    ids=["of scores", "of a head", "of a row and a head"],
)  # fmt: skip
def test_what_is_not_provable(mask: Expr) -> None:
    function = _function()
    found = provable([_where(mask)], function)
    assert not found and proof(found, function, Extremes()) == "false"


def test_a_mask_that_is_multiplied_with_is_provable() -> None:
    weighted = E.binary("mul", E.make("s", (), "f32"), E.where(CAUSAL, ONE, ZERO, "f32"), "f32")
    assert provable([weighted], _function()) == {CAUSAL: PROVED}


def test_conjuncts_are_proved_one_by_one() -> None:
    of_scores = E.compare("lt", E.make("s", (), "f32"), ZERO)
    assert provable([_where(E.and_(CAUSAL, of_scores))], _function()) == {CAUSAL: PROVED}


def test_branches_that_both_compute_are_not_decided() -> None:
    score = E.make("s", (), "f32")
    assert provable([E.where(CAUSAL, score, E.unary("exp", score), "f32")], _function()) == {}


@pytest.mark.parametrize("name", [x for x in PROGRAMS if x not in ("gelu_dense_keys", "functions_of_time")])
def test_a_whole_tile_runs_no_mask(name: str) -> None:
    """Of programs whose only choices are their masks."""
    printer = Forward(Call.of(inputs_of(*operands(name, [5, 3]))))
    edge, whole = (" ".join(x["weights"].lines) for x in (printer.listings, printer.whole))
    assert "Select(" in edge and not {"Select(", "CompareScalar("} & {f"{x}(" for x in whole.replace("(", " ").split()}
