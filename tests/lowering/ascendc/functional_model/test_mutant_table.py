"""docs/ascend.md lists every mutant, and every mutant of a kernel is a case of a test."""

from __future__ import annotations

import pytest
from mutant_table import PAGE, as_markdown, rows
from programs import mutants

PASS = {("cube", "TWICE")}  # what it does is allowed: a test of its own shows where


def test_the_page_has_the_table() -> None:
    assert as_markdown() in PAGE.read_text(encoding="utf-8"), "run: python mutant_table.py, in the folder of this test"


@pytest.mark.parametrize("kernel", sorted({kernel for kernel, _, _ in rows()}))
def test_every_mutant_is_in_it(kernel: str) -> None:
    listed = {mutant for name, mutant, _ in rows() if name == kernel}
    assert set(mutants(kernel)) - {"NOTHING"} - {name for of, name in PASS if of == kernel} <= listed
