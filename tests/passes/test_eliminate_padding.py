"""eliminate-padding fires on ways of reading the states, keeps what eager gives, and says what it did."""

from __future__ import annotations

import pytest
import torch
from padded_models import Data, Parts, Recommender, data
from pass_bench import FUSE, PACK, PassBench
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

RIGHT = [data([3, 6, 1], 6), data([5, 1, 9, 2], 7, seed=1), data([0, 2, 0], 5, seed=2)]
DENSE_WORK = ("linear", "embedding", "gelu", "layer_norm")
"""Operators of the model's token-wise work."""


def bench(parts: Parts, batches: list[Data], **options: object) -> PassBench:
    torch.manual_seed(0)
    model = Recommender(parts).double()
    return PassBench(model, [batch.args() for batch in batches], **options)  # type: ignore[arg-type]


TOKENWISE = Parts(spelling="none")
FIRES = [
    "cross_entropy", "cross_entropy_sum", "cross_entropy_classes_second", "cross_entropy_shifted",
    "cross_entropy_masked", "cross_entropy_of_masked_rows", "bpr", "bce", "sampled_softmax", "last_by_gather",
    "last_by_index", "last_by_negative_index", "last_column", "mean_over_all_places", "mean_over_valid_places",
    "maximum", "attention_pooling", "zeroed_places", "filled_places", "transposed_places", "cumulative",
    "flattened_rows", "attention_pooling_by_einsum", "bce_at_indices", "rows_by_coordinates", "rows_of_the_flattened",
    "normalised_places", "scored_places", "rows_of_a_transposed_mask",
]  # fmt: skip
DECLINES = ["unmasked_mean", "every_place", "loss_and_every_place"]


@pytest.mark.parametrize("readout", FIRES)
def test_token_wise_work_is_packed_and_right(readout: str) -> None:
    made = bench(TOKENWISE.but(readout=readout), RIGHT, passes=f"canonicalize,{PACK}").assert_fires(PACK)
    assert dense_work(made) == []
    made.assert_parity()


@pytest.mark.parametrize("readout", DECLINES)
def test_what_reads_padded_places_stays_dense_and_right(readout: str) -> None:
    made = bench(TOKENWISE.but(readout=readout), RIGHT[:2], passes=f"canonicalize,{PACK}")
    assert not made.matches(PACK) and made.misses(PACK)
    assert made.operators_after(PACK) == made.operators_before(PACK)
    made.assert_parity()


def test_an_output_whose_padded_rows_differ_by_position_is_computed_densely_and_said() -> None:
    made = bench(TOKENWISE.but(readout="projected_places_and_positions"), RIGHT, passes=f"canonicalize,{PACK}")
    made.assert_fires(PACK).assert_misses(PACK, "what the model computes at padded places", "m.norm(x * valid")
    assert [name.rpartition("_")[0] for name in dense_work(made)] == ["layer_norm"]
    made.assert_parity()


def test_a_loss_whose_ignored_target_never_occurs_keeps_every_place() -> None:
    bench(TOKENWISE.but(readout="cross_entropy_of_all"), RIGHT, passes=f"canonicalize,{PACK}").assert_parity()


def dense_work(made: PassBench) -> list[str]:
    """Token-wise work that still runs on [B, N, ...]: the packed dimension has a size that depends on data."""
    return [
        node.name for node in made.graph().graph.nodes
        if node.op == "call_function" and any(name in str(node.target) for name in DENSE_WORK)
        and node.meta["val"].dim() > 2 and not free_unbacked_symbols(node.meta["val"].shape[0])
    ]  # fmt: skip


# ------------------------------------------------------------------------------- operators before and after
def test_padded_ids_are_never_looked_up() -> None:
    made = bench(TOKENWISE.but(readout="bpr"), RIGHT[:1], passes=f"canonicalize,{PACK}").assert_fires(PACK)
    for node in made.graph().graph.find_nodes(op="call_function", target=torch.ops.aten.embedding.default):
        assert node.meta["val"].dim() == 2, node


def test_one_packed_index_and_no_unpacking_up_to_the_loss() -> None:
    made = bench(TOKENWISE, RIGHT[:1], passes=f"canonicalize,{PACK}")
    before, after = made.operators_before(PACK), made.operators_after(PACK)
    assert "nonzero" not in before and after["nonzero"] == 1
    assert after["unpack"] == 0
    assert after["linear"] == before["linear"] and after["cross_entropy_loss"] == 1


