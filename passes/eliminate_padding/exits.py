"""Exits: how a reader that is not packed gets what it reads of a packed value, cheaply where its kind allows it."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.demand import DemandAnalysis
from gr_compile.analysis.element_views import VIEW_RULES
from gr_compile.analysis.expr import TRUE, Expr, index, load, substitute
from gr_compile.analysis.layout import Layout
from gr_compile.analysis.masked_index import MaskedIndex, masked_index
from gr_compile.analysis.reads import PACK, SHAPE_ONLY, flat_places, read_tuples
from gr_compile.analysis.tame import only_multiplied
from gr_compile.passes.eliminate_padding.counting import PlaceCounter
from gr_compile.passes.eliminate_padding.emit import PlaceEmitter
from gr_compile.passes.eliminate_padding.packed import Packer
from gr_compile.passes.eliminate_padding.pad_row import RowPacker, typed
from gr_compile.passes.ragged import batch_of, position_of

aten = torch.ops.aten
SUMS = {aten.sum.dim_IntList, aten.sum.default, aten.mean.dim, aten.mean.default}


class Exits:
    """Rewrites every dense reader of packed values."""

    def __init__(
        self, packer: Packer, demand: DemandAnalysis, per_sequence: PlaceEmitter, counter: PlaceCounter
    ) -> None:
        self.packer, self.demand, self.per_sequence, self.counter = packer, demand, per_sequence, counter
        self.editor, self.layout = packer.editor, packer.layout
        self._unpacked: dict[fx.Node, fx.Node] = {}
        self._chosen: dict[fx.Node, fx.Node] = {}
        self._rows: fx.Node | None = None
        self._pad_rows: RowPacker | None = None

    def rewrite(self, node: fx.Node, user: fx.Node) -> None:
        """`user`, which is not packed, reads the packed `node`."""
        if self._is_row_view(node, user) and self._reindexed(node, user):
            return
        replacement = self._special(node, user)
        if replacement is not None:
            self.editor.replace(user, replacement)
        else:
            dense = self._output(node, user) if user.op == "output" else self._dense(node, user)
            self.editor.set_argument(user, node, dense)

    def _is_row_view(self, node: fx.Node, user: fx.Node) -> bool:
        return user.target in VIEW_RULES and self.demand.rows_are_kept(node, user)

    def _special(self, node: fx.Node, user: fx.Node) -> fx.Node | None:
        if user.target in SHAPE_ONLY:
            return self._size(user)
        with self.editor.at(like=user):
            if user.target in SUMS:
                return self._sum(node, user)
            if not self.demand.rows_are_kept(node, user):
                return None
            if user.target in ops.CLASS_LOSSES:
                return self._loss(user)
            chosen = masked_index(user)
            if chosen is not None and self.layout.of(chosen.mask) is Layout.TOKENS:
                return self._select_by_mask(node, user, chosen)
            numbers = flat_places(self.layout, node, user)
            if numbers is not None:
                return self._rows_named(node, numbers)
            if user.target in VIEW_RULES:
                return self._row(node, user)
        return None

    def _size(self, user: fx.Node) -> fx.Node | None:
        value = user.meta["val"]
        found = self.editor.symbol_of(value) if isinstance(value, torch.SymInt) else None
        return found if isinstance(found, fx.Node) and found is not user else None

    def _dense(self, node: fx.Node, user: fx.Node) -> fx.Node:
        """What nobody reads still runs through dense operators: 0 where they multiply it, so that no score is large;
        else 1, as x / 0 there would give 0 * inf in a gradient."""
        if node not in self._unpacked:
            fill = self.demand.pads.of(node).fill
            if fill is None:
                multiplied = only_multiplied(node, self.demand.is_exit)
                fill = float(node.meta["val"].dtype.is_floating_point and not multiplied)
            self._unpacked[node] = self.packer.unpacked(node, typed(fill, node))
        return self._unpacked[node]

    def _output(self, node: fx.Node, user: fx.Node) -> fx.Node:
        """The dense form with, at padded places, exactly what the model computes there."""
        rows = self.demand.rows
        if self.demand.pads.of(node).known or rows.of(node) is TRUE:
            return self._dense(node, user)
        if self._pad_rows is None:
            self._pad_rows = RowPacker(self.packer, rows)
        return self.packer.unpacked(node, typed(0.0, node), self._pad_rows.packed(node))

    # -------------------------------------------------------------------------------------------- special
    def _loss(self, user: fx.Node) -> fx.Node | None:
        """Cross entropy over (places, classes), its classes last: the same loss over packed rows."""
        logits, target = user.args[0], user.args[1]
        rest = self.layout.rest(logits)  # type: ignore[arg-type]
        if len(rest) != 1 or self.layout.rest(target):  # type: ignore[arg-type]
            return None
        args = [self.packer.packed(logits), self.packer.packed(target), *user.args[2:]]  # type: ignore[arg-type]
        made: fx.Node = self.editor.call(user.target, *args, **user.kwargs)  # type: ignore[arg-type]
        return made

    def _sum(self, node: fx.Node, user: fx.Node) -> fx.Node | None:
        """A sum (or mean) over all positions, or over all places, of a value that is 0 elsewhere."""
        kind = ops.kind_of(user)
        pad = self.demand.pads.of(node)
        if not isinstance(kind, ops.Reduce) or pad.fill != 0 or user.kwargs.get("dtype") is not None:
            return None
        dims = self.layout.dims.of(node)
        reduced = [dims[d] for d in kind.dims]
        places = {a for dim in reduced for a in dim if a in (self.layout.batch, self.layout.sequence)}
        others = [d for d in kind.dims if not self.layout.has_place(dims[d])]
        if any(len(dim) != 1 for dim in reduced if self.layout.has_place(dim) and set(dim) - places):
            return None
        packed = self.packer.packed(node)
        inner = [self.packer.dim(node, d) for d in others]
        if inner:
            packed = self.editor.call(aten.sum.dim_IntList, packed, inner, True)
        if places == {self.layout.batch, self.layout.sequence}:
            total = self.editor.call(aten.sum.dim_IntList, packed, [0], True)
        elif places == {self.layout.sequence}:
            total = self.editor.call(torch.ops.gr.segment_sum.default, packed, self.packer.index.offsets(self.editor))
        else:
            return None
        return self._shaped_sum(node, user, kind, total)

    def _shaped_sum(self, node: fx.Node, user: fx.Node, kind: ops.Reduce, total: fx.Node) -> fx.Node:
        """[B or 1, *rest with 1 where summed] in the dimensions of `user`."""
        dims = self.layout.dims.of(node)
        rest = [position for position, _ in self.layout.rest(node)]
        batch_at = next(d for d, dim in enumerate(dims) if self.layout.batch in dim)
        stored = [batch_at, *rest] if batch_at not in rest else None
        if stored is not None and sorted(stored) != stored:
            order = sorted(range(len(stored)), key=lambda k: stored[k])
            total = self.editor.call(aten.permute.default, total, order)
        shape = [self.editor.symbol_of(s) for s in user.meta["val"].shape]
        result: fx.Node = self.editor.call(aten.reshape.default, total, shape)
        if "mean" in str(user.target):
            count: Any = 1
            for d in kind.dims:
                for atom in dims[d]:
                    count = count * atom.size
            result = self.editor.call(aten.div.Tensor, result, self.editor.symbol_of(count))
        return result

    def _select_by_mask(self, node: fx.Node, user: fx.Node, chosen: MaskedIndex) -> fx.Node | None:
        order = [atom for dim in self.layout.dims.of(chosen.mask) for atom in dim]
        if order != [self.layout.batch, self.layout.sequence]:
            return None
        if chosen.coordinates:
            rows = self.editor.call(aten.index_select.default, self._row_numbers(), 0, self._flat(chosen.coordinates))
        else:
            rows = self._chosen_rows(chosen.mask, user)
        made: fx.Node = self.editor.call(aten.index_select.default, self.packer.packed(node), 0, rows)
        return made

    def _chosen_rows(self, mask: fx.Node, user: fx.Node) -> fx.Node:
        """The packed rows where the mask is true, as many as `user` has; counted once, whoever asks."""
        known = self._chosen.get(mask)
        if known is not None:
            self.editor.same_count(user, known)
            return known
        what = f"places where {mask.name} is true"
        rows = self._chosen[mask] = self.counter.places(self.packer.packed(mask), what, counted=mask)
        self.editor.same_count(rows, user)
        return rows

    def _flat(self, coordinates: tuple[fx.Node, ...]) -> fx.Node:
        """b * N + n of the chosen places."""
        if len(coordinates) == 1:
            return coordinates[0]
        start = self.editor.call(aten.mul.Tensor, coordinates[0], self.packer.index.length)
        made: fx.Node = self.editor.call(aten.add.Tensor, start, coordinates[1])
        return made

    def _rows_named(self, node: fx.Node, numbers: fx.Node) -> fx.Node:
        """The packed rows of the places b * N + n; negative numbers count from the last place."""
        rows = self.editor.call(aten.index.Tensor, self._row_numbers(), [numbers])
        made: fx.Node = self.editor.call(aten.index.Tensor, self.packer.packed(node), [rows])
        return made

    def _row(self, node: fx.Node, user: fx.Node) -> fx.Node | None:
        """One place of every sequence: gather(last), [:, -1], x[arange, length - 1]."""
        place = self._one_place(node, user)
        if place is None:
            return None
        rows = self._row_numbers()
        at = self.per_sequence.tensor(place)
        batch = self.per_sequence.tensor(index("b"))
        flat = self.editor.call(aten.add.Tensor, self.editor.call(aten.mul.Tensor, batch, self.packer.index.length), at)
        chosen = self.editor.call(
            aten.index_select.default, rows, 0, self.editor.call(aten.reshape.default, flat, [-1])
        )
        picked = self.editor.call(aten.index_select.default, self.packer.packed(node), 0, chosen)
        shape = [self.editor.symbol_of(s) for s in user.meta["val"].shape]
        made: fx.Node = self.editor.call(aten.reshape.default, picked, shape)
        return made

    def _reindexed(self, node: fx.Node, user: fx.Node) -> bool:
        """Packed values of a view along the sequence (a slice) are rows of the packed values of what it views."""
        if not user.users or any(pack.target is not PACK for pack in user.users):
            return False
        tuples = read_tuples(self.demand.pull, node, user)
        if tuples is None or len(tuples) != 1:
            return False
        (indices,) = tuples
        batch, sequence = self.demand.places.read_at(node, indices)
        rest = [indices[position] for position, _ in self.layout.rest(node)]
        if batch is not index("o0") or sequence is None or sequence.free - {"o0", "o1"}:
            return False
        if rest != [index(f"o{k}") for k in range(2, ops.rank(user))]:
            return False
        for pack in list(user.users):
            with self.editor.at(like=pack):
                self.editor.replace(pack, self._rows_of(node, user, pack, sequence))
        return True

    def _rows_of(self, node: fx.Node, user: fx.Node, pack: fx.Node, sequence: Expr) -> fx.Node:
        flat: Any = pack.args[1]
        length = self.editor.symbol_of(user.meta["val"].shape[1])
        places = {
            "o0": batch_of(self.editor, flat, length),
            "o1": position_of(self.editor, flat, length),
        }
        emit = PlaceEmitter(self.editor, self.demand.pull, {}, flat.meta["val"].device, places)
        at = emit.tensor(substitute(sequence, {index(name): load(name, (), "i") for name in places}))
        rows = self.editor.call(aten.index_select.default, self._row_numbers(), 0, self._flat((places["o0"], at)))
        made: fx.Node = self.editor.call(aten.index_select.default, self.packer.packed(node), 0, rows)
        return made

    def _one_place(self, node: fx.Node, user: fx.Node) -> Expr | None:
        """The position read of sequence b, where `user` is [B, *rest] with the rest read as it stands."""
        tuples = read_tuples(self.demand.pull, node, user)
        if tuples is None or len(tuples) != 1:
            return None
        (indices,) = tuples
        batch, sequence = self.demand.places.read_at(node, indices)
        if batch is None or sequence is None or batch is not index("o0"):
            return None
        if sequence.free - {"o0"}:
            return None
        wanted = [indices[position] for position, _ in self.layout.rest(node)]
        free = [index(f"o{k}") for k in range(1, ops.rank(user)) if user.meta["val"].shape[k] != 1]
        if [w for w in wanted if w.op != "const"] != free:
            return None
        if any(w.op == "const" and node.meta["val"].shape[p] != 1 for w, (p, _) in zip(wanted, self.layout.rest(node))):
            return None
        return substitute(sequence, {index("o0"): index("b")})

    def _row_numbers(self) -> fx.Node:
        """[B * N] -> the packed row of a place that is kept."""
        if self._rows is None:
            flat = self.editor.call(aten.reshape.default, self.packer.index.mask, [-1])
            running = self.editor.call(aten.cumsum.default, flat, 0)
            self._rows = self.editor.call(aten.sub.Scalar, running, 1)
        return self._rows
