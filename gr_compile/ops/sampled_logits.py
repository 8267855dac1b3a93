"""Logits of sampled rows of a table: the lookup and the product with a token's state as one operator.

    (table[ids] * query.unsqueeze(-2)).sum(-1)   ->   gr::sampled_logits(query, table, ids, None, None, -1)

[T, R] of a query [T, D], a table [V, D] and ids [T, R]; the rows [T, R, D] are never written, neither forward nor
backward. Tokens may share their ids (the negatives of a sequence, or of a batch): ids [G, R] and the row of ids that
each token reads, `group` [T]. Rows may be normalised (cosine), as torch.nn.functional.normalize does it. A sampled
softmax over such logits is the loss of HSTU (arXiv 2402.17152) and of TurboGR (arXiv 2605.13433).

Halves are computed in float32 and rounded once, to the query's dtype or the table's: the spelling above rounds each
product, too, and F.normalize each norm and each quotient. `eps` is not rounded: a row of zeros in float16 has the
logit 0, not 0 / 0.

Rows may be read from a copy of the table in another dtype (`stored`, of gr::stored_rows), with a factor for each row or
for all (`scale`): stored[id] * scale stands for table[id], and the gradient goes to the table as if it were that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from gr_compile.ops.leaves import goes_into_leaf
from gr_compile.ops.registry import LIBRARY, define_operator, outside_autocast, require

_WHOLE = (torch.int64, torch.int32)
_BLOCK_ELEMENTS = 1 << 20  # of the rows that the reference looks up at once


def check_operands(
    query: Tensor, table: Tensor, ids: Tensor, group: Tensor | None, eps: float | None, padding: int,
    stored: Tensor | None = None, scale: Tensor | None = None,
) -> None:  # fmt: skip
    """ValueError where shapes or dtypes do not fit."""
    for what, value in (("query", query), ("table", table)):
        _require(value.is_floating_point(), f"{what} must be floating point, not {value.dtype}")
    for what, shape, value in (("query", "[T, D]", query), ("table", "[V, D]", table), ("ids", "[G, R]", ids)):
        _require(value.dim() == 2, f"{what} must be {shape}, not of {value.dim()} dimensions")
    require(
        query.shape[1] == table.shape[1],
        lambda: f"gr::sampled_logits: rows of query have {query.shape[1]} features, those of table {table.shape[1]}",
    )
    _require(ids.dtype in _WHOLE, f"ids must be int64 or int32, not {ids.dtype}")
    if group is not None:
        _require(group.dtype in _WHOLE, f"group must be int64 or int32, not {group.dtype}")
        _require(group.dim() == 1, f"group must be [T], not of {group.dim()} dimensions")
    rows, what = (ids.shape[0], "ids without group") if group is None else (group.shape[0], "group")
    require(
        rows == query.shape[0],
        lambda: f"gr::sampled_logits: {what} must have a row for each of the {query.shape[0]} tokens, not {rows}",
    )
    _require(eps is None or 0 <= eps < float("inf"), f"eps must be finite and not negative, not {eps}")
    _require(padding >= -1, f"padding must be an id, or -1 for none, not {padding}")
    _check_stored(table, stored, scale)


def _check_stored(table: Tensor, stored: Tensor | None, scale: Tensor | None) -> None:
    if stored is None:
        return _require(scale is None, "scale is that of stored rows, and there are none")
    _require(stored.is_floating_point(), f"stored must be floating point, not {stored.dtype}")
    _require(stored.dim() == 2, f"stored must be [V, D], not of {stored.dim()} dimensions")
    for given, wanted in zip(stored.shape, table.shape):
        require(
            given == wanted,
            lambda: f"gr::sampled_logits: stored must be {[*table.shape]} as the table is, not {[*stored.shape]}",
        )
    if scale is None:
        return
    _require(scale.dtype == torch.float32, f"scale must be torch.float32, not {scale.dtype}")
    _require(scale.dim() == 1, f"scale must be [1] or [V], not of {scale.dim()} dimensions")
    rows, given = table.shape[0], scale.shape[0]
    alike = isinstance(given, int) and given == 1
    require(
        alike or given == rows,
        lambda: f"gr::sampled_logits: scale must be [1] or [{rows}], not [{given}]",
    )


def _require(condition: bool, message: str) -> None:
    require(condition, lambda: f"gr::sampled_logits: {message}")


def raise_bad_id(ids: Tensor, place: int, rows: int) -> NoReturn:
    """IndexError: the id at `place` of the flattened ids is no row of a table of `rows`."""
    row, sample = divmod(place, ids.shape[1])
    raise IndexError(
        f"gr::sampled_logits: ids[{row}, {sample}] is {int(ids[row, sample])}, which is no row of a table of {rows}"
    )


def raise_bad_group(group: Tensor, token: int, rows: int) -> NoReturn:
    """IndexError: a token's group is no row of ids."""
    raise IndexError(f"gr::sampled_logits: group[{token}] is {int(group[token])}, which is no row of ids [{rows}, R]")


