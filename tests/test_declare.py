"""Declared padding: what each call's data must look like, and which declarations cannot be meant."""

from __future__ import annotations

import inspect

import pytest
import torch
from models import Sequences, batch, optimize
from torch import nn

import gr_compile
from gr_compile import ConfigError, Padding, PaddingError
from gr_compile.config import Config
from gr_compile.declare import as_padding, check_declared_padding

IDS = torch.ones(3, 5, dtype=torch.int64)
MASK = torch.ones(3, 5, dtype=torch.bool)
LENGTHS = torch.tensor([5, 2, 0])


def forward(ids, lengths=None, mask=None, weights=None): ...


def check(padding, *args, **kwargs) -> None:
    check_declared_padding(Config(padding=padding), inspect.signature(forward), args, kwargs)


# ------------------------------------------------------------------------------------------------ the data
@pytest.mark.parametrize("lengths", [
    LENGTHS, torch.tensor([0, 0, 0]), torch.tensor([5, 5, 5]), LENGTHS.to(torch.int32), LENGTHS.to(torch.uint8),
])  # fmt: skip
def test_lengths_in_range_pass(lengths):
    check({"ids": "lengths"}, IDS, lengths)


def test_an_empty_batch_passes():
    check({"ids": "lengths"}, IDS[:0], LENGTHS[:0])


@pytest.mark.parametrize("lengths, said", [
    (torch.tensor([5, -1, 0]), r"lengths\[1\] = -1.*\[0, 5\]"),
    (torch.tensor([5, 2, 6]), r"lengths\[2\] = 6.*\[0, 5\]"),
    (torch.tensor([5, -1, 9]), r"lengths\[1\] = -1"),
    (LENGTHS.float(), "dtype torch.float32; lengths are integers"),
    (LENGTHS > 0, "dtype torch.bool; lengths are integers"),
    (LENGTHS[:2], r"shape \(2,\); 'ids' needs \(3,\)"),
    (LENGTHS.to("meta"), "is on meta, 'ids' on cpu"),
    ([5, 2, 0], "list, not a tensor"),
    (None, "NoneType, not a tensor"),
])  # fmt: skip
def test_lengths_that_cannot_be_meant_are_named(lengths, said):
    with pytest.raises(PaddingError, match=said):
        check({"ids": Padding(lengths="lengths")}, IDS, lengths)


def test_lengths_left_out_of_the_call_are_named():
    with pytest.raises(PaddingError, match="'lengths'"):
        check({"ids": Padding(lengths="lengths")}, IDS)


@pytest.mark.parametrize("mask", [MASK, MASK.int(), MASK.float()])
def test_masks_of_ones_and_zeros_pass(mask):
    check({"ids": "mask"}, IDS, mask=mask)
    check({"mask": "self"}, IDS, mask=mask)


@pytest.mark.parametrize("mask, said", [
    (MASK[:2], r"shape \(2, 5\)"),
    (MASK[:, :4], r"shape \(3, 4\)"),
    (MASK[0], r"shape \(5,\)"),
    (MASK.to("meta"), "is on meta, 'ids' on cpu"),
    ([True], "list, not a tensor"),
])  # fmt: skip
def test_masks_of_another_shape_device_or_kind_are_named(mask, said):
    with pytest.raises(PaddingError, match=said):
        check({"ids": Padding(mask="mask")}, IDS, mask=mask)


@pytest.mark.parametrize(
    "ids, said", [(IDS[0], r"shape \(5,\); a padded argument is \[B, N"), (3, "int, not a tensor")]
)
def test_the_padded_argument_itself_must_have_places(ids, said):
    with pytest.raises(PaddingError, match=said):
        check({"ids": 0}, ids)


def test_an_argument_that_is_left_out_is_not_checked():
    check({"weights": "lengths"}, IDS)


def test_a_call_with_wrong_arguments_fails_with_pythons_own_message():
    fast = optimize(Sequences(), padding={"ids": "lengths"})
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        fast(IDS)


def test_a_call_is_checked_before_anything_runs():
    fast = optimize(Sequences(), padding={"ids": "lengths"})
    ids, _ = batch([5, 2], 5)
    with pytest.raises(PaddingError, match="ids"):
        fast(ids, torch.tensor([6, 2]))
    assert gr_compile.report(fast) == []
    fast(ids, lengths=torch.tensor([5, 2]))


