"""Kept places: the mask M of a raggedness, and its closure under attention: a kept query reads only kept keys."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.fx as fx

from gr_compile.analysis.element import Elements
from gr_compile.analysis.expr import FALSE, TRUE, Expr, and_, compare, index, load, not_, or_, substitute, walk
from gr_compile.analysis.implies import implies
from gr_compile.analysis.implies import project as project_out
from gr_compile.analysis.layout import TokenLayout
from gr_compile.analysis.region import Region
from gr_compile.analysis.region_support import blind_rows_are_zero, support
from gr_compile.analysis.support import live

_SCORES = frozenset({"dot", "s", "sm", "softmax"})
_MOST_COMPARISONS = 8


@dataclass
class KeptPlaces:
    """The places that are kept.

    Attributes:
        mask: M over b and n; loads of the names in `closures` stand for derived masks.
        closures: name -> ("suffix", mask): every place up to the last one of mask;
            or ("rows", mask): all places of a sequence that has a place in mask;
            or ("none", mask): all places of a sequence that has none;
            or ("first", mask): the first place of a sequence that is not in mask;
            or ("named", numbers): the places b * N + n that a tensor of numbers names.
        terms: what contributed, in words.
    """

    mask: Expr = FALSE
    closures: dict[str, tuple[str, Expr]] = field(default_factory=dict)
    terms: list[str] = field(default_factory=list)

    @property
    def suffix_closed(self) -> frozenset[str]:
        """Names whose masks hold every place before one that they hold."""
        return frozenset(name for name, (kind, _) in self.closures.items() if kind == "suffix")


class Closure:
    """The places kept of one layout, while they are being found.

    `fixed`: closures that hold whatever is added; `blocked_keys`: why the keys of a region cannot be bounded.
    """

    def __init__(self, pull: Elements, layout: TokenLayout) -> None:
        self.pull, self.layout = pull, layout
        self.kept = KeptPlaces()
        self.fixed: dict[str, tuple[str, Expr]] = {}
        self.blocked_keys: dict[fx.Node, str] = {}

    def restart(self) -> None:
        """Begin again with nothing kept."""
        self.kept = KeptPlaces(closures=dict(self.fixed))

    def add(self, places: Expr, what: str) -> None:
        """Keep `places` too; `what` says for whom."""
        mask = self.kept.mask
        if places is FALSE or implies(self.pull.ranges, places, mask, suffix_closed=self.kept.suffix_closed):
            return
        self.kept.terms.append(f"{places} ({what})")
        self.kept.mask = places if implies(self.pull.ranges, mask, places) else or_(mask, places)

    def facts(self) -> list[Expr]:
        """A closure holds what it closes."""
        here = (index("b"), index("n"))
        return [
            or_(not_(mask), load(name, here if kind == "suffix" else here[:1], "b"))
            for name, (kind, mask) in self.kept.closures.items()
            if kind in ("suffix", "rows")
        ]

    def computable(self, places: Expr) -> bool:
        """The places must be known before anything is packed: from closed values only."""
        for part in walk(places):
            if part.op == "load" and part.args[0] not in self.kept.closures:
                node = self.pull.nodes.get(part.args[0])
                if node is None or not self.pull.closed(node):
                    return False
            if part.op in _SCORES:
                return False
        return True

    def sequences_without(self, places: Expr) -> Expr | None:
        """The sequences in which none of `places` is, by a name for it; None where that cannot be computed."""
        if not self.computable(places):
            return None
        return load(self._fixed("none", places), (index("b"),), "b")

    def first_without(self, places: Expr) -> Expr:
        """The first place of each sequence that is not one of `places`, by a name for it."""
        return load(self._fixed("first", places), (index("b"), index("n")), "b")

    def _fixed(self, kind: str, places: Expr) -> str:
        known = next((name for name, closure in self.fixed.items() if closure == (kind, places)), None)
        name = known if known is not None else f"{kind}_{len(self.fixed)}"
        self.kept.closures[name] = self.fixed[name] = (kind, places)
        return name

    def named(self, numbers: fx.Node) -> Expr:
        """The places b * N + n that the tensor `numbers` names, by a name for them."""
        name = f"named_{numbers.name}"
        self.kept.closures[name] = self.fixed[name] = ("named", load(numbers.name, (), "i"))
        return load(name, (index("b"), index("n")), "b")

    def bind(self, region: Region) -> None:
        """From here on the indices are those of `region`."""
        for name, extent in region.extents.items():
            self.pull.bind(name, extent)

    def project(self, region: Region, premise: Expr, side: str) -> Expr:
        """The places of `side` ("i" or "j") for which `premise` may hold, whatever the other is; over b and n."""
        self.bind(region)
        defined = _whatever_the_scores(substitute(premise, region.definitions))
        wanted = frozenset({"b", side})
        projected = project_out(self.pull.ranges, defined, wanted, suffix_closed=self.kept.suffix_closed)
        return substitute(projected, {index(side): index("n")})

    def close(self, region: Region) -> bool:
        """Keep what the kept queries of `region` read. False: it cannot be bounded."""
        if region.key_atom is not self.layout.sequence:
            return True
        if not self._close_keys(region):
            return False
        return self._close_empty_rows(region)

    def _close_keys(self, region: Region) -> bool:
        allowed = support(region)
        if self.proved(region, and_(allowed, self._kept_at("i")), self._kept_at("j")):
            return True
        keys = self.project(region, allowed, "j")
        if keys is TRUE or not self.computable(keys):
            keys = self.project(region, and_(allowed, self._kept_at("i")), "j")
        if keys is not TRUE and self.computable(keys):
            self.add(keys, "keys that kept queries read")
            if self.proved(region, and_(allowed, self._kept_at("i")), self._kept_at("j")):
                return True
        if not self.proved(region, allowed, compare("ge", index("i"), index("j"), self.pull.ranges)):
            self.blocked_keys[region.node] = "its mask does not keep queries from reading padded keys"
            return False
        self._suffix()
        return self.proved(region, and_(allowed, self._kept_at("i")), self._kept_at("j"))

    def _suffix(self) -> None:
        """Causal attention without a key mask reads everything before the last kept place."""
        name = f"places_{len(self.kept.closures)}"
        self.kept.closures[name] = ("suffix", self.kept.mask)
        self.kept.terms.append("every place before a kept one (causal attention without a key mask)")
        self.kept.mask = load(name, (index("b"), index("n")), "b")

    def _close_empty_rows(self, region: Region) -> bool:
        """A kept query that sees no key gives what the model gives only where all its keys are kept."""
        if not region.softmax:
            return True
        if blind_rows_are_zero(region):
            return True
        visible = live(region.score).condition
        if region.query_atom is not region.key_atom:
            self.blocked_keys[region.node] = "a query may see no key at all"
            return False
        itself = substitute(visible, {index("j"): index("n"), index("i"): index("n")})
        kept = self.kept.mask
        if implies(self.pull.ranges, kept, itself, suffix_closed=self.kept.suffix_closed):
            return True
        if itself.free - {"b", "n"} or not self.computable(itself):
            self.blocked_keys[region.node] = "a query may see no key at all"
            return False
        blind = and_(kept, not_(itself))
        if self._kept_whole(blind):
            return True
        name = f"places_{len(self.kept.closures)}"
        self.kept.closures[name] = ("rows", blind)
        self.kept.terms.append("all places of a sequence in which a kept query sees no key")
        self.kept.mask = or_(kept, load(name, (index("b"),), "b"))
        return True

    def _kept_whole(self, blind: Expr) -> bool:
        """Every sequence with such a place is kept whole already."""
        return any(
            implies(self.pull.ranges, and_(blind, not_(load(name, (index("b"),), "b"))), mask)
            for name, (kind, mask) in self.kept.closures.items()
            if kind == "rows"
        )

    def _kept_at(self, side: str) -> Expr:
        return substitute(self.kept.mask, {index("n"): index(side)})

    def proved(self, region: Region, premise: Expr, conclusion: Expr) -> bool:
        """Whether `premise` implies `conclusion` over the indices of `region`."""
        self.bind(region)
        premise, conclusion = (substitute(e, region.definitions) for e in (premise, conclusion))
        return implies(self.pull.ranges, premise, conclusion, suffix_closed=self.kept.suffix_closed)


def _whatever_the_scores(premise: Expr) -> Expr:
    """`premise`, weaker: what it says for one answer or the other of every comparison of scores, as of `s > 0`."""
    compared = [part for part in walk(premise) if part.op == "compare" and any(p.op in _SCORES for p in walk(part))]
    if len(compared) > _MOST_COMPARISONS:
        return premise
    for part in compared:
        premise = or_(substitute(premise, {part: TRUE}), substitute(premise, {part: FALSE}))
    return premise
