"""Operators that Huawei ships, in place of generated ones: `target="ascend{kernels=library}"`.

    gr::jagged_attention, P[i, j] = scale * silu(alpha * s) where j <= i, 0 elsewhere
        -> HstuJaggedForward(q, k, v, seq_offset_q)   mask_type 0, alpha, silu_scale          (RecSDK)

The library's operator computes (silu(alpha q k^T + bias) * silu_scale * mask) v over the rows of each sequence; its
lower triangle holds the diagonal (row i keeps i + 1 elements in hstu_dense_causal_mask.h). A call fits when its score
program is that function, which is proved on the program's expression, when its rows are all rows of one raggedness, and
when the shapes stay within the operator's documented limits. What does not fit keeps the generated operator, with the
reason. Nothing here reads names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.fx as fx

from gr_compile.analysis.expr import FLOAT_DTYPES, TORCH_DTYPE, TRUE, Expr, and_, ge0, index, is_const, not_, sub, walk
from gr_compile.lowering.ascendc.operators import FLOATS, OPERATORS
from gr_compile.ops.score_program import HEAD, ScoreProgram

aten, gr = torch.ops.aten, torch.ops.gr
ATTENTION = "HstuJaggedForward"
LOWER_TRIANGLE, NO_MASK = 0, 2
MAX_BATCH, MAX_LENGTH, MAX_HEADS = 2048, 20480, 16
WIDTHS = range(16, 513, 16)
INPUTS = (
    ("q", "required"), ("k", "required"), ("v", "required"), ("mask", "optional"), ("attn_bias", "optional"),
    ("seq_offset_q", "required"), ("seq_offset_k", "optional"), ("num_context", "optional"), ("num_target", "optional"),
)  # fmt: skip
OUTPUTS = (("attn_output", "required"),)
ATTRIBUTES = {
    "mask_type": "int", "max_seqlen_q": "int", "max_seqlen_k": "int", "silu_scale": "float", "target_group_size": "int",
    "alpha": "float", "deterministic": "bool",
}  # fmt: skip
GENERATED = "generated"
_WHY_NOT: Mapping[str, str] = {
    "gr::jagged_attention_backward": "only inference takes the library's attention: its backward is not mapped",
    "gr::pack": "DenseToJagged takes the first places of each sequence and their number as a constant; pack takes any",
    "gr::unpack": "JaggedToPaddedDense fills the first places of each sequence; unpack writes any",
    "gr::segment_sum": "SegmentSumCsr leaves junk for a segment that is empty, which a sequence may be",
    "gr::norm_gate": "LnMul takes no epsilon, and the one that it uses is not published",
    "gr::lookup_gradient": "the library's embedding gradients belong to its own tables, with their optimizer's state",
}
_NOTHING = "the library has no such operator"


class Misfit(Exception):
    """Why a call cannot be the library's operator; the message is a sentence for the report."""


@dataclass(frozen=True)
class Formula:
    """scale * silu(alpha * s) under a mask: what a pointwise score program was proved to be."""

    alpha: float
    scale: float
    mask_type: int


@dataclass(frozen=True)
class Choice:
    """What computes the calls of an operator, and why.

    Attributes:
        attributes: those of the library's node; empty where the generated operator stays.
        program: the score program of the calls; "" for operators that have none.
    """

    operator: str
    calls: int
    chosen: str
    why: str
    attributes: Mapping[str, int | float | bool]
    program: str = ""


def choices(graph_module: fx.GraphModule, training: bool) -> list[Choice]:
    """The choice for each `gr::` operator of a graph; for attention, for each score program."""
    found: list[Choice] = []
    for name, row in OPERATORS.items():
        calls = graph_module.graph.find_nodes(op="call_function", target=row.overload)
        if name != "gr::jagged_attention":
            why = _WHY_NOT.get(name, _NOTHING)
            found += [Choice(name, len(calls), GENERATED, why, {})] if calls else []
            continue
        for program in dict.fromkeys(_given(call)["program"] for call in calls):
            found.append(_attention(program, [c for c in calls if _given(c)["program"] == program], training))
    return found


def _attention(program: str, calls: list[fx.Node], training: bool) -> Choice:
    """All calls of one program go one way: a converter knows a call by its program."""
    name = "gr::jagged_attention"
    try:
        if training:
            _misfit(_WHY_NOT["gr::jagged_attention_backward"])
        fitted = [fit(call) for call in calls]
        if any(other != fitted[0] for other in fitted):
            _misfit("calls of the same program have different lengths")
    except Misfit as misfit:
        return Choice(name, len(calls), GENERATED, str(misfit), {}, program)
    return Choice(name, len(calls), ATTENTION, "the program and the shapes fit", fitted[0], program)


