"""The pass: find the raggednesses of a graph, decide by analysis what can be packed, and pack it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.fx as fx

from gr_compile.analysis.algebra import not_
from gr_compile.analysis.cost import saving
from gr_compile.analysis.demand import DemandAnalysis
from gr_compile.analysis.dims import Atom, DimensionProvenance
from gr_compile.analysis.element import Blocked, Elements
from gr_compile.analysis.expr import TRUE, Expr
from gr_compile.analysis.implies import implies
from gr_compile.analysis.layout import Layout, TokenLayout, is_floating
from gr_compile.analysis.operators import CLASS_LOSSES, Along, Contract, Lookup, RowLoss, Slice, kind_of
from gr_compile.analysis.places import Places
from gr_compile.analysis.reads import Read
from gr_compile.analysis.region import Region, RegionFinder
from gr_compile.graph_pass import Match, Miss, Numerics, Pass, PassResult
from gr_compile.passes.eliminate_padding.convolutions import spell_convolutions_as_linear
from gr_compile.passes.eliminate_padding.counting import PlaceCounter
from gr_compile.passes.eliminate_padding.declared import (
    declared_masks,
    declared_places,
    detected_places,
    unread_declarations,
)
from gr_compile.passes.eliminate_padding.emit import PlaceEmitter
from gr_compile.passes.eliminate_padding.equal_keys import Spelling, is_fused_later, spelling_of
from gr_compile.passes.eliminate_padding.exits import SUMS, Exits
from gr_compile.passes.eliminate_padding.jagged import spell_jagged_as_padded
from gr_compile.passes.eliminate_padding.masks import PlaceMasks
from gr_compile.passes.eliminate_padding.one_hot import spell_one_hot_products_as_rows
from gr_compile.passes.eliminate_padding.packed import Packer
from gr_compile.passes.eliminate_padding.pad_row import typed
from gr_compile.passes.eliminate_padding.writes import spell_writes_by_place
from gr_compile.passes.ragged import RAGGED_FACT, PackedIndex, Ragged, raggednesses
from gr_compile.pipeline import PassContext

aten = torch.ops.aten
_NOT_SPELLED = "their weights are read by others, or there is no operator for their dropout"
_SELECTIONS = (aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf)


@dataclass(frozen=True)
class EliminatePadding(Pass):
    """Run token-wise work on packed tokens.

    Attributes:
        mode: how the number of packed tokens T is held: "unbacked" (counted inside the graph; one graph for every
            batch), "bucket" (T rounded up to `multiple` by keeping that many more places, at most all) or "host"
            (counted before the graph runs, which takes it as an input; one graph for every batch).
        multiple: bucket size.
        min_saving: decline where less than this share of the token-wise work is saved at 50 % fill; 0: if it loses.
    """

    mode: str = "unbacked"
    multiple: int = 256
    min_saving: float = 0.0

    name: ClassVar[str] = "eliminate-padding"
    provides: ClassVar[frozenset[str]] = frozenset({"packed-tokens"})
    after: ClassVar[frozenset[str]] = frozenset({"canonicalize", "recognize-softmax"})
    numerics: ClassVar[Numerics] = "reassociates"

    def __post_init__(self) -> None:
        if self.mode not in ("unbacked", "bucket", "host"):
            raise ValueError(f"mode={self.mode!r}: 'unbacked', 'bucket' or 'host'")
        if self.multiple < 1:
            raise ValueError(f"multiple={self.multiple}: at least 1")

    def run(self, graph_module: fx.GraphModule, context: PassContext) -> PassResult:
        """Pack every raggedness that the analyses prove."""
        if context.config.padding == "none":
            return PassResult(False, misses=(Miss("padding='none' was asked for"),))
        if not context.supports("gr::pack"):
            return PassResult(False, misses=(Miss("the target has no kernel for gr::pack"),))
        matches = spell_convolutions_as_linear(graph_module, context)
        matches += spell_writes_by_place(graph_module, context)
        matches += spell_one_hot_products_as_rows(graph_module, context)
        jagged, missed = spell_jagged_as_padded(graph_module, context, self._pack)
        packed, left = self._pack(graph_module, context)
        matches += [*jagged, *packed]
        misses = [*unread_declarations(graph_module, context.config), *missed, *left]
        return PassResult(bool(matches), tuple(matches), tuple({str(miss): miss for miss in misses}.values()))

    def _pack(self, graph_module: fx.GraphModule, context: PassContext) -> tuple[list[Match], list[Miss]]:
        """Pack one raggedness after the other."""
        matches: list[Match] = []
        misses: list[Miss] = []
        tried: set[tuple[str, str]] = set()
        while (attempt := self._next(graph_module, context, tried)) is not None:
            match, found = attempt.apply(context, self)
            if match is not None:
                matches.append(match)
                context.editor.eliminate_dead_code()
            misses += found
        return matches, misses

    def _next(self, graph_module: fx.GraphModule, context: PassContext, tried: set[tuple[str, str]]) -> _Attempt | None:
        """The next raggedness: one that is a view of another (a sequence cut short) comes before that one."""
        dims = DimensionProvenance(graph_module)
        left = []
        for node, pair in raggednesses(graph_module, dims, Elements(graph_module, context.constants)):
            sampled = context.fuses_later("fuse-sampled-logits", "gr::sampled_logits")
            layout = TokenLayout(dims, *pair, sampled=sampled)
            if (node.name, str(pair[1].size)) not in tried and has_token_work(graph_module, layout):
                left.append((node, layout))
        for node, layout in left:
            if not any(_feeds(graph_module, layout, other) for _, other in left) or node is left[-1][0]:
                tried.add((node.name, str(layout.sequence.size)))
                return _Attempt(graph_module, context, dims, layout, node)
        return None


def _feeds(graph_module: fx.GraphModule, layout: TokenLayout, other: TokenLayout) -> bool:
    """Whether `other`'s places are cut out of those of `layout`, and not the other way round."""

    def cuts(source: TokenLayout, result: TokenLayout) -> bool:
        return any(
            isinstance(kind := kind_of(node), Slice)
            and is_floating(node)
            and source.of(kind.source) is Layout.TOKENS
            and result.of(node) is Layout.TOKENS
            and source.of(node) is not Layout.TOKENS
            for node in graph_module.graph.nodes
        )

    return cuts(layout, other) and not cuts(other, layout)


