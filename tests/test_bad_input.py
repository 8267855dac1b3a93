"""Bad input, through the front door: a clear error, or the right answer and the reason why it is not fast."""

from __future__ import annotations

import pytest
import torch
from models import Places, Sequences, assert_same_run, batch, optimize
from torch import nn

import gr_compile
from gr_compile import PaddingError
from gr_compile.inspection.dump import DumpError

IDS, LENGTHS = batch([5, 2, 0], 5)


@pytest.mark.parametrize("lengths, said", [
    (torch.tensor([5, -2, 0]), r"lengths\[1\] = -2; a length of 'ids' is in \[0, 5\]"),
    (torch.tensor([6, 2, 0]), r"lengths\[0\] = 6"),
    (LENGTHS.float(), "lengths are integers"),
    (LENGTHS.to("meta"), "is on meta"),
    (LENGTHS[:2], r"needs \(3,\)"),
    (LENGTHS[:, None], r"needs \(3,\)"),
    (5, "int, not a tensor"),
])  # fmt: skip
def test_declared_lengths_that_are_wrong_never_reach_the_model(lengths, said):
    model = Sequences()
    for fast in (optimize(model, padding={"ids": gr_compile.Padding(lengths="lengths")}),):
        with pytest.raises(PaddingError, match=said):
            fast(IDS, lengths)
        with pytest.raises(PaddingError, match=said):
            fast(IDS, lengths=lengths)
    assert gr_compile.report(fast) == []


@pytest.mark.parametrize("lengths", [torch.tensor([5, -2, 0]), torch.tensor([9, 2, 0]), LENGTHS.float()])
def test_lengths_that_are_not_declared_mean_what_eager_makes_of_them(lengths):
    model = Places()
    assert_same_run(optimize(model), model, IDS, lengths)


@pytest.mark.parametrize(
    "ids", [IDS, IDS[:0], torch.zeros_like(IDS)], ids=["usual", "no row", "nothing but padding"]
)
def test_declared_padding_with_empty_batches(ids):
    torch.manual_seed(0)
    model = Places()
    fast = optimize(model, padding={"ids": "lengths"})
    lengths = (ids != 0).sum(1)
    fast(IDS, LENGTHS)
    assert_same_run(fast, model, ids, lengths)


def test_a_batch_of_the_wrong_shape_fails_as_in_eager():
    fast, model = optimize(Sequences()), Sequences()
    with pytest.raises(RuntimeError):
        model(IDS, LENGTHS[:2])
    with pytest.raises(RuntimeError):
        fast(IDS, LENGTHS[:2])


def test_an_index_out_of_range_fails_as_in_eager():
    fast = optimize(Sequences())
    fast(IDS, LENGTHS)
    with pytest.raises(IndexError, match="out of range"):
        fast(IDS + 1000, LENGTHS)


def test_an_exception_of_the_model_is_the_users():
    class Refuses(nn.Module):
        def forward(self, x):
            if x.shape[0] > 2:
                raise ValueError("too many rows")
            return x + 1

    fast = optimize(Refuses())
    with pytest.raises(ValueError, match="too many rows"):
        fast(torch.ones(3))
    assert fast(torch.ones(2)).tolist() == [2, 2]


def test_a_dump_folder_that_cannot_be_written_is_refused_at_once(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(DumpError, match="cannot write there"):
        optimize(Sequences(), dump=str(file / "dumps"))
    monkeypatch.setenv("GR_COMPILE_DUMP", str(file / "dumps"))
    with pytest.raises(DumpError, match="leave dump= and GR_COMPILE_DUMP out"):
        optimize(Sequences())


def test_padding_none_leaves_padding_alone():
    model = Places()
    fast = optimize(model, padding="none")
    assert_same_run(fast, model, IDS, LENGTHS)
    assert not any(
        match
        for r in gr_compile.report(fast)[0].passes
        if r.name == "eliminate-padding"
        for match in r.matches
    )
