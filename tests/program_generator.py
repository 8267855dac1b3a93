"""Random score programs, each with its dense form: the same computation in plain torch on padded tensors.

`generate(seed)` makes a program, its operands, and O computed densely while the program was written: every
`Term` carries an expression and the tensor [B, H, N, M] that it stands for, made by torch, not by evaluating
the expression. So a kernel is held against torch and its autograd, in the dtype of the case.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gr_compile.analysis import expr as E
from gr_compile.analysis.expr import Expr, const, index, load, make, size
from gr_compile.ops import ScoreProgram

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": torch.nn.functional.softplus,
}
NAMES = {torch.float32: "f32", torch.float64: "f64"}


@dataclass
class Term:
    """An expression and what it is on the whole padded grid; `low` and `high` bound an integer."""

    expr: Expr
    dense: Tensor
    low: int = 0
    high: int = 0


@dataclass
class Side:
    """The rows of one side: mask [B, N], flat index [T], offsets [B + 1], positions [T]."""

    mask: Tensor
    index: Tensor = field(init=False)
    offsets: Tensor = field(init=False)
    positions: Tensor = field(init=False)

    def __post_init__(self) -> None:
        lengths = self.mask.sum(1)
        self.index = self.mask.flatten().nonzero().flatten()
        self.offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        self.positions = self.index % max(self.mask.shape[1], 1)

    def padded(self, rows: Tensor) -> Tensor:
        """[T, H, d] -> [B, N, H, d], differentiable, zeros at padded places."""
        flat = rows.new_zeros((self.mask.numel(), *rows.shape[1:])).index_copy(0, self.index, rows)
        return flat.view(*self.mask.shape, *rows.shape[1:])


@dataclass
class Case:
    """A program, the operands of the operator, and O [Tq, heads, dv] of the dense form."""

    seed: int
    program: ScoreProgram
    q: Tensor | None
    k: Tensor | None
    v: Tensor
    leaves: list[Tensor]
    query: Side
    key: Side
    heads: int
    sizes: list[int]
    dense_out: Tensor

    def operands(self) -> tuple[object, ...]:
        """The arguments of torch.ops.gr.jagged_attention."""
        return (
            self.q, self.k, self.v, self.leaves, self.query.offsets, self.query.positions, self.key.offsets,
            self.key.positions, self.heads, self.sizes, None, self.program.text(),
        )  # fmt: skip

    def differentiable(self) -> list[Tensor]:
        """The operands that have gradients."""
        return [x for x in (self.q, self.k, self.v, *self.leaves) if x is not None and x.requires_grad]


@dataclass(frozen=True)
class Shapes:
    """From what the sizes of a case are drawn: places of queries, of other keys, widths of q and of v."""

    lengths: tuple[int, ...] = (1, 4, 6, 9)
    keys: tuple[int, ...] = (2, 5, 7)
    widths: tuple[int, ...] = (1, 3, 8)
    v_widths: tuple[int, ...] = (1, 4)


SMALL = Shapes()


class Generator:
    """Draws one case. The order of draws is fixed by `seed`."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64, shapes: Shapes = SMALL) -> None:
        self.random = random.Random(seed)
        self.torch = torch.Generator().manual_seed(seed)
        self.seed, self.dtype, self.name = seed, dtype, NAMES[dtype]
        draw = self.random.choice
        self.shapes = shapes
        self.batch, self.length = draw([1, 2, 3, 4]), draw(shapes.lengths)
        self.self_attention = draw([True, True, True, False])
        self.keys = self.length if self.self_attention else draw(shapes.keys)
        self.heads, self.group = draw([(1, 1), (2, 1), (4, 2), (3, 3)])
        shapes = {"b": (-1, 1, 1, 1), "h": (1, -1, 1, 1), "i": (1, 1, -1, 1), "j": (1, 1, 1, -1)}
        extents = {"b": self.batch, "h": self.heads, "i": self.length, "j": self.keys}
        self.axis = {x: torch.arange(extents[x]).view(shapes[x]) for x in shapes}
        self.extents = extents
        self.leaves: dict[str, Tensor] = {}
        self.query = Side(self._mask(self.length))
        self.key = self.query if self.self_attention else Side(self._mask(self.keys))

    # ---------------------------------------------------------------------------------------- operands
    def _mask(self, length: int) -> Tensor:
        kind = self.random.choice(["right", "right", "left", "holes", "dense"])
        lengths = torch.randint(0, length + 1, (self.batch, 1), generator=self.torch)
        places = torch.arange(length)
        if kind == "right":
            return places < lengths
        if kind == "left":
            return places >= length - lengths
        if kind == "holes":
            return torch.rand(self.batch, length, generator=self.torch) < 0.6
        return torch.ones(self.batch, length, dtype=torch.bool)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.torch, dtype=torch.float64).to(self.dtype)

    def leaf(self, kind: str, tensor: Tensor) -> str:
        name = f"{kind}_{len(self.leaves)}"
        self.leaves[name] = tensor.requires_grad_() if tensor.is_floating_point() else tensor
        return name

    def float_leaf(self, axes: str) -> Term:
        """A float operand over `axes`, e.g. "bi" (query column), "b", "ij", "" (scalar)."""
        tensor = self.normal(*(self.extents[x] for x in axes))
        return self._over(axes, tensor, self.leaf("float", tensor), self.name)

    def int_leaf(self, axes: str, low: int, high: int) -> Term:
        shape = [self.extents[x] for x in axes]
        tensor = torch.randint(low, high + 1, shape, generator=self.torch)
        term = self._over(axes, tensor, self.leaf("int", tensor), "i")
        return Term(term.expr, term.dense, low, high)

    def bool_leaf(self, axes: str) -> Term:
        tensor = torch.rand([self.extents[x] for x in axes], generator=self.torch) < 0.7
        return self._over(axes, tensor, self.leaf("bool", tensor), "b")

    def _over(self, axes: str, tensor: Tensor, name: str, dtype: str) -> Term:
        dense = tensor.view([self.extents[x] if x in axes else 1 for x in "bhij"])
        return Term(load(name, [index(x) for x in axes], dtype), dense)

    # ---------------------------------------------------------------------------------------- integers
    def integer(self) -> Term:
        """A random integer of one or both sides."""
        n, m = self.length, self.keys
        i, j = (Term(index(x), self.axis[x], 0, e - 1) for x, e in (("i", n), ("j", m)))
        kind = self.random.choice(
            ["j-i", "j-i", "i+j", "2j-3i", "columns", "times", "abs", "min", "bh", "mod"]
        )
        if kind == "i+j":
            return Term(E.add(i.expr, j.expr), i.dense + j.dense, 0, n + m)
        if kind == "2j-3i":
            expr = E.sub(E.scale(j.expr, 2), E.scale(i.expr, 3))
            return Term(expr, 2 * j.dense - 3 * i.dense, -3 * n, 2 * m)
        if kind in ("columns", "times"):
            width = 5 if kind == "columns" else 10**6
            a, b = self.int_leaf("bi", 0, width), self.int_leaf("bj", 0, width)
            return Term(E.sub(a.expr, b.expr), a.dense - b.dense, -width, width)
        distance = Term(E.sub(j.expr, i.expr), j.dense - i.dense, -n, m)
        if kind == "abs":
            return Term(E.unary("abs", distance.expr), distance.dense.abs(), 0, n + m)
        if kind == "min":
            targets = self.int_leaf("b", 0, n)
            a = Term(E.binary("minimum", i.expr, targets.expr, "i"), torch.minimum(i.dense, targets.dense))
            b = Term(E.binary("minimum", j.expr, targets.expr, "i"), torch.minimum(j.dense, targets.dense))
            return Term(E.sub(a.expr, b.expr), a.dense - b.dense, -n, n)
        if kind == "bh":
            expr = E.add(distance.expr, index("b"), E.scale(index("h"), 2))
            return Term(expr, distance.dense + self.axis["b"] + 2 * self.axis["h"], -n, m + 12)
        if kind == "mod":
            shifted = E.add(distance.expr, size("N"))
            return Term(E.binary("mod", shifted, const(3), "i"), (distance.dense + n) % 3, 0, 2)
        return distance

    def bucket(self) -> Term:
        """A time bucket in float32, or a clamped integer: an index of a table of `high + 1` rows."""
        number = self.integer()
        if self.random.random() < 0.5:
            high = self.random.choice([3, 8])
            shifted = Term(E.add(number.expr, const(2)), number.dense + 2)
            expr = E.binary("minimum", E.binary("maximum", shifted.expr, const(0), "i"), const(high), "i")
            return Term(expr, shifted.dense.clamp(0, high), 0, high)
        distance = E.binary("maximum", E.unary("abs", number.expr), const(1), "i")
        seconds = E.unary("log", E.cast(distance, "f32"))
        expr = E.cast(E.unary("floor", E.binary("div", seconds, const(0.301, "f32"), "f32")), "i")
        expr = E.binary("minimum", expr, const(12), "i")
        dense = (torch.log(number.dense.abs().clamp(min=1).float()) / 0.301).floor().long().clamp(max=12)
        return Term(expr, dense, 0, 12)

    # ------------------------------------------------------------------------------------------ floats
    def table(self) -> Term:
        """A gather from a table by a bucket; sometimes by head too; sometimes guarded, so speculative."""
        place = self.bucket()
        rows = place.high + 1
        by_head = self.random.random() < 0.3
        tensor = self.normal(rows, self.heads) if by_head else self.normal(rows)
        name = self.leaf("table", tensor)
        if by_head:
            dense = tensor[place.dense, self.axis["h"]]
            return Term(load(name, [place.expr, index("h")], self.name), dense)
        if self.random.random() < 0.3:
            beyond = Term(E.add(place.expr, const(-2)), place.dense - 2)
            inside = beyond.dense >= 0
            dense = torch.where(inside, tensor[beyond.dense.clamp(min=0)], 0.5)
            guarded = load(name, [beyond.expr], self.name)
            return Term(E.where(E.ge0(beyond.expr), guarded, const(0.5, self.name), self.name), dense)
        return Term(load(name, [place.expr], self.name), tensor[place.dense])

    def bias(self) -> Term:
        kind = self.random.choice(["table", "table", "column", "cast", "product"])
        if kind == "column":
            return self.float_leaf(self.random.choice(["", "b", "h", "bi", "bj", "hi", "ij", "bij", "bh"]))
        if kind == "cast":
            number = self.integer()
            expr = E.binary("mul", E.cast(number.expr, self.name), const(-0.125, self.name), self.name)
            return Term(expr, number.dense.to(self.dtype) * -0.125)
        if kind == "product":
            a, b = self.float_leaf("bi"), self.float_leaf("bj")
            return Term(E.binary("mul", a.expr, b.expr, self.name), a.dense * b.dense)
        return self.table()

    def combine(self, left: Term, right: Term) -> Term:
        op = self.random.choice(["add", "add", "add", "sub", "mul", "maximum"])
        dense = {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "maximum": torch.maximum}[op]
        return Term(E.binary(op, left.expr, right.expr, self.name), dense(left.dense, right.dense))

    def activate(self, term: Term) -> Term:
        op = self.random.choice([*ACTIVATIONS, "none"])
        return term if op == "none" else Term(E.unary(op, term.expr), ACTIVATIONS[op](term.dense))

    # ------------------------------------------------------------------------------------------- masks
    def mask(self) -> tuple[Term, Expr | None, Expr | None]:
        """A mask with the hull that it implies."""
        i, j = index("i"), index("j")
        ahead = self.axis["i"] - self.axis["j"]
        causal = Term(E.ge0(E.sub(i, j)), ahead >= 0)
        kind = self.random.choice(["causal", "causal", "window", "targets", "column", "or", "none"])
        if kind == "window":
            width = self.random.choice([0, 1, 3])
            expr = E.and_(causal.expr, E.ge0(E.sub(const(width), E.sub(i, j))))
            return Term(expr, (ahead >= 0) & (ahead <= width)), E.sub(i, const(width)), E.add(i, const(1))
        if kind == "targets":
            history = self.int_leaf("b", 0, self.length)
            a, b = (torch.minimum(self.axis[x], history.dense) for x in "ij")
            x, y = (E.binary("minimum", place, history.expr, "i") for place in (i, j))
            later = E.compare("gt", x, y)
            expr = E.or_(later, E.eq0(E.sub(i, j)))
            return Term(expr, (a > b) | (ahead == 0)), None, E.add(i, const(1))
        if kind == "column":
            column = self.bool_leaf(self.random.choice(["bi", "bj", "ij", "b"]))
            return Term(E.and_(causal.expr, column.expr), causal.dense & column.dense), const(0), None
        if kind == "or":
            column = self.bool_leaf("bj")
            return Term(E.or_(E.not_(causal.expr), column.expr), ~causal.dense | column.dense), None, None
        if kind == "none":
            return Term(E.TRUE, torch.ones(1, 1, 1, 1, dtype=torch.bool)), None, None
        return causal, None, E.add(i, const(1))

    # -------------------------------------------------------------------------------------------- case
    def case(self) -> Case:
        draw = self.random.choice
        width, with_product = draw(self.shapes.widths), draw([True, True, True, False])
        group_k, group_v = draw([True, False]), draw([True, False])
        q_rows, k_rows = self.query.index.numel(), self.key.index.numel()
        few = self.heads // self.group
        q = self.normal(q_rows, self.heads, width).requires_grad_()
        k = self.normal(k_rows, few if group_k else self.heads, width).requires_grad_()
        v = self.normal(k_rows, few if group_v else self.heads, draw(self.shapes.v_widths)).requires_grad_()
        shared = E.binary("floordiv", index("h"), const(self.group), "i")
        spread = torch.arange(self.heads) // self.group
        every = torch.arange(self.heads)
        dense_q = self.query.padded(q)
        dense_k = self.key.padded(k)[:, :, spread if group_k else every]
        dense_v = self.key.padded(v)[:, :, spread if group_v else every]
        product = Term(make("s", (), self.name), torch.einsum("bihd,bjhd->bhij", dense_q, dense_k))
        score = product if with_product else self.bias()
        for _ in range(self.random.randint(0, 2)):
            score = self.combine(score, self.bias())
        if with_product and "s" not in {x.op for x in E.walk(score.expr)}:
            with_product = False
        score = self.activate(score)
        probabilities, program = self._finish(score)
        dense_p, keys = probabilities, self.key.mask[:, None, None, :]
        dense_p = torch.where(keys, dense_p, 0.0)
        dense_out = torch.einsum("bhij,bjhd->bihd", dense_p.expand(self._grid()), dense_v)
        program = ScoreProgram(
            leaves=tuple(self.leaves), sizes=("N", "M"), out_dtype=self.name,
            k_head=shared if group_k else index("h"), v_head=shared if group_v else index("h"), **program,
        )  # fmt: skip
        return Case(
            seed=self.seed, program=program,
            q=q if with_product else None, k=k if with_product else None, v=v,
            leaves=list(self.leaves.values()), query=self.query, key=self.key, heads=self.heads,
            sizes=[self.length, self.keys], dense_out=dense_out.flatten(0, 1)[self.query.index],
        )  # fmt: skip

    def _grid(self) -> tuple[int, int, int, int]:
        return self.batch, self.heads, self.length, self.keys

    def _finish(self, score: Term) -> tuple[Tensor, dict[str, object]]:
        """Mask, normalise: P densely, and the fields of the program."""
        mask, low, high = self.mask()
        scaled = Term(
            E.binary("div", score.expr, E.cast(size("N"), self.name), self.name), score.dense / self.length
        )
        if self.random.random() < 0.5:
            return self._pointwise(scaled, mask, low, high)
        return self._softmax(score, mask, low, high)

    def _pointwise(
        self, score: Term, mask: Term, low: Expr | None, high: Expr | None
    ) -> tuple[Tensor, dict[str, object]]:
        zero = const(0.0, self.name)
        if self.random.random() < 0.5:
            expr = E.binary("mul", score.expr, E.cast(mask.expr, self.name), self.name)
        else:
            expr = E.where(mask.expr, score.expr, zero, self.name)
        dense = torch.where(mask.dense, score.dense, 0.0)
        return dense, {"score": expr, "key_low": low, "key_high": high}

    def _softmax(
        self, score: Term, mask: Term, low: Expr | None, high: Expr | None
    ) -> tuple[Tensor, dict[str, object]]:
        hidden = const(float("-inf"), self.name)
        keys = mask.dense & self.key.mask[:, None, None, :]
        dense = torch.where(keys, score.dense, float("-inf")).expand(self._grid())
        empty = (dense == float("-inf")).all(-1, keepdim=True)
        natural = not bool((empty & self.query.mask[:, None, :, None]).any())
        softmax = torch.softmax(torch.where(empty, 0.0, dense), -1) * ~empty
        post, leaf = softmax, make("sm", (), self.name)
        expr = leaf
        if self.random.random() < 0.3:
            gate = self.float_leaf(self.random.choice(["bj", "bi", "h"]))
            expr, post = E.binary("mul", leaf, gate.expr, self.name), softmax * gate.dense
        return post, {
            "score": E.where(mask.expr, score.expr, hidden, self.name), "post": expr, "key_low": low,
            "key_high": high, "fully_masked": "natural" if natural else "zero",
        }  # fmt: skip


def generate(seed: int, dtype: torch.dtype = torch.float64, shapes: Shapes = SMALL) -> Case:
    """The case number `seed`."""
    return Generator(seed, dtype, shapes).case()
