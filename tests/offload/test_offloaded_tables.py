"""Tables in files: into files and back, what is read, and what is said where a file is not as it should be."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import gr_compile.lowering.inductor  # noqa: F401  (registers the CPU's kernels)
from gr_compile import offload
from gr_compile.offload import table_file
from gr_compile.offload.segments import Segments, extents_to_read, extents_to_write
from gr_compile.offload.stored import stored_table
from gr_compile.offload.table_file import PAGE

gr = torch.ops.gr
ROWS, WIDTH = 3000, 24


def made(path: Path, dtype: torch.dtype = torch.float32) -> tuple[nn.Embedding, Tensor]:
    torch.manual_seed(0)
    table = nn.Embedding(ROWS, WIDTH, padding_idx=0, dtype=dtype)
    weight = table.weight.detach().clone()
    return offload.move(table, path), weight


def ids(seed: int = 0) -> Tensor:
    return torch.randint(0, ROWS, (30, 5), generator=torch.Generator().manual_seed(seed))


def logits(table: nn.Embedding, query: Tensor | None = None) -> Tensor:
    x = torch.ones(30, WIDTH, dtype=table.weight.dtype) if query is None else query
    found: Tensor = gr.segmented_logits(x, table.weight, ids(), None, None, 0, 4)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_a_moved_table_is_the_same_and_so_are_its_logits(tmp_path: Path, dtype: torch.dtype) -> None:
    table, weight = made(tmp_path / "t", dtype)
    assert torch.equal(table.weight, weight) and table.weight.requires_grad
    query = torch.ones(30, WIDTH, dtype=dtype)
    assert torch.equal(logits(table, query), gr.sampled_logits(query, weight, ids(), None, None, 0))
    assert (tmp_path / "t").stat().st_size == -(-weight.nbytes // PAGE) * PAGE
    again = offload.attach(nn.Embedding(ROWS, WIDTH, device="meta", dtype=dtype), tmp_path / "t")
    assert torch.equal(again.weight, weight)


def test_only_the_pages_that_are_looked_up_are_read_and_only_once(tmp_path: Path) -> None:
    table, _ = made(tmp_path / "t")
    stored = stored_table(table.weight)
    assert stored is not None
    few = torch.tensor([[1, 2, 1], [2, 1, 3]])
    query = torch.ones(2, WIDTH)
    for _ in range(3):
        gr.segmented_logits(query, table.weight, few, None, None, 0, 4)
    assert stored.traffic.bytes_read == PAGE


def test_a_backward_begins_with_what_the_forward_has_left_in_its_buffers(tmp_path: Path) -> None:
    table, _ = made(tmp_path / "t")
    stored = stored_table(table.weight)
    assert stored is not None
    offload.SGD(table, 0.1)
    all_ids = torch.arange(ROWS).view(-1, 5)
    query = torch.ones(len(all_ids), WIDTH, requires_grad=True)
    gr.segmented_logits(query, table.weight, all_ids, None, None, -1, 9).sum().backward()
    cut = stored.segments(9)
    pages = -(-ROWS * WIDTH * 4 // PAGE)
    assert stored.traffic.bytes_read == (pages + pages - (cut.pages_of(cut.count - 1).stop - cut.pages_of(cut.count - 2).start)) * PAGE


def test_a_write_to_the_weight_in_memory_is_seen(tmp_path: Path) -> None:
    table, weight = made(tmp_path / "t")
    logits(table)
    with torch.no_grad():
        table.weight.mul_(3)
    assert torch.equal(logits(table), gr.sampled_logits(torch.ones(30, WIDTH), weight * 3, ids(), None, None, 0))


def test_copies_and_views_are_ordinary_tables(tmp_path: Path) -> None:
    table, weight = made(tmp_path / "t")
    assert stored_table(table.weight.detach()) is not None
    for other in (table.weight.clone(), table.weight[1:], table.weight.t(), table.weight.double()):
        assert stored_table(other) is None
    part = table.weight[:1000]
    few = ids() % 1000
    want = gr.sampled_logits(torch.ones(30, WIDTH), weight[:1000], few, None, None, 0)
    assert torch.equal(gr.segmented_logits(torch.ones(30, WIDTH), part, few, None, None, 0, 4), want)


def test_a_checkpoint_of_a_table_comes_back(tmp_path: Path) -> None:
    table, weight = made(tmp_path / "t")
    offload.save(table, tmp_path / "copy")
    with torch.no_grad():
        table.weight.zero_()
    offload.load(table, tmp_path / "copy")
    assert torch.equal(table.weight, weight)
    assert torch.equal(logits(table), gr.sampled_logits(torch.ones(30, WIDTH), weight, ids(), None, None, 0))
    assert sorted(x.name for x in tmp_path.iterdir()) == ["copy", "t"]


def test_the_rest_of_a_checkpoint_is_without_the_table(tmp_path: Path) -> None:
    table, _ = made(tmp_path / "t")
    model = nn.ModuleDict({"catalogue": table, "head": nn.Linear(3, 3)})
    assert list(offload.dense_state(model)) == ["head.weight", "head.bias"]


def test_where_the_file_system_knows_no_direct_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_file, "_opened_direct", lambda path, mode: None)
    table, weight = made(tmp_path / "t")
    update = offload.SGD(table, 0.5)
    query = torch.ones(30, WIDTH, requires_grad=True)
    logits(table, query).sum().backward()
    update.step()
    want = weight.index_add(0, ids().flatten(), torch.full((150, WIDTH), -0.5))
    want[0] = weight[0]
    torch.testing.assert_close(table.weight.detach(), want)


# ------------------------------------------------------------------------------------------------ segments
@given(rows=st.integers(1, 5000), row_bytes=st.integers(1, 9000), segments=st.integers(1, 40))
def test_segments_cover_all_rows_by_whole_pages(rows: int, row_bytes: int, segments: int) -> None:
    cut = Segments.of(rows, row_bytes, segments)
    assert 1 <= cut.count <= segments
    assert [row for k in range(cut.count) for row in cut.rows_of(k)] == list(range(rows))
    for k in range(cut.count):
        pages = cut.pages_of(k)
        assert pages.start * PAGE == cut.rows_of(k).start * row_bytes
        assert pages.stop * PAGE >= cut.rows_of(k).stop * row_bytes


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=300))
def test_extents_hold_what_is_needed_and_write_nothing_that_is_not_there(pages: list[tuple[bool, bool]]) -> None:
    needed, valid = (np.array([x[k] for x in pages], np.bool_) for k in (0, 1))
    after = valid.copy()
    for begin, end in extents_to_read(needed, valid):
        assert needed[begin] and not valid[begin] and needed[end - 1]
        after[begin:end] = True
    assert not (needed & ~after).any()
    written = np.zeros_like(needed)
    for begin, end in extents_to_write(needed, after):
        assert after[begin:end].all()
        written[begin:end] = True
    assert not (needed & ~written).any()


# ----------------------------------------------------------------------------------------------- bad input
def truncate(path: Path) -> None:
    os.truncate(path, PAGE)


@pytest.mark.parametrize("kernels", ["0", "1"])
def test_a_file_that_was_cut_short_is_an_error_and_no_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: str
) -> None:
    monkeypatch.setenv("GR_COMPILE_CPU_KERNELS", kernels)
    table, weight = made(tmp_path / "t")
    offload.save(table, tmp_path / "copy")
    query = torch.ones(30, WIDTH, requires_grad=True)
    update = offload.SGD(table, 0.1)
    found = logits(table, query)
    truncate(tmp_path / "t")
    size = -(-weight.nbytes // PAGE) * PAGE
    message = rf"has 4096 bytes and must have {size}: .*offload.load"
    for act in (lambda: logits(table), lambda: found.sum().backward(), lambda: offload.flush(table),
                lambda: offload.save(table, tmp_path / "other")):  # fmt: skip
        with pytest.raises(offload.TableFileError, match=message) as caught:
            act()
        assert caught.value.filename == str(tmp_path / "t")
    assert query.grad is None and not (tmp_path / "other").exists()
    offload.load(table, tmp_path / "copy")
    assert torch.equal(table.weight, weight)
    logits(table, query).sum().backward()
    update.step()
    assert not torch.equal(table.weight, weight)


@pytest.mark.parametrize("deferred", [False, True])
def test_a_file_that_is_cut_short_before_a_step(tmp_path: Path, deferred: bool) -> None:
    table, weight = made(tmp_path / "t")
    offload.save(table, tmp_path / "copy")
    update = offload.SGD(table, 0.1, deferred)
    query = torch.ones(30, WIDTH, requires_grad=True)
    logits(table, query).sum().backward()
    truncate(tmp_path / "t")
    with pytest.raises(offload.TableFileError, match=r"4096 bytes"):
        update.step()
        logits(table)
    offload.load(table, tmp_path / "copy")
    assert torch.equal(table.weight, weight)
    assert torch.equal(logits(table), gr.sampled_logits(torch.ones(30, WIDTH), weight, ids(), None, None, 0))


def test_a_part_of_a_table_whose_file_was_cut_short(tmp_path: Path) -> None:
    table, _ = made(tmp_path / "t")
    part = table.weight[:5]
    truncate(tmp_path / "t")
    with pytest.raises(offload.TableFileError, match=r"4096 bytes"):
        gr.segmented_logits(torch.ones(1, WIDTH), part, torch.zeros(1, 1, dtype=torch.int64), None, None, -1, 2)


def test_an_error_of_the_disk_while_a_step_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, _ = made(tmp_path / "t")
    update = offload.SGD(table, 0.1)
    logits(table, torch.ones(30, WIDTH, requires_grad=True)).sum().backward()

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwritev", fail)
        with pytest.raises(offload.TableFileError, match=r"Input/output error"):
            update.step()
    monkeypatch.undo()
    logits(table)


def test_no_file_and_a_file_of_another_table(tmp_path: Path) -> None:
    table = nn.Embedding(ROWS, WIDTH)
    weight = table.weight
    with pytest.raises(offload.TableFileError, match=r"no such file of a table; offload.move writes one.*nothing"):
        offload.attach(table, tmp_path / "nothing")
    offload.create(tmp_path / "other", ROWS, WIDTH * 2)
    with pytest.raises(offload.TableFileError, match=r"holds another table"):
        offload.attach(table, tmp_path / "other")
    offload.create(tmp_path / "short", 10, WIDTH)
    with pytest.raises(offload.TableFileError, match=r"\[3000, 24\]"):
        offload.attach(table, tmp_path / "short")
    assert table.weight is weight and (tmp_path / "short").stat().st_size == PAGE


def test_a_table_that_is_only_read(tmp_path: Path) -> None:
    _, weight = made(tmp_path / "t")
    os.chmod(tmp_path / "t", 0o444)
    table = offload.attach(nn.Embedding(ROWS, WIDTH), tmp_path / "t", writable=False)
    assert torch.equal(logits(table), gr.sampled_logits(torch.ones(30, WIDTH), weight, ids(), None, None, 0))
    assert not table.weight.requires_grad
    with pytest.raises(PermissionError, match=r"opened to be read only"):
        offload.SGD(table, 0.1)


def test_a_file_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "t")

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(offload.TableFileError, match=r"Permission denied; writable=False opens"):
        offload.attach(nn.Embedding(ROWS, WIDTH), tmp_path / "t")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written, and nothing has changed."""
    table, weight = made(tmp_path / "t")
    before = table.weight

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(offload.TableFileError, match=r"no room for .* bytes .*No space left"):
        offload.move(table, tmp_path / "u")
    with pytest.raises(offload.TableFileError, match=r"no room"):
        offload.save(table, tmp_path / "copy")
    query = torch.ones(30, WIDTH, requires_grad=True)
    found = logits(table, query)
    with pytest.raises(offload.TableFileError, match=r"no room"):
        found.sum().backward()  # the table takes a gradient, which needs a file
    assert table.weight is before and torch.equal(table.weight, weight)
    assert [x.name for x in tmp_path.iterdir()] == ["t"]


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    code = (
        "import resource, sys, torch; from gr_compile import offload\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "try: offload.move(torch.nn.Embedding(5000, 8), sys.argv[1])\n"
        "except offload.TableFileError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "t")], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "no room for 163840 bytes" in done.stdout, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0)])
def test_a_table_without_rows(tmp_path: Path, sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"at least one row"):
        offload.create(tmp_path / "t", *sizes)


def test_dtypes_and_tables_in_memory(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not torch\.int8"):
        offload.create(tmp_path / "t", 4, 4, torch.int8)
    for act in (offload.flush, lambda x: offload.SGD(x, 0.1), lambda x: offload.save(x, tmp_path / "t")):
        with pytest.raises(ValueError, match=r"lies in no file"):
            act(nn.Embedding(3, 3))


def test_more_segments_than_rows_and_empty_batches(tmp_path: Path) -> None:
    table, weight = made(tmp_path / "t")
    query = torch.ones(30, WIDTH)
    found = gr.segmented_logits(query, table.weight, ids(), None, None, 0, 10**6)
    assert torch.equal(found, gr.sampled_logits(query, weight, ids(), None, None, 0))
    update = offload.SGD(table, 0.1)
    for tokens, samples in ((0, 5), (4, 0)):
        x = torch.ones(tokens, WIDTH, requires_grad=True)
        none = torch.zeros(tokens, samples, dtype=torch.int64)
        made_of_none = gr.segmented_logits(x, table.weight, none, None, None, 0, 4)
        assert made_of_none.shape == (tokens, samples)
        made_of_none.sum().backward()
        update.step()
    assert torch.equal(table.weight, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bad_ids_change_nothing(tmp_path: Path, dtype: torch.dtype) -> None:
    table, weight = made(tmp_path / "t", dtype)
    bad = ids()
    bad[3, 2] = ROWS
    with pytest.raises(IndexError, match=r"ids\[3, 2\] is 3000, which is no row of a table of 3000"):
        gr.segmented_logits(torch.ones(30, WIDTH, dtype=dtype), table.weight, bad, None, None, 0, 4)
    assert torch.equal(table.weight, weight)
