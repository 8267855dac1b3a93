"""The fact that eliminate-padding leaves for later passes: one raggedness, its packed index, and what was proved of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gr_compile.passes.eliminate_padding.packed import PackedIndex

RAGGED_FACT = "ragged"


@dataclass(frozen=True)
class Ragged:
    """One packed index.

    Attributes:
        index: its nodes.
        closed: names of attention contractions of which it is proved that a kept query reads only kept keys, and
            that a query which sees no key has all its keys kept.
    """

    index: PackedIndex
    closed: frozenset[str]
