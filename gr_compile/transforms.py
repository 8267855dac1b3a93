"""vmap regions of a Dynamo graph, written out: what they compute as ordinary operators over one more dimension.

Recent transformers build attention masks by nested vmaps over a function of (batch, head, query, key); Dynamo puts
the entering and leaving of each into the graph. A region is traced by itself below functorch, which gives the ATen
operators that it runs, and these take its place.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx
from torch._functorch import predispatch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

_ENTER, _LEAVE = predispatch._vmap_increment_nesting, predispatch._vmap_decrement_nesting
_MODES = (
    torch._C._set_grad_enabled, torch.amp.autocast_mode._enter_autocast, torch.amp.autocast_mode._exit_autocast,
)  # fmt: skip


def write_out_vmaps(module: fx.GraphModule, fake_mode: FakeTensorMode) -> fx.GraphModule:
    """`module`, or a copy of it without vmap regions. A region that cannot be traced stays."""
    if not any(node.target is _ENTER for node in module.graph.nodes):
        return module
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    copy = fx.GraphModule(module, graph)
    for region in _regions(graph):
        if not any(node.target in _MODES for node in region):
            _write_out(copy, region, fake_mode)
    graph.lint()
    copy.recompile()
    return copy


def _regions(graph: fx.Graph) -> list[list[fx.Node]]:
    """The outermost regions, each from its first entering to the leaving that matches."""
    found: list[list[fx.Node]] = []
    depth = 0
    for node in graph.nodes:
        if node.target is _ENTER:
            if not depth:
                found.append([])
            depth += 1
        if depth:
            found[-1].append(node)
        if node.target is _LEAVE:
            depth -= 1
    return found


def _write_out(module: fx.GraphModule, region: list[fx.Node], fake_mode: FakeTensorMode) -> None:
    inside = set(region)
    inputs = list(dict.fromkeys(x for node in region for x in node.all_input_nodes if x not in inside))
    outputs = [node for node in region if any(user not in inside for user in node.users)]
    values = [x.meta.get("example_value", x.meta.get("val")) for x in inputs]
    if any(value is None for value in values):
        return
    traced = _traced(module, region, inputs, outputs, values, fake_mode)
    if traced.graph.find_nodes(op="get_attr"):
        return
    before, stack = region[0].prev, region[-1].meta.get("stack_trace") or region[0].meta.get("stack_trace")
    with module.graph.inserting_before(region[0]):
        given = dict(zip(traced.graph.find_nodes(op="placeholder"), inputs))
        results: Any = module.graph.graph_copy(traced.graph, given)
    written = before.next
    while written is not region[0]:
        written.meta["stack_trace"] = stack
        written = written.next
    for old, new in zip(outputs, results):
        old.replace_all_uses_with(new)
    for node in reversed(region):
        module.graph.erase_node(node)


def _traced(
    module: fx.GraphModule, region: list[fx.Node], inputs: list[fx.Node], outputs: list[fx.Node], values: list[Any],
    fake_mode: FakeTensorMode,
) -> fx.GraphModule:  # fmt: skip
    """The region as a graph of ATen operators, (inputs) -> tuple of outputs."""
    alone = fx.Graph()
    known = {node: alone.placeholder(node.name) for node in inputs}
    for node in region:
        known[node] = alone.node_copy(node, known.__getitem__)
    alone.output(tuple(known[node] for node in outputs))
    function = fx.Interpreter(fx.GraphModule(module, alone)).run
    with fake_mode, torch.no_grad():
        return make_fx(function, tracing_mode="real", _allow_non_fake_inputs=True)(*values)
