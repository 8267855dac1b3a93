"""Graphs and stage events made by hand: these tests depend on nothing but the graph and the data model."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.fx as fx
from torch.fx.experimental.proxy_tensor import make_fx

from gr_compile.graph_pass import GraphReport, Match, Miss, PassRecord, StageEvent


class PaddedModel:
    """A small padded model: tables, masks, sizes, several outputs, dropout, infinities."""

    def __call__(self, ids, lengths, table, weight, causal, rate=0.0):
        n = ids.shape[1]
        x = torch.nn.functional.embedding(ids, table)
        valid = torch.arange(n)[None, :] < lengths[:, None]
        q, k = torch.nn.functional.linear(x, weight).split([4, 4], -1)
        scores = torch.einsum("bid,bjd->bij", q, k)
        scores = scores.masked_fill(~(causal[:n, :n] & valid[:, None, :]), float("-inf"))
        weights = torch.softmax(scores, -1).nan_to_num(0.0)
        gate = q * torch.sigmoid(q)
        out = torch.dropout(weights @ x, rate, True) + gate.sum(-1, keepdim=True)
        packed = out.reshape(-1, out.shape[-1])[valid.flatten().nonzero()[:, 0]]
        return out * valid[..., None], packed.mean(), n * 2, None


def example_inputs(batch: int = 3, n: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([n, 2, 1] * batch)[:batch]
    ids = torch.randint(1, 20, (batch, n), generator=generator) * (torch.arange(n) < lengths[:, None])
    table, weight = torch.randn(20, 5, generator=generator), torch.randn(8, 5, generator=generator)
    return [ids, lengths, table, weight, torch.ones(n, n, dtype=torch.bool).tril()]


def capture(function: Callable[..., Any], inputs: list[torch.Tensor], **kwargs: Any) -> fx.GraphModule:
    """A symbolic pre-dispatch graph whose nodes name lines of `function` as their source."""
    graph_module = make_fx(lambda *a: function(*a, **kwargs), tracing_mode="symbolic", pre_dispatch=True)(
        *inputs
    )
    call = function.__call__ if not inspect.isfunction(function) else function
    lines, first = inspect.getsourcelines(call)
    file = inspect.getsourcefile(call)
    computing = [node for node in graph_module.graph.nodes if node.op == "call_function"]
    for place, node in enumerate(computing):
        line = first + 1 + place * (len(lines) - 1) // len(computing)
        node.meta["stack_trace"] = (
            f'  File "{file}", line {line}, in forward\n    {lines[line - first].strip()}\n'
        )
    names = [
        "l_ids_",
        "L_lengths_",
        "l_self_modules_emb_parameters_weight_",
        "l_self_parameters_w_",
        "l_self_buffers_causal_",
    ]
    for node, name in zip(graph_module.graph.find_nodes(op="placeholder"), names):
        if len(inputs) == len(names):
            node.name = node.target = name
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    return graph_module


def operators(graph_module: fx.GraphModule) -> Counter[str]:
    return Counter(str(n.target) for n in graph_module.graph.nodes if n.op == "call_function")


def use_silu(graph_module: fx.GraphModule, factor: float = 1.0) -> tuple[list[Match], list[Miss]]:
    """A rewrite: x * sigmoid(x) -> silu(x), times `factor` to plant an error."""
    matches, misses = [], []
    for node in graph_module.graph.find_nodes(op="call_function", target=torch.ops.aten.mul.Tensor):
        gate = node.args[1]
        if not isinstance(gate, fx.Node) or gate.target is not torch.ops.aten.sigmoid.default:
            misses.append(Miss("the other factor is no sigmoid", node, hint="write x * torch.sigmoid(x)"))
            continue
        matches.append(Match("x * sigmoid(x) -> silu(x)", node, detail="one factor is the other's argument"))
        with graph_module.graph.inserting_before(node):
            new = graph_module.graph.call_function(torch.ops.aten.silu.default, (node.args[0],))
            if factor != 1.0:
                new.meta = dict(node.meta)
                new = graph_module.graph.call_function(torch.ops.aten.mul.Tensor, (new, factor))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        graph_module.graph.erase_node(node)
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    return matches, misses


def record_of(
    name: str, before: Counter[str], graph_module: fx.GraphModule, matches: Any, misses: Any
) -> PassRecord:
    after = operators(graph_module)
    return PassRecord(
        name, name, "forward", "reassociates", bool(matches), tuple(matches), tuple(misses), 3.25, 0.5,
        before.total(), after.total(), before, after,
    )  # fmt: skip


@dataclass
class Run:
    """A pretended compilation: `captured`, one pass, `final`, told to a hook."""

    model: str = "Padded.Model"
    compile_id: str = "0_0"
    attempt: int = 0
    factor: float = 1.0
    rate: float = 0.0
    prepare: Callable[[fx.GraphModule], None] = lambda graph_module: None
    events: list[StageEvent] = field(default_factory=list)

    def tell(self, hook: Callable[[StageEvent], None]) -> GraphReport:
        graph_module = capture(PaddedModel(), example_inputs(), rate=self.rate)
        self.prepare(graph_module)
        report = GraphReport(self.model, self.compile_id, self.attempt, "eager", "use-silu", training=True)
        report.captured_nodes, report.capture_milliseconds = len(graph_module.graph.nodes), 12.0
        self._tell(hook, StageEvent(0, "captured", graph_module, None, report))
        before = operators(graph_module)
        report.passes.append(
            record_of("use-silu", before, graph_module, *use_silu(graph_module, self.factor))
        )
        self._tell(hook, StageEvent(1, "use-silu", graph_module, report.passes[-1], report))
        report.facts["places kept"] = "50 %"
        self._tell(hook, StageEvent(99, "final", graph_module, None, report))
        return report

    def _tell(self, hook: Callable[[StageEvent], None], event: StageEvent) -> None:
        self.events.append(event)
        hook(event)


@pytest.fixture(scope="session")
def run() -> type[Run]:
    return Run


@pytest.fixture(scope="session")
def padded_inputs() -> Callable[..., list[torch.Tensor]]:
    return example_inputs