def check_places(ids: Tensor, group: Tensor | None, rows: int) -> None:
    """IndexError: an id is no row of the table, or a group no row of ids; it names the first and its place."""
    bad = ((ids < 0) | (ids >= rows)).flatten().nonzero()
    if bad.numel():
        raise_bad_id(ids, int(bad[0]), rows)
    if group is not None:
        bad = ((group < 0) | (group >= ids.shape[0])).nonzero()
        if bad.numel():
            raise_bad_group(group, int(bad[0]), ids.shape[0])


def _computed_in(query: Tensor, table: Tensor) -> torch.dtype:
    return torch.float64 if torch.float64 in (query.dtype, table.dtype) else torch.float32


@dataclass(frozen=True)
class _Rows:
    """The rows of a table as they are read: its own, or those of a copy."""

    table: Tensor
    stored: Tensor | None
    scale: Tensor | None

    def at(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """[*, D] of ids [*]."""
        if self.stored is None:
            return self.table[ids].to(dtype)
        rows = self.stored[ids].to(dtype)
        if self.scale is None:
            return rows
        factor = self.scale if self.scale.shape[0] == 1 else self.scale[ids].unsqueeze(-1)
        return rows * factor.to(dtype)


def _norm(rows: Tensor, eps: float | None) -> Tensor | None:
    """What rows [*, D] are divided by, [*, 1]."""
    return None if eps is None else torch.linalg.vector_norm(rows, dim=-1, keepdim=True).clamp_min(eps)


def _blocks(
    query: Tensor, table: _Rows, ids: Tensor, group: Tensor | None, eps: float | None
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Blocks of tokens: which, their ids [t, R], and the rows [t, R, D] that they read."""
    step = max(1, _BLOCK_ELEMENTS // max(1, ids.shape[1] * query.shape[1]))
    for start in range(0, query.shape[0], step):
        tokens = slice(start, start + step)
        found = ids[tokens] if group is None else ids[group[tokens]]
        rows = table.at(found, _computed_in(query, table.table))
        norm = _norm(rows, eps)
        yield tokens, found, rows if norm is None else rows / norm


def _fake(
    query: Tensor, table: Tensor, ids: Tensor, group: Tensor | None, eps: float | None, padding: int,
    stored: Tensor | None = None, scale: Tensor | None = None,
) -> Tensor:  # fmt: skip
    check_operands(query, table, ids, group, eps, padding, stored, scale)
    return query.new_empty((query.shape[0], ids.shape[1]))


def sampled_logits_reference(
    query: Tensor, table: Tensor, ids: Tensor, group: Tensor | None, eps: float | None, padding: int,
    stored: Tensor | None = None, scale: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """[T, R] in query's dtype: the products of each token's `query` [T, D] with the rows of `table` [V, D] at its ids.

    `ids` [G, R] int64 or int32: those of token t are ids[group[t]], or ids[t] where `group` ([T], whole numbers) is
    None. With `eps` each row is divided by max(its 2-norm, eps). `padding`: the id whose row has no gradient, -1 for
    none. Table and query may differ in dtype. Where `stored` [V, D] is given, of any dtype, rows are stored[id] times
    `scale` (float32, [V] by row or [1] for all; None: 1) in place of the table's.

    Raises:
        ValueError: shapes or dtypes do not fit.
        IndexError: an id, read or not, is outside 0..V-1, or a group outside 0..G-1; it names the first and its place.
    """
    out = _fake(query, table, ids, group, eps, padding, stored, scale)
    check_places(ids, group, table.shape[0])
    with outside_autocast(query.device):
        for tokens, _, rows in _blocks(query, _Rows(table, stored, scale), ids, group, eps):
            out[tokens] = torch.einsum("td,trd->tr", query[tokens].to(rows.dtype), rows)
    return out


def check_gradient(grad: Tensor, query: Tensor, ids: Tensor) -> None:
    """ValueError where `grad` is not of the shape of the result."""
    require(
        grad.dim() == 2, lambda: f"gr::sampled_logits_backward: grad must be [T, R], not of {grad.dim()} dimensions"
    )
    for given, wanted in zip(grad.shape, (query.shape[0], ids.shape[1])):
        require(
            given == wanted,
            lambda: f"gr::sampled_logits_backward: grad must be {[query.shape[0], ids.shape[1]]}, not {[*grad.shape]}",
        )


def _backward_fake(
    grad: Tensor, query: Tensor, table: Tensor, ids: Tensor, group: Tensor | None, eps: float | None, padding: int,
    into_leaf: bool, need_query: bool, need_table: bool, stored: Tensor | None = None, scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    check_operands(query, table, ids, group, eps, padding, stored, scale)
    check_gradient(grad, query, ids)
    return (
        query.new_empty(query.shape if need_query else 0),
        table.new_empty(table.shape if need_table else 0),
    )


def sampled_logits_backward_reference(
    grad: Tensor, query: Tensor, table: Tensor, ids: Tensor, group: Tensor | None, eps: float | None, padding: int,
    into_leaf: bool, need_query: bool, need_table: bool, stored: Tensor | None = None, scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The gradients of query and table from that of the result, `grad` [T, R]; no elements where one is not needed.

    `into_leaf`: the table's gradient goes into the `.grad` of a leaf, alone or in a sum (gr_compile.ops.leaves); a
    kernel may then return what the leaf has accumulated with this gradient added, and leave it without.
    """
    grad_query, grad_table = _backward_fake(
        grad, query, table, ids, group, eps, padding, into_leaf, need_query, need_table, stored, scale
    )
    check_places(ids, group, table.shape[0])
    read = _Rows(table, stored, scale)
    distinct = torch.unique(ids)
    sums = query.new_zeros((distinct.shape[0], table.shape[1]), dtype=_computed_in(query, table))
    for tokens, found, rows in _blocks(query, read, ids, group, eps):
        wide = grad[tokens].to(rows.dtype)
        if need_query:
            with outside_autocast(query.device):
                grad_query[tokens] = torch.einsum("tr,trd->td", wide, rows)
        if need_table:
            each = wide.unsqueeze(-1) * query[tokens].to(rows.dtype).unsqueeze(1)
            sums.index_add_(0, torch.searchsorted(distinct, found.flatten()), each.flatten(0, 1))
    if need_table:
        if eps is not None:
            sums = _before_normalizing(sums, read.at(distinct, sums.dtype), eps)
        counts = distinct != padding
        grad_table.zero_()[distinct[counts]] = sums[counts].to(table.dtype)
    return grad_query, grad_table


def _before_normalizing(grad: Tensor, rows: Tensor, eps: float) -> Tensor:
    """The gradient of rows from that of rows / max(norm, eps): nothing flows through a norm below eps, or of 0."""
    norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    scale = norm.clamp_min(eps)
    unit = rows / scale
    flows = (norm >= eps) & (norm > 0)
    across = grad - unit * (unit * grad).sum(-1, keepdim=True)
    return torch.where(flows, across, grad).div(scale)


sampled_logits = define_operator(
    "sampled_logits(Tensor query, Tensor table, Tensor ids, Tensor? group, float? eps, int padding,"
    " Tensor? stored=None, Tensor? scale=None) -> Tensor",
    sampled_logits_reference,
    _fake,
)
sampled_logits_backward = define_operator(
    "sampled_logits_backward(Tensor grad, Tensor query, Tensor table, Tensor ids, Tensor? group, float? eps,"
    " int padding, bool into_leaf, bool need_query, bool need_table, Tensor? stored=None, Tensor? scale=None)"
    " -> (Tensor grad_query, Tensor grad_table)",
    sampled_logits_backward_reference,
    _backward_fake,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps, ctx.padding, stored, scale = inputs
    ctx.save_for_backward(*tensors, stored, scale)
    ctx.into_leaf = goes_into_leaf(inputs[1])


def _derivative(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    needs = tuple(ctx.needs_input_grad[:2])
    into_leaf = ctx.into_leaf and not torch.is_grad_enabled()
    *tensors, stored, scale = ctx.saved_tensors
    grads = sampled_logits_backward(grad, *tensors, ctx.eps, ctx.padding, into_leaf, *needs, stored, scale)
    return (*(made if need else None for made, need in zip(grads, needs)), *[None] * 6)


def _no_second_derivative(ctx: Any, *grads: Any) -> NoReturn:
    raise NotImplementedError("gr::sampled_logits has no second derivative: its backward is an operator")


torch.library.register_autograd("gr::sampled_logits", _derivative, setup_context=_setup, lib=LIBRARY)
torch.library.register_autograd("gr::sampled_logits_backward", _no_second_derivative, lib=LIBRARY)
