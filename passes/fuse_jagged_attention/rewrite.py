"""The pass: every region that the analysis extracts becomes `gr::jagged_attention`."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.fx as fx

from gr_compile.analysis.dims import Atom, DimensionProvenance
from gr_compile.analysis.element import Blocked, Elements
from gr_compile.analysis.expr import Expr, Ranges, const, index, load, make, rebuild, substitute, walk
from gr_compile.analysis.intervals import key_interval
from gr_compile.analysis.operators import Permute, Reshape, kind_of
from gr_compile.analysis.region import Region, RegionFinder
from gr_compile.analysis.steps import decided_by_rounding
from gr_compile.graph_pass import Match, Miss, Numerics, Pass, PassResult
from gr_compile.ops.score_program import ScoreProgram
from gr_compile.passes.fuse_jagged_attention.sides import OperandBuilder, Side, base_of, size_node
from gr_compile.passes.ragged import RAGGED_FACT, Ragged, raggednesses
from gr_compile.passes.seeds import new_seed
from gr_compile.pipeline import PassContext

aten = torch.ops.aten
PACK = torch.ops.gr.pack.default
ATTENTION = torch.ops.gr.jagged_attention.default


@dataclass(frozen=True)
class FuseJaggedAttention(Pass):
    """Fuse attention and its biases into one jagged operator."""

    name: ClassVar[str] = "fuse-jagged-attention"
    provides: ClassVar[frozenset[str]] = frozenset({"jagged-attention"})
    after: ClassVar[frozenset[str]] = frozenset({"canonicalize", "recognize-softmax", "eliminate-padding"})
    numerics: ClassVar[Numerics] = "reassociates"

    def run(self, graph_module: fx.GraphModule, context: PassContext) -> PassResult:
        """Replace every region; what looks like attention and has no score program is a Miss."""
        if not context.supports("gr::jagged_attention"):
            return PassResult(False, misses=(Miss("the target has no kernel for gr::jagged_attention"),))
        dims = DimensionProvenance(graph_module)
        finder = RegionFinder(graph_module, Elements(graph_module, context.constants), dims)
        raggeds: list[Ragged] = context.facts.get(RAGGED_FACT, [])
        regions = self._regions(finder, dims, raggeds)
        misses = [Miss(f"no score program: {b.reason}", b.node or n) for n, b in finder.misses]
        matches = []
        for region in regions:
            fuser = _Fuser(region, finder, dims, context, self._ragged_of(region, raggeds))
            try:
                program = fuser.prepare()
            except Blocked as blocked:
                misses.append(Miss(f"not fused: {blocked.reason}", blocked.node or region.node))
                continue
            what = f"attention {region.node.name}"
            if context.allow(what, region.node):
                matches.append(Match(what, region.node, detail=program))
                fuser.rewrite()
        context.editor.sort()
        return PassResult(bool(matches), tuple(matches), tuple(misses))

    def _regions(self, finder: RegionFinder, dims: DimensionProvenance, raggeds: list[Ragged]) -> list[Region]:
        if raggeds:
            batch = dims.of(raggeds[0].index.mask)[0]
            return finder.find(batch[0] if len(batch) == 1 else None)
        found = raggednesses(finder.graph_module, dims, finder.pull)
        return finder.find(found[0][1][0] if found else None)

    def _ragged_of(self, region: Region, raggeds: list[Ragged]) -> Ragged | None:
        return next((r for r in raggeds if region.node.name in r.closed), None)


class _Fuser:
    """One region: operands, program, replacement."""

    def __init__(
        self,
        region: Region,
        finder: RegionFinder,
        dims: DimensionProvenance,
        context: PassContext,
        ragged: Ragged | None,
    ) -> None:
        self.region, self.dims, self.context, self.ragged = region, dims, context, ragged
        self.pull, self.editor = finder.pull, context.editor

    # ------------------------------------------------------------------------------------------- checking
    def prepare(self) -> str:
        """Check everything that can fail before the graph is touched; returns the program in words.

        Raises:
            Blocked: with the reason.
        """
        region = self.region
        self.query = base_of(region.query, region, "i", self.pull) if region.query is not None else None
        self.key = base_of(region.key, region, "j", self.pull) if region.key is not None else None
        self.value = base_of(region.value, region, "j", self.pull)
        self._head_count()
        leaves = self._leaf_nodes()
        for name, node in leaves.items():
            if not isinstance(node.meta.get("val"), (torch.Tensor, torch.SymFloat)):
                raise Blocked(f"{name} is neither a tensor nor a number", node)
        strange = {part.op for part in walk(*self._expressions()) if part.op in ("dot", "softmax", "safe_softmax")}
        if strange:
            raise Blocked(f"a {strange.pop()} inside the score", region.node)
        if sum(part.op == "dropout" for part in walk(*self._expressions())) > 1:
            raise Blocked("more than one dropout", region.node)
        rounded = decided_by_rounding(region, self.dims, leaves)
        if rounded is not None:
            raise Blocked("the score is compared with a value of the same products, equal to one of them", rounded)
        post = "" if region.post is None else f", post {region.post}"
        return f"score {region.score}{post}"

    def _expressions(self) -> list[Expr]:
        return [self.region.score] + ([self.region.post] if self.region.post is not None else [])

    def _leaf_nodes(self) -> dict[str, fx.Node]:
        names = {part.args[0]: None for part in walk(*self._expressions()) if part.op == "load"}
        return {name: self.pull.nodes[name] for name in names}

    # ------------------------------------------------------------------------------------------ rewriting
    def rewrite(self) -> None:
        """Make the operator and let all users of O read it."""
        region, editor = self.region, self.editor
        output = next(iter(editor.graph.find_nodes(op="output")))
        with editor.at(before=output, like=region.node):
            query_side = key_side = self._jagged_side() if self.ragged is not None else None
            if self.ragged is None:
                query_side, key_side = self._dense_side("i"), self._dense_side("j")
            elif not self._keys_share_places():
                key_side = self._dense_side("j")
            assert query_side is not None and key_side is not None
            packed = self._operator(query_side, key_side)
            self._replace(packed, query_side)

    def _keys_share_places(self) -> bool:
        return self.region.key_atom is self.region.query_atom

    def _jagged_side(self) -> Side:
        assert self.ragged is not None
        packed = self.ragged.index
        return Side(packed.offsets(self.editor), packed.position(self.editor), packed.flat)

    def _dense_side(self, place: str) -> Side:
        editor, device = self.editor, self.region.node.meta["val"].device
        batch, length = (self._size(self.region.extents[name]) for name in ("b", place))
        starts = editor.call(aten.arange.default, self._plus_one(batch), dtype=torch.int64, device=device)
        offsets = editor.call(aten.mul.Tensor, starts, length)
        row = editor.call(aten.arange.default, length, dtype=torch.int64, device=device)
        grid = editor.call(aten.expand.default, editor.call(aten.unsqueeze.default, row, 0), [batch, length])
        return Side(offsets, editor.call(aten.reshape.default, grid, [-1]), None)

    def _plus_one(self, batch: Any) -> Any:
        return self.editor.call(operator.add, batch, 1) if isinstance(batch, fx.Node) else batch + 1

    def _size(self, extent: Expr) -> Any:
        return size_node(extent, self.editor, self.pull)

    def _operator(self, query_side: Side, key_side: Side) -> fx.Node:
        region, editor = self.region, self.editor
        build = OperandBuilder(editor, self.pull)
        heads = self._head_substitution()
        query = key = None
        q_head = k_head = const(0)
        if self.query is not None and self.key is not None and region.query is not None and region.key is not None:
            query, q_head = build.build(self.query, "i", region.query.feature, query_side)
            key, k_head = build.build(self.key, "j", region.key.feature, key_side)
        value, v_head = build.build(self.value, "j", region.value.feature, key_side)
        leaf_names, renamed = self._renamed(heads)
        low, high = self._interval()
        score, post = renamed(region.score), renamed(region.post) if region.post is not None else None
        rest = [renamed(e) for e in (q_head, k_head, v_head)]
        bounds = [renamed(e) if e is not None else None for e in (low, high)]
        sizes = sorted(
            {p.args[0] for e in (score, post, *rest, *bounds) if e is not None for p in walk(e) if p.op == "size"}
        )
        used = {p.args[0] for e in (score, post, *bounds) if e is not None for p in walk(e) if p.op == "load"}
        leaves = {name: node for name, node in leaf_names.items() if name in used}
        program = ScoreProgram(
            score=score, post=post, fully_masked=region.fully_masked, q_head=rest[0], k_head=rest[1], v_head=rest[2],
            leaves=tuple(leaves), sizes=tuple(sizes), key_low=bounds[0], key_high=bounds[1],
            out_dtype=self.pull.dtype(region.node),
        )  # fmt: skip
        made: fx.Node = editor.call(
            ATTENTION, query, key, value, [self._tensor(node) for node in leaves.values()], query_side.offsets,
            query_side.positions,
            key_side.offsets, key_side.positions, self._head_count(),
            [editor.symbol_of(self.pull.size_values[name]) for name in sizes], self._seed(program), program.text(),
        )  # fmt: skip
        return made

    def _tensor(self, leaf: fx.Node) -> fx.Node:
        """A number that changes between calls is an operand like any other."""
        if isinstance(leaf.meta["val"], torch.Tensor):
            return leaf
        device = self.region.node.meta["val"].device
        made: fx.Node = self.editor.call(aten.scalar_tensor.default, leaf, dtype=torch.float64, device=device)
        return made

    def _head_count(self) -> Any:
        count: Any = 1
        for name in self.region.heads:
            extent = self.region.extents[name]
            if extent.op != "const":
                raise Blocked("a number of heads that is not static", self.region.node)
            count *= extent.args[0]
        return count

    def _head_substitution(self) -> dict[Expr, Expr]:
        """The region's head indices as digits of the operator's single head index."""
        table: dict[Expr, Expr] = {}
        rest: Expr = index("h")
        names = list(self.region.heads)
        for position, name in reversed(list(enumerate(names))):
            extent = self.region.extents[name]
            table[index(name)] = rest if position == 0 else make("mod", (rest, extent), "i")
            rest = make("floordiv", (rest, extent), "i")
        return table

    def _renamed(self, heads: dict[Expr, Expr]) -> tuple[dict[str, fx.Node], Any]:
        """Leaves are numbered, so that identical layers have identical programs."""
        order: dict[str, str] = {}
        for part in walk(*self._expressions(), *(e for e in self._interval() if e is not None)):
            if part.op == "load":
                order.setdefault(part.args[0], f"leaf{len(order)}")
        memo: dict[Expr, Expr] = {}

        def rename(expr: Expr) -> Expr:
            if expr not in memo:
                inner = rebuild(expr, rename)
                memo[expr] = load(order[inner.args[0]], inner.args[1], inner.dtype) if inner.op == "load" else inner
            return memo[expr]

        def apply(expr: Expr) -> Expr:
            return rename(substitute(expr, heads))

        return {short: self.pull.nodes[name] for name, short in order.items()}, apply

    def _interval(self) -> tuple[Expr | None, Expr | None]:
        ranges = Ranges()
        for name, extent in self.region.extents.items():
            ranges.bound(name, extent)
        return key_interval(self.region.score, self.region.post, ranges, self.region.definitions)

    def _seed(self, program: ScoreProgram) -> fx.Node | None:
        if not program.has_dropout:
            return None
        return new_seed(self.editor, self.region.node.meta["val"].device)

    # ----------------------------------------------------------------------------------------- replacement
    def _replace(self, packed: fx.Node, side: Side) -> None:
        """Users that pack O read the operator's rows; everybody else reads O, made dense again."""
        node, editor = self.region.node, self.editor
        others = []
        for user in self._readers(node):
            if user.target is PACK and side.flat is not None and user.args[1] is side.flat:
                editor.replace(user, self._in_dims(packed, user.args[0]))  # type: ignore[arg-type]
            else:
                others.append(user)
        if others:
            editor.replace(node, self._dense_output(packed, side))

    def _readers(self, node: fx.Node) -> list[fx.Node]:
        """Users of O, seen through reshapes and permutations that lead to a pack."""
        found = []
        for user in node.users:
            if isinstance(kind_of(user), (Reshape, Permute)) and user.users and all(
                reader.target is PACK for reader in self._readers(user)
            ):  # fmt: skip
                found += self._readers(user)
            else:
                found.append(user)
        return found

    def _in_dims(self, packed: fx.Node, dense: fx.Node) -> fx.Node:
        """[T, H, d] in the order of the dimensions of `dense`, [B, N, *rest]."""
        return self._arranged(packed, list(self.dims.of(dense)[2:]), dense, 2, [-1])

    def _arranged(self, packed: fx.Node, rest: list[Any], like: fx.Node, skip: int, lead: list[Any]) -> fx.Node:
        editor = self.editor
        stored = _longer_than_one(self._stored_atoms())
        wanted = _longer_than_one(atom for dim in rest for atom in dim)
        sizes = [editor.symbol_of(atom.size) for atom in stored]
        split = editor.call(aten.reshape.default, packed, [*lead, *sizes])
        order = list(range(len(lead))) + [len(lead) + stored.index(atom) for atom in wanted]
        order += [k for k in range(len(lead) + len(stored)) if k not in order]
        if order != list(range(len(order))):
            split = editor.call(aten.permute.default, split, order)
        shape = [*lead, *(editor.symbol_of(s) for s in like.meta["val"].shape[skip:])]
        made: fx.Node = editor.call(aten.reshape.default, split, shape)
        return made

    def _stored_atoms(self) -> list[Any]:
        """The atoms of the operator's [heads, features], heads outermost first."""
        region = self.region
        heads: list[Any] = []
        feature: tuple[Any, ...] = ()
        for dim, place in zip(self.dims.of(region.node), region.out_places):
            if place is index("d"):
                feature = dim
                continue
            heads += [atom for atom in dim if atom is not region.batch_atom and atom is not region.query_atom]
        return [*heads, *feature]

    def _dense_output(self, packed: fx.Node, side: Side) -> fx.Node:
        """O in its own dimensions."""
        editor, region = self.editor, self.region
        batch, length = (self._size(region.extents[name]) for name in ("b", "i"))
        if side.flat is not None:
            dense = editor.call(torch.ops.gr.unpack.default, packed, side.flat, batch, length, 0)
        else:
            dense = packed
        stored = ["b", "i", *region.heads, "d"]
        split = editor.call(aten.reshape.default, dense, [self._size(region.extents[name]) for name in stored])
        wanted = [name for names in region.out_digits for name in names]
        order = [stored.index(name) for name in wanted] + [k for k, name in enumerate(stored) if name not in wanted]
        if order != list(range(len(order))):
            split = editor.call(aten.permute.default, split, order)
        made: fx.Node = editor.call(
            aten.reshape.default, split, [editor.symbol_of(s) for s in region.node.meta["val"].shape]
        )
        return made


def _longer_than_one(atoms: Iterable[Atom]) -> list[Atom]:
    """What an order has to place: a dimension of size 1 stands anywhere, and need not be known by its provenance."""
    return [atom for atom in atoms if atom.size != 1]
