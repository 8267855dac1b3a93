"""gr::occurring and gr::numbered: the distinct ids of a batch, and the number of each id among them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import gr_compile.lowering.cpu.places  # noqa: F401
from gr_compile.ops import distinct as distinct_ids
from gr_compile.ops.places import true_places_reference

ROWS = 11


def distinct(ids: Tensor, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    occurring = torch.ops.gr.occurring(ids, rows)
    found = torch.ops.gr.true_places(occurring, torch.ops.gr.count_true(occurring))
    return found, torch.ops.gr.numbered(ids, found, rows)


def ids_of(shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(ROWS, shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("shape", [(0,), (7,), (3, 5), (0, 4), (3, 0), (), (2, 3, 4)])
def test_against_unique(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    ids = ids_of(shape, dtype)
    want, inverse = torch.unique(ids.long(), return_inverse=True)
    found, numbered = distinct(ids)
    assert torch.equal(found, want) and torch.equal(numbered, inverse)
    assert numbered.dtype == torch.int64
    if len(shape) == 3:
        turned = ids.transpose(0, 2)
        assert torch.equal(distinct(turned)[1], inverse.transpose(0, 2))


@given(st.lists(st.integers(0, ROWS - 1), max_size=30))
def test_rows_of_distinct_ids_spread_are_the_rows_of_ids(listed: list[int]) -> None:
    ids = torch.tensor(listed, dtype=torch.int64)
    found, numbered = distinct(ids)
    assert torch.equal(found[numbered], ids)
    assert found.tolist() == sorted(set(listed))


@pytest.mark.parametrize("shape", [(0,), (5,), (3, 4)])
def test_opcheck(shape: tuple[int, ...]) -> None:
    ids = ids_of(shape)
    torch.library.opcheck(torch.ops.gr.occurring.default, (ids, ROWS))
    torch.library.opcheck(torch.ops.gr.numbered.default, (ids, distinct(ids)[0], ROWS))


@pytest.mark.parametrize("wrong, place", [(ROWS, "[1, 2]"), (-1, "[1, 2]")])
def test_an_id_outside_of_the_table_is_named_with_its_place(wrong: int, place: str) -> None:
    ids = torch.zeros(2, 4, dtype=torch.int64)
    ids[1, 2] = wrong
    with pytest.raises(IndexError, match="index out of range") as error:
        torch.ops.gr.occurring(ids, ROWS)
    assert f"id {wrong} at place {place}" in str(error.value) and f"{ROWS} rows" in str(error.value)


@pytest.mark.parametrize("call, words", [
    (lambda: torch.ops.gr.occurring(torch.ones(3), ROWS), "occurring: ids must be int64 or int32, not torch.float32"),
    (lambda: torch.ops.gr.occurring(torch.zeros(3, dtype=torch.long), -1), "0 rows or more, not -1"),
    (lambda: torch.ops.gr.numbered(torch.zeros(3).bool(), torch.arange(3), ROWS), "numbered: ids must be int64"),
    (lambda: torch.ops.gr.numbered(torch.arange(3), torch.arange(3.0), ROWS), "distinct must be int64 .U."),
])  # fmt: skip
def test_errors_name_the_operator_and_the_operand(call, words) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_the_cpus_places_are_those_of_the_reference() -> None:
    mask = torch.tensor([[True, False, True], [False, True, True]])
    for held in (mask, mask.t(), mask[:0]):
        for count in (0, 2, 4, 6):
            assert torch.equal(torch.ops.gr.true_places(held, count), true_places_reference(held, count))


def test_no_size_is_told_by_data_but_the_count() -> None:
    data_dependent = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
    for operator in (distinct_ids.occurring, distinct_ids.numbered):
        assert not data_dependent & set(operator.tags)