def has_token_work(graph_module: fx.GraphModule, layout: TokenLayout) -> bool:
    """Whether anything that costs more than a view has a value for every place."""
    return any(
        _is_loss_over(node, layout)
        or (
            is_floating(node)
            and layout.of(node) is Layout.TOKENS
            and isinstance(kind_of(node), (Contract, Lookup, RowLoss, Along))
        )
        for node in graph_module.graph.nodes
        if node.op == "call_function"
    )


def _is_loss_over(node: fx.Node, layout: TokenLayout) -> bool:
    logits = node.args[0] if node.target in CLASS_LOSSES else None
    return isinstance(logits, fx.Node) and layout.of(logits) is Layout.TOKENS


class _Attempt:
    """One raggedness: analysis, then rewriting."""

    def __init__(
        self, graph_module: fx.GraphModule, context: PassContext, dims: DimensionProvenance, layout: TokenLayout,
        witness: fx.Node,
    ) -> None:  # fmt: skip
        self.graph_module, self.context, self.witness, self.layout = graph_module, context, witness, layout
        masks = declared_masks(graph_module, context.config)
        self.pull = Elements(graph_module, context.constants, masks)
        finder = RegionFinder(graph_module, Elements(graph_module, context.constants, masks), dims)
        self.regions: list[Region] = finder.find(layout.batch)
        self.pull.size_values.update(finder.pull.size_values)
        self.places = Places(self.pull, self.layout, witness)
        self.declared = declared_places(self.pull, self.layout, graph_module, context.config)
        self.output_read = self._output_read()
        self.merged: list[Spelling] = []
        self.unequal: list[str] = []
        self.demand = self._demand(merge=False)

    def _demand(self, merge: bool) -> DemandAnalysis:
        packs = {ragged.index.flat: ragged.index.mask for ragged in self.context.facts.get(RAGGED_FACT, [])}
        return DemandAnalysis(
            self.graph_module, self.pull, self.layout, self.places, self.regions, self.output_read, packs, merge
        )

    def _output_read(self) -> Expr:
        if self.context.config.outputs_at_padding == "exact":
            return TRUE
        if self.context.config.declared:
            return self.declared if self.declared is not None else TRUE
        return detected_places(self.demand_free_regions(), self.pull, self.layout)

    def demand_free_regions(self) -> list[Region]:
        """Regions whose keys have this raggedness."""
        return [region for region in self.regions if region.key_atom is self.layout.sequence]

    # ----------------------------------------------------------------------------------------------- apply
    def apply(self, context: PassContext, options: EliminatePadding) -> tuple[Match | None, list[Miss]]:
        """Pack what can be packed; what cannot is a Miss with its reason."""
        worth = self._solve(context)
        misses = [
            Miss(d.reason, d.user if d.user.op != "output" else d.node, d.hint)
            for d in self.demand.dense if self._matters(d.node)
        ]  # fmt: skip
        if not worth:
            return None, misses
        declined = self._unprofitable(context, options)
        if declined is not None:
            return None, [*misses, declined]
        what = f"packed tokens of {self.witness.name}"
        if not context.allow(what, self.witness):
            return None, misses
        tokens = sum(1 for node in self.demand.packed if kind_of(node) is not None)
        counter = PlaceCounter(context, host=options.mode == "host")
        ragged = self._rewrite(context, options, counter)
        misses += counter.misses
        context.facts.setdefault(RAGGED_FACT, []).append(ragged)
        places = "; ".join(self.demand.kept.terms)
        if self.unequal and self.demand.kept.suffix_closed:
            places += f"; padded keys are not one key: {self.unequal[0]}"
        context.report.facts[f"places kept ({self.witness.name})"] = places
        detail = f"{tokens} operators on packed tokens; kept: {places}"
        if self.merged:
            detail += f"; padded keys taken for one: {', '.join(spelling.node.name for spelling in self.merged)}"
        return Match(what, self.witness, detail=detail), misses

    def _solve(self, context: PassContext) -> bool:
        """Whether anything can be packed: with padded keys that are equal as one key, where that leaves places out."""
        worth = self.demand.solve()
        if worth and not self.demand.reads_padding:
            return True
        demand = self._demand(merge=True)
        spelled = {node: spelling_of(equal, self.layout, context) for node, equal in demand.equal_keys.items()}
        merged = [spelling for spelling in spelled.values() if spelling is not None]
        self.unequal = [*demand.unequal_keys.values(), *([_NOT_SPELLED] if len(merged) < len(spelled) else [])]
        if not merged or len(merged) < len(spelled) or not demand.solve() or demand.reads_padding:
            return worth
        if not all(context.allow(f"equal keys of {node.name}", node) for node in spelled):
            return worth
        self.demand, self.merged = demand, merged
        return True

    def _matters(self, node: fx.Node) -> bool:
        dtype: torch.dtype = node.meta["val"].dtype
        return dtype.is_floating_point or dtype.is_complex

    def _unprofitable(self, context: PassContext, options: EliminatePadding) -> Miss | None:
        packed, reads = self.demand.packed, self.demand.reads
        fused = self._fused_regions(context)
        exits = {read.node for read in reads if not read.rows and read.user not in fused and not self._is_sum(read)}
        losses = {read.user for read in reads if read.user.target in CLASS_LOSSES}
        entries = {
            operand for node in packed for operand in node.all_input_nodes
            if operand not in packed and self.layout.of(operand) is Layout.TOKENS
        } | {node for node in packed if node in self.demand.regions and node not in fused}  # fmt: skip
        fill = context.config.expected_fill or 0.5
        saved, total = saving(packed | losses, entries, exits, self.layout, fill)
        if saved >= options.min_saving * total and total > 0:
            return None
        if total <= 0:
            return Miss(f"nothing that costs anything runs on the places of {self.witness.name}", self.witness)
        share = saved / total
        return Miss(
            f"packing {self.witness.name} saves {100 * share:.0f} % of its token-wise work at {100 * fill:.0f} % fill, "
            "less than min-saving",
            self.witness,
            hint=f"eliminate-padding{{min-saving={math.floor(100 * share) / 100:.2f}}} packs it all the same",
        )

    def _is_sum(self, read: Read) -> bool:
        """A sum of what is 0 at padded places needs no unpacking."""
        return read.user.target in SUMS and self.demand.pads.of(read.node).fill == 0

    def _fused_regions(self, context: PassContext) -> set[fx.Node]:
        """Attention that a later pass runs on packed tokens: nothing is unpacked for it."""
        if not is_fused_later(context):
            return set()
        return {node for node in self.demand.regions if node in self.demand.packed}

    # --------------------------------------------------------------------------------------------- rewriting
    def _rewrite(self, context: PassContext, options: EliminatePadding, counter: PlaceCounter) -> Ragged:
        editor = context.editor
        output = next(iter(self.graph_module.graph.find_nodes(op="output")))
        order = {node: k for k, node in enumerate(self.graph_module.graph.nodes)}
        with editor.at(before=output, like=self.witness):
            masks = PlaceMasks(editor, self.pull, self.layout, self.demand.kept, self._device())
            index = self._index(options, counter, masks)
            decided = self._decided() if options.mode != "bucket" else {}  # a bucket is filled with places not kept
            packer = Packer(editor, self.layout, self.demand.packed | self._derived(), index, decided)
            axes = {"b": (index.batch_size, 0)}
            exits = Exits(packer, self.demand, PlaceEmitter(editor, self.pull, axes, self._device()), counter)
            nodes = sorted(self.demand.packed, key=order.__getitem__)
            for node in nodes:
                packer.packed(node)
            for node in nodes:  # outputs first: the row of a padded place is what the graph, as it was, makes of one
                if output in node.users:
                    self._exit(exits, node, output, output, masks)
            for node in nodes:
                for user in list(node.users):
                    if user is not output and user in order and self.demand.is_exit(user):
                        self._exit(exits, node, user, output, masks)
            made = {spelling.node: spelling.rewrite(editor, masks) for spelling in self.merged}
        editor.sort()
        closed = {n for n in self.demand.regions if n in self.demand.packed and n not in self.demand.dense_keys}
        return Ragged(index, frozenset(made.get(node, node).name for node in closed))

    def _decided(self) -> dict[fx.Node, fx.Node]:
        """Selections by a mask that is true, or false, at every place that is kept, and the operand that they are."""
        found: dict[fx.Node, fx.Node] = {}
        for node in self.demand.packed:
            if node.target not in _SELECTIONS:
                continue
            mask, when_true, when_false = node.args[:3]
            try:
                holds = self.pull.element(mask, self.places.of(mask))  # type: ignore[arg-type]
            except Blocked:
                continue
            for operand, places in ((when_true, holds), (when_false, not_(holds))):
                if not isinstance(operand, fx.Node) or not self._is_like(operand, node):
                    continue
                if implies(self.pull.ranges, self.demand.kept.mask, places):
                    found[node] = operand
        return found

    def _is_like(self, operand: fx.Node, node: fx.Node) -> bool:
        """Dtype and dimensions are the node's: nothing is converted or broadcast."""
        value, dims = operand.meta.get("val"), self.layout.dims
        if not isinstance(value, torch.Tensor) or value.dtype != node.meta["val"].dtype:
            return False
        return dims.of(operand) == dims.of(node)

    def _derived(self) -> set[fx.Node]:
        """Features that a place has from numbers alone, such as the angles of its position: tokens that read them make
        them anew, since what they are made of is smaller."""
        return {
            node for node in self.graph_module.graph.nodes
            if is_floating(node) and self.layout.is_local(node) and self.layout.rest(node) and self.pull.closed(node)
        }  # fmt: skip

    def _exit(self, exits: Exits, node: fx.Node, user: fx.Node, output: fx.Node, masks: PlaceMasks) -> None:
        if user is not output or self.output_read is TRUE:
            exits.rewrite(node, user)
            return
        editor = self.context.editor
        dense = exits.packer.unpacked(node, typed(0.0, node))
        if not implies(self.pull.ranges, self.demand.kept.mask, self.output_read):
            mask = masks.of(self.output_read)
            shaped = exits.packer.arrange_back(
                self._with_rest(mask, node), node, [self.layout.batch, self.layout.sequence]
            )
            dense = editor.call(aten.where.ScalarOther, shaped, dense, 0)
        editor.set_argument(output, node, dense)

    def _with_rest(self, mask: fx.Node, node: fx.Node) -> fx.Node:
        for _ in self.layout.rest(node):
            mask = self.context.editor.call(aten.unsqueeze.default, mask, -1)
        sizes = [-1, -1, *(self._rest_size(node, p, d) for p, d in self.layout.rest(node))]
        expanded: fx.Node = self.context.editor.call(aten.expand.default, mask, sizes)
        return expanded

    def _rest_size(self, node: fx.Node, position: int, atoms: tuple[Atom, ...]) -> Any:
        product: Any = 1
        for atom in atoms:
            product = product * atom.size
        return self.context.editor.symbol_of(product)

    def _device(self) -> torch.device:
        device: torch.device = self.witness.meta["val"].device
        return device

    def _index(self, options: EliminatePadding, counter: PlaceCounter, masks: PlaceMasks) -> PackedIndex:
        mask = masks.of(self.demand.kept.mask)
        if options.mode == "bucket":
            mask = masks.filled(mask, options.multiple)
        flat = counter.places(mask, f"packed tokens of {self.witness.name}")
        return PackedIndex(mask, flat, *masks.sizes())
