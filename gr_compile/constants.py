"""Buffers by content: what an analysis may read of a tensor that nothing writes, and the guard that this needs.

Buffers reach a backend as placeholders, and Dynamo does not guard their content. Whatever an analysis reads here is
noted; the compiled graph then checks object identity and `_version` (inference tensors: content) before each run.
A write through `.data` moves no version; nothing in torch sees it, and neither does this guard.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx
from torch._subclasses.fake_tensor import FakeTensor

from gr_compile.writes import written

_LARGEST = 1 << 26  # elements: a larger buffer is not read
_LARGEST_HASHED = 1 << 22  # bytes: an inference tensor has no version, its content is hashed before each run


@dataclass
class Constants:
    """The tensors of one graph that are constant by construction: buffers, module attributes, lifted literals.

    Attributes:
        tensors: placeholder or get_attr node -> the real tensor.
        positions: placeholder node -> position among the graph's inputs.
        used: nodes whose content an analysis relied on.
    """

    tensors: Mapping[fx.Node, torch.Tensor] = field(default_factory=dict)
    positions: Mapping[fx.Node, int] = field(default_factory=dict)
    used: set[fx.Node] = field(default_factory=set)

    @classmethod
    def of(
        cls, graph_module: fx.GraphModule, inputs: Sequence[Any], distrusted: frozenset[str] = frozenset()
    ) -> Constants:
        """`distrusted`: sources of buffers whose content has changed before; they are inputs like any other."""
        tensors: dict[fx.Node, torch.Tensor] = {}
        positions: dict[fx.Node, int] = {}
        changing = written(graph_module.graph)
        for position, (node, value) in enumerate(
            zip(graph_module.graph.find_nodes(op="placeholder"), inputs)
        ):
            source = node.meta.get("gr_source", "")
            if _is_constant(source, value) and source not in distrusted and node not in changing:
                tensors[node], positions[node] = value, position
        for node in graph_module.graph.find_nodes(op="get_attr"):
            value = getattr(graph_module, str(node.target), None)
            if (
                isinstance(value, torch.Tensor)
                and not isinstance(value, FakeTensor)
                and not value.requires_grad
            ):
                tensors[node] = value
        return cls(tensors, positions)

    def content(self, node: fx.Node) -> torch.Tensor | None:
        """The content of a constant, or None; asking makes it part of the guard."""
        value = self.tensors.get(node)
        if value is None or value.numel() > _LARGEST:
            return None
        if value.is_inference() and value.numel() * value.element_size() > _LARGEST_HASHED:
            return None
        self.used.add(node)
        return value.detach()

    def guards(self) -> list[ContentGuard]:
        """One guard for each input whose content was read."""
        return [
            ContentGuard.of(self.positions[node], node.meta.get("gr_source", ""), self.tensors[node])
            for node in self.used
            if node in self.positions
        ]


def _is_constant(source: str, value: Any) -> bool:
    if (
        not isinstance(value, torch.Tensor)
        or isinstance(value, (torch.nn.Parameter, FakeTensor))
        or value.requires_grad
    ):
        return False
    if value.layout is not torch.strided or value.is_quantized:
        return False
    return "_buffers[" in source or source.startswith(("L['self'].", "G["))


@dataclass
class ContentGuard:
    """The content of one input, as it was classified: the same object at the same version, or equal bytes."""

    position: int
    source: str
    reference: weakref.ref[torch.Tensor]
    version: int | None
    digest: bytes

    @classmethod
    def of(cls, position: int, source: str, tensor: torch.Tensor) -> ContentGuard:
        return cls(position, source, weakref.ref(tensor), _version(tensor), digest(tensor))

    def holds(self, tensor: torch.Tensor) -> bool:
        """True when the content is what it was; a new object or version with equal bytes renews the guard."""
        version = _version(tensor)
        if version is not None and version == self.version and self.reference() is tensor:
            return True
        if digest(tensor) != self.digest:
            return False
        self.reference, self.version = weakref.ref(tensor), version
        return True


def _version(tensor: torch.Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def digest(tensor: torch.Tensor) -> bytes:
    """A digest of dtype, shape and bytes."""
    found = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    if tensor.numel():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(flat.view(torch.uint8).numpy().data)
    return found.digest()
