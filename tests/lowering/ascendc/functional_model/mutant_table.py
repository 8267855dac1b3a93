"""The table of mutants in docs/ascend.md, made of what the tests are run with: `python mutant_table.py` writes it there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import test_cube
import test_parameters
import test_rules

PAGE = Path(__file__).parents[4] / "docs" / "ascend.md"
BEGIN, END = "<!-- mutants: made by mutant_table.py -->\n", "<!-- end of mutants -->\n"
_OF: dict[Callable[..., Any], str] = {
    test_rules.test_rules_of_queues_and_copies: "queues",
    test_rules.test_rules_of_flags: "flags",
    test_rules.test_limits_of_instructions: "instructions",
    test_rules.test_rules_of_sync_all: "cores",
    test_rules.test_rules_of_atomics_and_cross_core_flags: "cores",
    test_cube.test_rules_of_the_cube_core: "cube",
    test_cube.test_rules_of_types_and_edges: "cube",
    test_cube.test_rules_between_cube_and_vector_cores: "mixed",
    test_parameters.test_on_a_vector_core: "parameters",
    test_parameters.test_cross_core_flags: "parameters",
    test_parameters.test_on_a_cube_core: "parameters",
}


def rows() -> Iterator[tuple[str, str, str]]:
    """(kernel, mutant, pattern of what the model says): each is a case of a test that expects just that."""
    for test, kernel in _OF.items():
        (mark,) = (mark for mark in test.pytestmark if mark.name == "parametrize")  # type: ignore[attr-defined]
        for case in mark.args[1]:
            yield kernel, case[0], case[-1]


def as_markdown() -> str:
    """The table, between the comments that mark its place."""
    lines = ["| kernel | mutant | what the model says, as a pattern |", "|---|---|---|"]
    for kernel, mutant, pattern in rows():
        escaped = pattern.replace("|", "\\|")
        lines.append(f"| {kernel} | `{mutant}` | `{escaped}` |")
    return BEGIN + "\n".join(lines) + "\n" + END


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + as_markdown() + rest.partition(END)[2], encoding="utf-8")
