"""`gr::jagged_attention`: O[i] = sum over j of P[b,h,i,j] V[j], with P given by a score program.

    q [Tq, Hq, dqk]   k [Tk, Hk, dqk]   v [Tk, Hv, dv]   ->   O [Tq, heads, dv]     (dtype: program.out_dtype)

q and k may be None where the program has no product. Sequence b owns rows [offsets[b], offsets[b + 1]);
positions are the padded coordinates i and j of the packed rows, increasing within a sequence. Leaves are
dense tensors in padded coordinates, in the order of program.leaves, and sizes the integers of program.sizes.
Rows behind offsets[B] give zeros. The program is `ScoreProgram.text()`. One with dropout needs `seed`, an
int64 scalar; the mask is a function of it.

The derivative is `gr::jagged_attention_backward`, by recomputation; it has itself no derivative.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from gr_compile.analysis.expr import TORCH_DTYPE
from gr_compile.ops.attention_backward import attention_backward
from gr_compile.ops.attention_blocks import Inputs
from gr_compile.ops.attention_reference import attention
from gr_compile.ops.registry import LIBRARY, define_operator, require
from gr_compile.ops.score_program import ScoreProgram

OPERANDS = (
    "Tensor? q, Tensor? k, Tensor v, Tensor[] leaves, Tensor query_offsets, Tensor query_positions, "
    "Tensor key_offsets, Tensor key_positions, SymInt heads, SymInt[] sizes, Tensor? seed, str program"
)
FORWARD_SCHEMA = f"jagged_attention({OPERANDS}) -> Tensor"
BACKWARD_SCHEMA = f"jagged_attention_backward(Tensor grad_out, {OPERANDS}, bool[] needs_grad) -> Tensor[]"
_NAME = "gr::jagged_attention"


def inputs_of(
    q: Tensor | None,
    k: Tensor | None,
    v: Tensor,
    leaves: Sequence[Tensor],
    query_offsets: Tensor,
    query_positions: Tensor,
    key_offsets: Tensor,
    key_positions: Tensor,
    heads: int,
    sizes: Sequence[int],
    seed: Tensor | None,
    program: str,
) -> Inputs:
    """The operands, checked by shape and dtype only: nothing here waits for the device."""
    parsed = ScoreProgram.parse(program)
    require(v.dim() == 3, lambda: f"{_NAME}: v must be [Tk, Hv, dv], not {list(v.shape)}")
    _check_rows("query", query_offsets, query_positions)
    _check_rows("key", key_offsets, key_positions)
    require(
        query_offsets.shape[0] == key_offsets.shape[0],
        lambda: f"{_NAME}: {query_offsets.shape[0]} query_offsets but {key_offsets.shape[0]} key_offsets",
    )
    _check_length("v", v, key_positions)
    _check_product(parsed, q, k, query_positions, key_positions)
    require(
        len(sizes) == len(parsed.sizes),
        lambda: f"{_NAME}: {len(sizes)} sizes for the program's {list(parsed.sizes)}",
    )
    require(
        not parsed.has_dropout or (seed is not None and seed.dtype == torch.int64 and seed.dim() == 0),
        lambda: f"{_NAME}: a program with dropout needs seed, an int64 scalar tensor",
    )
    return Inputs(
        program=parsed,
        q=q,
        k=k,
        v=v,
        leaves=_check_leaves(parsed, leaves),
        query_offsets=query_offsets,
        query_positions=query_positions,
        key_offsets=key_offsets,
        key_positions=key_positions,
        heads=heads,
        sizes=dict(zip(parsed.sizes, sizes)),
        seed=seed,
    )


def _check_rows(side: str, offsets: Tensor, positions: Tensor) -> None:
    _check_integers(f"{side}_offsets [B + 1]", offsets)
    _check_integers(f"{side}_positions [T]", positions)


def _check_integers(what: str, tensor: Tensor) -> None:
    require(
        tensor.dtype == torch.int64 and tensor.dim() == 1,
        lambda: f"{_NAME}: {what} must be int64, not {tensor.dtype} {list(tensor.shape)}",
    )


def _check_product(
    program: ScoreProgram, q: Tensor | None, k: Tensor | None, query_positions: Tensor, key_positions: Tensor
) -> None:
    if q is None or k is None:
        require(q is None and k is None, lambda: f"{_NAME}: give both q and k, or neither")
        require(program.product is None, lambda: f"{_NAME}: the program reads s, so q and k are needed")
        return
    require(
        q.dim() == 3 and k.dim() == 3 and q.dtype == k.dtype,
        lambda: (
            f"{_NAME}: q and k must be [T, H, d] of one dtype, "
            f"not {list(q.shape)} {q.dtype} and {list(k.shape)} {k.dtype}"
        ),
    )
    require(
        q.shape[2] == k.shape[2],
        lambda: f"{_NAME}: q is {q.shape[2]} wide but k is {k.shape[2]} wide",
    )
    _check_length("q", q, query_positions)
    _check_length("k", k, key_positions)


def _check_length(name: str, rows: Tensor, positions: Tensor) -> None:
    require(
        rows.shape[0] == positions.shape[0],
        lambda: f"{_NAME}: {name} has {rows.shape[0]} rows for {positions.shape[0]} positions",
    )


def _check_leaves(program: ScoreProgram, leaves: Sequence[Tensor]) -> dict[str, Tensor]:
    require(
        len(leaves) == len(program.leaves),
        lambda: f"{_NAME}: {len(leaves)} leaves for the program's {list(program.leaves)}",
    )
    named = dict(zip(program.leaves, leaves))
    for name, (rank, dtype) in program.leaf_types.items():
        _check_leaf(name, named[name], rank, dtype)
    return named


def _check_leaf(name: str, leaf: Tensor, rank: int, dtype: str) -> None:
    whole = not (leaf.is_floating_point() or leaf.is_complex() or leaf.dtype == torch.bool)
    fits = whole if dtype == "i" else leaf.dtype == TORCH_DTYPE[dtype]
    require(
        leaf.dim() == rank and fits,
        lambda: (
            f"{_NAME}: leaf {name!r} is loaded as {dtype!r} with {rank} indices, "
            f"but it is {leaf.dtype} {list(leaf.shape)}"
        ),
    )


# ------------------------------------------------------------------------------------------- operators


def _forward_reference(*operands: Any) -> Tensor:
    return attention(inputs_of(*operands))


def _forward_fake(*operands: Any) -> Tensor:
    inputs = inputs_of(*operands)
    shape = (inputs.query_positions.shape[0], inputs.heads, inputs.v.shape[2])
    return inputs.v.new_empty(shape, dtype=TORCH_DTYPE[inputs.program.out_dtype])


def _backward_reference(grad_out: Tensor, *operands: Any) -> list[Tensor]:
    *rest, needs_grad = operands
    return attention_backward(backward_inputs(grad_out, rest, needs_grad), grad_out, needs_grad)


def backward_inputs(grad_out: Tensor, operands: Sequence[Any], needs_grad: Sequence[bool]) -> Inputs:
    inputs = inputs_of(*operands)
    require(
        len(needs_grad) == 3 + len(inputs.leaves),
        lambda: f"{_NAME}_backward: needs_grad must tell q, k, v and {len(inputs.leaves)} leaves",
    )
    require(grad_out.dim() == 3, lambda: f"{_NAME}_backward: grad_out must be [Tq, heads, dv]")
    return inputs


def _backward_fake(grad_out: Tensor, *operands: Any) -> list[Tensor]:
    *rest, needs_grad = operands
    inputs = backward_inputs(grad_out, rest, needs_grad)
    tensors = (inputs.q, inputs.k, inputs.v, *inputs.leaves.values())
    return [
        x.new_empty(x.shape) if need and x is not None else inputs.v.new_empty(0)
        for x, need in zip(tensors, needs_grad)
    ]


jagged_attention = define_operator(FORWARD_SCHEMA, _forward_reference, _forward_fake)
jagged_attention_backward = define_operator(BACKWARD_SCHEMA, _backward_reference, _backward_fake)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    (
        q,
        k,
        v,
        leaves,
        query_offsets,
        query_positions,
        key_offsets,
        key_positions,
        heads,
        sizes,
        seed,
        program,
    ) = inputs
    ctx.save_for_backward(q, k, v, query_offsets, query_positions, key_offsets, key_positions, seed, *leaves)
    ctx.heads, ctx.sizes, ctx.program = heads, sizes, program


def _derivative(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    q, k, v, *rows = ctx.saved_tensors[:7]
    seed, *leaves = ctx.saved_tensors[7:]
    needs = [*ctx.needs_input_grad[:3], *ctx.needs_input_grad[3]]
    grads = jagged_attention_backward(
        grad, q, k, v, leaves, *rows, ctx.heads, ctx.sizes, seed, ctx.program, needs
    )
    given = [x if need else None for x, need in zip(grads, needs)]
    no_sizes: list[None] | None = None if ctx.sizes else []  # torch wants an empty list for an empty list
    return (*given[:3], given[3:], *[None] * 5, no_sizes, None, None)


def _no_second_derivative(ctx: Any, *grads: Any) -> NoReturn:
    raise NotImplementedError("gr::jagged_attention has no second derivative: its backward is an operator")


torch.library.register_autograd(_NAME, _derivative, setup_context=_setup, lib=LIBRARY)
torch.library.register_autograd(f"{_NAME}_backward", _no_second_derivative, lib=LIBRARY)
