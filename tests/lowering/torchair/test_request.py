"""What the process that converts is told of a graph's inputs."""

import json

import pytest
import torch
from test_counts import trace

from gr_compile.lowering.torchair import sizes
from gr_compile.lowering.torchair.request import Request

X = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0]])
TABLE = torch.ones(4, 5, requires_grad=True)


def described(tmp_path, dynamic):
    """Three places of X are not 0; 3, 4 and 5 are sizes of constants."""
    prepared = sizes.prepare(trace(lambda x, t: (t[x.reshape(-1).nonzero().squeeze(1) % 4],), X != 0, TABLE.detach()))
    inputs = [X != 0, TABLE, *prepared.count([X != 0, TABLE])]
    own = Request("g", prepared.main, inputs, False, dynamic, False).write(tmp_path)
    return json.loads((own / "request.json").read_text())


def test_tensors(tmp_path):
    mask, table, _ = described(tmp_path, True)["inputs"]
    assert (mask["shape"], mask["stride"], mask["dtype"]) == ([2, 3], [3, 1], "bool") and not mask["requires_grad"]
    assert table["requires_grad"]


def test_a_count_is_taken_for_no_size_of_a_constant(tmp_path):
    """Else tracing would settle it: T is 3 here, and so is the width of the mask."""
    found = described(tmp_path, True)
    symbol = found["inputs"][2]["size"]
    assert found["hints"][symbol] not in {1, 2, 3, 4, 5, 6}


def test_static_sizes_are_numbers(tmp_path):
    found = described(tmp_path, False)
    assert found["inputs"][2]["size"] == 3 and found["hints"] == {}


@pytest.mark.parametrize("run", [False, True])
def test_inputs_go_along_where_the_graph_is_to_run(tmp_path, run):
    graph = trace(lambda x: (x + 1,), X)
    own = Request("g", graph, [X], False, True, run).write(tmp_path)
    assert (own / "inputs.pt").exists() == run
