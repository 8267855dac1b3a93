"""Vector kernels of the `gr::` operators: the AscendC source with a call's dtypes, and the tiling of the call.

    vector_kernel("gr::pack", {"dense": f16[4, 64, 32], "index": i64[95]}, machine("910b1"))  -> Kernel("gr_pack", ...)
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gr_compile.lowering.ascendc.formulas import evaluate
from gr_compile.lowering.ascendc.kernel import Kernel
from gr_compile.lowering.ascendc.machine import Machine
from gr_compile.lowering.ascendc.operators import NO_NUMBER, OPERATORS, Operator
from gr_compile.lowering.ascendc.recipe import Recipe
from gr_compile.lowering.ascendc.recipes import RECIPES

_FOLDER = Path(__file__).parent / "kernels"
CTYPES: Mapping[str, str] = {
    "float32": "float", "float16": "half", "bfloat16": "bfloat16_t", "int32": "int32_t", "int64": "int64_t",
    "bool": "bool",
}  # fmt: skip


def vector_kernel(operator: str, arguments: Mapping[str, Any], machine: Machine) -> Kernel:
    """The kernel of one call.

    Args:
        operator: a name of `RECIPES`.
        arguments: of the torch operator, by name; of a tensor the sizes and the dtype matter, not the values.

    Raises:
        ValueError: a dtype, or an argument, that the table of operators does not allow.
    """
    row, recipe = OPERATORS[operator], RECIPES[operator]
    types = call_types(row, arguments)
    if why := row.unserved(arguments):
        raise ValueError(why)
    found = evaluate(recipe.formulas, CallFacts(row, arguments), asdict(machine))
    return Kernel(
        name=kernel_name(row),
        source=kernel_source(row, {variable: CTYPES[dtype] for variable, dtype in types.items()}),
        tiling_fields=tiling_fields(recipe),
        tiling={name: found[name] for name, _ in tiling_fields(recipe)},
        blocks=found["blocks"],
        workspace_bytes=found["workspace"],
        reason=recipe.reason.format(**found),
    )


def kernel_name(row: Operator) -> str:
    """Of the kernel's function: the GE type in snake case, as an operator project names it."""
    return f"gr_{row.name}"


def tiling_fields(recipe: Recipe) -> tuple[tuple[str, str], ...]:
    """Names and C++ types of the tiling's fields."""
    return tuple((formula.name, "int64_t") for formula in recipe.formulas if formula.field)


def kernel_source(row: Operator, types: Mapping[str, str], tiling: str = "") -> str:
    """The C++ file of an operator's kernel.

    Args:
        types: what each type variable of the operator is in C++.
        tiling: the name of the tiling struct, with which the file belongs to an operator project; "" for the
            functional model, which has a struct of its own.
    """
    recipe = RECIPES[f"gr::{row.name}"]
    head, *pieces = [(_FOLDER / name).read_text(encoding="utf-8").strip() for name in recipe.files]
    asked = set(re.findall(r"\b[A-Z]\b", "\n".join(pieces)))  # a kernel that moves bytes has one source for all dtypes
    using = [f"using {name} = Stored<{ctype}>::type;" for name, ctype in types.items() if name in asked]
    include = f'#include "{kernel_name(row)}_tiling.h"' if tiling else ""
    title = f"// gr::{row.name}: {row.summary}."
    parts = [title, include, head, "\n".join(using), *pieces, "}  // namespace gr", _entry(row, recipe, tiling)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _entry(row: Operator, recipe: Recipe, tiling: str) -> str:
    """The kernel's function. Cores of a vector kernel may only wait for each other in a MIX_AIV_1_0 kernel."""
    names = [*(port.name for port in (*row.inputs, *row.outputs)), "workspace"]
    parameters = ", ".join(f"GM_ADDR {name}" for name in [*names, "tiling"])
    lines = [
        f'extern "C" __global__ __aicore__ void {kernel_name(row)}({parameters}) {{',
        f"  KERNEL_TASK_TYPE_DEFAULT({'KERNEL_TYPE_MIX_AIV_1_0' if recipe.meets else 'KERNEL_TYPE_AIV_ONLY'});",
        *([f"  REGISTER_TILING_DEFAULT({tiling});"] if tiling else []),
        "  GET_TILING_DATA(t, tiling);",
        f"  gr::Run({', '.join(names[:-1])}, AscendC::GetUserWorkspace(workspace), t);",
        "}",
    ]
    return "\n".join(lines)


def call_types(row: Operator, arguments: Mapping[str, Any]) -> dict[str, str]:
    """The dtype of each type variable that an input of the call decides.

    Raises:
        ValueError: a dtype that the table does not allow.
    """
    found: dict[str, str] = {}
    for port in row.inputs:
        value = arguments[port.argument]
        if not isinstance(value, torch.Tensor):
            continue
        dtype = str(value.dtype).removeprefix("torch.")
        if dtype not in port.types:
            raise ValueError(f"gr::{row.name}: {port.name} is {dtype}; its kernels take {', '.join(port.types)}")
        if port.variable:
            found[port.variable] = dtype
    return found


class CallFacts:
    """What formulas ask of a call, from its arguments."""

    def __init__(self, row: Operator, arguments: Mapping[str, Any]) -> None:
        self.row, self.arguments = row, arguments

    def fact(self, name: str, words: Sequence[str | int]) -> int:
        value, rest = self.arguments[str(words[0])], words[1:]
        match name:
            case "size":
                return int(value.shape[int(rest[0])])
            case "product":
                return math.prod(value.shape[int(rest[0]) :])
            case "elements":
                return int(value.numel())
            case "item":
                return int(value.dtype.itemsize)
            case "is_float32":
                return int(value.dtype == torch.float32)
            case "number" | "attribute" | "truth":
                return int(value)
            case "has" | "given":
                return int(value is not None)
            case "bits":
                bits = struct.pack("<f", NO_NUMBER if value is None else value)
                return int.from_bytes(bits, "little", signed=True)
        raise ValueError(f"{name} is nothing that is known of a call of gr::{self.row.name}")


KERNELS: Mapping[str, Callable[[Mapping[str, Any], Machine], Kernel]] = {
    name: partial(vector_kernel, name) for name in RECIPES
}
"""By operator, what makes the kernel of a call from its arguments."""
