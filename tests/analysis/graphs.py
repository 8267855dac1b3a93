"""Small captured graphs: a function of padded arguments as gr_compile's passes see it, with real values beside it.

`Captured(function)` traces `function(model, ids, lengths, mask, x, p)`: ids [B, N] int64, lengths [B], mask [B, N] bool,
x [B, N, 8] float (with a gradient), p [B, N, N] float. It returns one tensor or a tuple of tensors to ask about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.fx as fx
from torch import Tensor, nn

from gr_compile.analysis.dims import Atom, Dim, DimensionProvenance
from gr_compile.analysis.element import Elements
from gr_compile.analysis.expr import BINARY, TORCH_DTYPE, UNARY, Expr, index, walk
from gr_compile.analysis.layout import TokenLayout
from gr_compile.analysis.places import Places
from gr_compile.capture import capture
from gr_compile.constants import Constants

COMPARE = {"lt": torch.lt, "le": torch.le, "eq": torch.eq}
Body = Callable[..., Any]


class Model(nn.Module):
    """Parameters and buffers for functions to use."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.items, self.linear = nn.Embedding(21, 8), nn.Linear(8, 8)
        self.norm, self.convolution = nn.LayerNorm(8), nn.Conv1d(8, 8, 3, padding=1)
        self.w = nn.Parameter(torch.randn(8, 8, generator=generator))
        self.bias = nn.Parameter(torch.randn(31, generator=generator))
        self.register_buffer("causal", torch.ones(16, 16, dtype=torch.bool).tril())
        self.register_buffer("steps", torch.arange(16))
        self.register_buffer("noise", torch.randn(16, 16, generator=generator))
        self.body = body

    def forward(self, ids: Tensor, lengths: Tensor, mask: Tensor, x: Tensor, p: Tensor) -> Any:
        return self.body(self, ids, lengths, mask, x, p)