def fit(call: fx.Node) -> Mapping[str, int | float | bool]:
    """The attributes of the library's node for a call of `gr::jagged_attention`.

    Raises:
        Misfit: the first thing that the library's operator cannot do.
    """
    given = _given(call)
    found = formula(ScoreProgram.parse(given["program"]))
    length = _rows(given)
    _shapes(given)
    return {
        "mask_type": found.mask_type, "max_seqlen_q": length, "max_seqlen_k": length, "silu_scale": found.scale,
        "target_group_size": 0, "alpha": found.alpha, "deterministic": False,
    }  # fmt: skip


def _given(call: fx.Node) -> dict[str, Any]:
    names = [argument.name for argument in gr.jagged_attention.default._schema.arguments]
    return {**dict(zip(names, call.args)), **call.kwargs}


def _misfit(why: str) -> NoReturn:
    raise Misfit(why)


# ------------------------------------------------------------------------------------------ the program
def formula(program: ScoreProgram) -> Formula:
    """The formula that a program is, over the reals.

    Raises:
        Misfit: it is another function, or one that this proof does not reach.
    """
    if program.post is not None:
        _misfit("it is a softmax; the library's operator has SiLU alone")
    if program.has_dropout:
        _misfit("it drops attention weights, which the library's operator does not")
    if program.leaves:
        _misfit("it reads tables or columns; the library's operator takes a dense bias or mask in packed rows only")
    if any(head is not HEAD for head in (program.q_head, program.k_head, program.v_head)):
        _misfit("heads share keys, which the library's operator does not know")
    core = _Factors(program.score)
    inner = _silu_of(core.rest)
    product = _Factors(inner)
    if product.rest is not program.product or product.mask is not TRUE:
        _misfit("the argument of SiLU is not a number times q . k")
    if not core.number or not math.isfinite(core.number) or not math.isfinite(product.number):
        _misfit(f"its scale is {core.number:g}; silu_scale = 0 stands for 1 / N")
    return Formula(product.number, core.number, _mask_type(core.mask))


class _Factors:
    """expr = number * [mask] * rest, over the reals, with `rest` no product with a number or a mask any more.

    Each step is an identity: x / c = (1 / c) x; x * cast(m) = [m] x; where(m, x, 0) = [m] x;
    where(m, 0, x) = [not m] x.
    """

    def __init__(self, expr: Expr) -> None:
        self.number, self.mask, self.rest = 1.0, TRUE, expr
        while self._step():
            pass

    def _step(self) -> bool:
        rest = self.rest
        if rest.op == "mul":
            return self._take(*rest.args) or self._take(*reversed(rest.args))
        if rest.op == "div" and _number(rest.args[1]) is not None:
            divisor = _number(rest.args[1])
            if not divisor:
                return False
            self.number, self.rest = self.number / divisor, rest.args[0]
            return True
        if rest.op == "neg":
            self.number, self.rest = -self.number, rest.args[0]
            return True
        if rest.op == "where":
            condition, yes, no = rest.args
            if _number(no) == 0:
                self.mask, self.rest = and_(self.mask, condition), yes
                return True
            if _number(yes) == 0:
                self.mask, self.rest = and_(self.mask, not_(condition)), no
                return True
        return False

    def _take(self, kept: Expr, factor: Expr) -> bool:
        value = _number(factor)
        if value is not None:
            self.number, self.rest = self.number * value, kept
            return True
        if factor.op == "cast" and factor.args[0].dtype == "b":
            self.mask, self.rest = and_(self.mask, factor.args[0]), kept
            return True
        return False


def _number(expr: Expr) -> float | None:
    """The value of a constant, rounded by its casts between floats; a cast to a whole number cuts, and has none."""
    if expr.op == "cast":
        inner = _number(expr.args[0]) if expr.dtype in FLOAT_DTYPES else None
        return None if inner is None else float(torch.tensor(inner, dtype=torch.float64).to(TORCH_DTYPE[expr.dtype]))
    return float(expr.args[0]) if is_const(expr) and expr.dtype != "b" else None