# ------------------------------------------------------------------------------------------ the declaration
@pytest.mark.parametrize("declared, named, meaning", [
    (0, None, Padding(pad_id=0)),
    ("lengths", LENGTHS, Padding(lengths="lengths")),
    ("mask", MASK, Padding(mask="mask")),
    ("self", None, Padding(mask="self")),
    (Padding(lengths="lengths", side="left"), None, Padding(lengths="lengths", side="left")),
])  # fmt: skip
def test_short_declarations_in_full(declared, named, meaning):
    assert as_padding(declared, IDS, named) == meaning


@pytest.mark.parametrize("fields, said", [
    ({}, "exactly one of mask, lengths, pad_id; got none"),
    ({"mask": "m", "lengths": "l"}, "got .'mask', 'lengths'."),
    ({"lengths": "l", "side": "middle"}, "side is 'right' or 'left'"),
    ({"pad_id": "0"}, "pad_id is an int"),
    ({"pad_id": True}, "pad_id is an int"),
    ({"mask": 3}, "mask is the name of an argument"),
    ({"lengths": LENGTHS}, "lengths is the name of an argument"),
])  # fmt: skip
def test_padding_that_contradicts_itself_is_refused(fields, said):
    with pytest.raises(ConfigError, match=said):
        Padding(**fields)


@pytest.mark.parametrize("padding", [{"ids": True}, {"ids": 1.5}, {"ids": None}, {3: 0}, {"ids": LENGTHS}])
def test_declarations_of_wrong_types_are_refused(padding):
    with pytest.raises(ConfigError, match=r"an int \(pad id\), the name of a lengths or mask argument"):
        gr_compile.optimize(Sequences(), padding=padding)


@pytest.mark.parametrize("padding", ["automatic", 3, None, ["ids"]])
def test_padding_that_is_no_mapping_is_refused(padding):
    with pytest.raises(ConfigError, match="'auto', 'none'"):
        gr_compile.optimize(Sequences(), padding=padding)


@pytest.mark.parametrize("padding, unknown", [
    ({"idz": 0}, "idz"), ({"ids": "length"}, "length"), ({"ids": Padding(mask="idss")}, "idss"),
])  # fmt: skip
def test_an_unknown_argument_lists_the_arguments(padding, unknown):
    with pytest.raises(ConfigError, match=rf"{unknown!r}.*its arguments: ids, lengths\)"):
        gr_compile.optimize(Sequences(), padding=padding)
    with pytest.raises(ConfigError, match="did you mean"):
        gr_compile.optimize(Sequences(), padding=padding)


def test_an_unknown_argument_of_a_class_is_known_when_the_class_is_decorated():
    with pytest.raises(ConfigError, match="idz"):

        @gr_compile.optimize(padding={"idz": 0})
        class Model(nn.Module):
            def forward(self, ids): ...


def test_arguments_that_python_collects_may_have_any_name():
    def f(**fields):
        return fields["ids"].sum(1)

    assert optimize(f, padding={"ids": 0})(ids=IDS).tolist() == [5, 5, 5]


def test_declared_padding_makes_zero_the_default_at_padded_places():
    assert Config(padding={"ids": 0}).outputs_at_padding == "zero"
    assert Config(padding={"ids": 0}, padded_outputs="exact").outputs_at_padding == "exact"
    assert Config().outputs_at_padding == "exact"


# ----------------------------------------------------------------------- against the data, under "numerics"
class Both(nn.Module):
    """Ids with lengths, times with a mask."""

    def forward(self, ids, times, lengths, mask):
        return (ids * mask).sum(1) + (times * mask).sum(1) + lengths


@pytest.mark.parametrize("verify, fails", [("numerics", True), ("shapes", False)])
def test_declarations_that_disagree_are_an_error_under_numerics(verify, fails):
    fast = optimize(Both(), padding={"ids": "lengths", "times": "mask"}, verify=verify)
    agreeing = torch.arange(5) < LENGTHS[:, None]
    fast(IDS, IDS, LENGTHS, agreeing)
    disagreeing = agreeing.clone()
    disagreeing[1, 3] = True
    if fails:
        with pytest.raises(PaddingError, match=r"'ids' and 'times' disagree: in row 1"):
            fast(IDS, IDS, LENGTHS, disagreeing)
    else:
        fast(IDS, IDS, LENGTHS, disagreeing)


def test_masks_have_no_other_values_than_0_and_1():
    with pytest.raises(PaddingError, match="0 or 1"):
        check({"ids": "mask"}, IDS, mask=MASK.int() * 2)
