"""What a capture cannot hold, and the passes that a graph to replay needs."""

import pytest
import torch
from test_counts import MASK, trace

from gr_compile.lowering.torchair import replay, sizes
from gr_compile.pipeline import Pipeline


@pytest.mark.parametrize("mode", ["unbacked", "host", "bucket"])
def test_packed_tokens_are_rounded_up(mode):
    given = Pipeline.parse(f"default,eliminate-padding{{mode={mode},multiple=64}}")
    assert "eliminate-padding{mode=bucket,multiple=64}" in replay.with_buckets(given).text()


def test_other_passes_stay():
    given = Pipeline.parse("canonicalize")
    assert replay.with_buckets(given) == given


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: (x.nonzero(),), "nonzero.default waits for the device"),
        (lambda x: (torch.ones(3) * x.sum().item(),), "_local_scalar_dense.default waits for the device"),
    ],
)
def test_operators_that_wait_are_refused(function, said):
    with pytest.raises(replay.CannotReplay, match=said):
        replay.check(trace(function, MASK))


def test_a_size_that_only_the_data_tells_is_refused():
    """Nothing waits in this graph, but a tensor of such a size comes into it."""
    graph_module = trace(lambda x: (x.nonzero() + 1,), MASK)
    (node,) = graph_module.graph.find_nodes(op="call_function", target=torch.ops.aten.nonzero.default)
    node.target = torch.ops.aten.abs.default
    with pytest.raises(replay.CannotReplay, match="size that only the data tells"):
        replay.check(graph_module)


def test_sizes_of_inputs_are_none():
    replay.check(trace(lambda x: (x + 1,), torch.ones(3)))
    assert sizes.prepare(trace(lambda x: (x + 1,), torch.ones(3))).counts is None
