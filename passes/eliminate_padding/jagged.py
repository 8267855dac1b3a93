"""Jagged values as padded ones: activations that a model keeps as [T, D] between operators that pad and unpad them.

    before   x: [T, D] = dense_to_jagged(dense, offsets); y = linear(x); p = jagged_to_padded_dense(y, offsets, N, 0.0)
    after    y: [B, N, D] = linear(dense); p = where(arange(N) < offsets[1:] - offsets[:-1], y, 0.0)

Row offsets[b] + n of a jagged value is place (b, n), for n < min(lengths[b], N): an operator over rows alone gives, at
that place, the same number. Rows of a sequence that is longer than N have no place; all readers are operators over
rows and `jagged_to_padded_dense` to the same N, so nobody sees them. Then the raggedness is one like any other, and is
packed once for the whole model. Where packing fails, the jagged values would be computed at every place: a graph is
rewritten only after a trial on a copy of it has shown that this leaves nothing padded behind.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.element import Blocked
from gr_compile.constants import Constants
from gr_compile.editor import GraphEditor
from gr_compile.graph_pass import Match, Miss
from gr_compile.passes.eliminate_padding.pad_row import typed
from gr_compile.passes.eliminate_padding.padded_forms import PaddedForms
from gr_compile.pipeline import PassContext
from gr_compile.sizes import size_expr

aten = torch.ops.aten
_TO_JAGGED = frozenset({"fbgemm::dense_to_jagged"})
_TO_PADDED = frozenset({"fbgemm::jagged_to_padded_dense", "fbgemm::jagged_to_padded_dense_forward"})
"""Known by their names, which exist where fbgemm is installed. Torch's own refuse sequences longer than N."""
_OFFSETS = "fbgemm::asynchronous_complete_cumsum"
Packing = Callable[[fx.GraphModule, PassContext], object]


def spell_jagged_as_padded(
    graph_module: fx.GraphModule, context: PassContext, packing: Packing
) -> tuple[list[Match], list[Miss]]:
    """Rewrite each family of jagged values that `packing` then packs again; what stays jagged is a Miss."""
    matches, misses = [], []
    for offsets in _families(graph_module):
        what = f"jagged values over {offsets.name}"
        try:
            count = _tried(graph_module, context, offsets, packing)
        except Blocked as blocked:
            misses.append(Miss(f"{what} stay jagged: {blocked.reason}", blocked.node or offsets))
            continue
        if context.allow(what, offsets):
            _Family(graph_module, context.editor, offsets).rewrite()
            matches.append(Match(what, offsets, detail=f"{count} operators over rows become operators over places"))
    return matches, misses


def _name(node: fx.Node) -> str:
    return node.target._schema.name if isinstance(node.target, torch._ops.OpOverload) else ""


def _offsets_of(node: fx.Node) -> fx.Node | None:
    """The offsets of a call that pads or unpads; None with several levels. `dense_to_jagged` returns its own."""
    given: Any = node.args[1]
    if len(given) != 1:
        return None
    offsets: fx.Node = given[0]
    while offsets.target is operator.getitem:
        several: Any = offsets.args[0]
        if several.target is not operator.getitem or _name(several.args[0]) not in _TO_JAGGED:
            break
        offsets = several.args[0].args[1][0]
    return offsets


def _families(graph_module: fx.GraphModule) -> list[fx.Node]:
    """The offsets by which something is made jagged, in order."""
    made = [_offsets_of(node) for node in graph_module.graph.nodes if _name(node) in _TO_JAGGED]
    return list(dict.fromkeys(offsets for offsets in made if offsets is not None))


# ------------------------------------------------------------------------------------------------- trial
def _tried(graph_module: fx.GraphModule, context: PassContext, offsets: fx.Node, packing: Packing) -> int:
    """Spell and pack a copy of the graph; returns how many operators ran over rows.

    Raises:
        Blocked: an operator has no padded form, or stays padded.
    """
    copy = _copied(graph_module, context)
    given = set(copy.graph_module.graph.nodes)
    family = _Family(copy.graph_module, copy.context.editor, copy.nodes[offsets])
    family.rewrite()
    made = {form: node for node, form in family.forms.items() if form not in given and _computes(form)}
    packing(copy.graph_module, copy.context)
    copy.context.editor.eliminate_dead_code()
    for form in copy.graph_module.graph.nodes:
        if form in made:
            raise Blocked(f"as places, {form.target} would run over all of them", made[form])
    return len(made)


def _computes(node: fx.Node) -> bool:
    return isinstance(ops.kind_of(node), (ops.Contract, ops.Pointwise, ops.Lookup, ops.Along, ops.Reduce, ops.Gather))


@dataclass(frozen=True)
class _Copy:
    graph_module: fx.GraphModule
    context: PassContext
    nodes: dict[fx.Node, fx.Node]


def _copied(graph_module: fx.GraphModule, context: PassContext) -> _Copy:
    nodes: dict[fx.Node, fx.Node] = {}
    graph = fx.Graph()
    graph.output(graph.graph_copy(graph_module.graph, nodes))
    copy = fx.GraphModule(graph_module, graph)
    known = context.constants
    constants = Constants(
        {nodes[n]: tensor for n, tensor in known.tensors.items()},
        {nodes[n]: position for n, position in known.positions.items()},
    )
    inside = replace(
        context, editor=GraphEditor(copy, context.editor.fake_mode), constants=constants,
        report=replace(context.report, facts={}), allow=lambda what, where=None: True, facts={},
    )  # fmt: skip
    return _Copy(copy, inside, nodes)


