"""The score program: what `gr::jagged_attention` computes for a query i and a key j of sequence b and head h.

    P[b,h,i,j] = score                                  pointwise (post is None)
    P[b,h,i,j] = post(sm),  sm = softmax over j of score

`score` and `post` are expressions (gr_compile.analysis.expr) over
    index "b", "h", "i", "j"   sequence, output head, query place, key place; i and j are *padded coordinates*
    make("s", (), dtype)       the product q[i, q_head(h)] . k[j, k_head(h)], rounded to dtype
    make("sm", (), dtype)      the softmax, in post only; its dtype is that of score
    load(name, indices, dtype) an element of a leaf operand; loads are speculative, so indices are clamped
    size(name)                 an integer operand
    make("dropout", (x, const p), dtype)   at most one
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from typing import Literal, cast

from gr_compile.analysis.expr import FLOAT_DTYPES, Expr, index, parse, substitute, to_text, walk

FullyMasked = Literal["zero", "natural"]
HEADER = "gr_score 1"
HEAD = index("h")
AXES = frozenset({"b", "h", "i", "j"})
_EXPRESSIONS = ("score", "post", "q_head", "k_head", "v_head", "key_low", "key_high")
_FREE: dict[str, frozenset[str]] = {
    "score": AXES,
    "post": AXES,
    "q_head": frozenset({"h"}),
    "k_head": frozenset({"h"}),
    "v_head": frozenset({"h"}),
    "key_low": frozenset({"b", "i"}),
    "key_high": frozenset({"b", "i"}),
}


@dataclass(frozen=True)
class ScoreProgram:
    """One attention-like region as a program; immutable, compared by content, written as text.

    Attributes:
        score: f, over s, the indices, sizes and leaves.
        post: None for a pointwise program, else P over the leaf "sm".
        fully_masked: what a row of which every score is -inf gives under softmax: "zero" (SDPA) or "natural",
            whatever softmax itself gives (NaN). A row of finite scores is an ordinary softmax in both.
        q_head, k_head, v_head: the head of q, k and v that output head h reads, over "h" and sizes.
        leaves: names in loads, in operand order.
        sizes: size symbols, in operand order.
        key_low, key_high: optional hull [low, high) of keys in padded coordinates, over b and i; keys outside
            it contribute nothing: P = 0 there, or the score is -inf.
        out_dtype: dtype of O, one of "f16", "bf16", "f32", "f64".
    """

    score: Expr
    post: Expr | None = None
    fully_masked: FullyMasked = "natural"
    q_head: Expr = HEAD
    k_head: Expr = HEAD
    v_head: Expr = HEAD
    leaves: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    key_low: Expr | None = None
    key_high: Expr | None = None
    out_dtype: str = "f32"

    def __post_init__(self) -> None:
        if self.fully_masked not in ("zero", "natural"):
            raise ValueError(f"fully_masked must be 'zero' or 'natural', not {self.fully_masked!r}")
        if self.out_dtype not in FLOAT_DTYPES:
            raise ValueError(f"out_dtype must be one of {sorted(FLOAT_DTYPES)}, not {self.out_dtype!r}")
        for kind, names in (("leaves", self.leaves), ("sizes", self.sizes)):
            if len(set(names)) != len(names):
                raise ValueError(f"{kind} has a name twice: {', '.join(names)}")
        for name, expr in self.expressions().items():
            self._check_indices(name, expr)
            for node in walk(expr):
                self._check_node(name, node)
        self._check_softmax()
        self._check_loads()
        if len([node for node in self._nodes() if node.op == "dropout"]) > 1:
            raise ValueError("a score program has at most one dropout")
        if len([node for node in self._nodes() if node.op == "s"]) > 1:
            raise ValueError("s occurs with two dtypes: cast it instead")

    # --------------------------------------------------------------------------------------- contents
    def expressions(self) -> dict[str, Expr]:
        """The expressions that are there, by field."""
        found = {name: getattr(self, name) for name in _EXPRESSIONS}
        return {name: expr for name, expr in found.items() if expr is not None}

    @functools.cached_property
    def product(self) -> Expr | None:
        """The leaf "s", or None when the program reads no queries and keys."""
        return next((node for node in self._nodes() if node.op == "s"), None)

    @functools.cached_property
    def softmax(self) -> Expr | None:
        """The leaf "sm", or None for a pointwise program."""
        return None if self.post is None else next(node for node in walk(self.post) if node.op == "sm")

    @functools.cached_property
    def has_dropout(self) -> bool:
        """Whether the operator needs a seed."""
        return any(node.op == "dropout" for node in self._nodes())

    def without_dropout(self) -> ScoreProgram:
        """The same program, dropping nothing."""
        kept = {node: node.args[0] for node in self._nodes() if node.op == "dropout"}
        post = None if self.post is None else substitute(self.post, kept)
        return replace(self, score=substitute(self.score, kept), post=post)

    def loads(self) -> tuple[Expr, ...]:
        """Every distinct load, operands before users."""
        return tuple(node for node in walk(*self.expressions().values()) if node.op == "load")

    @functools.cached_property
    def leaf_types(self) -> dict[str, tuple[int, str]]:
        """Rank and dtype of each leaf that is loaded."""
        return {node.args[0]: (len(node.args[1]), node.dtype) for node in self.loads()}

    def _nodes(self) -> list[Expr]:
        return walk(self.score, *(() if self.post is None else (self.post,)))

    # --------------------------------------------------------------------------------------- validity
    def _check_indices(self, name: str, expr: Expr) -> None:
        strange = expr.free - _FREE[name]
        if strange:
            raise ValueError(
                f"{name} depends on the index {', '.join(sorted(strange))}; "
                f"it may depend on {', '.join(sorted(_FREE[name]))}"
            )
        if name in ("score", "post") and expr.dtype not in FLOAT_DTYPES:
            raise ValueError(f"{name} must be floating point, not {expr.dtype!r}")
        if name not in ("score", "post") and expr.dtype != "i":
            raise ValueError(f"{name} must be an integer, not {expr.dtype!r}")

    def _check_node(self, name: str, node: Expr) -> None:
        if node.op == "load" and node.args[0] not in self.leaves:
            known = ", ".join(self.leaves)
            raise ValueError(f"{name} loads {node.args[0]!r}, which is not in leaves ({known})")
        if node.op == "load" and any(place.dtype != "i" for place in node.args[1]):
            raise ValueError(f"{name} loads {node.args[0]!r} at an index that is not an integer")
        if node.op == "size" and node.args[0] not in self.sizes:
            known = ", ".join(self.sizes)
            raise ValueError(f"{name} reads size {node.args[0]!r}, which is not in sizes ({known})")
        if node.op in ("s", "dropout") and name not in ("score", "post"):
            raise ValueError(f"{name} may not read {node.op}")
        if node.op == "sm" and name != "post":
            raise ValueError(f"sm stands in {name}; it may stand in post only")
        if node.op == "dropout" and node.args[1].op != "const":
            raise ValueError("the probability of dropout must be a constant")
        if node.op in ("dot", "softmax", "safe_softmax"):
            raise ValueError(f"{name} holds {node.op}; write the product as s and the softmax as sm")

    def _check_softmax(self) -> None:
        if self.post is None:
            return
        found = [node for node in walk(self.post) if node.op == "sm"]
        if len(found) != 1:
            raise ValueError(f"post must read sm with one dtype; it reads {len(found)}")
        if found[0].dtype != self.score.dtype:
            raise ValueError(f"sm is {found[0].dtype!r} but score is {self.score.dtype!r}")

    def _check_loads(self) -> None:
        types: dict[str, tuple[int, str]] = {}
        for node in self.loads():
            found = (len(node.args[1]), node.dtype)
            if types.setdefault(node.args[0], found) != found:
                raise ValueError(f"leaf {node.args[0]!r} is loaded with two ranks or dtypes")

    # -------------------------------------------------------------------------------------------- text
    def text(self) -> str:
        """The program as text, the same in every process; `parse` is its exact inverse."""
        head = [
            HEADER,
            f"leaves {json.dumps(list(self.leaves))}",
            f"sizes {json.dumps(list(self.sizes))}",
            f"fully_masked {self.fully_masked}",
            f"out_dtype {self.out_dtype}",
        ]
        return "\n".join(head) + "\n" + to_text(self.expressions())

    @staticmethod
    def parse(text: str) -> ScoreProgram:
        """The program that `text()` wrote; cached by content. ValueError for anything else."""
        return _parse(text)


@functools.lru_cache(maxsize=512)
def _parse(text: str) -> ScoreProgram:
    lines = text.split("\n", 5)
    if lines[0] != HEADER or len(lines) < 6:
        raise ValueError(f"not a score program: the first line must be {HEADER!r}, then five lines of fields")
    fields = dict(line.partition(" ")[::2] for line in lines[1:5])
    if set(fields) != {"leaves", "sizes", "fully_masked", "out_dtype"}:
        raise ValueError(f"not a score program: fields {', '.join(fields)}")
    expressions = parse(lines[5])
    unknown = set(expressions) - set(_EXPRESSIONS)
    if unknown or "score" not in expressions:
        raise ValueError(f"not a score program: it defines {', '.join(sorted(expressions))}")
    return ScoreProgram(
        leaves=tuple(json.loads(fields["leaves"])),
        sizes=tuple(json.loads(fields["sizes"])),
        fully_masked=cast(FullyMasked, fields["fully_masked"]),
        out_dtype=fields["out_dtype"],
        **expressions,
    )
