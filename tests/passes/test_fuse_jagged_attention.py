"""fuse-jagged-attention: every spelling of attention and of its scores, with and without packed tokens."""

from __future__ import annotations

import pytest
import torch
from padded_models import Data, Parts, Recommender, data
from pass_bench import FUSE, PACK, PassBench, pair_values

BATCHES = [data([3, 6, 1], 6), data([5, 2, 9, 1], 7, seed=1)]
EMPTY = [data([0, 4, 0], 5, seed=2), data([0, 3, 4, 0], 4, "left", seed=3)]
PARTS = Parts(masking="fill min", readout="zeroed_places")


def bench(parts: Parts, batches: list[Data], **options: object) -> PassBench:
    torch.manual_seed(0)
    return PassBench(Recommender(parts).double(), [b.args() for b in batches], **options)  # type: ignore[arg-type]


def fused(parts: Parts, batches: list[Data], **options: object) -> PassBench:
    made = bench(parts, batches, **options).assert_fires(FUSE).assert_parity()
    after = made.operators_after("final")
    assert after["jagged_attention"] == parts.layers
    assert not after["softmax"] + after["bmm"] + after["scaled_dot_product_attention"]
    length = made.graph().graph.find_nodes(op="placeholder")
    sizes = [n.meta["val"] for n in length if isinstance(n.meta["val"], torch.SymInt)]
    assert pair_values(made.graph(), sizes[-1]) == []
    return made


SPELLINGS = ["einsum", "matmul", "bmm", "bmm heads first", "sdpa", "sdpa additive", "sdpa gqa", "one head"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_spelling_of_softmax_attention(spelling: str) -> None:
    made = fused(PARTS.but(spelling=spelling, heads=1 if spelling == "one head" else 2), [*BATCHES, *EMPTY])
    made.assert_fires(PACK)


@pytest.mark.parametrize("spelling", ["matmul", "bmm", "one head"])
def test_a_spelling_of_silu_attention(spelling: str) -> None:
    parts = PARTS.but(spelling=spelling, heads=1 if spelling == "one head" else 2, activation="silu", masking="mul")
    fused(parts, [*BATCHES, *EMPTY]).assert_fires(PACK)


def test_causal_flag_without_key_mask_on_both_sides_of_padding() -> None:
    left = [data([3, 6, 1], 6, "left", seed=5), data([0, 7, 2], 7, "left", seed=6)]
    fused(PARTS.but(spelling="sdpa causal"), [*BATCHES, *EMPTY, *left]).assert_fires(PACK)


@pytest.mark.parametrize("bias", ["position", "time", "alibi"])
@pytest.mark.parametrize("activation", ["silu", "softmax"])
def test_a_bias_of_the_scores(bias: str, activation: str) -> None:
    masking = "mul" if activation == "silu" else "add -1e4"
    fused(PARTS.but(bias=bias, activation=activation, masking=masking), BATCHES)


@pytest.mark.parametrize("masking", ["where", "fill", "add -1e4", "add min", "add inf"])
def test_a_way_of_masking_softmax(masking: str) -> None:
    fused(PARTS.but(masking=masking), BATCHES)


@pytest.mark.parametrize("masking", ["where", "fill"])
def test_a_way_of_masking_silu(masking: str) -> None:
    fused(PARTS.but(masking=masking, activation="silu"), [*BATCHES, *EMPTY])


@pytest.mark.parametrize("masking", ["fill min", "add -1e4", "add min"])
def test_rows_without_a_key_keep_the_meaning_of_their_spelling(masking: str) -> None:
    """A finite mask over a whole row is a softmax over all keys, padded ones too; here every row of empty sequences
    and the first row (strict) are such."""
    parts = PARTS.but(masking=masking, seen="strict+keys", readout="last_by_gather")
    bench(parts, [*BATCHES, *EMPTY]).assert_parity()


@pytest.mark.parametrize("seen", ["window+keys", "strict+keys", "prefix+keys", "keys+queries", "causal+queries", "keys"])
def test_which_keys_a_query_sees(seen: str) -> None:
    bench(PARTS.but(seen=seen), [*BATCHES, *EMPTY]).assert_fires(FUSE).assert_parity()


def test_attention_without_padding_elimination_is_fused_over_dense_sides() -> None:
    made = bench(PARTS, [*BATCHES, *EMPTY], passes=f"canonicalize,{FUSE}").assert_fires(FUSE).assert_parity()
    assert made.operators_after(FUSE)["pack"] == 0


def test_two_layers_share_one_packed_index_and_one_program() -> None:
    made = fused(PARTS.but(layers=2), BATCHES[:1])
    calls = made.graph().graph.find_nodes(op="call_function", target=torch.ops.gr.jagged_attention.default)
    assert len(calls) == 2 and len({call.args[-1] for call in calls}) == 1
    assert made.operators_after("final")["nonzero"] == 1


def test_a_literal_tensor_in_the_scores() -> None:
    fused(PARTS.but(bias="literal"), BATCHES)


def test_constants_keep_the_precision_of_the_model() -> None:
    made = bench(PARTS.but(activation="silu", masking="mul", dim=6), BATCHES[:1])
    batch = BATCHES[0].args()
    assert float((made.fast(*batch) - made.model(*batch)).abs().max()) < 1e-13


def test_float32_within_the_projects_tolerances() -> None:
    torch.manual_seed(0)
    model = Recommender(PARTS.but(bias="time", readout="cross_entropy"))
    PassBench(model, [b.args() for b in BATCHES]).assert_fires().assert_parity()