def test_only_the_last_place_is_computed_when_only_it_is_read() -> None:
    made = bench(TOKENWISE.but(readout="last_column"), RIGHT[:1], passes=f"canonicalize,{PACK}")
    assert "aten.select.int" in made.matches(PACK)[0].detail
    assert dense_work(made) == []
    made.assert_parity()


def test_a_pass_that_is_asked_not_to_pack_says_so() -> None:
    made = bench(TOKENWISE, RIGHT[:1], passes=PACK, options={"padding": "none"})
    assert "padding='none'" in made.misses(PACK)[0].reason


# ---------------------------------------------------------------------------------------------- size modes
@pytest.mark.parametrize("multiple", [1, 4, 64, 1000])
def test_buckets_round_up_the_packed_tokens(multiple: int) -> None:
    passes = f"canonicalize,{PACK}{{mode=bucket,multiple={multiple}}},{FUSE}"
    made = bench(Parts(readout="cross_entropy", masking="fill min"), RIGHT, passes=passes)
    made.assert_fires().assert_parity()


def test_a_bucket_is_a_multiple_or_everything() -> None:
    made = bench(TOKENWISE.but(readout="cross_entropy"), RIGHT[:1], passes=f"canonicalize,{PACK}{{mode=bucket,multiple=4}}")
    sizes: list[int] = []

    class Watch(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if n.target is torch.ops.aten.nonzero.default:
                sizes.append(value.shape[0])
            return value

    graph = made.graph()
    for batch in RIGHT:
        Watch(graph).run(*inputs_of(graph, made, batch))
    assert all(size % 4 == 0 or size == batch.ids.numel() for size, batch in zip(sizes, RIGHT)), sizes


def inputs_of(graph: torch.fx.GraphModule, made: PassBench, batch: Data) -> list[object]:
    named = dict(made.model.named_parameters())
    tensors = {"ids": batch.ids, "lengths": batch.lengths, "mask": batch.mask, "times": batch.times, "targets": batch.targets}
    found: list[object] = []
    for node in graph.graph.find_nodes(op="placeholder"):
        source = node.meta["gr_source"]
        if "_parameters" in source:
            path = source.replace("L['self']", "").replace("._modules['", ".").replace("._parameters['", ".").replace("']", "")
            found.append(named[path.strip(".")].detach())
        elif source.startswith("L['") and source[3:-2] in tensors:
            found.append(tensors[source[3:-2]])
        else:
            found.append({"0": batch.ids.shape[0], "1": batch.ids.shape[1]}.get(source[-2], 0))
    return found


# ---------------------------------------------------------------------------------------------- profit
def test_work_that_packing_cannot_pay_for_is_declined() -> None:
    class Thin(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items = torch.nn.Embedding(21, 4)

        def forward(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return self.items(ids) * (ids != 0)[..., None]

    batch = RIGHT[0]
    made = PassBench(Thin(), [(batch.ids, batch.targets)], passes=f"canonicalize,{PACK}{{min-saving=0.9}}")
    assert not made.matches(PACK)
    assert "less than min-saving" in made.misses(PACK)[0].reason
    made.assert_parity()


def test_a_full_first_batch_does_not_leave_the_model_dense() -> None:
    full = data([6, 6, 6], 6)
    bench(TOKENWISE, [full, *RIGHT], passes=f"canonicalize,{PACK}").assert_fires(PACK).assert_parity()


# ------------------------------------------------------------------------------------------- running again
@pytest.mark.parametrize(
    "parts",
    [Parts(masking="fill min"), TOKENWISE, Parts(spelling="sdpa", readout="last_by_gather"),
     Parts(activation="silu", masking="mul", bias="time", readout="zeroed_places")],
    ids=lambda parts: f"{parts.spelling}-{parts.readout}",
)  # fmt: skip
def test_a_second_run_changes_nothing(parts: Parts) -> None:
    made = bench(parts, RIGHT[:1])
    for record in made.run_again(f"{PACK},{FUSE}"):
        assert not record.changed, record.matches
