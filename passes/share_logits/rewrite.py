"""The pass: loss by loss; what keeps logits of sampled rows from being shared is a Miss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.fx as fx

from gr_compile.analysis.dims import DimensionProvenance
from gr_compile.analysis.element import Elements
from gr_compile.analysis.reads import SHAPE_ONLY
from gr_compile.graph_pass import Match, Miss, Numerics, Pass, PassResult
from gr_compile.passes.fuse_sampled_logits.products import ProductFinder, Rejected
from gr_compile.passes.ragged import raggednesses
from gr_compile.passes.share_logits.emit import Sharing
from gr_compile.passes.share_logits.items import CALL, AlreadyShared, ItemFinder, Logits, sources_of
from gr_compile.passes.share_logits.losses import Losses, Weight, check_logits, logits_of
from gr_compile.pipeline import PassContext
from gr_compile.sizes import size_expr

aten = torch.ops.aten
_OPERATOR = "gr::other_tokens"
_CORRECTIONS = frozenset({
    aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar, aten.add.Tensor, aten.add.Scalar,
    aten.sub.Tensor, aten.sub.Scalar, aten.rsub.Scalar, aten.neg.default, aten.where.self, aten.where.ScalarOther,
    aten.where.ScalarSelf, aten.masked_fill.Scalar, aten.masked_fill.Tensor, aten.to.dtype, aten._to_copy.default,
    aten.clone.default, aten.contiguous.default, aten.alias.default,
})  # fmt: skip


@dataclass(frozen=True)
class ShareLogits(Pass):
    """Take other tokens' negative logits as further negatives in sampled softmax losses. The loss changes.

    Attributes:
        expansion: how many times as many negatives there are: a token's own, and those of `expansion` - 1 others.
    """

    expansion: int = 4

    name: ClassVar[str] = "share-logits"
    after: ClassVar[frozenset[str]] = frozenset({"canonicalize", "eliminate-padding", "fuse-sampled-logits"})
    numerics: ClassVar[Numerics] = "changes-objective"

    def __post_init__(self) -> None:
        if self.expansion < 1:
            raise ValueError(f"expansion={self.expansion}: at least 1, which shares nothing")

    def run(self, graph_module: fx.GraphModule, context: PassContext) -> PassResult:
        """Candidates: softmax losses over logits of looked-up rows, and such logits that go into no softmax."""
        if self.expansion == 1:
            return PassResult(False)
        work = _Work(graph_module, context, self.expansion)
        work.losses()
        work.others()
        return PassResult(bool(work.matches), tuple(work.matches), tuple(work.misses))


@dataclass
class _Work:
    graph_module: fx.GraphModule
    context: PassContext
    expansion: int
    matches: list[Match] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)

    def __post_init__(self) -> None:
        pull = Elements(self.graph_module, self.context.constants)
        self._items, self._proofs = ItemFinder(ProductFinder(pull)), Losses(pull)
        dims = DimensionProvenance(self.graph_module)
        self._dims, self._sequences = dims, {pair[1] for _, pair in raggednesses(self.graph_module, dims, pull)}
        self._in_losses: set[fx.Node] = set()

    def losses(self) -> None:
        for node in list(self.graph_module.graph.nodes):
            logits = logits_of(node)
            if logits is None or not self._items.reaches(logits):
                continue
            self._in_losses.update(self._items.origins(logits))
            try:
                self._share(node, logits)
            except Rejected as rejected:
                self.misses.append(Miss(rejected.reason, rejected.node, rejected.hint))
            except AlreadyShared:
                continue

    def _share(self, node: fx.Node, logits: fx.Node) -> None:
        check_logits(node, logits)
        known = self._items.of(logits)
        weights = self._proofs.weights(node)
        if weights:
            self._check_packed(known)
        if size_expr(logits.meta["val"].shape[1]) == 1:
            raise Rejected("there are no negatives", node)
        if not self.context.supports(_OPERATOR):
            raise Rejected(f"the target has no kernel for {_OPERATOR}", node)
        if not self.context.allow(f"shared logits of {node.name}", node):
            return
        detail = f"{self.expansion} times as many negatives" + _lenders(weights)
        self.matches.append(Match("logits of a sampled softmax", node, detail))
        Sharing(self.context.editor, self._items, node, logits, known, weights).rewrite(self.expansion)

    def _check_packed(self, known: Logits) -> None:
        """Raises Rejected where the rows are the places of padded sequences, of which the loss leaves some out."""
        for origin in known.origins:
            query = self._items.query(origin)
            rows = self._dims.of(query)[0] if self._dims.known(query) else ()
            if len(rows) > 1 or any(atom in self._sequences for atom in rows):
                hint = "eliminate-padding packs them; what it misses says why"
                raise Rejected("there are padded places among the tokens, whose logits would be shared", origin, hint)

    def others(self) -> None:
        """Logits that no softmax reads."""
        for node in self.graph_module.graph.nodes:
            if node.target is CALL and node not in self._in_losses:
                reader = _reader(node)
                what = f"they go into {reader.target}" if reader.op == "call_function" else "they are an output"
                hint = "" if reader.target is not aten.exp.default else "write log_softmax or cross_entropy"
                self.misses.append(Miss(f"the logits are not those of a sampled softmax: {what}", reader, hint))


def _lenders(weights: tuple[Weight, ...]) -> str:
    return ", of tokens that the loss counts" if weights else ""


def _reader(node: fx.Node) -> fx.Node:
    """The first operator that logits go into, behind views and corrections."""
    front, seen = [node], {node}
    while front:
        for user in front.pop(0).users:
            if user in seen or user.target in SHAPE_ONLY:
                continue
            seen.add(user)
            if not sources_of(user) and user.target not in _CORRECTIONS:
                return user
            front.append(user)
    return node
