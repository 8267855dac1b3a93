"""Sizes that the data tells leave the graph as counts, or the graph is refused with the line."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from gr_compile.lowering.torchair import sizes

gr = torch.ops.gr


def trace(function, *inputs):
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    with mode:
        fakes = [mode.from_tensor(x, static_shapes=True) for x in inputs]
        return make_fx(function, tracing_mode="real")(*fakes)


def targets(graph_module):
    return [node.target for node in graph_module.graph.nodes if node.op == "call_function"]


MASK = torch.tensor([[True, False, True], [False, False, True]])
FUNCTIONS = {
    "flat": (lambda x: (x.reshape(-1).nonzero(),), MASK),
    "matrix": (lambda x: (x.nonzero() * 2,), MASK),
    "cube": (lambda x: (x.nonzero().sum(1),), MASK[None].expand(2, 2, 3)),
    "whole numbers": (lambda x: (x.nonzero(),), torch.tensor([[0, 3], [5, 0]])),
    "two counts": (lambda x: (x.reshape(-1).nonzero(), (~x).nonzero()), MASK),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nonzero_becomes_places_of_a_count(name):
    function, x = FUNCTIONS[name]
    prepared = sizes.prepare(trace(function, x))
    counts = prepared.count([x])
    assert torch.ops.aten.nonzero.default not in targets(prepared.main)
    assert gr.count_true.default not in targets(prepared.main)
    assert len(counts) == len(prepared.sizes) == len(function(x))
    torch.testing.assert_close(prepared.main(x, *counts), function(x))


def test_a_graph_without_such_sizes_stays():
    prepared = sizes.prepare(trace(lambda x: (x + 1,), torch.ones(3)))
    assert prepared.prelude is None and prepared.count([torch.ones(3)]) == [] and prepared.sizes == ()


def test_the_given_graph_is_not_changed():
    graph_module = trace(lambda x: (x.nonzero(),), MASK)
    before = str(graph_module.graph)
    sizes.prepare(graph_module)
    assert str(graph_module.graph) == before


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: ((x * 1.5 > 1).nonzero(),), "floating-point arithmetic"),
        (lambda x: (torch.unique(x),), "unique"),
    ],
)
def test_what_cannot_be_counted_beforehand_is_refused(function, said):
    with pytest.raises(sizes.DataDependentSize, match=said):
        sizes.prepare(trace(function, torch.tensor([0.0, 1.0, 2.0])))
