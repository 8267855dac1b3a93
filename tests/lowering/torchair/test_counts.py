"""Sizes that the data tells leave the graph as counts, or the graph is refused with the line."""

from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from gr_compile.editor import GraphEditor
from gr_compile.lowering.torchair import sizes

aten, gr = torch.ops.aten, torch.ops.gr
VALUES = torch.arange(6.0).view(2, 3)


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
    "a mask": (lambda x: (VALUES[x],), MASK),
    "a mask behind": (lambda x: (VALUES[:, x[0]],), MASK),
    "a mask before": (lambda x: (torch.arange(24.0).view(2, 3, 4)[x] * 2,), MASK),
    "a mask beside an index": (lambda x: (VALUES[x[:, 0], torch.tensor([1])],), MASK),
    "masked_select": (lambda x: (VALUES.masked_select(x),), MASK),
    "masked_select, broadcast": (lambda x: (VALUES.masked_select(x[0]),), MASK),
    "masked_select, more masks than values": (lambda x: (VALUES[0].masked_select(x),), MASK),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nonzero_becomes_places_of_a_count(name):
    function, x = FUNCTIONS[name]
    prepared = sizes.prepare(trace(function, x))
    counts = prepared.count([x])
    assert not {aten.nonzero.default, aten.masked_select.default} & set(targets(prepared.main))
    assert gr.count_true.default not in targets(prepared.main)
    assert len(counts) == len(prepared.sizes) == len(function(x))
    torch.testing.assert_close(prepared.main(x, *counts), function(x))


def read_twice(ids, x):
    """As a loss over the labelled places writes it."""
    return (torch.nn.functional.cross_entropy(x[ids != 0], ids[ids != 0]),)


def read_apart(ids, x):
    return x[ids != 0], x[ids != 1]


def test_equal_masks_are_one_count_where_the_model_says_so():
    ids, x = torch.tensor([[1, 0, 2], [0, 0, 3]]), torch.randn(2, 3, 5)
    for function, counts in ((read_twice, 1), (read_apart, 2)):
        prepared = sizes.prepare(trace(function, ids, x))
        found = prepared.count([ids, x])
        assert len(set(found)) == counts
        torch.testing.assert_close(prepared.main(ids, x, *found), function(ids, x))


def checked(x):
    torch._assert_async((x > 0).all(), "positive")
    return (torch.nn.functional.one_hot(x, 4), x.nonzero())


def test_assertions_leave_the_graph():
    x = torch.tensor([3, 1])
    traced = trace(lambda y: checked(y)[1:], x)
    editor = GraphEditor(traced)
    (place,) = traced.graph.find_nodes(op="placeholder")
    end = traced.graph.output_node()
    with editor.at(before=end):
        coded = editor.call(aten.one_hot.default, place, 4)
    end.args = ((coded, *end.args[0]),)
    before = Counter(targets(traced))
    prepared = sizes.prepare(traced)
    assert before[aten._assert_async.msg] == before[aten.one_hot.default] == 1 and prepared.assertions == 2
    assert not {aten._assert_async.msg, aten.one_hot.default} & set(targets(prepared.main))
    torch.testing.assert_close(prepared.main(x, 2), checked(x))


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
        (lambda x: (x[x * 1.5 > 1],), r"floating-point arithmetic \(aten.mul"),
        (lambda x: (x.masked_select(x * 1.5 > 1),), r"floating-point arithmetic \(aten.mul"),
    ],
)
def test_what_cannot_be_counted_beforehand_is_refused(function, said):
    with pytest.raises(sizes.DataDependentSize, match=said):
        sizes.prepare(trace(function, torch.tensor([0.0, 1.0, 2.0])))
