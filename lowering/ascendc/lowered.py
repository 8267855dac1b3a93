"""What a lowered model needs of AscendC: the operator project of its graphs, and what to say of it.

    graphs with gr::pack, gr::jagged_attention  ->  operators/ (GrPack, GrJaggedAttention)
                                                    and {"kernels": [...], "without_kernel": [...]}
"""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.fx as fx

from gr_compile.lowering.ascendc.attention.printed import OPERATORS as ATTENTION
from gr_compile.lowering.ascendc.attention.printed import AttentionCall, Printed, Programs, print_programs
from gr_compile.lowering.ascendc.attention.second_opinion import NoOpinion, find_compiler, opinions
from gr_compile.lowering.ascendc.example import Sizes, at_example
from gr_compile.lowering.ascendc.machine import Machine
from gr_compile.lowering.ascendc.operators import OPERATORS, Operator
from gr_compile.lowering.ascendc.project import write_project
from gr_compile.lowering.ascendc.recipes import RECIPES
from gr_compile.lowering.ascendc.vector import kernel_name, vector_kernel

FOLDER = "operators"
_MOST_TEXT = 300  # characters of a reason, which may show a whole program


def write_operators(
    graphs: Sequence[tuple[fx.GraphModule, Sizes]],
    ge_types: Collection[str],
    folder: Path,
    machine: Machine,
    attention: Sequence[AttentionCall] = (),
) -> dict[str, Any]:
    """Write the project of all operators that GE graphs hold into folder/operators; JSON for the report.

    Args:
        graphs: with fake values, and the counts of the example; the tilings of their calls, at its sizes, are in the
            report.
        ge_types: the types of nodes in all GE graphs, of backwards, too.
        attention: the calls of attention in all GE graphs; their tiles are chosen for `machine`.
    """
    used = [name for name, row in OPERATORS.items() if row.ge_type in ge_types]
    printed = [name for name in used if name in RECIPES]
    programs = print_programs(attention, machine)
    chosen, refused = _attention(programs, attention, machine)
    refused += [
        {"operator": name, "reason": "there is no kernel for it"}
        for name in used if name not in RECIPES and name not in ATTENTION
    ]  # fmt: skip
    without = _counted(refused)
    if printed or programs.kernels:
        write_project(printed, folder / FOLDER, programs.kernels, without_kernel(without))
    tilings = [entry for graph, counts in graphs for entry in _tilings(graph, counts, machine)]
    known = {entry["operator"] for entry in tilings}
    tilings += [
        {"operator": name, "kernel": None, "reason": "its calls are in a backward; the host computes their tiling"}
        for name in printed if name not in known
    ]  # fmt: skip
    return {
        "folder": FOLDER if printed or programs.kernels else None,
        "machine": machine.name,
        "kernels": _counted([*tilings, *chosen]),
        "without_kernel": without,
        "second_opinion": _second_opinion(programs, machine),
    }


def without_kernel(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each entry of `without_kernel`: what a device cannot run until somebody writes that kernel."""
    return [
        f"{one['calls']} {'call' if one['calls'] == 1 else 'calls'} of {one['operator']}: no kernel is printed "
        f"({textwrap.shorten(one['reason'], _MOST_TEXT)}); the graphs that hold them do not run on a device without one"
        for one in entries
    ]


def _second_opinion(programs: Programs, machine: Machine) -> list[str]:
    """What Huawei's planner says of attention's tilings; why there is nothing, where it is not installed."""
    printed = [(operator, one) for operator, kernels in programs.kernels.items() for one in kernels]
    if not printed:
        return []
    try:
        compiler = find_compiler()
    except NoOpinion as why:
        return [f"bishengir-compile was not asked whether attention's tilings fit: {why}"]
    return [f"`{operator}`, tiling key {one.key}: {_said(compiler, one, machine)}" for operator, one in printed]


def _said(compiler: Path, one: Printed, machine: Machine) -> str:
    try:
        found = opinions(compiler, one.printer, one.tiling, machine)
    except NoOpinion as why:
        return f"no opinion: {why}"
    worst = max(found, key=lambda opinion: opinion.required)
    if worst.fits:
        return f"bishengir-compile fits its {len(found)} functions of tiles into the unified buffer"
    return f"bishengir-compile refuses it: {worst.required} bytes of {worst.available} in the unified buffer"


def _attention(
    programs: Programs, calls: Sequence[AttentionCall], machine: Machine
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What to say of calls with a kernel, and of those without."""
    chosen, refused = [], []
    for call in calls:
        one = programs.of(call)
        if one is None:
            refused.append({"operator": call.operator, "reason": programs.refused[call.constants()]})
            continue
        numbers = one.numbers(call.call, machine)
        chosen.append({
            "operator": call.operator, "kernel": kernel_name(OPERATORS[call.operator]), "tiling_key": one.key,
            "blocks": numbers.pop("blocks"), "workspace_bytes": numbers.pop("workspace"), "tiling": numbers,
            "reason": one.tiling.reason,
        })  # fmt: skip
    return chosen, refused


def _counted(tilings: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Equal entries once, with their number."""
    found: list[dict[str, Any]] = []
    for entry in tilings:
        if entry not in found:
            found.append(entry)
    return [{**entry, "calls": tilings.count(entry)} for entry in found]


def _tilings(graph: fx.GraphModule, counts: Sizes, machine: Machine) -> Iterator[dict[str, Any]]:
    for node in graph.graph.nodes:
        row = _row(node)
        if row is None:
            continue
        kernel = vector_kernel(f"gr::{row.name}", _arguments(row, node, counts), machine)
        yield {
            "operator": f"gr::{row.name}", "kernel": kernel.name, "blocks": kernel.blocks,
            "workspace_bytes": kernel.workspace_bytes, "tiling": dict(kernel.tiling), "reason": kernel.reason,
        }  # fmt: skip


def _row(node: fx.Node) -> Operator | None:
    """The operator that a node calls, where there is a kernel for it."""
    schema = getattr(node.target, "_schema", None)
    return OPERATORS[schema.name] if schema is not None and schema.name in RECIPES else None


def _arguments(row: Operator, node: fx.Node, counts: Sizes) -> dict[str, Any]:
    """The arguments of a call by name, at the example's sizes; tensors without content."""
    arguments = row.overload._schema.arguments
    given = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}
    given.update(zip((argument.name for argument in arguments), node.args))
    given.update(node.kwargs)
    return {name: at_example(fx.node.map_arg(value, _value), counts) for name, value in given.items()}


def _value(node: fx.Node) -> Any:
    return node.meta["val"]
