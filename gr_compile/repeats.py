"""Identical layers are traced once: a Dynamo graph that repeats itself is shortened, and its trace is written out.

    head,  layer,  layer,  layer,  ..., layer,  tail     the Dynamo graph, its layers of one kind
    head,  layer,  layer,  tail                          what is traced
    head', layer', layer', layer', ..., layer', tail'    the traced graph, with as many layers as there were

Two steps of a Dynamo graph are of one kind when they call the same function with the same constants on operands of the
same dtypes, sizes and strides (as expressions in symbols), and each operand is what the other's is, one layer on. Then
tracing gives the same calls for both; that it does is checked on the two layers that are traced. Names go on counting
as they do from the first of these to the second, so the graph is the one that tracing everything gives.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch.fx as fx

from gr_compile.kinds import kind, plain

STEP = "gr_step"  # node.meta while tracing: which step of the two layers has made the node
_WORTH = 24  # steps that need not be traced: fewer are not worth the search's copy of the graph
_PERIODS = 4  # lengths of a layer that are tried, the likeliest first
_NUMBERED = re.compile(r"(.*?)(?:_(\d+))?$")


@dataclass(frozen=True)
class Repeat:
    """A Dynamo graph whose layers are of one kind.

    Attributes:
        shortened: the graph with two of the layers.
        steps: of its nodes in these layers, their number: 0 to period - 1 in the first, then on.
        layers: the layers, as nodes of the whole graph.
    """

    shortened: fx.GraphModule
    steps: Mapping[fx.Node, int]
    layers: Sequence[Sequence[fx.Node]]

    def written_out(self, traced: fx.GraphModule) -> fx.GraphModule | None:
        """The trace of `shortened` with all layers; None where its two layers are not alike."""
        period = len(self.layers[0])
        places = [node.meta.pop(STEP, None) for node in traced.graph.nodes]
        nodes = list(traced.graph.nodes)
        first = [node for node, place in zip(nodes, places) if place is not None and place < period]
        second = [node for node, place in zip(nodes, places) if place is not None and place >= period]
        start = nodes.index(first[0]) if first else 0
        if not first or nodes[start : start + 2 * len(first)] != first + second:
            return None
        counted = _alike(first, second)
        inputs = self._inputs(traced)
        if counted is None or inputs is None:
            return None
        where = {node: place for node, place in zip(nodes, places) if place is not None}
        return _Writer(traced, first, second, counted).write(self.layers, inputs, where)

    def _inputs(self, traced: fx.GraphModule) -> list[dict[fx.Node, fx.Node]] | None:
        """For each layer from the third: the inputs that it reads in place of the second's, in the traced graph."""
        whole = self.layers[0][0].graph.find_nodes(op="placeholder")
        inputs = dict(zip(whole, traced.graph.find_nodes(op="placeholder")))
        found = []
        for layer in self.layers[2:]:
            own: dict[fx.Node, fx.Node] = {}
            steps = zip(self.layers[1], layer)
            pairs = [pair for ours, theirs in steps for pair in zip(_operands(ours), _operands(theirs))]
            for a, b in pairs:
                if a.op == "placeholder" and own.setdefault(inputs[a], inputs[b]) is not inputs[b]:
                    return None
            found.append(own)
        return found


