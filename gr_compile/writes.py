"""Writes to a model's own buffers (running statistics, counters): `copy_` to the placeholder, after everything else.

In between the graph is functional: what a buffer becomes is a value like any other, and whoever reads the buffer reads
a copy of what it was before the call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.fx as fx

from gr_compile.editor import GraphEditor

COPY = torch.ops.aten.copy_.default
_BEFORE = "gr_before_the_call"


def may_be_written(placeholder: fx.Node, source: str) -> bool:
    """A buffer of a module that no gradient flows to."""
    value = placeholder.meta.get("example_value", placeholder.meta.get("val"))
    return "_buffers[" in source and isinstance(value, torch.Tensor) and not value.requires_grad


def write(graph_module: fx.GraphModule, positions: Sequence[int], returned: Mapping[int, int]) -> None:
    """The graph returns (outputs, [what the inputs at `positions` become]); after this only outputs, and writes.

    `returned`: outputs that are a buffer itself, and which of the written ones: `self.count += 1` gives it back.
    """
    graph = graph_module.graph
    output = next(iter(graph.find_nodes(op="output")))
    outputs, values = output.args[0]
    placeholders, writes = graph.find_nodes(op="placeholder"), []
    for position, value in zip(positions, values):
        with graph.inserting_before(output):
            node = graph.call_function(COPY, (placeholders[position], value))
        node.meta["val"] = placeholders[position].meta["val"]
        node.meta["stack_trace"] = value.meta.get("stack_trace")
        writes.append(node)
    output.args = (tuple(writes[returned[k]] if k in returned else x for k, x in enumerate(outputs)),)
    _read_copies(graph)


def written(graph: fx.Graph) -> set[fx.Node]:
    """The placeholders that the graph writes to."""
    return {node.args[0] for node in graph.find_nodes(op="call_function", target=COPY)}


def shared_write(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> fx.Node | None:
    """A buffer that is written and lies in the memory of another input, which the graph takes for two values."""
    placeholders = graph_module.graph.find_nodes(op="placeholder")
    values = {n: x for n, x in zip(placeholders, inputs) if isinstance(x, torch.Tensor) and x.layout is torch.strided}
    owners = Counter(x.untyped_storage()._cdata for x in values.values())
    found = (n for n in written(graph_module.graph) if n in values and owners[values[n].untyped_storage()._cdata] > 1)
    return next(found, None)


def _read_copies(graph: fx.Graph) -> None:
    """Autograd keeps operands for the backward as they were before the call."""
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for placeholder in written(graph):
        readers = [user for user in placeholder.users if user.target is not COPY]
        with graph.inserting_before(first):
            before = graph.call_function(torch.ops.aten.clone.default, (placeholder,))
        before.meta.update(placeholder.meta)
        before.meta[_BEFORE] = True
        for user in readers:
            user.replace_input_with(placeholder, before)


def settle_writes(editor: GraphEditor) -> None:
    """After a pass: what it made to read a buffer reads the copy, wherever it stands; writes come last."""
    graph = editor.graph
    placeholders = written(graph)
    if not placeholders:
        return
    first = next(node for node in graph.nodes if node.op != "placeholder")
    for placeholder in placeholders:
        copies = [user for user in placeholder.users if user.meta.get(_BEFORE)]
        strays = [user for user in placeholder.users if user.target is not COPY and user not in copies]
        if strays and not copies:
            with editor.at(before=first, like=first):
                copies = [editor.call(torch.ops.aten.clone.default, placeholder)]
            copies[0].meta[_BEFORE] = True
        for user in strays:
            editor.set_argument(user, placeholder, copies[0])
    output = next(iter(graph.find_nodes(op="output")))
    for node in graph.find_nodes(op="call_function", target=COPY):
        output.prepend(node)
