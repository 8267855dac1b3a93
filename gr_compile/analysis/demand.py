"""Demand: which places of packed values does anybody read, and so which places must be kept.

Every read of a packable value by something that is not packed is a set of places, an expression over b and n. Outside
a value's support its content is a known constant, so what must be kept is `read & support`. The places kept, M, are
the union of these sets, closed under attention: a kept query reads only kept keys. M is computed from the data by the
compiled graph itself; nothing is assumed of it. A value of which *every* place must be kept stays dense, with a Miss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.closure import Closure, KeptPlaces
from gr_compile.analysis.element import Elements
from gr_compile.analysis.equal_keys import EqualKeys, EqualKeysFinder
from gr_compile.analysis.expr import FALSE, TRUE, Expr, and_, index, or_, substitute
from gr_compile.analysis.implies import implies
from gr_compile.analysis.layout import Layout, TokenLayout
from gr_compile.analysis.pad_rows import PadRows
from gr_compile.analysis.pad_value import Pad, PadValues
from gr_compile.analysis.places import Places
from gr_compile.analysis.reads import SHAPE_ONLY, Read, Readers
from gr_compile.analysis.region import Region
from gr_compile.analysis.region_masks import MasksInside, scores_of
from gr_compile.analysis.region_support import blind_rows_are_zero, support, visible
from gr_compile.analysis.support import nonzero
from gr_compile.analysis.tame import untamed

_ROUNDS = 6
_MASK_FIRST = "if padded places are not meant, set them to 0 before, or to -inf in front of a maximum or a softmax"
_MASK_KEYS = "mask the keys; where no softmax follows, multiply the weights by the mask"


@dataclass(frozen=True)
class Dense:
    """A value that stays dense: who reads all of it."""

    node: fx.Node
    user: fx.Node
    reason: str
    hint: str


class DemandAnalysis:
    """Packable values, their reads, and the places to keep, for one layout.

    `packs`: for each packed index that the graph has already, the mask of the places that it keeps. `merge`: take
    padded keys that are equal for one key. Whoever rewrites then has to merge those of `equal_keys`; `unequal_keys`
    says why others are not.
    """

    def __init__(
        self, graph_module: fx.GraphModule, pull: Elements, layout: TokenLayout, places: Places,
        regions: Iterable[Region], output_read: Expr, packs: Mapping[fx.Node, fx.Node] | None = None,
        merge: bool = True,
    ) -> None:  # fmt: skip
        self.graph_module, self.pull, self.layout, self.places = graph_module, pull, layout, places
        self.regions = {region.node: region for region in regions}
        self._scores = {node for region in self.regions.values() for node in scores_of(region)}
        self.dense_keys: set[fx.Node] = set()
        self.untamed: dict[fx.Node, fx.Node] = {}
        self.dense: list[Dense] = []
        self.closure = Closure(pull, layout)
        self.pads = PadValues(pull, layout, places, self._region_pads(), self.closure.sequences_without)
        self.rows = PadRows(layout, self.pads)
        self.equal_keys: dict[fx.Node, EqualKeys] = {}
        self.unequal_keys: dict[fx.Node, str] = {}
        if merge:
            self._find_equal_keys()
        self.regions |= {node: equal.region for node, equal in self.equal_keys.items()}
        self.readers = Readers(pull, layout, places, self.pads, output_read, packs or {}, self.closure.named)
        self._masks = MasksInside(pull, layout)
        self.packed: set[fx.Node] = set()
        self.reads: list[Read] = []

    @property
    def kept(self) -> KeptPlaces:
        """The places to keep."""
        return self.closure.kept

    def _find_equal_keys(self) -> None:
        finder = EqualKeysFinder(self.pull, self.layout, self.places, self.rows, self.closure)
        found = {node: finder.of(region) for node, region in self.regions.items()}
        self.equal_keys = {node: equal for node, equal in found.items() if equal is not None}
        self.unequal_keys = finder.reasons

    @property
    def reads_padding(self) -> bool:
        """Whether attention has padded places kept, or all of them."""
        return bool(self.kept.suffix_closed or self.dense_keys or self.closure.blocked_keys)

    # ---------------------------------------------------------------------------------------------- solve
    def solve(self) -> bool:
        """Find the packable values and the places. False: nothing can be packed."""
        for _ in range(len(self.regions) + 1):
            self._settle()
            if not any(ops.kind_of(node) is not None for node in self.packed):
                return False
            if self._close():
                return bool(self.packed) and self.kept.mask is not TRUE
        return False

    def _settle(self) -> None:
        """Remove values that are needed everywhere until every read has its places."""
        self.dense = []
        self.packed = {node for node in self.graph_module.graph.nodes if self._packable(node)}
        self._interior = self._find_interior()
        removed: set[fx.Node] = set()
        while True:
            ordered = [node for node in self.graph_module.graph.nodes if node in self.packed]
            self.reads = [read for node in ordered for read in self._reads(node)]
            unbounded: dict[fx.Node, Read] = {}
            for read in self.reads:
                if self._needed(read) is TRUE:
                    unbounded.setdefault(read.node, read)
            if not unbounded:
                return
            self.dense += [self._dense(read) for read in unbounded.values() if read.user not in removed]
            removed.update(unbounded)
            self.packed -= set(unbounded)

    def rows_are_kept(self, node: fx.Node, user: fx.Node) -> bool:
        """Every row that `user` reads of `node` is among the packed ones."""
        found = [read for read in self.reads if read.node is node and read.user is user]
        facts = self.closure.facts()
        return bool(found) and all(
            read.rows and implies(self.pull.ranges, and_(read.where, *facts), self.kept.mask) for read in found
        )

    def _packable(self, node: fx.Node) -> bool:
        value = node.meta.get("val")
        if node.op != "call_function" or not isinstance(value, torch.Tensor) or self.pull.closed(node):
            return False
        if self.layout.of(node) is not Layout.TOKENS or node in self._scores:
            return False
        return self._is_query_of(node) or self.layout.is_local(node)

    def _is_query_of(self, node: fx.Node) -> bool:
        region = self.regions.get(node)
        return (
            region is not None and region.batch_atom is self.layout.batch and region.query_atom is self.layout.sequence
        )

    def _needed(self, read: Read) -> Expr:
        if read.rows and self._bounded(read.where) is not TRUE:
            return read.where
        pad = self.pads.of(read.node)
        if pad.known:
            return self._bounded(and_(read.where, pad.support))
        if read.user.op == "output":
            return self._bounded(and_(read.where, self.rows.of(read.node)))
        return self._bounded(read.where)

    def _bounded(self, needed: Expr) -> Expr:
        """The places where they can be computed and are not all of them, else TRUE."""
        if needed is TRUE or needed.free - {"b", "n"} or not self.closure.computable(needed):
            return TRUE
        return TRUE if implies(self.pull.ranges, TRUE, needed) else needed

    # ---------------------------------------------------------------------------------------------- reads
    def _reads(self, node: fx.Node) -> list[Read]:
        found = []
        for user in node.users:
            if not self.is_exit(user) or user.target in SHAPE_ONLY:
                continue
            if user in self._interior or user in self.regions:
                found += self._region_reads(node, user)
            else:
                found.append(self.readers.read(node, user))
        return found

    def is_exit(self, user: fx.Node) -> bool:
        """Whether `user` reads the dense form of a packed operand."""
        return (user not in self.packed or user in self.regions) and not self._only_packed_items(user)

    def _only_packed_items(self, user: fx.Node) -> bool:
        """An operator with several outputs, all of which are packed."""
        several = isinstance(user.meta.get("val"), (tuple, list))
        return several and bool(user.users) and all(item in self.packed for item in user.users)

    # -------------------------------------------------------------------------------------------- regions
    def _find_interior(self) -> set[fx.Node]:
        """Nodes that feed nothing but regions, and that the regions' extraction has read."""
        read = {node for region in self.regions.values() for node in region.reads}
        interior: set[fx.Node] = set()
        for node in reversed(list(self.graph_module.graph.nodes)):
            if node in self.packed or node not in read or node.op != "call_function":
                continue
            if node.users and all(user in interior or user in self.regions for user in node.users):
                interior.add(node)
        return interior

    def _region_reads(self, node: fx.Node, user: fx.Node) -> list[Read]:
        found = []
        for region in self.regions.values():
            for indices in region.reads.get(node, ()):
                found.append(self._region_read(node, user, region, indices))
        return found or [Read(node, user, TRUE, f"{user.target}")]

    def _region_read(self, node: fx.Node, user: fx.Node, region: Region, indices: tuple[Expr, ...]) -> Read:
        side = self._side(node, region, indices)
        if side is not None and not self._may_hold_anything(node, region):
            return Read(node, self.untamed[node], TRUE, "attention")
        if side == "i" and region.node in self.packed:
            return Read(node, region.node, FALSE, "queries")
        if side == "j" and region.node not in self.dense_keys and not self._masks.inside(node, region, self._interior):
            return Read(node, region.node, self._direct_keys(region), "keys")
        return Read(node, user, TRUE, "attention")

    def _may_hold_anything(self, node: fx.Node, region: Region) -> bool:
        """Whether attention takes any constant at the padded places of `node`, without making inf or nan of it."""
        if self.pads.of(node).known:
            return True
        wild = untamed(node, self._interior.__contains__, region.node)
        if wild is not None:
            self.untamed[node] = wild
        return wild is None

    def _side(self, node: fx.Node, region: Region, indices: tuple[Expr, ...]) -> str | None:
        self.closure.bind(region)
        batch, sequence = self.places.read_at(node, indices)
        if batch is not index("b"):
            return None
        return {index("i"): "i", index("j"): "j"}.get(sequence) if sequence is not None else None

    def _direct_keys(self, region: Region) -> Expr:
        """The keys that the program's own mask admits for some query, where that bounds them; FALSE for a packed
        query side whose keys are known to have these places: `_close` adds them."""
        if region.node in self.packed and region.key_atom is self.layout.sequence:
            return FALSE
        if region.softmax and not blind_rows_are_zero(region):
            return self._keys_of_blind_queries(region)
        keys = self.closure.project(region, support(region), "j")
        if keys is TRUE:
            self.closure.blocked_keys[region.node] = "its mask does not bound the keys"
        return keys

    def _keys_of_blind_queries(self, region: Region) -> Expr:
        """The visible keys, and all places of a sequence without any: there a dense query averages over all keys.
        Known only where all queries see the same keys."""
        seen = substitute(visible(region), region.definitions)
        keys = substitute(seen, {index("j"): index("n")})
        only = support(region) is visible(region)
        if not only or seen.free - {"b", "j"} or keys is TRUE or not self.closure.computable(keys):
            self.closure.blocked_keys[region.node] = "a query may see no key at all"
            return TRUE
        empty = self.closure.sequences_without(keys)
        return or_(keys, empty) if empty is not None else TRUE

    def _region_pads(self) -> dict[fx.Node, Pad]:
        pads = {}
        for node, region in self.regions.items():
            if self._is_query_of(node):
                zero = nonzero(region.post if region.post is not None else region.score)
                places = self.closure.project(region, zero, "i")
                if places is not TRUE and places.free <= {"b", "n"}:
                    pads[node] = Pad(places, 0.0)
        return pads

    # -------------------------------------------------------------------------------------------- closure
    def _close(self) -> bool:
        """The least M that holds every need and is closed under attention. False: a region's keys became dense."""
        self.closure.restart()
        for read in self.reads:
            self.closure.add(self._needed(read), read.what)
        queries = [region for node, region in self.regions.items() if node in self.packed]
        for _ in range(_ROUNDS):
            before = self.kept.mask
            for region in queries:
                if region.node not in self.dense_keys and not self.closure.close(region):
                    self.dense_keys.add(region.node)
                    return False
            if self.kept.mask is before:
                return True
        self.dense_keys.update(region.node for region in queries)
        return not queries

    # --------------------------------------------------------------------------------------------- misses
    def _dense(self, read: Read) -> Dense:
        if read.user.op == "output":
            return Dense(
                read.node, read.user, "an output holds what the model computes at padded places, no constant",
                "declare the padding (padding={argument: pad id, lengths or mask}) or set padded_outputs='zero'",
            )  # fmt: skip
        if read.user is self.untamed.get(read.node):
            return Dense(
                read.node, read.user,
                f"{read.user.target} of attention may make inf or nan of what padded places hold, "
                "and nan times 0 reaches gradients",
                "mask with a large negative number instead of -inf, or add a small number to what divides",
            )  # fmt: skip
        if read.user in self.regions or read.user in self._interior:
            reason = next(iter(self.closure.blocked_keys.values()), "it is read at places that cannot be bounded")
            return Dense(read.node, read.user, f"attention reads padded places: {reason}", _MASK_KEYS)
        mixes = isinstance(ops.kind_of(read.user), (ops.Reduce, ops.Along))
        return Dense(read.node, read.user, f"{read.what} may read every place", _MASK_FIRST if mixes else "")