@dataclass(frozen=True)
class _Writer:
    """Writes the whole graph. `counted`: by how much the numbers of names grow from a layer to the next."""

    traced: fx.GraphModule
    first: Sequence[fx.Node]
    second: Sequence[fx.Node]
    counted: Mapping[str, int]

    def write(
        self, layers: Sequence[Sequence[fx.Node]], inputs: Sequence[Mapping[fx.Node, fx.Node]],
        where: Mapping[fx.Node, int],
    ) -> fx.GraphModule:  # fmt: skip
        graph = fx.Graph()
        made: dict[fx.Node, fx.Node] = {}
        beyond = 0
        for node in self.traced.graph.nodes:
            made[node] = self._copy(graph, node, made, beyond)
            if node is self.second[-1]:
                for beyond, own in enumerate(inputs, start=1):
                    self._layer(graph, made, own, beyond, layers[beyond + 1], where)
        return fx.GraphModule(self.traced, graph)

    def _layer(
        self, graph: fx.Graph, made: dict[fx.Node, fx.Node], inputs: Mapping[fx.Node, fx.Node], number: int,
        steps: Sequence[fx.Node], where: Mapping[fx.Node, int],
    ) -> None:  # fmt: skip
        """The layer `number` behind the second. What the second reads of the first it reads of the one in front."""
        in_front = {a: made[b] for a, b in zip(self.first, self.second)}
        seen = {**made, **in_front, **{a: made[b] for a, b in inputs.items()}}
        for node in self.second:
            copied = seen[node] = self._copy(graph, node, seen, number)
            step = steps[where[node] - len(steps)]
            copied.meta.update({key: step.meta[key] for key in _PLACED if key in step.meta and key in copied.meta})
        made.update({node: seen[node] for node in self.second})

    def _copy(self, graph: fx.Graph, node: fx.Node, made: Mapping[fx.Node, fx.Node], layers: int) -> fx.Node:
        args, kwargs = fx.map_arg((node.args, node.kwargs), made.__getitem__)
        base, number = _numbered(node.name)
        number += layers * self.counted.get(base, 0)
        name = f"{base}_{number}" if number else base
        copied = graph.create_node(node.op, node.target, args, kwargs, name, node.type)
        copied.meta = dict(node.meta)
        return copied


_PLACED = ("stack_trace", "nn_module_stack", "source_fn_stack")


def _numbered(name: str) -> tuple[str, int]:
    found = _NUMBERED.fullmatch(name)
    assert found is not None
    return found[1], int(found[2] or 0)


def _alike(first: Sequence[fx.Node], second: Sequence[fx.Node]) -> dict[str, int] | None:
    """The growth of names' numbers by base, where the second layer does what the first does, one layer on."""
    if len(first) != len(second):
        return None
    twins, counted = dict(zip(first, second)), dict[str, int]()
    for a, b in zip(first, second):
        if a.op != "call_function" or "unbacked_bindings" in a.meta:
            return None
        if (b.op, b.target) != (a.op, a.target) or _spelled(a) != _spelled(b):
            return None
        for x, y in zip(_operands(a), _operands(b)):
            in_front = y in twins and x not in twins
            if not (twins.get(x) is y or in_front or x.op == y.op == "placeholder" or (x is y and x not in twins)):
                return None
        base, number = _numbered(a.name)
        other, grown = _numbered(b.name)
        if other != base or counted.setdefault(base, grown - number) != grown - number:
            return None
    return counted


