"""The pass: every norm with a gate, every RMSNorm and every SiLU with a split in four becomes one operator."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.fx as fx

from gr_compile.graph_pass import Match, Miss, Numerics, Pass, PassResult
from gr_compile.passes.fuse_token_operators.norms import Norm, blocked, follow, gates_beside, norm_at, value_is_tensor
from gr_compile.passes.fuse_token_operators.splits import Split, split_at
from gr_compile.pipeline import PassContext

gr = torch.ops.gr
_OPERATORS = ("gr::norm_gate", "gr::rms_norm", "gr::silu_split")


@dataclass(frozen=True)
class FuseTokenOperators(Pass):
    """Fuse norm and gate, RMSNorm, and SiLU and split of u, v, q, k (in presets: for target ascend alone)."""

    name: ClassVar[str] = "fuse-token-operators"
    provides: ClassVar[frozenset[str]] = frozenset({"token-operators"})
    after: ClassVar[frozenset[str]] = frozenset({"canonicalize", "eliminate-padding", "fuse-jagged-attention"})
    numerics: ClassVar[Numerics] = "reassociates"
    preset_targets: ClassVar[frozenset[str] | None] = frozenset({"ascend"})

    def run(self, graph_module: fx.GraphModule, context: PassContext) -> PassResult:
        """Look at every value once: is it a norm, is it split?"""
        lacking = [name for name in _OPERATORS if not context.supports(name)]
        if lacking:
            return PassResult(False, misses=(Miss(f"the target has no kernel for {', '.join(lacking)}"),))
        done = _Done()
        for node in list(graph_module.graph.nodes):
            if value_is_tensor(node):
                _look_for_norm(node, context, done)
        for node in list(graph_module.graph.nodes):
            if node.op in ("call_function", "placeholder"):
                _look_for_split(node, context, done)
        return PassResult(bool(done.matches), tuple(done.matches), tuple(done.misses))


@dataclass
class _Done:
    matches: list[Match] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)


def _look_for_norm(node: fx.Node, context: PassContext, done: _Done) -> None:
    found = norm_at(node)
    if isinstance(found, Miss):
        done.misses.append(found)
    if not isinstance(found, Norm):
        return
    norm = _kept_out(follow(found))
    if (beside := gates_beside(norm)) is not None:
        done.misses.append(beside)
    if norm.gate is None and norm.centered:
        return  # a LayerNorm without a gate: the device's own operator
    if (miss := blocked(norm)) is not None:
        done.misses.append(miss)
        return
    name = "norm_gate" if norm.gate is not None else "rms_norm"
    kind = "LayerNorm" if norm.centered else "RMSNorm"
    what = f"{kind}{' and gate' if norm.gate is not None else ''} {norm.node.name}"
    if context.allow(what, norm.node):
        done.matches.append(Match(what, norm.node, detail=f"gr::{name}"))
        _replace_norm(norm, context)


def _kept_out(norm: Norm) -> Norm:
    """Without a gate RMSNorm has no bias: the sum stays behind the operator."""
    if norm.gate is not None or norm.centered or norm.bias is None:
        return norm
    a, b = norm.node.args[:2]
    inner: Any = b if a is norm.bias else a
    return Norm(inner, norm.x, norm.weight, None, norm.eps, False)


def _replace_norm(norm: Norm, context: PassContext) -> None:
    editor = context.editor
    with editor.at(before=norm.node, like=norm.node):
        if norm.gate is None:
            made = editor.call(gr.rms_norm.default, norm.x, norm.weight, norm.eps)
        else:
            operands = (norm.x, norm.gate, norm.weight, norm.bias)
            made = editor.call(gr.norm_gate.default, *operands, norm.eps, norm.centered)
    editor.replace(norm.node, made)
    editor.erase(norm.node)


def _look_for_split(node: fx.Node, context: PassContext, done: _Done) -> None:
    found = split_at(node)
    if isinstance(found, Miss):
        done.misses.append(found)
    if not isinstance(found, Split):
        return
    what = f"SiLU and split {found.node.name}"
    if context.allow(what, found.node):
        silus = ", ".join(name for k, name in enumerate("uvqk") if found.activated >> k & 1)
        done.matches.append(Match(what, found.node, detail=f"gr::silu_split of {found.widths}, SiLU on {silus}"))
        _replace_split(found, context)


def _replace_split(split: Split, context: PassContext) -> None:
    editor = context.editor
    with editor.at(before=split.node, like=split.node):
        made = editor.call(gr.silu_split.default, split.x, *split.widths, split.activated)
        items = [editor.call(operator.getitem, made, k) for k in range(len(split.widths))]
    for nodes, item in zip(split.parts, items):
        for node in nodes:
            editor.replace(node, item)
