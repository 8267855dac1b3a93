"""The pass: the plan that saves most, then what is left of the graph; plans that do not pay are Misses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch.fx as fx

from gr_compile.analysis.dims import DimensionProvenance
from gr_compile.analysis.element import Elements
from gr_compile.analysis.looked_up import sums_its_gradient, table_and_ids
from gr_compile.graph_pass import Match, Miss, Numerics, Pass, PassResult
from gr_compile.passes.dedupe_lookups.emit import DistinctRows
from gr_compile.passes.dedupe_lookups.plans import Plan, Planner
from gr_compile.passes.dedupe_lookups.profit import Costs, Sizes
from gr_compile.passes.dedupe_lookups.regions import NUMBERED, Region, RegionFinder, table_of
from gr_compile.passes.fuse_sampled_logits.products import ProductFinder, Rejected
from gr_compile.pipeline import PassContext

_OPERATORS = ("gr::occurring", "gr::count_true", "gr::true_places", "gr::numbered")
_USUAL_FILL = 0.5


@dataclass(frozen=True)
class DedupeLookups(Pass):
    """Compute what depends on an item alone once for each distinct item of the batch, where that pays (by name only).

    Attributes:
        least_gain: the expected speed-up, of the values that depend on the item alone, from which on it is done;
            0: wherever it can be done, whatever it costs.
        distinct: the share of ids that are distinct, in (0, 1], where you know it; 0: the most that is expected.
    """

    least_gain: float = 1.2
    distinct: float = 0.0

    name: ClassVar[str] = "dedupe-lookups"
    after: ClassVar[frozenset[str]] = frozenset({"canonicalize", "eliminate-padding", "fuse-jagged-attention"})
    numerics: ClassVar[Numerics] = "reassociates"
    preset_targets: ClassVar[frozenset[str] | None] = frozenset()

    def __post_init__(self) -> None:
        if not (self.least_gain >= 1 or self.least_gain == 0):
            raise ValueError(f"least-gain={self.least_gain}: at least 1, or 0 for whatever it costs")
        if not 0 <= self.distinct <= 1:
            raise ValueError(f"distinct={self.distinct}: a share in (0, 1], or 0 for an estimate")

    def run(self, graph_module: fx.GraphModule, context: PassContext) -> PassResult:
        """Candidates: tensors of ids that look rows of floats up."""
        work = _Work(graph_module, context, self)
        while work.step():
            context.editor.eliminate_dead_code()
        return PassResult(bool(work.matches), tuple(work.matches), tuple(work.misses))


@dataclass
class _Work:
    graph_module: fx.GraphModule
    context: PassContext
    options: DedupeLookups
    matches: list[Match] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)
    refused: set[str] = field(default_factory=set)

    def step(self) -> bool:
        """Carry the best plan out; where there is none, say why not."""
        pull = Elements(self.graph_module, self.context.constants)
        dims = DimensionProvenance(self.graph_module)
        finder = RegionFinder(self.graph_module, dims, pull, self._left(pull))
        config = self.context.config
        sizes = Sizes(self.graph_module, config.expected_fill or _USUAL_FILL, self.options.distinct)
        costs = Costs(sizes, self.context.report.training, weighed=self.options.least_gain > 0)
        plans = Planner(costs).plans(finder.regions())
        ready = [plan for plan in plans if self._blocked(plan, finder) is None]
        made = {node for plan in ready for cut in plan.cuts for node in cut.inside}
        for plan in sorted(ready, key=lambda plan: plan.after - plan.before):
            later = any(region.ids in made for region in _firing(plan))  # of distinct items, their categories
            if not later and self._goes(plan):
                self.matches.append(_match(plan))
                DistinctRows(self.context.editor).replace([cut for cut in plan.cuts if cut.inside])
                return True
        for plan in plans:
            reason = self._blocked(plan, finder)
            if reason is not None:
                self.misses.append(reason)
        self.misses += list(self._not_summed())
        return False

    def _left(self, pull: Elements) -> frozenset[fx.Node]:
        """Lookups that are multiplied as they are, where a later pass makes the products without any rows."""
        if not self.context.fuses_later("fuse-sampled-logits", "gr::sampled_logits"):
            return frozenset()
        finder, left = ProductFinder(pull), set()
        for node in self.graph_module.graph.nodes:
            try:
                product = finder.at(node)
            except Rejected:
                continue
            if product is not None and product.rows.node.all_input_nodes[-1].target is not NUMBERED:
                left.add(product.rows.node)
        return frozenset(left)

    def _goes(self, plan: Plan) -> bool:
        """Is it allowed? Asked once."""
        first = _firing(plan)[0]
        if first.ids.name in self.refused:
            return False
        names = ", ".join(x.ids.name for x in _firing(plan))
        allowed = self.context.allow(f"distinct ids of {names}", first.lookups[0])
        if not allowed:
            self.refused.add(first.ids.name)
        return allowed

    def _blocked(self, plan: Plan, finder: RegionFinder) -> Miss | None:
        """Why a plan is not carried out."""
        region = plan.cuts[0].region
        lookup = region.lookups[0]
        tables = _names(region)
        if not all(finder.is_data(cut.region.ids) for cut in plan.cuts):
            return Miss(f"the ids of rows of {tables} do not come from the data: none need occur twice", lookup)
        if not _firing(plan) or (self.options.least_gain and not plan.gain >= self.options.least_gain):
            return _no_gain(plan, self.options)
        lacking = [name for name in _OPERATORS if not self.context.supports(name)]
        if lacking:
            return Miss(f"the target has no kernel for {', '.join(lacking)}", lookup)
        return None

    def _not_summed(self) -> Iterator[Miss]:
        for node in self.graph_module.graph.nodes:
            if table_and_ids(node) is not None and not sums_its_gradient(node):
                hint = "leave sparse=True or scale_grad_by_freq=True out"
                yield Miss("the table's gradient is sparse, or scaled by how often an id occurs", node, hint)


def _firing(plan: Plan) -> list[Region]:
    return [cut.region for cut in plan.cuts if cut.inside]


def _names(region: Region) -> str:
    return ", ".join(dict.fromkeys(table_of(x).name for x in region.lookups))


def _match(plan: Plan) -> Match:
    cuts = [cut for cut in plan.cuts if cut.inside]
    count = len({node for cut in cuts for node in cut.inside})
    what = f"{count} values of an id alone, {len(cuts)} tensor{'s' if len(cuts) > 1 else ''} of ids"
    return Match(what, cuts[0].region.lookups[0], detail=_numbers(plan))


def _no_gain(plan: Plan, options: DedupeLookups) -> Miss:
    """The numbers of the gate, and what ends the program of a row."""
    region = plan.cuts[0].region
    ends = f"; their program ends there: {region.ends[0][1]}" if region.ends else ""
    node = region.ends[0][0] if region.ends and region.ends[0][0].op == "call_function" else region.lookups[0]
    if not any(cut.inside for cut in plan.cuts):
        return Miss(f"too little is computed of rows of {_names(region)} alone: {_numbers(plan)}{ends}", node)
    hint = "dedupe-lookups{distinct=0.1} if you know that one id in ten is distinct" if not options.distinct else ""
    least = f"less than least-gain={options.least_gain:g}"
    return Miss(f"rows of {_names(region)}: {_numbers(plan)}, {least}{ends}", node, hint)


def _numbers(plan: Plan) -> str:
    share = f"{plan.distinct:,.0f} of {plan.places:,.0f} ids distinct among {plan.rows:,.0f} rows"
    return f"at most {share} expected, {plan.before:.3g} -> {plan.after:.3g} accesses, {plan.gain:.2f}x"
