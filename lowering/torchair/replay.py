"""Graphs that torchair's npugraph_ex captures on a device and replays: what must not stand in them.

A replay repeats the launches of the capture: the same kernels on the same addresses. Nothing in between may wait for
the device to learn a size, and each set of sizes is a capture of its own; so T, the number of packed tokens, is
rounded up to a multiple before the graph runs (eliminate-padding{mode=bucket}).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from gr_compile.pipeline import Pipeline

MODE = "npugraph_ex"
_WAITS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_PADDING = "eliminate-padding"


class CannotReplay(ValueError):
    """A graph that a capture cannot hold; the message names the operator."""


def with_buckets(pipeline: Pipeline) -> Pipeline:
    """The same passes; T is rounded up, whatever else was asked for."""
    found = (
        dataclasses.replace(item, mode="bucket") if item.name == _PADDING else item  # type: ignore[call-arg]
        for item in pipeline.passes
    )
    return Pipeline(tuple(found))


def check(graph_module: fx.GraphModule) -> None:
    """Every size is known when the graph is called, and no operator asks the device for a number.

    Raises:
        CannotReplay: the first operator that does.
    """
    for node in graph_module.graph.nodes:
        if any(tag in getattr(node.target, "tags", ()) for tag in _WAITS):
            raise CannotReplay(f"{node.target} waits for the device, which a replay cannot")
        for value in pytree.tree_leaves(node.meta.get("val")):
            if unbacked(value):
                raise CannotReplay(f"{node.target} has a size that only the data tells, which a replay cannot know")


def unbacked(value: Any) -> set[Any]:
    """The symbols of a value, or of a tensor's shape, that the data alone tells."""
    if isinstance(value, torch.Tensor):
        return set().union(*(free_unbacked_symbols(size) for size in value.shape))
    symbolic = isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))
    return set(free_unbacked_symbols(value)) if symbolic else set()
