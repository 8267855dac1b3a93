"""What is measured: modules of the stated sizes, the same in every process; peers that compute the same."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from gr_compile.benchmarking.contenders import WorkloadTrial, absence, make_run
from gr_compile.benchmarking.flops import causal_area
from gr_compile.benchmarking.hand_written import FlexSASRec, NestedSASRec
from gr_compile.benchmarking.lengths import lengths_for
from gr_compile.benchmarking.settings import SPEED, BenchSettings
from gr_compile.benchmarking.workload import build, useful_work

TINY = BenchSettings(
    threads=1, batch_size=3, max_seq_len=16, embedding_dim=8, num_heads=2, head_dim=4, num_layers=1, items=20
)


def test_the_default_is_the_published_configuration():
    found = SPEED[False]
    assert (found.model, found.dtype, found.threads) == ("hstu", "float32", 2)
    assert (found.batch_size, found.max_seq_len, found.embedding_dim) == (16, 1024, 256)
    assert (found.num_heads, found.head_dim, found.num_layers) == (4, 64, 2)
    assert found.fills == (0.15, 0.5, 1.0) and set(found.modes) == {"inference", "training"}


@pytest.mark.parametrize("model", ["hstu", "fuxi", "stu", "sasrec", "lookup"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_model_steps_in_both_modes(model, dtype):
    settings = replace(TINY, model=model, dtype=dtype)
    for mode in ("inference", "training"):
        workload = build(settings, 0.5, mode)
        trial = WorkloadTrial(workload.module, workload, mode)
        parts = {"step"} if mode == "inference" else {"step", "forward", "backward"}
        assert set(trial.run()) == parts
        assert set(trial.checks()) == ({"output"} if mode == "inference" else {"output", "gradients"})


def test_builds_are_equal():
    first, second = (build(TINY, 0.5, "training") for _ in range(2))
    with torch.no_grad():
        assert first.module(*first.arguments).equal(second.module(*second.arguments))


def test_useful_work_is_of_valid_tokens_and_causal_pairs():
    lengths = lengths_for(0.5, 3, 16)
    tokens, pairs = int(lengths.sum()), causal_area(lengths)
    layer = tokens * (8 * 4 * 8 + 8 * 8) + pairs * 2 * (4 + 4)
    inference = useful_work(TINY, 0.5, "inference")
    assert inference.flops == 2 * (layer + 3 * 8 * 21) and inference.recomputed == 0
    training = useful_work(TINY, 0.5, "training")
    assert training.flops == 3 * 2 * (layer + tokens * 8 * 21)
    assert training.recomputed == 2 * pairs * 2 * 4
    assert (training.tokens, training.places) == (tokens, 3 * 16)


def test_nested_tensors_compute_what_sasrec_computes():
    workload = build(replace(TINY, model="sasrec"), 0.5, "training")
    theirs, ours = workload.module, NestedSASRec(workload.module)
    arguments, targets = workload.arguments, workload.training_arguments
    torch.testing.assert_close(ours(*arguments), theirs(*arguments))
    torch.testing.assert_close(ours(*arguments, **targets), theirs(*arguments, **targets))


def test_flex_attention_computes_what_sasrec_computes():
    workload = build(replace(TINY, model="sasrec"), 0.5, "inference")
    workload.module.requires_grad_(False)
    with torch.no_grad():
        torch.testing.assert_close(
            FlexSASRec(workload.module)(*workload.arguments), workload.module(*workload.arguments)
        )


def test_the_eager_contender_is_the_module_itself():
    workload = build(TINY, 0.5, "inference")
    assert make_run("eager", workload, "default") is workload.module


@pytest.mark.parametrize(
    ("name", "model", "mode", "reason"),
    [
        ("flex_attention", "hstu", "inference", "softmax"),
        ("nested", "hstu", "training", "softmax"),
        ("flex_attention", "sasrec", "training", "no backward"),
        ("rectools", "sasrec", "inference", "hstu only"),
        ("rectools", "hstu", "inference", "--fetch-rectools"),
        ("flex_attention", "sasrec", "inference", None),
        ("nested", "sasrec", "training", None),
        ("eager", "hstu", "training", None),
    ],
)
def test_who_cannot_take_part_has_a_reason(name, model, mode, reason, tmp_path):
    settings = replace(TINY, model=model)
    found = absence(name, settings, mode, Path(tmp_path))
    assert found is None if reason is None else reason in found


@pytest.mark.parametrize(
    "wrong",
    [{"model": "gpt"}, {"dtype": "int8"}, {"threads": 0}, {"fills": (0.0,)}, {"contenders": ("nobody",)},
     {"memory_limit": 0.0}, {"model": "sasrec", "head_dim": 3}],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError):
        replace(TINY, **wrong)