class Captured:
    """The graph of a function, its analyses, and the values of all nodes on one batch.

    Attributes:
        outputs: the nodes that the function returned.
        values: node -> what it was on the batch.
    """

    def __init__(self, body: Body, count: int = 3, n: int = 5, lengths: Sequence[int] = (2, 5, 0)) -> None:
        torch._dynamo.reset()
        torch.manual_seed(0)
        self.model = Model(body)
        self.inputs: list[Any] = []
        batch = example(count, n, lengths)

        def backend(graph_module: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
            self.graph_module = capture(graph_module)
            self.inputs = [int(v.node.hint) if isinstance(v, torch.SymInt) else v for v in inputs]
            self.constants = Constants.of(self.graph_module, inputs)
            return graph_module.forward

        settings = {"capture_dynamic_output_shape_ops": True, "specialize_float": True}
        with torch._dynamo.config.patch(**settings):
            torch.compile(self.model, backend=backend, dynamic=True, fullgraph=True)(*batch)
        self._analyse()

    def _analyse(self) -> None:
        self.dims = DimensionProvenance(self.graph_module)
        self.pull = Elements(self.graph_module, self.constants)
        returned = next(iter(self.graph_module.graph.find_nodes(op="output"))).args[0]
        self.outputs: list[fx.Node] = [node for node in returned if isinstance(node, fx.Node)]
        watch = _Watch(self.graph_module)
        watch.run(*self.inputs)
        self.values = watch.seen

    # ----------------------------------------------------------------------------------------------- asking
    def argument(self, name: str) -> fx.Node:
        return next(
            n for n in self.graph_module.graph.find_nodes(op="placeholder") if n.meta["gr_source"] == f"L['{name}']"
        )

    def call(self, name: str, position: int = 0) -> fx.Node:
        """The calls whose operator's name contains `name`, counted from 0."""
        found = [n for n in self.graph_module.graph.nodes if n.op == "call_function" and name in str(n.target)]
        return found[position]

    def layout(self, argument: str = "ids") -> TokenLayout:
        (batch,), (sequence,) = self.dims.of(self.argument(argument))[:2]
        return TokenLayout(self.dims, batch, sequence)

    def places(self, argument: str = "ids") -> Places:
        return Places(self.pull, self.layout(argument), self.argument(argument))

    def spelled(self, node: fx.Node, argument: str = "ids") -> str:
        """Dimensions in words: "B N 8" where they are those of `argument`; "B*N" a flattened one, "1" a made one, a
        number a static one, "?" anything else."""
        names: dict[Atom, str] = {}
        for letter, dim in zip("BN", self.dims.of(self.argument(argument))):
            names.update(dict.fromkeys(dim, letter))
        return " ".join(_spell(dim, names) for dim in self.dims.of(node))

    # ------------------------------------------------------------------------------------------- evaluating
    def evaluate(self, expr: Expr, indices: dict[str, Tensor]) -> Tensor:
        """`expr` where the index variables have the given values, by the nodes' own values."""
        done: dict[Expr, Any] = {}
        for part in walk(expr):
            done[part] = self._part(part, done, indices)
        result = done[expr]
        return result if isinstance(result, Tensor) else torch.tensor(result)

    def _part(self, part: Expr, done: dict[Expr, Any], indices: dict[str, Tensor]) -> Any:
        op, args = part.op, part.args
        if op == "const":
            return torch.tensor(args[0], dtype=TORCH_DTYPE[part.dtype])
        if op == "index":
            return indices[args[0]]
        if op in ("s", "sm"):
            return indices[op]
        if op == "size":
            return torch.tensor(self._size(args[0]))
        if op == "load":
            return self._load(args[0], [done[place] for place in args[1]])
        if op == "poly":
            return sum((_product([done[x] for x in monomial]) * factor for monomial, factor in args), torch.tensor(0))
        if op in ("ge0", "eq0"):
            return done[args[0]] >= 0 if op == "ge0" else done[args[0]] == 0
        if op == "compare":
            return COMPARE[args[0]](done[args[1]], done[args[2]])
        if op == "and":
            return _all([done[x] for x in args])
        if op == "not":
            return ~done[args[0]]
        if op == "where":
            return torch.where(*(done[x] for x in args))
        if op == "cast":
            return done[args[0]].to(TORCH_DTYPE[part.dtype])
        if op in UNARY:
            return UNARY[op](done[args[0]])
        return BINARY[op](*(done[x] for x in args))

    def _load(self, name: str, places: list[Tensor]) -> Tensor:
        """Loads under a choice are speculative: places outside are clamped."""
        value = next(v for node, v in self.values.items() if node.name == name)
        if not isinstance(value, Tensor):
            return torch.tensor(value)
        if not places:
            return value
        return value[tuple(place.clamp(0, extent - 1) for place, extent in zip(places, value.shape))]

    def _size(self, name: str) -> int:
        for node, value in self.values.items():
            if isinstance(node.meta.get("val"), torch.SymInt) and str(node.meta["val"]) == name:
                return int(value)
        raise KeyError(name)

    def grid(self, **extents: int) -> dict[str, Tensor]:
        """Index name -> its values, all combinations along dimensions in the given order."""
        found = torch.meshgrid(*(torch.arange(extent) for extent in extents.values()), indexing="ij")
        return dict(zip(extents, found))


class _Watch(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.seen: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        with torch.no_grad():
            self.seen[n] = super().run_node(n)
        return self.seen[n]


def example(count: int, n: int, lengths: Sequence[int]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    given = torch.tensor(list(lengths))
    mask = torch.arange(n) < given[:, None]
    ids = torch.randint(1, 21, (count, n), generator=generator) * mask
    x = torch.randn(count, n, 8, generator=generator).requires_grad_()
    return ids, given, mask, x, torch.rand(count, n, n, generator=generator)


def at(*names: str) -> tuple[Expr, ...]:
    return tuple(index(name) for name in names)


def _spell(dim: Dim, names: dict[Atom, str]) -> str:
    if not dim:
        return "1"
    if not any(atom in names for atom in dim):
        sizes = [atom.size for atom in dim]
        return str(math.prod(int(s) for s in sizes)) if all(s.is_number for s in sizes) else "?"
    return "*".join(names.get(atom) or (str(atom.size) if atom.size.is_number else "?") for atom in dim)


def _product(values: list[Any]) -> Any:
    result: Any = torch.tensor(1)
    for value in values:
        result = result * value
    return result


def _all(values: list[Any]) -> Any:
    result = values[0]
    for value in values[1:]:
        result = result & value
    return result
