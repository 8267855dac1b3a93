"""The reference of `gr::jagged_attention_backward`: the forward's blocks again, the chain rule by programs.

    dP = dO V^T        dV = P^T dO
    dscore = dP, or under softmax   sm * (dsm - sum_j dsm * sm),  dsm = dP * d post / d sm
    ds = dscore * d score / d s     dq = ds k,  dk = ds^T q
    dleaf[indices] += dscore * d score / d leaf + dP * d post / d leaf

The slopes are programs derived symbolically (gr_compile.analysis.derive).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gr_compile.analysis.expr import FLOAT_DTYPES, Expr, is_const
from gr_compile.ops.attention_blocks import Block, Columns, Inputs, add_by_head, blocks, by_head, side_of
from gr_compile.ops.attention_reference import BlockValues, Heads, plan, run_block
from gr_compile.ops.evaluate import reads_block
from gr_compile.ops.registry import outside_autocast


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which gradients of `dtype` are accumulated."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass
class LeafGradients:
    """Gradients of leaves. One-sided loads gather in columns, and reach the leaf once, at the end."""

    inputs: Inputs
    columns: Columns
    totals: dict[str, Tensor]
    gathered: dict[Expr, Tensor] = field(default_factory=dict)

    def add(self, load: Expr, grad: Tensor, block: Block, run: BlockValues) -> None:
        """Add `grad` [H, I, J] of the value that `load` gave in `block`."""
        unused = [axis for axis, name in enumerate("hij") if name not in load.free]
        grad = grad.sum(unused, keepdim=True) if unused else grad
        if reads_block(load):
            _, places = run.evaluator.places(load, run.values)
            self._scatter(load, places, grad)
            return
        total = self.gathered.get(load)
        if total is None:
            total = self.gathered[load] = self._column(load, grad)
        side = side_of(load)
        if side == "query":
            total[:, block.r0 : block.r1] += grad
        elif side == "key":
            total[:, :, block.k0 : block.k1] += grad
        else:
            row = block.b if "b" in load.free else 0
            total[:, row : row + 1] += grad

    def _column(self, load: Expr, grad: Tensor) -> Tensor:
        inputs, side = self.inputs, side_of(load)
        rows = inputs.query_positions.shape[0] if side == "query" else 1
        if side == "sequence" and "b" in load.free:
            rows = inputs.query_offsets.shape[0] - 1
        keys = inputs.key_positions.shape[0] if side == "key" else 1
        return grad.new_zeros((grad.shape[0], rows, keys), dtype=wide(grad.dtype))

    def _scatter(self, load: Expr, places: Tensor, grad: Tensor) -> None:
        total = self.totals[load.args[0]]
        if total.numel():
            total.index_add_(0, places.expand(grad.shape).reshape(-1), grad.reshape(-1).to(total.dtype))

    def finish(self) -> dict[str, Tensor]:
        """The gradient of every leaf, in its shape and dtype."""
        evaluator = self.inputs.evaluator()
        for load, grad in self.gathered.items():
            values = {place: self.columns.evaluate(place, side_of(load)) for place in load.args[1]}
            self._scatter(load, evaluator.places(load, values)[1], grad)
        leaves = self.inputs.leaves
        return {name: x.view(leaves[name].shape).to(leaves[name].dtype) for name, x in self.totals.items()}


def attention_backward(inputs: Inputs, grad_out: Tensor, needs_grad: Sequence[bool]) -> list[Tensor]:
    """Gradients of q, k, v and the leaves; an empty tensor where `needs_grad` says no."""
    with torch.no_grad(), outside_autocast(inputs.device):
        return _Backward(inputs, grad_out, needs_grad).run()


class _Backward:
    def __init__(self, inputs: Inputs, grad_out: Tensor, needs_grad: Sequence[bool]) -> None:
        self.inputs, self.grad_out, self.heads = inputs, grad_out, Heads.of(inputs)
        self.needs = dict(zip(("q", "k", "v", *inputs.leaves), needs_grad))
        self.needs_product = self.needs["q"] or self.needs["k"]
        self.plan = plan(inputs.program, self._wanted())
        self.columns = Columns(inputs, self.plan.roots)
        operands = {"q": inputs.q, "k": inputs.k, "v": inputs.v}
        self.totals = {
            name: torch.zeros_like(x, dtype=wide(x.dtype), memory_format=torch.contiguous_format)
            for name, x in operands.items()
            if x is not None and self.needs[name]
        }
        leaves = {
            name: x.new_zeros(x.numel(), dtype=wide(x.dtype))
            for name, x in inputs.leaves.items()
            if self.needs[name]
        }
        self.leaves = LeafGradients(inputs, self.columns, leaves)

    def _wanted(self) -> tuple[Expr, ...]:
        """The leaves of the program by which it is differentiated."""
        program = self.inputs.program
        loads = [x for x in program.loads() if x.dtype in FLOAT_DTYPES and self.needs[x.args[0]]]
        product = program.product
        return (*(() if product is None or not self.needs_product else (product,)), *loads)

    def run(self) -> list[Tensor]:
        inputs = self.inputs
        if self.grad_out.numel() and any(self.needs.values()):
            for block in blocks(inputs):
                if block.k0 < block.k1:
                    self._block(block)
        found = self.leaves.finish()
        for name, x in (("q", inputs.q), ("k", inputs.k), ("v", inputs.v)):
            if name in self.totals and x is not None:
                found[name] = self.totals[name].to(x.dtype)
        return [found[name] if need else inputs.v.new_empty(0) for name, need in self.needs.items()]

    def _block(self, block: Block) -> None:
        run = run_block(self.plan, self.inputs, self.columns, block, self.heads)
        p, v = run.probabilities, by_head(self.inputs.v[block.k0 : block.k1], self.heads.v)
        dtype = torch.promote_types(p.dtype, v.dtype)
        grad_out = self.grad_out[block.r0 : block.r1].transpose(0, 1).to(dtype)
        if self.needs["v"]:
            part = torch.bmm(p.to(dtype).transpose(1, 2), grad_out)
            add_by_head(self.totals["v"][block.k0 : block.k1], part, self.heads.v)
        if not (self.plan.score_slopes or self.plan.post_slopes):
            return
        grad_p = torch.bmm(grad_out, v.to(dtype).transpose(1, 2)).to(p.dtype)
        self._post(grad_p, block, run)
        grad_score = self._through_softmax(grad_p, run)
        self._score(grad_score, block, run)

    def _times(self, grad: Tensor, slopes: dict[Expr, Expr], run: BlockValues) -> dict[Expr, Tensor]:
        """grad * slope for each leaf; leaves with one slope share one product."""
        products: dict[Expr, Tensor] = {}
        for slope in slopes.values():
            if slope not in products:
                products[slope] = grad if is_const(slope, 1) else grad * run.values[slope]
        return {leaf: products[slope] for leaf, slope in slopes.items()}

    def _through_softmax(self, grad_p: Tensor, run: BlockValues) -> Tensor:
        softmax = run.softmax
        if softmax is None:
            return grad_p
        leaf = self.inputs.program.softmax
        assert leaf is not None
        slope = self.plan.post_slopes.get(leaf)
        if slope is None:
            return torch.zeros_like(softmax)
        weighted: Tensor = (grad_p * run.values[slope]).to(softmax.dtype) * softmax
        return weighted - softmax * weighted.sum(-1, keepdim=True)

    def _post(self, grad_p: Tensor, block: Block, run: BlockValues) -> None:
        slopes = {x: slope for x, slope in self.plan.post_slopes.items() if x.op != "sm"}
        for leaf, grad in self._times(grad_p, slopes, run).items():
            self._leaf(leaf, grad, block, run)

    def _score(self, grad_score: Tensor, block: Block, run: BlockValues) -> None:
        for leaf, grad in self._times(grad_score, self.plan.score_slopes, run).items():
            self._leaf(leaf, grad, block, run)

    def _leaf(self, leaf: Expr, grad: Tensor, block: Block, run: BlockValues) -> None:
        if leaf.op == "load":
            self.leaves.add(leaf, grad, block, run)
            return
        inputs, heads = self.inputs, self.heads
        assert inputs.q is not None and inputs.k is not None
        grad = grad.to(inputs.q.dtype)
        if self.needs["q"]:
            part = torch.bmm(grad, by_head(inputs.k[block.k0 : block.k1], heads.k))
            add_by_head(self.totals["q"][block.r0 : block.r1], part, heads.q)
        if self.needs["k"]:
            part = torch.bmm(grad.transpose(1, 2), by_head(inputs.q[block.r0 : block.r1], heads.q))
            add_by_head(self.totals["k"][block.k0 : block.k1], part, heads.k)
