"""What is known of an Ascend machine: core counts and capacities, one data file a machine, never constants in code.

The numbers of a file are the vendor's configuration files' (docs/ascend.md says where they come from), have their
source in its `sources`, or are among those that it says are inferred.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

_FOLDER = Path(__file__).parent / "machines"


@dataclass(frozen=True)
class Machine:
    """An AI processor. Sizes in bytes: one core's buffers, and the L2 cache that all cores share.

    memory, memory_bandwidth: bytes, and bytes a second, of global memory. l2_bandwidth: bytes a second between the L2
    cache and all cores, reads and writes together. cube_flops: peak of all cube cores a second
    in float16. vector_width: bytes that one vector core computes a cycle. sources: by field, where a number is from.
    `inferred`: which of the numbers no source gives, and what they are taken from; "" where every one has a source.
    """

    name: str
    cube_cores: int
    vector_cores: int
    unified_buffer: int
    l1: int
    l0a: int
    l0b: int
    l0c: int
    bias_table: int
    megahertz: int
    l2: int
    memory: int
    memory_bandwidth: float
    l2_bandwidth: float
    cube_flops: float
    vector_width: int
    sources: dict[str, str]
    inferred: str = ""


def machines() -> list[str]:
    """The names that `machine` knows."""
    return sorted(x.stem for x in _FOLDER.glob("*.json"))


def machine(name: str) -> Machine:
    """The machine of a name, as `machines` lists them.

    Raises:
        ValueError: there is no data file of that name, or one that lacks a field.
    """
    path = _FOLDER / f"{name}.json"
    if name not in machines():
        near = difflib.get_close_matches(name.lower(), machines())
        meant = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"unknown machine {name!r}; known: {', '.join(machines())}{meant}")
    found = json.loads(path.read_text())
    lacking = [x.name for x in fields(Machine) if x.default is MISSING and x.name not in found]
    if lacking:
        raise ValueError(f"{path} lacks {', '.join(lacking)}")
    return Machine(**found)
