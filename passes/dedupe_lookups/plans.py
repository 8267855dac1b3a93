"""Plans: which regions' ids are taken together, and what that brings.

Regions that run the same program on rows of one table share its rows: targets and negatives of a batch, inputs shifted
by one. Two plans become one where that costs less than both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.kinds import Along, Permute, Reduce
from gr_compile.passes.dedupe_lookups.profit import Costs, Cut
from gr_compile.passes.dedupe_lookups.regions import Region, operands
from gr_compile.sizes import size_expr

_OF_THE_SHAPE = frozenset({"dim", "dims", "size", "shape", "sizes", "equation"})


@dataclass(frozen=True)
class Plan:
    """Regions whose distinct ids are found together.

    Attributes:
        cuts: one a region.
        places, rows, distinct: ids, rows of the table that they number, and distinct ids that are expected.
        before, after: accesses of the regions' values, with what it takes to find the distinct ids.
    """

    cuts: tuple[Cut, ...]
    places: float
    rows: float
    distinct: float
    before: float
    after: float

    @property
    def gain(self) -> float:
        """How many times faster the regions are expected to be."""
        return self.before / self.after if self.after else 1.0


class Planner:
    """Plans for the regions of one graph."""

    def __init__(self, costs: Costs) -> None:
        self._costs = costs
        self._programs: dict[Region, dict[fx.Node, Any]] = {}

    def plans(self, regions: Sequence[Region]) -> list[Plan]:
        """Every region is in one plan."""
        plans = [self._plan([region]) for region in regions]
        while True:
            pairs = [
                (a, b, self._plan([*_regions(a), *_regions(b)]))
                for k, a in enumerate(plans) for b in plans[k + 1 :] if _can_share(a, b)
            ]  # fmt: skip
            better = [(_cost(a) + _cost(b) - _cost(both), a, b, both) for a, b, both in pairs]
            saved, a, b, both = max(better, key=lambda x: x[0], default=(0.0, None, None, None))
            if saved <= 0 or a is None or b is None or both is None:
                return plans
            plans = [x for x in plans if x is not a and x is not b] + [both]

    def _plan(self, regions: Sequence[Region]) -> Plan:
        costs = self._costs
        places = sum(costs.places(region) for region in regions)
        rows = costs.sizes.of(regions[0].rows)
        distinct = costs.sizes.distinct(places, rows)
        sharing: dict[Any, float] = defaultdict(float)
        for region in regions:
            for form in set(self._program(region).values()):
                sharing[form] += costs.places(region)
        cuts = []
        for region in regions:
            own = costs.places(region)
            share = {node: own / max(sharing[form], 1.0) for node, form in self._program(region).items()}
            cuts.append(costs.cut(region, distinct, share))
        if any(cut.inside for cut in cuts) and not all(cut.inside for cut in cuts):
            idle = [cut for cut in cuts if not cut.inside]
            plan = self._plan([cut.region for cut in cuts if cut.inside])
            more = sum(cut.before for cut in idle)
            return Plan(
                (*plan.cuts, *idle), plan.places, plan.rows, plan.distinct, plan.before + more, plan.after + more
            )
        before = sum(cut.before for cut in cuts)
        return Plan(tuple(cuts), places, rows, distinct, before, self._after(cuts, places, rows, distinct))

    def _after(self, cuts: Sequence[Cut], places: float, rows: float, distinct: float) -> float:
        costs, once = self._costs, {}
        after = costs.finding(places, rows)
        for cut in cuts:
            inside, count = set(cut.inside), costs.places(cut.region)
            for node in cut.inside:
                once[self._program(cut.region)[node]] = costs.work(node, cut.region)
            after += count * sum(costs.work(node, cut.region) for node in cut.region.members if node not in inside)
            after += count * sum(costs.spread(node, cut.region) for node in cut.spread)
        return after + distinct * sum(once.values())

    def _program(self, region: Region) -> dict[fx.Node, Any]:
        """What each member computes of an id: equal forms are equal values of equal ids."""
        if region not in self._programs:
            forms: dict[fx.Node, Any] = {region.ids: "id"}
            for node in region.members:
                forms[node] = _form(node, region, forms)
            self._programs[region] = {node: forms[node] for node in region.members}
        return self._programs[region]


def _form(node: fx.Node, region: Region, forms: dict[fx.Node, Any]) -> Any:
    layout, kind = region.layout, ops.kind_of(node)
    rest = [position for position, _ in layout.rest(node)]
    dims: Any = None
    if isinstance(kind, (Reduce, Along)):
        inner = [position for position, _ in layout.rest(kind.source)]
        dims = tuple(inner.index(d) for d in kind.dims)
    elif isinstance(kind, Permute):
        dims = tuple(kind.order[d] for d in rest)
    elif hasattr(kind, "dim"):
        dims = len([d for d in rest if d < kind.dim])  # type: ignore[union-attr]
    schema = getattr(node.target, "_schema", None)
    names = [a.name for a in schema.arguments] if schema is not None else []
    given = {names[k] if k < len(names) else k: x for k, x in enumerate(node.args)} | node.kwargs
    constants = [(name, repr(x)) for name, x in given.items() if name not in _OF_THE_SHAPE and not _tensors(x)]
    made_of = tuple(forms.get(x, x) for x in operands(node))
    sizes = tuple(size_expr(node.meta["val"].shape[d]) for d in rest)
    return node.target, made_of, dims, sizes, tuple(constants)


def _tensors(value: Any) -> bool:
    found: list[fx.Node] = []
    fx.map_arg(value, found.append)
    return bool(found)


def _regions(plan: Plan) -> list[Region]:
    return [cut.region for cut in plan.cuts]


def _cost(plan: Plan) -> float:
    return min(plan.before, plan.after)


def _can_share(a: Plan, b: Plan) -> bool:
    """Do ids of both number rows of one table, and are neither made of the other's rows?"""
    pairs = [(x, y) for x in _regions(a) for y in _regions(b)]
    shared = any(x.tables & y.tables for x, y in pairs)
    alike = all(size_expr(x.rows) == size_expr(y.rows) for x, y in pairs)
    return shared and alike and not any(_is_made_of(x, y) or _is_made_of(y, x) for x, y in pairs)


def _is_made_of(region: Region, other: Region) -> bool:
    """Do the ids of `region` depend on values of `other`?"""
    members, seen, front = set(other.members), {region.ids}, [region.ids]
    while front:
        for node in front.pop().all_input_nodes:
            if node not in seen:
                seen.add(node)
                front.append(node)
    return bool(seen & members)
