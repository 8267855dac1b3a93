"""Machine descriptions."""

from __future__ import annotations

import pytest

from gr_compile.lowering.ascendc.machine import machine, machines


def test_every_machine_can_be_read() -> None:
    assert {x: machine(x).name for x in machines()} == {"910b1": "Ascend 910B1"}


def test_an_unknown_machine_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown machine '910z'; known: 910b1"):
        machine("910z")
