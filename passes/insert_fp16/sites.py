"""Sites: the values of a graph that can be stored in 16 bits, by name, with what keeps others from being.

A name is that of the parameter or of the module that the value comes from, so that a calibration knows the site again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.dims import DimensionProvenance
from gr_compile.analysis.element import Elements
from gr_compile.analysis.kinds import Contract
from gr_compile.analysis.looked_up import table_and_ids
from gr_compile.passes.fuse_sampled_logits.products import ProductFinder, Rejected
from gr_compile.passes.ragged import raggednesses

Kind = Literal["negatives", "embeddings", "activations", "communication"]
KINDS: tuple[Kind, ...] = ("negatives", "embeddings", "activations", "communication")
SAMPLED = torch.ops.gr.sampled_logits.default
_SEGMENTED = torch.ops.gr.segmented_logits.default
DEQUANTIZE = torch.ops.gr.dequantize.default
_ATTENTION = torch.ops.gr.jagged_attention.default
_KEY = re.compile(r"\['([^']+)'\]|\.([A-Za-z_]\w*)")
_MOVES = ("all_gather_into_tensor", "all_to_all_single")  # collectives that only move what they are given
_SUMS = ("all_reduce", "reduce_scatter_tensor")
_COLLECTIVES = ("_c10d_functional", "_c10d_functional_autograd")


@dataclass(frozen=True)
class Site:
    """A value that can be stored in 16 bits: what `node` reads (negatives, communication) or gives (the others)."""

    kind: Kind
    name: str
    node: fx.Node

    @property
    def value(self) -> fx.Node:
        """What is stored."""
        place = {"negatives": 1, "communication": 0}.get(self.kind)
        return self.node if place is None else self.node.args[place]  # type: ignore[return-value]


@dataclass(frozen=True)
class Blocked:
    """A candidate that stays as it is, and why."""

    node: fx.Node
    reason: str
    hint: str = ""


class SiteFinder:
    """The sites of one graph, in its order."""

    def __init__(self, graph_module: fx.GraphModule, constants: Any, training: bool) -> None:
        self._graph, self._training = graph_module.graph, training
        self._pull = Elements(graph_module, constants)
        self._products = ProductFinder(self._pull)
        self._dims = DimensionProvenance(graph_module)
        pairs = raggednesses(graph_module, self._dims, self._pull)
        self._sequences = {pair[1] for _, pair in pairs}
        self._seen: Counter[str] = Counter()

    def find(self, kinds: tuple[Kind, ...]) -> list[Site | Blocked]:
        """Sites of the given kinds and candidates that are none."""
        at = {
            "negatives": self._negatives, "embeddings": self._embedding,
            "activations": self._activation, "communication": self._communication,
        }  # fmt: skip
        return [found for node in self._graph.nodes for kind in kinds for found in at[kind](node)]

    # ------------------------------------------------------------------------------------------- by kind
    def _negatives(self, node: fx.Node) -> Iterator[Site | Blocked]:
        if node.target is SAMPLED:
            if ops.argument(node, 6, "stored") is not None:
                return
            table = node.args[1]
            name = self._named("negatives", _origin(table))
            if _width(table) != 4:
                yield Blocked(node, f"the table is {_dtype(table)}, not float32")
            elif self._has_padded_places(node.args[0]):
                yield Blocked(node, *_PADDED)
            else:
                yield Site("negatives", name, node)
            return
        if node.target is _SEGMENTED:
            yield Blocked(node, "rows are read in segments of their table, as it lies in its file")
            return
        try:
            product = self._products.at(node)
        except Rejected:
            return  # fuse-sampled-logits says why
        if product is not None and product.own:
            hint = "leave fuse-sampled-logits in the pipeline"
            yield Blocked(node, "rows of negatives are looked up and kept: no gr::sampled_logits", hint)

    def _embedding(self, node: fx.Node) -> Iterator[Site | Blocked]:
        read = table_and_ids(node)
        if read is None or read[0].op not in ("placeholder", "get_attr"):
            return  # rows of a value that was computed are that value's
        if not self._training or not self._is_open(node):
            return  # nothing is kept for a backward
        yield self._result("embeddings", node, _origin(read[0]))

    def _activation(self, node: fx.Node) -> Iterator[Site | Blocked]:
        if not (isinstance(ops.kind_of(node), Contract) or node.target is _ATTENTION):
            return
        if not self._training or not self._is_open(node):
            return  # nothing is kept for a backward
        yield self._result("activations", node, f"{_module(node)}.{str(node.target).split('.')[1]}".lstrip("."))

    def _result(self, kind: Kind, node: fx.Node, origin: str) -> Site | Blocked:
        name = self._named(kind, origin)
        if _width(node) != 4:
            return Blocked(node, f"the value is {_dtype(node)}, not float32")
        if "recompute" in node.meta:
            return Blocked(node, "a checkpoint computes it again in the backward: nothing is kept")
        if self._has_padded_places(node):
            return Blocked(node, *_PADDED)
        return Site(kind, name, node)

    def _communication(self, node: fx.Node) -> Iterator[Site | Blocked]:
        target = node.target
        if not isinstance(target, torch._ops.OpOverload) or target.namespace not in _COLLECTIVES:
            return
        operation = target._opname
        if operation in _SUMS:
            yield Blocked(node, "the collective adds up what it is given: sums would be made in 16 bits")
        elif operation not in _MOVES or _is_stored(node.args[0]):
            return
        elif self._training or target.namespace == _COLLECTIVES[1]:
            hint = "collectives of a graph that runs without gradients are stored in 16 bits"
            yield Blocked(node, "a gradient may travel back through this collective, in another range", hint)
        elif _width(node.args[0]) == 4:
            yield Site("communication", self._named("communication", f"{_module(node)}.{operation}".lstrip(".")), node)

    # ------------------------------------------------------------------------------------------- helpers
    def _named(self, kind: str, origin: str) -> str:
        """The name of one more site of an origin."""
        self._seen[f"{kind} {origin}"] += 1
        count = self._seen[f"{kind} {origin}"]
        return origin if count == 1 else f"{origin} ({count})"

    def _has_padded_places(self, node: Any) -> bool:
        """Whether a value has a dimension of sequences that are not packed."""
        if not isinstance(node, fx.Node) or not self._dims.known(node):
            return False
        return any(atom in self._sequences for dim in self._dims.of(node) for atom in dim)

    def _is_open(self, node: fx.Node) -> bool:
        """A floating-point value that an operator reads as it is, and not from 16 bits already."""
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or not value.dim():
            return False
        readers = [user for user in node.users if user.op != "output"]
        return bool(readers) and not any(user.target is DEQUANTIZE for user in readers)


_PADDED = (
    "padded places would be read and stored, too",
    "eliminate-padding packs the tokens; what it misses says why",
)


def _is_stored(node: Any) -> bool:
    return isinstance(node, fx.Node) and bool(_width(node) == 2)


def _width(node: Any) -> int:
    return int(node.meta["val"].element_size()) if node.meta["val"].is_floating_point() else 0


def _dtype(node: Any) -> str:
    return str(node.meta["val"].dtype).removeprefix("torch.")


def _origin(node: Any) -> str:
    """The name of a parameter, or of what else a value is."""
    keys = [first or second for first, second in _KEY.findall(node.meta.get("gr_source", ""))]
    return ".".join(key for key in keys if key not in ("self", "_modules", "_parameters", "_buffers")) or node.name


def _module(node: fx.Node) -> str:
    """The path of the innermost module that a node is of; "" for the model itself."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = str([*stack.values()][-1][0])
    return path.split("].", 1)[1] if "]." in path else ""
