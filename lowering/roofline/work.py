"""What the nodes of a graph have to do: FLOPs of cube cores, operations of vector cores, bytes of global memory.

A graph is cut into *steps*. A matrix product, an attention and a lookup are steps of their own. Everything else that is
no view is memory-bound and is fused: operators between the same two products, connected with each other, are one step
that reads what comes from outside once and writes what others read once (the best that a hand-written kernel can do).
What stands between which products is the node's *level*, the number of products on the longest way to it; two connected
nodes of one level can have no product between them. A node that is no smaller than what it reads goes down to the level
of its first reader: storing it would cost more than computing it there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx

from gr_compile.lowering.ascendc.machine import Machine
from gr_compile.lowering.roofline.attention import AttentionWork, Tiled

aten, gr = torch.ops.aten, torch.ops.gr
_VIEWS = {
    aten.view, aten.reshape, aten._unsafe_view, aten.permute, aten.t, aten.transpose, aten.expand, aten.slice,
    aten.select, aten.unsqueeze, aten.squeeze, aten.split, aten.split_with_sizes, aten.alias, aten.detach,
    aten.as_strided,
}  # fmt: skip
_PRODUCTS = {aten.mm, aten.addmm, aten.bmm}
_LOOKUPS = {
    aten.embedding, aten.embedding_dense_backward, gr.lookup_gradient, gr.pack, gr.unpack, aten.index,
    aten.index_select, aten.gather, aten.index_add,
}  # fmt: skip
_TABLE_GRADIENTS = {aten.embedding_dense_backward, gr.lookup_gradient}
_ATTENTION = {gr.jagged_attention, gr.jagged_attention_backward}


@dataclass
class Step:
    """One kernel. flops: of the cube cores; vector: operations on single numbers; writes: nodes put into memory; tiled:
    the time that its tiling gives, for attention."""

    kind: str
    label: str
    flops: float = 0.0
    vector: float = 0.0
    bytes: float = 0.0
    writes: list[fx.Node] = field(default_factory=list)
    tiled: Tiled | None = None


def steps_of(graph: fx.Graph, lengths: list[int], machine: Machine) -> list[Step]:
    """The steps of a graph whose attention runs over sequences of these lengths."""
    groups = _Groups(graph)
    attention = AttentionWork(lengths, machine)
    made = []
    for node in graph.nodes:
        packet = packet_of(node)
        if packet in _PRODUCTS:
            made.append(_product(node))
        elif packet in _ATTENTION:
            x = attention.of(node)
            made.append(Step("attention", x.label, x.flops, x.vector, _moved(node), results_of(node), x.tiled))
        elif packet in _LOOKUPS:
            made.append(_lookup(node))
    return made + [fused(group) for group in groups.found()]


def packet_of(node: fx.Node) -> Any:
    """The operator without its overload; None for what is no operator."""
    return getattr(node.target, "overloadpacket", None) if node.op == "call_function" else None


def is_view(node: fx.Node) -> bool:
    """Whether a node moves nothing."""
    return packet_of(node) in _VIEWS or (node.op == "call_function" and packet_of(node) is None)


def base_of(node: fx.Node) -> fx.Node:
    """The node whose memory a view reads; an item of a list of results is memory of its own."""
    while is_view(node) and isinstance(node.args[0], fx.Node) and packet_of(node.args[0]) not in _ATTENTION:
        node = node.args[0]
    return node


def results_of(node: fx.Node) -> list[fx.Node]:
    """The node, or its items where it has several results."""
    return [node] if isinstance(node.meta["val"], torch.Tensor) else list(node.users)


def size_of(node: fx.Node) -> int:
    """Bytes of a tensor; 0 for what is none. A table's gradient, and a sum of such, has the rows looked up."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return 0
    if packet_of(node) in _TABLE_GRADIENTS:
        return size_of(node.args[0])  # type: ignore[arg-type]
    if _is_table_gradient(node):
        return sum(size_of(x) for x in node.all_input_nodes)
    return _bytes(value)


def _is_table_gradient(node: fx.Node) -> bool:
    if packet_of(node) is not aten.add:
        return packet_of(node) in _TABLE_GRADIENTS
    return len(node.all_input_nodes) == 2 and all(map(_is_table_gradient, node.all_input_nodes))


