"""Where the padding is: masks as people make them, declarations, and what outputs hold at padded places."""

from __future__ import annotations

import pytest
import torch
from padded_models import Data, Parts, Recommender, data
from pass_bench import FUSE, PACK, PassBench

import gr_compile
from gr_compile import Padding

PARTS = Parts(masking="fill min", readout="zeroed_places")


def bench(parts: Parts, batches: list[Data], **options: object) -> PassBench:
    torch.manual_seed(0)
    return PassBench(Recommender(parts).double(), [b.args() for b in batches], **options)  # type: ignore[arg-type]


RIGHT = [data([3, 6, 1, 0], 6), data([5, 1, 9], 7, seed=1)]
LEFT = [data([3, 6, 1, 0], 6, "left"), data([5, 1, 7], 7, "left", seed=1)]
HOLES = [data([3, 6, 5, 0], 6, holes=True), data([7, 1, 7], 7, "left", seed=1, holes=True)]


@pytest.mark.parametrize("valid", ["ids", "ids greater", "count", "lengths", "left lengths", "mask", "float"])
def test_every_spelling_of_a_mask_is_right_for_every_side(valid: str) -> None:
    junk = valid in ("lengths", "left lengths", "mask")
    batches = [*RIGHT, *LEFT, *HOLES]
    if junk:
        batches += [data([3, 6, 1], 6, side, seed=2, junk=True) for side in ("right", "left")]
    made = bench(PARTS.but(valid=valid), batches).assert_fires(PACK, FUSE).assert_parity()
    assert len(made.compilations) == 1


DECLARED = {
    "a pad id": ("ids", {"ids": 0}),
    "the lengths": ("lengths", {"ids": "lengths"}),
    "the mask": ("mask", {"ids": "mask"}),
    "the mask itself": ("mask", {"mask": "self"}),
    "Padding of a pad id": ("ids", {"ids": Padding(pad_id=0)}),
    "Padding of lengths": ("lengths", {"ids": Padding(lengths="lengths")}),
    "Padding of a mask": ("mask", {"ids": Padding(mask="mask")}),
    "two arguments": ("mask", {"ids": 0, "times": "mask"}),
}


@pytest.mark.parametrize("declared", DECLARED)
def test_declared_padding_gives_zeros_at_padded_places_and_eager_elsewhere(declared: str) -> None:
    batches = [data([3, 6, 1, 0], 6), data([5, 1, 7], 7, seed=1)]
    valid, padding = DECLARED[declared]
    made = bench(
        PARTS.but(valid=valid, readout="every_place"), batches, options={"padding": padding},
        kept=lambda ids, lengths, mask, *rest: mask,
    )  # fmt: skip
    made.assert_fires(PACK, FUSE).assert_parity()
    for batch in batches:
        output = made.fast(*batch.args())
        assert not output[~batch.mask].any()


@pytest.mark.parametrize("padding", [{"ids": "lengths"}, {"ids": "mask"}, {"mask": "self"}], ids=str)
def test_a_declaration_by_an_argument_that_the_model_does_not_read_is_a_miss_and_outputs_stay_exact(
    padding: dict[str, str],
) -> None:
    made = bench(PARTS.but(readout="every_place"), [data([3, 6, 1, 0], 6)], options={"padding": padding})
    assert any("does not read" in miss.reason for miss in made.misses(PACK))
    made.assert_parity()


def test_lengths_of_left_padding() -> None:
    padding = {"ids": Padding(lengths="lengths", side="left")}
    parts = PARTS.but(readout="every_place", valid="left lengths")
    made = bench(parts, LEFT, options={"padding": padding}, kept=lambda ids, lengths, mask, *rest: mask)
    made.assert_fires(PACK, FUSE).assert_parity()
    assert not made.fast(*LEFT[0].args())[~LEFT[0].mask].any()


def test_a_declaration_that_the_masks_do_not_follow_loses_nothing_that_is_read() -> None:
    """The model's own mask says what it reads; the declaration only says which outputs matter."""
    batches = [data([3, 6, 1], 6, junk=True)]
    made = bench(
        PARTS.but(valid="all", seen="keys", readout="every_place"), batches, options={"padding": {"ids": "lengths"}},
        kept=lambda ids, lengths, mask, *rest: mask,
    )  # fmt: skip
    made.assert_parity()


# ------------------------------------------------------------------------------------------ padded_outputs
def test_exact_outputs_stay_dense_where_padding_is_only_detected() -> None:
    made = bench(PARTS.but(readout="every_place"), RIGHT[:1], passes=f"canonicalize,{PACK}")
    assert made.reports[0].facts["padded_outputs"] == "exact"
    assert any("an output holds" in m.reason for m in made.misses(PACK))
    made.assert_parity()


def test_zero_outputs_without_a_declaration_use_the_keys_that_attention_admits() -> None:
    made = bench(
        PARTS.but(readout="every_place"), RIGHT, options={"padded_outputs": "zero"},
        kept=lambda ids, lengths, mask, *rest: mask,
    )  # fmt: skip
    made.assert_fires(PACK, FUSE).assert_parity()
    assert not made.fast(*RIGHT[0].args())[~RIGHT[0].mask].any()


def test_exact_outputs_under_a_declaration() -> None:
    made = bench(
        PARTS.but(readout="loss_and_every_place"), RIGHT, options={"padding": {"ids": 0}, "padded_outputs": "exact"}
    )
    made.assert_parity()


def test_a_loss_beside_declared_logits() -> None:
    made = bench(
        PARTS.but(readout="loss_and_every_place"), RIGHT, options={"padding": {"ids": 0}},
        kept=lambda ids, lengths, mask, *rest: mask,
    )  # fmt: skip
    made.assert_fires(PACK, FUSE).assert_parity()


# ---------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("lengths", "message"),
    [([-1, 2, 3], r"lengths\[0\] = -1"), ([1, 7, 3], r"lengths\[1\] = 7"), ([1, 2], "needs")],
)
def test_lengths_that_contradict_the_declaration(lengths: list[int], message: str) -> None:
    torch.manual_seed(0)
    fast = gr_compile.optimize(Recommender(PARTS), target="eager", padding={"ids": "lengths"})
    batch = data([1, 2, 3], 6)
    with pytest.raises(gr_compile.PaddingError, match=message):
        fast(batch.ids, torch.tensor(lengths), batch.mask, batch.times, batch.targets)


def test_an_unknown_argument_is_named_with_the_closest_one() -> None:
    with pytest.raises(gr_compile.ConfigError, match="did you mean 'lengths'"):
        gr_compile.optimize(Recommender(PARTS), padding={"ids": "length"})