# ------------------------------------------------------------------------------------------------ rewrite
class _Family:
    """All jagged values over one offsets tensor."""

    def __init__(self, graph_module: fx.GraphModule, editor: GraphEditor, offsets: fx.Node) -> None:
        self.graph, self.editor, self.offsets = graph_module.graph, editor, offsets
        self.padded = PaddedForms(editor)
        self._masks: dict[int, fx.Node] = {}

    @property
    def forms(self) -> dict[fx.Node, fx.Node]:
        """Jagged value -> its padded form."""
        return self.padded.forms

    def rewrite(self) -> None:
        """Let every reader of padded values read padded forms.

        Raises:
            Blocked: a jagged value is read in another way; the graph is then half rewritten.
        """
        length: Any = None
        for node in list(self.graph.nodes):
            if _name(node) in _TO_JAGGED and _offsets_of(node) is self.offsets:
                dense: Any = node.args[0]
                size = dense.meta["val"].shape[1]
                length = size if length is None else length
                if size_expr(size) != size_expr(length) or ops.argument(node, 2, "total_L") is not None:
                    raise Blocked("sequences of different longest lengths share their offsets", node)
                self._enter(node, dense)
            elif any(operand in self.forms for operand in node.all_input_nodes):
                self._read(node, length)
        self._forget_sizes()
        self.editor.sort()
        self.editor.eliminate_dead_code()

    def _enter(self, node: fx.Node, dense: fx.Node) -> None:
        """The operator returns (values, [offsets])."""
        for part in list(node.users):
            if part.args[1] == 0:
                self.forms[part] = dense
                continue
            for given in list(part.users):
                self.editor.replace(given, self.offsets)

    def _read(self, node: fx.Node, length: Any) -> None:
        if node in self.forms or node.target is aten.sym_size.int:
            return
        if _name(node) not in _TO_PADDED:
            if node.op == "output":
                raise Blocked("the model returns a jagged value, which has rows without a place", node)
            self.padded.make(node)
        elif _offsets_of(node) is self.offsets and size_expr(node.meta["val"].shape[1]) == size_expr(length):
            self.editor.replace(node, self._leave(node))
        else:
            raise Blocked("a jagged value is padded to another length", node)

    def _leave(self, node: fx.Node) -> fx.Node:
        """The form at the places that rows stand for, the padding value elsewhere."""
        editor, form = self.editor, self.padded.form(node.args[0])  # type: ignore[arg-type]
        fill = typed(float(ops.argument(node, 3, "padding_value", 0.0)), form)
        with editor.at(before=node, like=node):
            made: fx.Node = editor.call(aten.where.ScalarOther, self._mask(ops.rank(form), form), form, fill)
        return made

    def _mask(self, rank: int, form: fx.Node) -> fx.Node:
        """bool [B, N, 1, ...]: the places that rows stand for."""
        if rank not in self._masks:
            if rank == 2:
                self._masks[rank] = self._places(form)
            else:
                self._masks[rank] = self.editor.call(aten.unsqueeze.default, self._mask(rank - 1, form), -1)
        return self._masks[rank]

    def _places(self, form: fx.Node) -> fx.Node:
        editor = self.editor
        if _name(self.offsets) == _OFFSETS:
            lengths: Any = self.offsets.args[0]
        else:
            ends = editor.call(aten.slice.Tensor, self.offsets, 0, 1)
            lengths = editor.call(aten.sub.Tensor, ends, editor.call(aten.slice.Tensor, self.offsets, 0, 0, -1))
        device = form.meta["val"].device
        places = editor.call(aten.arange.default, editor.size(form, 1), dtype=torch.int64, device=device)
        made: fx.Node = editor.call(aten.lt.Tensor, places, editor.call(aten.unsqueeze.default, lengths, 1))
        return made

    def _forget_sizes(self) -> None:
        """Dynamo asserts of data-dependent numbers of rows that they are equal to one another and no less than 0, or
        that there are rows where a reshape leaves a size to be inferred. All are offsets[B]; places need no rows."""
        values = [node.meta["val"] for node in self.forms]
        counts = {size_expr(value.shape[0]) for value in values if isinstance(value, torch.Tensor)}
        for node in list(self.graph.find_nodes(op="call_function", target=aten._assert_scalar.default)):
            said = node.args[0].meta.get("val") if isinstance(node.args[0], fx.Node) else None
            if isinstance(said, torch.SymBool) and _holds_of_rows(said.node.expr, counts):
                self.editor.erase(node)
        for node in self.forms:
            left = [user for user in node.users if user.target is aten.sym_size.int and _is_read(user)]
            if left:
                raise Blocked("the number of jagged rows is used as a number", left[0])


def _holds_of_rows(said: sympy.Basic, counts: set[sympy.Expr]) -> bool:
    """Whether a statement holds of one number of rows, in place of all of `counts`, if there are any."""
    rows = sympy.Symbol("rows", integer=True, positive=True)
    return said.free_symbols <= counts and sympy.simplify(said.subs(dict.fromkeys(counts, rows))) is sympy.true


def _is_read(node: fx.Node) -> bool:
    """By anything that is itself read, or has an effect."""
    return any(user.is_impure() or _is_read(user) for user in node.users)