def _silu_of(expr: Expr) -> Expr:
    """x, where expr is silu(x) or x * sigmoid(x)."""
    if expr.op == "silu":
        inner: Expr = expr.args[0]
        return inner
    if expr.op == "mul":
        for x, gate in (expr.args, expr.args[::-1]):
            if gate.op == "sigmoid" and gate.args[0] is x:
                return x  # type: ignore[no-any-return]
    if any(node.op == "size" for node in walk(expr)):
        _misfit("its scale is a size of the call, and an attribute is a constant: lower with dynamic=False")
    return _misfit("it is not a number times SiLU, under a mask")


def _mask_type(mask: Expr) -> int:
    """Expressions of one value are one object, whatever was written."""
    if mask is TRUE:
        return NO_MASK
    if mask is ge0(sub(index("i"), index("j"))):
        return LOWER_TRIANGLE
    return _misfit("its mask is neither the lower triangle nor none")


# --------------------------------------------------------------------------------------- rows and shapes
def _rows(given: Mapping[str, Any]) -> int:
    """N, where queries and keys are the same rows, all of them, in order, of one mask [B, N].

    The library's operator masks by the number of a row within its sequence, the program by its place. Places ascend
    within a sequence, so that j <= i says the same of both; and its output has no rows that belong to no sequence.
    """
    for side in ("offsets", "positions"):
        if given[f"query_{side}"] is not given[f"key_{side}"]:
            _misfit("queries and keys are different rows")
    places, length = _places_of(given["query_positions"])
    summed = _mask_of_offsets(given["query_offsets"])
    if places is None or summed is None or _dense(places.args[0]) is not summed:
        _misfit("its rows are not shown to be all true places of one mask")
    if length != summed.meta["val"].shape[1]:
        _misfit("its places are not those of the mask")
    if not isinstance(length, int):
        _misfit("N is a size of the call, and an attribute is a constant: lower with dynamic=False")
    if length > MAX_LENGTH:
        _misfit(f"N = {length}; the library's operator takes at most {MAX_LENGTH}")
    return length


def _places_of(positions: fx.Node) -> tuple[fx.Node | None, Any]:
    """(the `gr::true_places`, N) of positions = places % N."""
    if positions.target is not aten.remainder.Scalar:
        return None, None
    places, length = positions.args
    while isinstance(places, fx.Node) and places.target in (aten.reshape.default, aten.stack.default):
        only: Any = places.args[0]
        if isinstance(only, (list, tuple)):
            if len(only) != 1:
                return None, None
            (only,) = only
        places = only
    if not isinstance(places, fx.Node) or places.target is not gr.true_places.default:
        return None, None
    return places, length


def _mask_of_offsets(offsets: fx.Node) -> fx.Node | None:
    """The mask [B, N] of offsets = pad(cumsum(sum(mask, 1), 0), (1, 0))."""
    chain = ((aten.constant_pad_nd.default, [1, 0]), (aten.cumsum.default, 0), (aten.sum.dim_IntList, [1]))
    node: Any = offsets
    for target, how in chain:
        if not isinstance(node, fx.Node) or node.target is not target or len(node.args) != 2 or node.kwargs:
            return None
        if node.args[1] != how:
            return None
        node = node.args[0]
    return node if isinstance(node, fx.Node) and node.meta["val"].dim() == 2 else None


def _dense(flat: Any) -> Any:
    """The mask [B, N] of which the argument is the flat form."""
    if isinstance(flat, fx.Node) and flat.target is aten.reshape.default and flat.args[1] == [-1]:
        return flat.args[0]
    return None


def _shapes(given: Mapping[str, Any]) -> None:
    values = [given[name].meta["val"] for name in ("q", "k", "v")]
    batch = given["query_offsets"].meta["val"].shape[0] - 1
    heads, width = values[0].shape[1:]
    dtypes = {str(value.dtype).removeprefix("torch.") for value in values}
    if not isinstance(batch, int):
        _misfit("B is a size of the call, and the library's operator has a limit: lower with dynamic=False")
    if not 0 < batch <= MAX_BATCH:
        _misfit(f"B = {batch}; the library's operator takes 1 to {MAX_BATCH}")
    if any(value.shape[1:] != values[0].shape[1:] for value in values) or given["heads"] != heads:
        _misfit("q, k and v differ in heads or width")
    if not isinstance(heads, int) or not 0 < heads <= MAX_HEADS:
        _misfit(f"{heads} heads; the library's operator takes 1 to {MAX_HEADS}")
    if width not in WIDTHS:
        _misfit(f"D = {width}; the library's operator takes multiples of 16 from 16 to 512")
    if len(dtypes) != 1 or not dtypes <= set(FLOATS):
        _misfit(f"dtypes {', '.join(sorted(dtypes))}; the library's operator takes one of {', '.join(FLOATS)}")
