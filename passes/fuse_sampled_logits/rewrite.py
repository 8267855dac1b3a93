"""The pass: sampled logits, product by product; logits of the whole catalogue, loss by loss."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.fx as fx

from gr_compile.analysis.element import Elements
from gr_compile.graph_pass import Match, Miss, Numerics, Pass, PassResult
from gr_compile.passes.fuse_sampled_logits.catalogue import CatalogueLosses, catalogue_loss_at
from gr_compile.passes.fuse_sampled_logits.emit import SampledLogits, padding_of
from gr_compile.passes.fuse_sampled_logits.products import Product, ProductFinder, Rejected
from gr_compile.pipeline import PassContext

aten = torch.ops.aten
_SAMPLED, _CATALOGUE = "gr::sampled_logits", "gr::linear_cross_entropy"
_KERNEL = {_SAMPLED: _SAMPLED, _CATALOGUE: "gr::linear_cross_entropy_tokens"}  # the sum of losses calls that of tokens
_DISPATCHING = frozenset({"eager", "inductor"})  # targets that run torch's kernel of a device; others bring their own


@dataclass(frozen=True)
class FuseSampledLogits(Pass):
    """Make logits of looked-up rows, and losses over the whole catalogue, without keeping rows or logits."""

    name: ClassVar[str] = "fuse-sampled-logits"
    after: ClassVar[frozenset[str]] = frozenset({
        "canonicalize", "eliminate-padding", "fuse-jagged-attention", "dedupe-lookups",
    })  # fmt: skip
    numerics: ClassVar[Numerics] = "reassociates"

    def run(self, graph_module: fx.GraphModule, context: PassContext) -> PassResult:
        """Candidates: products of states with rows of a table, and losses over all rows of one."""
        work = _Work(graph_module, context)
        work.sampled()
        work.whole_catalogues()
        return PassResult(bool(work.matches), tuple(work.matches), tuple(work.misses))


@dataclass
class _Work:
    graph_module: fx.GraphModule
    context: PassContext
    matches: list[Match] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)

    def sampled(self) -> None:
        """One call after the other: what is a product may be the query of another."""
        looked_at: set[str] = set()
        while True:
            pull = self._pull()
            groups, misses = self._groups(pull)
            products = next((x for x in groups if not {p.node.name for p in x} <= looked_at), None)
            if products is None:
                self.misses += misses
                return
            looked_at |= {product.node.name for product in products}
            self._fuse(products, SampledLogits(self.context.editor, pull))

    def _groups(self, pull: Elements) -> tuple[list[list[Product]], list[Miss]]:
        """Products that can share a call, with negatives among them; and what is in the way of others."""
        finder, misses = ProductFinder(pull), []
        alike: dict[Any, list[Product]] = defaultdict(list)
        for node in self.graph_module.graph.nodes:
            try:
                product = finder.at(node)
            except Rejected as rejected:
                misses.append(Miss(rejected.reason, rejected.node, rejected.hint))
                continue
            if product is None:
                continue
            if self._inductor_fuses(product):
                misses.append(Miss("without gradients TorchInductor makes no rows of a lookup that is summed up", node))
                continue
            alike[_kind(product)].append(product)
        groups = (x for products in alike.values() for x in _independent(products))
        return [x for x in groups if any(product.own for product in x)], misses

    def _inductor_fuses(self, product: Product) -> bool:
        """A lookup, a product and a sum are one loop there, where no backward wants the rows."""
        report = self.context.report
        spelled = product.node.target in (aten.sum.dim_IntList, aten.cosine_similarity.default)
        return bool(product.own) and spelled and report.target == "inductor" and not report.training

    def whole_catalogues(self) -> None:
        pull = self._pull()
        for node in list(self.graph_module.graph.nodes):
            try:
                found = catalogue_loss_at(node, pull)
                if found is None or not self._known(_CATALOGUE, node):
                    continue
                if not self.context.allow(f"loss over a catalogue {node.name}", node):
                    continue
                match = Match("loss over a whole catalogue", node, detail=_CATALOGUE)
                CatalogueLosses(self.context.editor, pull).replace(found)
            except Rejected as rejected:
                self.misses.append(Miss(rejected.reason, rejected.node, rejected.hint))
                continue
            self.matches.append(match)
            pull = self._pull()

    def _pull(self) -> Elements:
        """Of the graph as it is now."""
        return Elements(self.graph_module, self.context.constants)

    def _known(self, operator: str, node: fx.Node) -> bool:
        """Whether there is a kernel: the reference in torch operators would be slower than what is there."""
        device = node.meta["val"].device.type
        key = torch._C._dispatch_key_for_device(device)
        dispatching = self.context.report.target in _DISPATCHING
        if not self.context.supports(operator):
            self.misses.append(Miss(f"the target has no kernel for {operator}", node))
        elif dispatching and not torch._C._dispatch_has_kernel_for_dispatch_key(_KERNEL[operator], key):
            self.misses.append(Miss(f"there is no kernel of {operator} for {device}", node))
        else:
            return True
        return False

    def _fuse(self, products: list[Product], emit: SampledLogits) -> None:
        first, names = products[0].node, ", ".join(product.node.name for product in products)
        if not self._known(_SAMPLED, first) or not self.context.allow(f"sampled logits {names}", first):
            return
        try:
            emit.replace(products)
        except Rejected as rejected:
            self.misses.append(Miss(rejected.reason, rejected.node, rejected.hint))
            return
        for product in products:
            what = "logits of looked-up rows" if product.own else "logits of one looked-up row a token"
            self.matches.append(Match(what, product.node, detail=_SAMPLED))


def _kind(product: Product) -> Any:
    """Products of one kind can share a call; those by sequence are alone."""
    rows = product.rows
    dims = tuple(product.query_labels.index(c) for c in product.tokens + product.feature)
    alone = product.node if rows.group is not None else None
    return product.query, dims, product.table, rows.eps, product.cosine, padding_of(product), _dtype(product), alone


def _dtype(product: Product) -> Any:
    return product.node.meta["val"].dtype


def _independent(products: list[Product]) -> list[list[Product]]:
    """Groups in which no product is made from another: negatives may be chosen by earlier logits."""
    groups: list[list[Product]] = []
    for product in products:
        needed = _ancestors(product)
        home = next((group for group in groups if not any(other.node in needed for other in group)), None)
        if home is None:
            groups.append([product])
        else:
            home.append(product)
    return groups


def _ancestors(product: Product) -> set[fx.Node]:
    found: set[fx.Node] = set()
    front = [product.node]
    while front:
        for node in front.pop().all_input_nodes:
            if node not in found:
                found.add(node)
                front.append(node)
    return found