def _bytes(value: torch.Tensor) -> int:
    return int(value.numel()) * value.element_size()


def _read(node: fx.Node) -> int:
    """Bytes that a reader of a node reads: an expanded value is read once."""
    return min(size_of(node), size_of(base_of(node)) or size_of(node))


def _moved(node: fx.Node) -> float:
    """Bytes of the operands and of the results."""
    value = node.meta["val"]
    results = [x for x in (value if isinstance(value, list | tuple) else [value]) if isinstance(x, torch.Tensor)]
    return float(sum(map(_bytes, results)) + sum(_read(x) for x in node.all_input_nodes))


def _product(node: fx.Node) -> Step:
    left, right = [x for x in node.args if isinstance(x, fx.Node)][-2:]
    a, b = left.meta["val"].shape, right.meta["val"].shape
    flops = 2.0 * math.prod(a) * b[-1]
    label = " x ".join("[" + ", ".join(map(str, shape)) + "]" for shape in (a, b))
    return Step("product", label, flops, 0.0, _moved(node), [node])


def _lookup(node: fx.Node) -> Step:
    """Rows are read and written once, whatever the size of the table."""
    packet = packet_of(node)
    rows = size_of(node.args[0]) if packet in _TABLE_GRADIENTS else size_of(node)  # type: ignore[arg-type]
    return Step("lookup", packet.__name__, 0.0, 0.0, 2.0 * rows, [node])


class _Groups:
    """Groups of memory-bound nodes."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.levels: dict[fx.Node, int] = {}
        for node in graph.nodes:
            before = [self.levels[x] + _is_kernel(x) for x in node.all_input_nodes]
            own = [self.levels[x] + (not is_view(x)) for x in node.all_input_nodes if _is_kernel(node)]
            self.levels[node] = max([*before, *own], default=0)
        for node in reversed(graph.nodes):
            self._sink(node)

    def _sink(self, node: fx.Node) -> None:
        readers = list(_readers(node))
        if not _is_fused(node) or not readers or any(x.op == "output" for x in readers):
            return
        if size_of(node) >= max((_read(x) for x in node.all_input_nodes), default=0):
            self.levels[node] = max(self.levels[node], min(self.levels[x] - _is_kernel(x) for x in readers))

    def found(self) -> Iterator[list[fx.Node]]:
        """Connected memory-bound nodes of one level."""
        leader: dict[fx.Node, fx.Node] = {}

        def find(node: fx.Node) -> fx.Node:
            while leader[node] is not node:
                node = leader[node]
            return node

        for node in filter(_is_fused, self.graph.nodes):
            leader[node] = node
            for operand in map(base_of, node.all_input_nodes):
                if operand in leader and self.levels[operand] == self.levels[node]:
                    leader[find(operand)] = find(node)
        members: dict[fx.Node, list[fx.Node]] = {}
        for node in leader:
            members.setdefault(find(node), []).append(node)
        yield from members.values()


def _is_kernel(node: fx.Node) -> bool:
    """A step of its own."""
    return packet_of(node) in _PRODUCTS | _ATTENTION | _LOOKUPS


def _is_fused(node: fx.Node) -> bool:
    return node.op == "call_function" and not is_view(node) and not _is_kernel(node)


def fused(group: list[fx.Node]) -> Step:
    """Reads from outside and writes for outside, once each; a vector operation for every number computed."""
    inside = set(group)
    reads = {base_of(x): _read(x) for n in group for x in n.all_input_nodes if base_of(x) not in inside}
    written = [n for n in group if any(user not in inside for user in _readers(n))]
    vector = sum(size_of(n) / n.meta["val"].element_size() for n in group if size_of(n))
    widest = max(group, key=size_of)
    shape = list(widest.meta["val"].shape) if size_of(widest) else []
    moved = float(sum(reads.values()) + sum(map(size_of, written)))
    return Step("memory", str(shape), 0.0, vector, moved, written)


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """Who reads a value, through views."""
    for user in node.users:
        if is_view(user):
            yield from _readers(user)
        else:
            yield user
