"""The reference of `gr::jagged_attention`: plain torch, sequence by sequence, in blocks of rows.

Nothing of size N x N is made; all heads of a block are computed together, and the program runs once a block.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from gr_compile.analysis.derive import derivative
from gr_compile.analysis.expr import TORCH_DTYPE, Expr, is_const
from gr_compile.ops.attention_blocks import (
    INDICES,
    Block,
    Columns,
    Inputs,
    block_evaluator,
    blocks,
    by_head,
    head_map,
    hoisted,
)
from gr_compile.ops.evaluate import Evaluator, Schedule, Value, operands, reads_block, schedule
from gr_compile.ops.registry import outside_autocast
from gr_compile.ops.score_program import ScoreProgram


@dataclass(frozen=True)
class Plan:
    """What a block computes, in which order.

    Attributes:
        roots: every expression that is read; their one-sided parts become columns.
        score_slopes, post_slopes: d score / d leaf and d post / d leaf, those that are not zero.
        score_steps: before the softmax; post_steps: after it.
    """

    program: ScoreProgram
    roots: tuple[Expr, ...]
    score_slopes: dict[Expr, Expr]
    post_slopes: dict[Expr, Expr]
    score_steps: Schedule
    post_steps: Schedule


@functools.lru_cache(maxsize=512)
def plan(program: ScoreProgram, wanted: tuple[Expr, ...] = ()) -> Plan:
    """The plan of a program, with its derivatives by the leaves `wanted` (s and loads)."""
    score_slopes = _slopes(program.score, wanted)
    post_slopes: dict[Expr, Expr] = {}
    if program.post is not None and program.softmax is not None:
        post_slopes = _slopes(program.post, (program.softmax, *wanted) if wanted else ())
    score_roots = (program.score, *score_slopes.values())
    post_roots = (*(() if program.post is None else (program.post,)), *post_slopes.values())
    special = {x for x in (program.product, program.softmax) if x is not None}
    given = INDICES | special | set(hoisted((*score_roots, *post_roots)))
    before = set(schedule(score_roots, given).nodes)
    post_steps = schedule(post_roots, given | before, _places(wanted))
    shared = {x for node in post_steps.nodes for x in operands(node)} | set(post_roots) | _places(wanted)
    return Plan(
        program=program,
        roots=(*score_roots, *post_roots),
        score_slopes=score_slopes,
        post_slopes=post_slopes,
        score_steps=schedule(score_roots, given, shared),
        post_steps=post_steps,
    )


def _places(wanted: Iterable[Expr]) -> set[Expr]:
    """The indices at which a block scatters gradients."""
    return {place for load in wanted if load.op == "load" and reads_block(load) for place in load.args[1]}


def _slopes(expr: Expr, leaves: Iterable[Expr]) -> dict[Expr, Expr]:
    slopes = {leaf: derivative(expr, leaf) for leaf in leaves}
    return {leaf: slope for leaf, slope in slopes.items() if not is_const(slope, 0)}


@dataclass(frozen=True)
class Heads:
    """The operand head that each output head reads."""

    q: list[int]
    k: list[int]
    v: list[int]

    @staticmethod
    def of(inputs: Inputs) -> Heads:
        program = inputs.program
        return Heads(*(head_map(x, inputs) for x in (program.q_head, program.k_head, program.v_head)))


@dataclass
class BlockValues:
    """A block after the program has run on it."""

    evaluator: Evaluator
    values: dict[Expr, Value]
    probabilities: Tensor  # P [H, I, J]
    softmax: Tensor | None


def run_block(plan: Plan, inputs: Inputs, columns: Columns, block: Block, heads: Heads) -> BlockValues:
    """Run score, softmax and post on one block."""
    program = plan.program
    evaluator = block_evaluator(inputs, block)
    values = columns.of_block(block)
    full = (inputs.heads, block.r1 - block.r0, block.k1 - block.k0)
    product = program.product
    if product is not None and inputs.q is not None and inputs.k is not None:
        q = by_head(inputs.q[block.r0 : block.r1], heads.q)
        k = by_head(inputs.k[block.k0 : block.k1], heads.k)
        values[product] = torch.bmm(q, k.transpose(1, 2)).to(TORCH_DTYPE[product.dtype])
    evaluator.run(plan.score_steps, values)
    score = evaluator.tensor(values[program.score], program.score.dtype)
    if program.post is None:
        return BlockValues(evaluator, values, score.expand(full), None)
    softmax = _softmax(score.expand(full), program.fully_masked == "zero")
    assert program.softmax is not None
    values[program.softmax] = softmax
    evaluator.run(plan.post_steps, values)
    probabilities = evaluator.tensor(values[program.post], program.post.dtype).expand(full)
    return BlockValues(evaluator, values, probabilities, softmax)


def _softmax(score: Tensor, safe: bool) -> Tensor:
    softmax = torch.softmax(score, -1)
    if not safe:
        return softmax
    return softmax.masked_fill(score.amax(-1, keepdim=True) == float("-inf"), 0.0)


def attention(inputs: Inputs) -> Tensor:
    """O [Tq, heads, dv]; a query without keys gives zeros, or NaN under a natural softmax."""
    program = inputs.program
    rows, width = inputs.query_positions.shape[0], inputs.v.shape[2]
    out = inputs.v.new_zeros((rows, inputs.heads, width), dtype=TORCH_DTYPE[program.out_dtype])
    if out.numel() == 0:
        return out
    with torch.no_grad(), outside_autocast(inputs.device):
        forward, heads = plan(program), Heads.of(inputs)
        columns = Columns(inputs, forward.roots)
        for block in blocks(inputs):
            if block.k0 < block.k1:
                p = run_block(forward, inputs, columns, block, heads).probabilities
                v = by_head(inputs.v[block.k0 : block.k1], heads.v)
                dtype = torch.promote_types(p.dtype, v.dtype)
                out[block.r0 : block.r1] = torch.bmm(p.to(dtype), v.to(dtype)).transpose(0, 1)
            elif program.post is not None and program.fully_masked == "natural":
                out[block.r0 : block.r1] = float("nan")
    return out
