"""offload-negatives: sampled logits in segments of their table; what is left alone, with the reason; whole models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_models import SAMPLED, Recommender, batch, sampled_softmax
from pass_bench import PassBench, run
from share_bench import Rows, logits, operands, zeros
from test_zoo_models import MODELS, batches
from torch import Tensor

from gr_compile.constants import Constants
from gr_compile.editor import GraphEditor
from gr_compile.graph_pass import GraphReport
from gr_compile.optimize import _compiled
from gr_compile.passes.offload_negatives import OffloadNegatives
from gr_compile.pipeline import PRESETS, PassContext, Pipeline, PipelineError, run_pipeline

OFFLOAD = "offload-negatives"
PASSES = f"default,{OFFLOAD}{{segments=3}}"
LENGTHS, PLACES, R = [7, 3, 0, 1], 7, 5


def bench(loss: Any, batches: Any = None, passes: str = PASSES, **options: Any) -> PassBench:
    given = [batch(LENGTHS, PLACES, R)] if batches is None else batches
    return PassBench(Recommender(loss).double(), given, passes=passes, **options)


@pytest.mark.parametrize("name", SAMPLED)
def test_every_sampled_loss_is_segmented(name: str) -> None:
    made = bench(SAMPLED[name]).assert_fires(OFFLOAD).assert_parity()
    before, after = made.operators_before(OFFLOAD), made.operators_after(OFFLOAD)
    assert before["sampled_logits"] == after["segmented_logits"] > 0
    assert not before["segmented_logits"] and not after["sampled_logits"]
    assert "gr::segmented_logits, 3 segments" in made.matches(OFFLOAD)[0].detail


def test_a_second_run_changes_nothing() -> None:
    made = bench(sampled_softmax)
    record = next(x for x in made.run_again() if x.name == OFFLOAD)
    assert not record.changed and not record.matches and not record.misses


def test_batches_of_other_sizes_compile_nothing_again() -> None:
    sizes = [([7, 3, 0, 1], 7), ([4, 9, 2], 9), ([5, 5, 5, 1, 0], 5)]
    made = bench(sampled_softmax, [batch(lengths, places, R) for lengths, places in sizes])
    assert len(made.compilations) == 1
    made.assert_parity()


@settings(deadline=None, max_examples=8, derandomize=True, database=None)
@given(st.lists(st.integers(0, 11), min_size=2, max_size=5), st.integers(2, 9), st.integers(1, 9))
def test_any_lengths_and_segments(lengths: list[int], places: int, segments: int) -> None:
    given_batch = batch([min(x, places) for x in lengths], places, R)
    bench(sampled_softmax, [given_batch], f"default,{OFFLOAD}{{segments={segments}}}").assert_parity()


def test_it_is_in_no_preset_and_runs_behind_what_makes_and_shares_logits() -> None:
    for preset in PRESETS:
        for target in ("inductor", "ascend", ""):
            assert OFFLOAD not in [item.name for item in Pipeline.parse(preset, target).passes]
    names = [item.name for item in Pipeline.parse(f"{OFFLOAD},share-logits,default").passes]
    assert names.index(OFFLOAD) > max(names.index("fuse-sampled-logits"), names.index("share-logits"))


def test_with_shared_logits() -> None:
    made = bench(sampled_softmax, passes=f"default,share-logits{{expansion=2}},{OFFLOAD}")
    made.assert_fires("share-logits", OFFLOAD)


@pytest.mark.parametrize("segments", [0, -1])
def test_there_is_at_least_one_segment(segments: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        OffloadNegatives(segments)
    with pytest.raises(PipelineError, match="at least 1"):
        Pipeline.parse(f"{OFFLOAD}{{segments={segments}}}")


def test_padding_and_other_sequences_change_nothing() -> None:
    made = bench(sampled_softmax)
    given_batch = list(made.batches[0])
    want = run(made.fast, given_batch)
    drawn = next(k for k, x in enumerate(given_batch) if x.shape == (len(LENGTHS), PLACES, R))
    padded = torch.arange(PLACES) >= torch.tensor(LENGTHS)[:, None]
    given_batch[drawn] = torch.where(padded[..., None], (given_batch[drawn] + 1) % 7, given_batch[drawn])
    got = run(made.fast, given_batch)
    assert all(map(torch.equal, got.outputs, want.outputs))
    assert all(torch.equal(got.gradients[name], grad) for name, grad in want.gradients.items())


# ---------------------------------------------------------------------------------------------------- misses
def rows(body: Any, passes: str = f"canonicalize,fuse-sampled-logits,{OFFLOAD}", frozen: bool = False) -> PassBench:
    model = Rows(body).double()
    model.items.weight.requires_grad_(not frozen)
    return PassBench(model, [operands()], passes=passes)


def test_no_sampled_logits() -> None:
    made = rows(lambda m, x, i, t, w: x.sum())
    (miss,) = made.misses(OFFLOAD)
    assert "there is no gr::sampled_logits" in miss.reason and "fuse-sampled-logits" in miss.hint


def _made_table(m: Rows, x: Tensor, i: Tensor, t: Tensor, w: Tensor) -> Tensor:
    return torch.einsum("td,trd->tr", x, F.embedding(i, m.items.weight * m.scale)).square().sum()


def test_a_table_that_the_graph_makes() -> None:
    made = rows(_made_table).assert_parity()
    assert "is made by aten.mul" in made.assert_misses(OFFLOAD, "all of it is in memory", "m.items.weight * m.scale").reason


def _tied(m: Rows, x: Tensor, i: Tensor, t: Tensor, w: Tensor) -> Tensor:
    return F.cross_entropy(logits(m, x + torch.relu(m.items(t)), i, t), zeros(t))


def test_a_table_without_gradient_that_others_read_too() -> None:
    made = rows(_tied, frozen=True).assert_parity()
    miss = made.assert_misses(OFFLOAD, "row optimizer would not see that gradient", "torch.relu(m.items(t))")
    assert "a table of their own" in miss.hint
    rows(_tied).assert_fires(OFFLOAD).assert_parity()


def test_a_target_without_the_kernel() -> None:
    made = rows(lambda m, x, i, t, w: F.cross_entropy(logits(m, x, i, t), zeros(t)), "canonicalize,fuse-sampled-logits")
    graph = made.graph()
    report = GraphReport("rows", "again", 0, "eager", OFFLOAD)
    context = PassContext(
        GraphEditor(graph), _compiled(made.fast).session.config, Constants(), report,
        supports=lambda operator: operator != "gr::segmented_logits",
    )  # fmt: skip
    run_pipeline(Pipeline.parse(OFFLOAD), graph, context)
    (record,) = report.passes
    assert [miss.reason for miss in record.misses] == ["the target has no kernel for gr::segmented_logits"]


# ----------------------------------------------------------------------------------------------- whole models
@pytest.mark.parametrize("name", ["hstu", "sasrec"])
def test_a_whole_model(name: str) -> None:
    torch.manual_seed(0)
    drawn = torch.Generator().manual_seed(1)
    given_batches = [(*b, torch.randint(1, 31, (*b[0].shape, 4), generator=drawn)) for b in batches(name, True)]
    made = PassBench(MODELS[name][0](), given_batches, passes=PASSES).assert_fires(OFFLOAD)
    assert len(made.compilations) == 1
    made.assert_parity(scale=3.0)
    assert made.operators_after("final")["segmented_logits"] == 1


def test_on_inductor() -> None:
    torch.manual_seed(0)
    made = PassBench(Recommender(sampled_softmax), [batch(LENGTHS, PLACES, R)], passes=PASSES, target="inductor")
    given_batch = list(made.batches[0])
    want, got = (run(model, given_batch) for model in (made.model, made.fast))
    torch.testing.assert_close(got.outputs, want.outputs)
    assert got.gradients.keys() == want.gradients.keys()
    for name, grad in want.gradients.items():
        torch.testing.assert_close(got.gradients[name], grad, rtol=1e-4, atol=1e-6)
