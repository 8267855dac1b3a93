"""fuse-sampled-logits asks whether anybody has a kernel: of targets that run torch's, on the device; of others, theirs alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from loss_models import SAMPLED, Recommender, batch, sampled_softmax
from pass_bench import PassBench

import gr_compile
from gr_compile.constants import Constants
from gr_compile.editor import GraphEditor
from gr_compile.graph_pass import GraphReport, PassRecord
from gr_compile.lowering.torchair import files
from gr_compile.lowering.torchair.target import AscendLowering
from gr_compile.optimize import _compiled
from gr_compile.pipeline import PassContext, Pipeline, run_pipeline

LOGITS = "fuse-sampled-logits"
SUPPORTS = {"eager": lambda operator: True, "inductor": lambda operator: True, "ascend": AscendLowering().supports}


def record(target: str, supports=None, loss=sampled_softmax) -> PassRecord:
    """What the pass does for a target with a graph of a loss as it was captured."""
    made = PassBench(Recommender(loss).double(), [batch([5, 3], 5, 4)], passes="canonicalize")
    graph_module, session = made.graph(), _compiled(made.fast).session
    report = GraphReport("", "", 0, target, "", training=True)
    context = PassContext(
        GraphEditor(graph_module), session.config, Constants(), report, supports=supports or SUPPORTS[target]
    )
    run_pipeline(Pipeline.parse(LOGITS), graph_module, context)
    (found,) = report.passes
    return found


@pytest.mark.parametrize("target", SUPPORTS)
def test_it_fires_where_there_is_a_kernel(target: str) -> None:
    found = record(target)
    assert found.changed and found.operators_after["gr.sampled_logits.default"] == 1


@pytest.mark.parametrize("target", ["eager", "inductor"])
def test_a_device_without_a_kernel_keeps_the_loss(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda operator, key: False)
    found = record(target)
    assert not found.changed
    assert {miss.reason for miss in found.misses} == {"there is no kernel of gr::sampled_logits for cpu"}


def test_a_target_with_kernels_of_its_own_needs_none_of_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda operator, key: False)
    assert record("ascend").changed


def test_a_target_without_the_operator_keeps_the_loss() -> None:
    found = record("ascend", lambda operator: operator != "gr::sampled_logits")
    assert not found.changed
    assert {miss.reason for miss in found.misses} == {"the target has no kernel for gr::sampled_logits"}


@pytest.mark.parametrize("loss", SAMPLED)
def test_every_loss_is_fused_for_ascend_as_for_inductor(loss: str) -> None:
    ours, theirs = (record(target, loss=SAMPLED[loss]).operators_after for target in ("ascend", "inductor"))
    assert ours == theirs


@pytest.mark.slow
@pytest.mark.parametrize("loss", SAMPLED)
def test_every_loss_is_lowered_for_ascend(loss: str, tmp_path: Path) -> None:
    """One node forward and one backward, and the model's own numbers and gradients."""
    try:
        files.fetch()
    except files.TorchairMissing as error:
        pytest.skip(str(error))
    inputs = [x.float() if x.is_floating_point() else x for x in batch([5, 3, 0], 5, 4)]
    found = gr_compile.lower(Recommender(SAMPLED[loss]), *inputs, target="ascend", out=tmp_path / "out", training=True)
    (graph,) = found["graphs"]
    forward, backward = (part["operators"] for part in graph["parts"])
    assert forward["GrSampledLogits"] == backward["GrSampledLogitsBackward"] == 1
    assert graph["largest_difference"] < 1e-5 and not graph["fixed"] and not found["operators"]["without_kernel"]
