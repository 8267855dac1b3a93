"""The target's judgement: when numbers can be compared, and that wrong ones are never written."""

import errno
import os
import tempfile

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from gr_compile.graph_pass import GraphReport
from gr_compile.lower import CapturedGraph, LowerError
from gr_compile.lowering.torchair import target
from gr_compile.lowering.torchair.convert import Converter
from gr_compile.lowering.torchair.request import Converted, Request
from gr_compile.lowering.torchair.target import AscendLowering, Work, draws, refuse_failures
from gr_compile.output_folder import writing

aten = torch.ops.aten
X = torch.tensor([[0.5, -1.0], [2.0, 3.0]])
HEADS = torch.randn(1, 1, 2, 4)


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: x + 1, ""),
        (lambda x: x + torch.rand(2), "aten.rand.default"),
        (lambda x: torch.bernoulli(x), "aten.bernoulli.default"),
        (lambda x: aten.dropout.default(x, 0.5, True), "aten.dropout.default"),
        (lambda x: aten.dropout.default(x, 0.0, True), ""),
        (lambda x: aten.dropout.default(x, 0.5, False), ""),
        (lambda x: aten.scaled_dot_product_attention.default(HEADS, HEADS, HEADS), ""),
        (
            lambda x: aten.scaled_dot_product_attention.default(HEADS, HEADS, HEADS, dropout_p=0.1),
            "aten.scaled_dot_product_attention.default",
        ),
    ],
)
def test_who_draws_random_numbers(function, named):
    graph_module = make_fx(function, tracing_mode="fake", pre_dispatch=True, _allow_non_fake_inputs=True)(X)
    assert draws(graph_module) == named


def work(training):
    x = X.clone().requires_grad_(training)
    traced = make_fx(lambda y: (y * y,), tracing_mode="fake", pre_dispatch=True)(x)
    report = GraphReport("m", "0", 0, "ascend", "none")
    return Work(CapturedGraph("graph_0", traced, traced, [x], training, True, False, report))


# The gradient of the square under the weights cos(k) + 1.5 of the outputs.
SLOPE = 2 * X * (torch.cos(torch.arange(4.0)) + 1.5).view(2, 2)


@pytest.mark.parametrize("training", [False, True])
def test_equal_numbers(tmp_path, training):
    torch.save(([X * X], [SLOPE] if training else []), tmp_path / "ran.pt")
    assert work(training).compare(tmp_path / "ran.pt") < 1e-6


@pytest.mark.parametrize(
    "ran",
    [
        ([X * X + 1e-2], [SLOPE]),
        ([X * X], [SLOPE * 1.01]),
        ([X * X], [None]),
        ([], [SLOPE]),
        ([X], [SLOPE]),
        ([(X * X).double()], [SLOPE]),
        ([X * X * float("nan")], [SLOPE]),
    ],
)
def test_wrong_numbers_are_refused(tmp_path, ran):
    torch.save(ran, tmp_path / "ran.pt")
    with pytest.raises(LowerError, match="does not compute what the model computes"):
        work(True).compare(tmp_path / "ran.pt")


def test_a_process_that_says_nothing_of_a_graph(tmp_path):
    with pytest.raises(LowerError, match="ended without a word"):
        refuse_failures([Converted.read(tmp_path)])


@pytest.mark.parametrize("training", [False, True])
def test_gradients_are_said_to_be_compared_in_training_alone(training):
    item = work(training)
    found = AscendLowering()._checks([item], [{"largest_difference": 0.0}], [])
    (ran,) = [text for text in found["checked"] if "run on the CPU" in text]
    assert ("gradients included" in ran) is training


def test_a_temporary_folder_that_cannot_be_written_is_not_blamed_on_out(tmp_path, monkeypatch):
    def full(self, folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Request, "write", full)
    child = Converter(None, tmp_path / "scratch")
    with pytest.raises(LowerError, match=r"temporary folder .*scratch cannot be written.*No space.*TMPDIR"), writing(tmp_path / "out"):
        AscendLowering()._write([work(False).graph], tmp_path / "out", child, None)


def test_no_temporary_folder_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "mkdtemp", lambda *args, **options: os.mkdir(tmp_path / "none" / "there"))
    with pytest.raises(LowerError, match=r"temporary folder .* cannot be written"), target._temporary_folder():
        pass