# ------------------------------------------------------------------------------------------ the search
def find_repeat(whole: fx.GraphModule) -> Repeat | None:
    """The longest run of layers of one kind in a Dynamo graph; None where there is none that is worth it."""
    nodes = [node for node in whole.graph.nodes if node.op not in ("placeholder", "output")]
    place = {node: k for k, node in enumerate(nodes)}
    kinds = _Kinds(place)
    spelled = [kinds.of_step(node) for node in nodes]
    best: tuple[int, int, int] = (0, 0, 0)
    for period in _likely_periods(spelled):
        start, length = _longest_run(nodes, spelled, kinds, period)
        best = max(best, ((length // period - 1) * period, start, period))
    saved, start, period = best
    if saved < _WORTH:
        return None
    number = saved // period + 2
    layers = [nodes[start + k * period : start + (k + 1) * period] for k in range(number)]
    if any(node.op == "get_attr" for node in layers[0]) or not _left_at_the_end(layers) or not kinds.regular(layers):
        return None
    return _shorten(whole, layers)


def _likely_periods(spelled: Sequence[Any]) -> list[int]:
    """Distances between steps of one spelling, those that occur most often."""
    last: dict[Any, int] = {}
    distances: Counter[int] = Counter()
    for k, spelling in enumerate(spelled):
        if spelling in last:
            distances[k - last[spelling]] += 1
        last[spelling] = k
    return [period for period, _ in distances.most_common(_PERIODS)]


def _longest_run(nodes: Sequence[fx.Node], spelled: Sequence[Any], kinds: _Kinds, period: int) -> tuple[int, int]:
    """Where the longest run of steps begins that are alike with those a period on, and how long it is."""
    best = begun = 0, 0
    for k in range(len(nodes) - period):
        if spelled[k] == spelled[k + period] and kinds.one_on(nodes[k], nodes[k + period], period):
            begun = begun[0], begun[1] + 1
            best = max(best, begun, key=lambda run: run[1])
        else:
            begun = k + 1, 0
    return best


def _left_at_the_end(layers: Sequence[Sequence[fx.Node]]) -> bool:
    """What comes after the layers reads the last of them alone."""
    number = {node: k for k, layer in enumerate(layers) for node in layer}
    reach = {node: max((number.get(user, len(layers)) for user in node.users), default=0) for node in number}
    return all(reach[node] < len(layers) for node, k in number.items() if k < len(layers) - 1)


def _shorten(whole: fx.GraphModule, layers: Sequence[Sequence[fx.Node]]) -> Repeat:
    gone = {node for layer in layers[2:] for node in layer}
    graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in whole.graph.nodes:
        if node not in gone:
            made[node] = graph.node_copy(node, made.__getitem__)
        if node is layers[1][-1]:  # what reads the last layer reads the second
            made.update({last: made[second] for last, second in zip(layers[-1], layers[1])})
    steps = {made[node]: k for k, node in enumerate((*layers[0], *layers[1]))}
    return Repeat(fx.GraphModule(whole, graph), steps, layers)


# ------------------------------------------------------------------------------------------ kinds of values
@dataclass
class _Kinds:
    """What tracing a step depends on. `place`: the steps' places in the graph."""

    place: Mapping[fx.Node, int]

    def of_step(self, node: fx.Node) -> Any:
        """The call and its constants, and the kinds of its operands and its result."""
        operands = tuple(kind(_value(operand)) for operand in _operands(node))
        return node.op, plain(node.target), _spelled(node), operands, kind(_value(node))

    def one_on(self, a: fx.Node, b: fx.Node, period: int) -> bool:
        """Each operand of `b` is what that of `a` is, or its twin a period on, or an input in place of an input."""
        return None not in self._relations(a, b, period)

    def _relations(self, a: fx.Node, b: fx.Node, period: int) -> list[str | None]:
        return [self._relation(x, y, period) for x, y in zip(_operands(a), _operands(b))]

    def _relation(self, x: fx.Node, y: fx.Node, period: int) -> str | None:
        if x.op == "placeholder" or y.op == "placeholder":
            return "input" if x.op == y.op else None
        if x is y:
            return "same"
        return "twin" if self.place[y] == self.place[x] + period else None

    def regular(self, layers: Sequence[Sequence[fx.Node]]) -> bool:
        """From each layer to the next it is the same; a layer reads the one in front, and what all read lies before."""
        period, start = len(layers[0]), self.place[layers[0][0]]
        for j, step in enumerate(layers[0]):
            relations = self._relations(step, layers[1][j], period)
            for here, there in itertools.pairwise(layers[1:]):
                if self._relations(here[j], there[j], period) != relations:
                    return False
            for relation, read in zip(relations, _operands(layers[1][j])):
                if relation != "input" and (self.place[read] >= start) != (relation == "twin"):
                    return False
        return True


def _value(node: fx.Node) -> Any:
    return node.meta.get("example_value", node.meta.get("val"))


def _operands(node: fx.Node) -> list[fx.Node]:
    """The operands in their order, as often as they occur."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    return found


def _spelled(node: fx.Node) -> Any:
    return plain(node.args), plain(node.kwargs)
