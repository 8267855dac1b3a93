"""Families of ATen operators by what they do to dimensions: `operators.py` says which operator is of which kind."""

from __future__ import annotations

from dataclasses import dataclass

import torch.fx as fx


@dataclass(frozen=True)
class Kind:
    """A family of operators. `source` is the operand whose dimensions the kind speaks of."""


@dataclass(frozen=True)
class Pointwise(Kind):
    """out[k] reads every tensor operand at k, with broadcasting from the right."""


@dataclass(frozen=True)
class Reshape(Kind):
    """The same elements in row-major order under another shape."""

    source: fx.Node


@dataclass(frozen=True)
class Permute(Kind):
    """Dimension d of the output is dimension order[d] of the source."""

    source: fx.Node
    order: tuple[int, ...]


@dataclass(frozen=True)
class Expand(Kind):
    """Broadcasting of size-1 (and new leading) dimensions."""

    source: fx.Node


@dataclass(frozen=True)
class Reduce(Kind):
    """`dims` are reduced away (kept with size 1 under keepdim)."""

    source: fx.Node
    dims: tuple[int, ...]
    keepdim: bool


@dataclass(frozen=True)
class Along(Kind):
    """The shape stays (or changes along `dims` only); places along `dims` mix, all other dimensions do not."""

    source: fx.Node
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Contract(Kind):
    """A sum of products over the labels that the output lacks. Labels are one letter a dimension."""

    left: fx.Node
    right: fx.Node
    left_labels: str
    right_labels: str
    out_labels: str
    bias: fx.Node | None = None


@dataclass(frozen=True)
class Lookup(Kind):
    """Rows of a table: out[..., d] = table[index[...], d]."""

    table: fx.Node
    index: fx.Node


@dataclass(frozen=True)
class Gather(Kind):
    """out[k] = source[k with index[k] at `dim`]."""

    source: fx.Node
    dim: int
    index: fx.Node


@dataclass(frozen=True)
class Complex(Kind):
    """The last dimension, of size 2, goes into one complex number, or comes out of it."""

    source: fx.Node


@dataclass(frozen=True)
class Pick(Kind):
    """out[.., k, ..] = source[.., g(k), ..] at `dim`; g is `index`, one number for each k, or known without data."""

    source: fx.Node
    dim: int
    index: fx.Node | None = None


@dataclass(frozen=True)
class Put(Kind):
    """`source` with `values`, broadcast to it, written (or added) at the numbers `index` of `dim`."""

    source: fx.Node
    dim: int
    index: fx.Node
    values: fx.Node


@dataclass(frozen=True)
class Concatenate(Kind):
    """Tensors one after another along `dim`."""

    sources: tuple[fx.Node, ...]
    dim: int


@dataclass(frozen=True)
class Stack(Kind):
    """Tensors side by side along a new dimension."""

    sources: tuple[fx.Node, ...]
    dim: int


@dataclass(frozen=True)
class Slice(Kind):
    """A part of the source along `dim`; `whole` when it is all of it."""

    source: fx.Node
    dim: int
    whole: bool


@dataclass(frozen=True)
class Select(Kind):
    """One index of `dim`, which goes away."""

    source: fx.Node
    dim: int


@dataclass(frozen=True)
class Items(Kind):
    """Several outputs: parts of the source along `dim` (which goes away under `drop`)."""

    source: fx.Node
    dim: int
    drop: bool


@dataclass(frozen=True)
class Item(Kind):
    """One of several outputs of `source`."""

    source: fx.Node
    position: int


@dataclass(frozen=True)
class RowLoss(Kind):
    """A loss of every place: cross entropy without reduction. Classes are dimension 1 of the logits."""

    logits: fx.Node
    target: fx.Node
