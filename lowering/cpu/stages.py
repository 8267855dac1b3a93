"""Split a score program by how often its parts have to be computed.

    columns    what one side needs (a query's timestamp, a key's mask): once for every row, before anything else
    shared     what a pair needs and no head differs in (a bias by position and time): once for all heads
    heads      what reads the product, the softmax or the head
"""

from __future__ import annotations

from dataclasses import dataclass

from gr_compile.analysis.expr import FLOAT_DTYPES, Expr, is_const, walk
from gr_compile.lowering.cpu.lanes import Unsupported
from gr_compile.ops.attention_blocks import INDICES, hoisted, side_of
from gr_compile.ops.attention_reference import Plan, plan
from gr_compile.ops.evaluate import SPECIAL, operands, reads_block, schedule
from gr_compile.ops.score_program import HEAD, ScoreProgram


@dataclass(frozen=True)
class LeafGradient:
    """How the gradient of one load reaches its leaf.

    side: "query" (once a row), "key" (a column, once a sequence), "shared" (of all heads, once a strip) or
    "head" (for every pair and head). In the order of the slopes.
    """

    load: Expr
    slope: Expr
    after_softmax: bool
    side: str

    @property
    def by_head(self) -> bool:
        return HEAD in walk(*self.load.args[1])


@dataclass(frozen=True)
class Stages:
    """What one kernel computes where.

    Attributes:
        columns: one-sided nodes by side, "query" (or of the sequence) and "key".
        shared: nodes between pairs that heads read and no head differs in.
        gradients: of leaves; empty in a forward kernel.
        product_slope, softmax_slope: d score / d s, d post / d sm, where they are not zero.
    """

    program: ScoreProgram
    plan: Plan
    columns: dict[str, tuple[Expr, ...]]
    shared: tuple[Expr, ...]
    gradients: tuple[LeafGradient, ...]

    @property
    def product_slope(self) -> Expr | None:
        product = self.program.product
        return None if product is None else self.plan.score_slopes.get(product)

    @property
    def softmax_slope(self) -> Expr | None:
        softmax = self.program.softmax
        return None if softmax is None else self.plan.post_slopes.get(softmax)

    @property
    def shared_slopes(self) -> tuple[tuple[Expr, bool], ...]:
        """The slopes, each with its place before or after the softmax, whose products are summed over the heads."""
        found = [(x.slope, x.after_softmax) for x in self.gradients if x.side == "shared"]
        return tuple(dict.fromkeys(found))


def stages(program: ScoreProgram, wanted: tuple[Expr, ...] | None) -> Stages:
    """The stages of the forward (`wanted` None), or of the backward by the leaves `wanted`."""
    found = plan(program, wanted or ())
    gradients = _gradients(found, wanted or ())
    places = tuple(x for gradient in gradients if gradient.side in ("shared", "head") for x in gradient.load.args[1])
    roots = tuple(dict.fromkeys((*found.roots, *places)))
    one_sided = hoisted(roots)
    columns = {"query": tuple(x for x in one_sided if side_of(x) != "key")}
    columns["key"] = tuple(x for x in one_sided if side_of(x) == "key")
    return Stages(program, found, columns, _shared(roots, one_sided), gradients)


def _gradients(found: Plan, wanted: tuple[Expr, ...]) -> tuple[LeafGradient, ...]:
    loads = [x for x in wanted if x.op == "load"]
    result = []
    for after, slopes in ((False, found.score_slopes), (True, found.post_slopes)):
        result += [LeafGradient(x, slopes[x], after, _side(x)) for x in loads if x in slopes]
    return tuple(result)


def _side(load: Expr) -> str:
    if any(x.op in SPECIAL for place in load.args[1] for x in walk(place)):
        raise Unsupported("a leaf is read at a place that depends on scores")
    if not reads_block(load):
        return "key" if side_of(load) == "key" else "query"
    return "head" if HEAD in walk(*load.args[1]) else "shared"


def _differs(node: Expr) -> bool:
    """Does a head, or the product, enter `node`?"""
    return "h" in node.free or any(x.op in SPECIAL for x in walk(node))


def _shared(roots: tuple[Expr, ...], one_sided: tuple[Expr, ...]) -> tuple[Expr, ...]:
    special = {x for root in roots for x in walk(root) if x.op in ("s", "sm")}
    nodes = schedule(roots, INDICES | special | set(one_sided)).nodes
    same = {x for x in nodes if x.op not in ("const", "size") and reads_block(x) and not _differs(x)}
    read = {x for node in nodes if _differs(node) for x in operands(node)} | set(roots)
    return tuple(x for x in nodes if x in same and x in read)


def wanted_leaves(program: ScoreProgram, needs: dict[str, bool]) -> tuple[Expr, ...]:
    """The leaves (the product and loads) by which the backward differentiates; `needs` by operand name."""
    loads = [x for x in program.loads() if x.dtype in FLOAT_DTYPES and needs[x.args[0]]]
    product = program.product
    return (*(() if product is None or not (needs["q"] or needs["k"]) else (product,)), *loads)


def is_one(slope: Expr) -> bool:
    """A slope that multiplies nothing."""
    return is_const(slope, 1)
