"""Equal keys: attention that masks no padded key, and whose keys and values at padded places are all one row.

A softmax over c equal keys is one over a single key whose logit is larger by log c, with the same value: such padded
keys are one key, and the others need not be kept. SASRec as most people write it multiplies by the mask between
layers and attends its left padding so, behind a causal mask alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch.fx as fx

from gr_compile.analysis.closure import Closure
from gr_compile.analysis.element import Elements, Indices
from gr_compile.analysis.expr import (
    FALSE,
    TRUE,
    Expr,
    alternatives,
    and_,
    compare,
    const,
    index,
    not_,
    operands_of,
    or_,
    rebuild,
    substitute,
    walk,
    where,
)  # fmt: skip
from gr_compile.analysis.layout import Layout, TokenLayout
from gr_compile.analysis.pad_rows import PadRows
from gr_compile.analysis.places import Places
from gr_compile.analysis.region import Region
from gr_compile.analysis.region_support import blind_rows_are_zero, visible

_LARGE = 1e3
_DIFFER = "its scores, or weights, differ from one padded place to another"


@dataclass(frozen=True)
class EqualKeys:
    """One region whose padded keys are one key.

    Attributes:
        region: the region with all padded keys but the first of each sequence masked out. Its score lacks the log of
            their number, which no mask depends on.
        support: where it is false, over b and n, keys and values are one row.
        first: the first such place of each sequence, over b and n.
        causal: a query sees those at or before its own place; else it sees all of them.
    """

    region: Region
    support: Expr
    first: Expr
    causal: bool


class EqualKeysFinder:
    """Finds equal keys of the regions of one layout. `reasons`: what speaks against it, for the others."""

    def __init__(self, pull: Elements, layout: TokenLayout, places: Places, rows: PadRows, closure: Closure) -> None:
        self.pull, self.layout, self.places, self.rows, self.closure = pull, layout, places, rows, closure
        self.reasons: dict[fx.Node, str] = {}

    def of(self, region: Region) -> EqualKeys | None:
        """What is proved of the padded keys of `region`; None where they have to stay as they are."""
        if not region.softmax or region.key_atom is not self.layout.sequence:
            return None
        if region.batch_atom is not self.layout.batch:
            return None
        if self.closure.project(region, visible(region), "j") is not TRUE:
            return None  # it masks keys itself
        support = self._support(region)
        if support is None or not self.closure.computable(support):
            return None
        padded = not_(substitute(support, {index("n"): index("j")}))
        causal = self._causal(region, padded)
        if causal is None:
            return None
        first = self.closure.first_without(support)
        kept = substitute(or_(support, first), {index("n"): index("j")})
        masked = where(kept, region.score, const(-math.inf, region.score.dtype), region.score.dtype)
        return EqualKeys(replace(region, score=masked, sighted=True), support, first, causal)

    # ------------------------------------------------------------------------------------------ one row
    def _support(self, region: Region) -> Expr | None:
        """Outside which places keys, values and what else the score reads of a key are one row; None if nowhere."""
        self.closure.bind(region)
        assert region.post is not None
        if any(part.op == "dropout" for part in walk(region.score)):
            self.reasons[region.node] = "its scores are drawn for each key by itself"
            return None
        loads = [part for part in walk(region.score, region.post) if part.op == "load" and "j" in part.free]
        operands = [(o.node, o.indices) for o in (region.key, region.value) if o is not None]
        operands += [(self.pull.nodes[part.args[0]], part.args[1]) for part in loads if part.dtype != "b"]
        supports = [self._row_of(region, *operand) for operand in operands]
        if TRUE in supports:
            return None
        support = or_(*supports)
        if any("b" not in part.free for part in alternatives(support) or (support,)):
            self.reasons[region.node] = "what they hold depends on their position"
            return None
        return support

    def _row_of(self, region: Region, node: fx.Node, indices: Indices) -> Expr:
        reads_one = self.layout.of(node) is Layout.TOKENS and self._reads_key_alone(node, indices)
        support = self.rows.of(node) if reads_one else TRUE
        if support is TRUE:
            self.reasons[region.node] = f"{node.name} differs from one padded place to another"
        return support

    def _reads_key_alone(self, node: fx.Node, indices: Indices) -> bool:
        """At (b, j), and no other dimension at a place of its own."""
        elsewhere = [place for place in indices if "j" in place.free]
        return len(elsewhere) == 1 and self.places.read_at(node, indices) == (index("b"), index("j"))

    # --------------------------------------------------------------------------------------- who sees them
    def _causal(self, region: Region, padded: Expr) -> bool | None:
        """Whether a query sees the padded keys up to its own place (True) or all of them (False). None where that is
        not proved, where their weights differ otherwise, or where a row may be without any key."""
        seen = visible(region)
        before = compare("ge", index("i"), index("j"), self.pull.ranges)
        same = or_(and_(seen, before), and_(not_(seen), not_(before)))
        if self.closure.proved(region, padded, seen):
            causal = False
        elif region.query_atom is region.key_atom and self.closure.proved(region, padded, same):
            causal = True
        else:
            self.reasons[region.node] = "its mask hides some padded places from some queries"
            return None
        if not self._has_a_key(region, seen):
            self.reasons[region.node] = "a query may see no key at all"
            return None
        assert region.post is not None
        score = self._decided(region, region.score, and_(padded, seen), {})
        if not _is_plain(region.post) or not self._is_equal(score):
            self.reasons[region.node] = _DIFFER
            return None
        if self._is_shifted(score):
            self.reasons[region.node] = "large numbers may be added to all scores of a query"
            return None
        return causal

    def _has_a_key(self, region: Region, seen: Expr) -> bool:
        """No row depends on keys that its mask hides."""
        if seen is TRUE or blind_rows_are_zero(region):
            return True
        itself = substitute(seen, {index("j"): index("i")})
        return region.query_atom is region.key_atom and self.closure.proved(region, TRUE, itself)

    def _decided(self, region: Region, expr: Expr, premise: Expr, known: dict[Expr, Expr]) -> Expr:
        """`expr` where `premise` holds: with the conditions that it decides."""
        if expr not in known:
            made = rebuild(expr, lambda part: self._decided(region, part, premise, known))
            if made.dtype == "b" and made.op != "const":
                for answer, holds in ((TRUE, made), (FALSE, not_(made))):
                    made = answer if self.closure.proved(region, premise, holds) else made
            known[expr] = made
        return known[expr]

    def _is_equal(self, expr: Expr) -> bool:
        """Whether `expr` is the same number for all padded keys, where s is: it reads of a key what is one row."""
        if "j" not in expr.free:
            return True
        if expr.op == "load":
            return self._reads_key_alone(self.pull.nodes[expr.args[0]], expr.args[1])
        return expr.op not in ("index", "poly") and all(map(self._is_equal, operands_of(expr.args)))

    def _is_shifted(self, score: Expr) -> bool:
        """Whether a number that is as large as a mask may be added to a row: scores and log(count) are lost beside it,
        and eager's weights are those of many equal keys."""
        if not _has_product(score):
            return any(_is_large(part) or self._is_data_of_query(part) for part in walk(score))
        is_scaled = score.op in ("mul", "div")  # by a factor
        parts = [part for part in operands_of(score.args) if part.dtype != "b"]
        return any(self._is_shifted(part) for part in parts if _has_product(part) or not is_scaled)

    def _is_data_of_query(self, part: Expr) -> bool:
        return part.op == "load" and "i" in part.free and self.pull.closed(self.pull.nodes[part.args[0]])


def _has_product(expr: Expr) -> bool:
    return any(part.op == "s" for part in walk(expr))


def _is_large(part: Expr) -> bool:
    return part.op == "const" and isinstance(part.args[0], float) and abs(part.args[0]) >= _LARGE


def _is_plain(post: Expr) -> bool:
    """The weights themselves, cast or dropped out."""
    return all(part.op in ("sm", "cast", "dropout", "const") for part in walk(post))
