"""Machine descriptions."""

from __future__ import annotations

import pytest

from gr_compile.lowering.ascendc.machine import machine, machines


def test_every_machine_can_be_read() -> None:
    names = {"910_93": "Ascend 910_93, one die", "910b1": "Ascend 910B1", "910b3": "Ascend 910B3"}
    assert {x: machine(x).name for x in machines()} == names


def test_what_no_source_gives_is_said() -> None:
    assert not machine("910b1").inferred
    assert "taken to be" in machine("910b3").inferred and "everything" in machine("910_93").inferred


def test_an_unknown_machine_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown machine '910z'; known: 910_93, 910b1, 910b3"):
        machine("910z")


@pytest.mark.parametrize(
    ("name", "meant"), [("910B1", "'910b1'"), ("910b", "'910b3' or '910b1'"), ("910-93", "'910_93'")]
)
def test_names_that_are_nearly_one(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match="did you mean") as error:
        machine(name)
    assert meant.split(" or ")[0] in str(error.value)


def test_a_name_that_is_like_none() -> None:
    with pytest.raises(ValueError, match=r"known: 910_93, 910b1, 910b3$"):
        machine("h200")
