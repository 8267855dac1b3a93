"""Raggedness as graph nodes: the packed index of the places that are kept, and what was proved of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.fx as fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from gr_compile.analysis.dims import Atom, DimensionProvenance
from gr_compile.analysis.element import Elements
from gr_compile.editor import GraphEditor

aten = torch.ops.aten
RAGGED_FACT = "ragged"


def batch_of(editor: GraphEditor, flat: fx.Node, length: Any) -> fx.Node:
    """int64 [T]: b of each of the packed tokens `flat`, b * length + n."""
    made: fx.Node = editor.call(aten.div.Tensor_mode, flat, length, rounding_mode="floor")
    return made


def position_of(editor: GraphEditor, flat: fx.Node, length: Any) -> fx.Node:
    """int64 [T]: n of each of the packed tokens `flat`, b * length + n."""
    made: fx.Node = editor.call(aten.remainder.Scalar, flat, length)
    return made


@dataclass(frozen=True)
class PackedIndex:
    """The packed index of one raggedness.

    Attributes:
        mask: bool [B, N], the places that are kept.
        flat: int64 [T], b * N + n of each packed token, ascending.
        batch_size, length: B and N, as nodes or numbers.
    """

    mask: fx.Node
    flat: fx.Node
    batch_size: Any
    length: Any

    def batch(self, editor: GraphEditor) -> fx.Node:
        """int64 [T]: b of each packed token."""
        return batch_of(editor, self.flat, self._places(editor))

    def position(self, editor: GraphEditor) -> fx.Node:
        """int64 [T]: n of each packed token."""
        return position_of(editor, self.flat, self._places(editor))

    def _places(self, editor: GraphEditor) -> fx.Node | int:
        """N, of the mask: a node that held it may be dead code, and gone, when a later pass asks."""
        return editor.symbol_of(self.mask.meta["val"].shape[1])

    def offsets(self, editor: GraphEditor) -> fx.Node:
        """int64 [B + 1]: where each sequence begins."""
        counts = editor.call(aten.sum.dim_IntList, self.mask, [1])
        ends = editor.call(aten.cumsum.default, counts, 0)
        made: fx.Node = editor.call(aten.constant_pad_nd.default, ends, [1, 0])
        return made


@dataclass(frozen=True)
class Ragged:
    """What eliminate-padding leaves for later passes.

    Attributes:
        index: the packed index.
        closed: names of attention contractions of which it is proved that a kept query reads only kept keys, and
            that a query which sees no key has all its keys kept.
    """

    index: PackedIndex
    closed: frozenset[str]


def raggednesses(
    graph_module: fx.GraphModule, dims: DimensionProvenance, pull: Elements
) -> list[tuple[fx.Node, tuple[Atom, Atom]]]:
    """The pairs of index spaces (batch, sequence) that inputs have: the two leading dimensions of an integer or
    boolean input, or of anything computed from such inputs alone; the first node of each pair."""
    found: dict[tuple[Atom, Atom], fx.Node] = {}
    for node in graph_module.graph.nodes:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or (value.dtype.is_floating_point and node.op != "placeholder"):
            continue
        if value.dim() < 2 or not pull.closed(node) or node in pull.constants.tensors:
            continue
        lead = dims.of(node)[:2]
        if any(free_unbacked_symbols(atom.size) for dim in lead for atom in dim):
            continue  # tokens that are packed already
        if all(len(dim) == 1 for dim in lead) and lead[0] != lead[1]:
            found.setdefault((lead[0][0], lead[1][0]), node)
    return [(node, pair) for pair, node in found.items()]
