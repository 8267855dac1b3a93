"""Printed programs: every kind of argument and node, run in-process and compared with the graph itself."""

from __future__ import annotations

import itertools
import math
import operator
from pathlib import Path

import pytest
import torch
import torch.fx as fx
from torch.fx.experimental.proxy_tensor import make_fx

from gr_compile.inspection import replay
from gr_compile.inspection.inputs import record_inputs
from gr_compile.inspection.program import PrintedProgram, ProgramError, print_program
from gr_compile.inspection.values import describe, short_name, size_hint


def written(
    folder: Path, graph_module: fx.GraphModule, name: str = "00_captured", **options
) -> replay.Program:
    printed = print_program(graph_module, **options)
    for file, value in printed.files.items():
        torch.save(value, folder / file)
    path = folder / f"{name}.py"
    path.write_text(printed.source)
    return replay.load_program(path).PROGRAM


def same_as_graph(folder: Path, graph_module: fx.GraphModule) -> PrintedProgram:
    """Run the printed program and the graph on the same inputs."""
    program = written(folder, graph_module)
    inputs = program.make_inputs(0)
    ours, theirs = program.forward(*inputs), graph_module(*inputs)
    for (name, a), (_, b) in zip(replay.flatten(ours), replay.flatten(theirs), strict=True):
        assert replay.difference(a, b) == 0.0, name
    return print_program(graph_module)


def test_program_of_a_padded_model_is_the_graph(tmp_path, run):
    events = []
    run().tell(events.append)
    printed = same_as_graph(tmp_path, events[0].graph_module)
    text = printed.forward_text
    assert text.splitlines()[0] == "def forward(ids, lengths, emb_weight, w, causal):"
    assert "embedding = aten.embedding.default(emb_weight, ids)  # f32[" in text
    assert "-inf)" in text
    assert "from math import inf" in printed.source
    assert any("conftest.py:" in line.text and line.where is not None for line in printed.lines)
    assert "return (" in printed.lines[-1].text and "None)" in printed.lines[-1].text


def test_comment_of_a_source_line_stands_once(run):
    events = []
    run().tell(events.append)
    comments = [
        line.text for line in print_program(events[0].graph_module).lines if line.text.strip().startswith("#")
    ]
    assert len(comments) > 5
    assert all(a != b for a, b in itertools.pairwise(comments))


def test_kinds_of_arguments(tmp_path):
    def function(x, ids):
        y = x.to(torch.float64).to(memory_format=torch.contiguous_format)
        y = torch.full_like(y, math.inf) * torch.empty((2, 3), device="cpu").fill_(-1.5) + y
        z = torch.cat([x[..., None], torch.stack([x, x + 1e30], -1)], -1).clamp(min=None, max=float("inf"))
        return (
            {"y": y}["y"],
            z.max(dim=1),
            x[ids],
            (x.sum(), [x.mean(0), None]),
            x[1:, ::2],
            torch.nan_to_num(x, nan=0.5),
        )

    inputs = torch.randn(2, 3), torch.tensor([0, 1])
    same_as_graph(tmp_path, make_fx(function, tracing_mode="fake", pre_dispatch=True)(*inputs))


def test_symbolic_sizes_and_their_arithmetic(tmp_path):
    def function(x):
        n, m = x.shape
        half = torch.sym_max(n // 2, 1)
        return (
            x.reshape(n * m).narrow(0, 0, half * m),
            n**2 - m,
            x.new_zeros(n + 1, m % 3 + 1),
            torch.sym_float(n) / 2,
        )

    graph_module = make_fx(function, tracing_mode="symbolic", pre_dispatch=True)(torch.randn(5, 4))
    printed = same_as_graph(tmp_path, graph_module)
    assert "* " in printed.forward_text and "torch.sym_max(" in printed.forward_text


def test_raw_symbols_in_arguments_are_bound_where_known(tmp_path):
    graph_module = make_fx(lambda x: x.reshape(x.shape[0] * x.shape[1]), tracing_mode="symbolic")(
        torch.randn(5, 4)
    )
    placeholder = next(iter(graph_module.graph.nodes))
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and isinstance(node.meta["val"], torch.Tensor):
            node.args = (placeholder, [placeholder.meta["val"].shape[0] * placeholder.meta["val"].shape[1]])
    graph_module.graph.eliminate_dead_code()
    program = written(tmp_path, graph_module)
    assert program.forward(torch.ones(2, 7)).shape == (14,)
    assert "[x_1.shape[0]*x_1.shape[1]]" in print_program(graph_module).source


def test_unbacked_sizes(tmp_path):
    graph_module = make_fx(lambda x: x[(x > 0).nonzero()[:, 0]], tracing_mode="symbolic")(torch.randn(9))
    printed = same_as_graph(tmp_path, graph_module)
    assert "i64[u0, 1]" in printed.forward_text


def test_constants_small_and_large(tmp_path):
    small, large = torch.tensor([1.5, -math.inf, math.nan]), torch.arange(100.0).reshape(10, 10)
    graph_module = make_fx(lambda x: (x[:3] + small, large @ x), _allow_non_fake_inputs=True)(torch.randn(10))
    printed = same_as_graph(tmp_path, graph_module)
    assert "torch.tensor([1.5, -inf, nan], dtype=torch.float32)" in printed.source
    (file,) = printed.files
    assert torch.equal(torch.load(tmp_path / file), large)


def test_nested_graphs_become_functions(tmp_path):
    inner = fx.symbolic_trace(lambda x: x.relu() + 1)
    graph = fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(3, device="meta").new_empty(3, device="cpu")
    branch = graph.get_attr("inner")
    graph.output((graph.call_function(torch.utils._pytree.tree_map, (branch, [x])),))
    graph_module = fx.GraphModule({"inner": inner}, graph)
    printed = same_as_graph(tmp_path, graph_module)
    assert "def inner_graph(x):" in printed.source


def test_an_opaque_module_is_an_error():
    graph_module = fx.symbolic_trace(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    with pytest.raises(ProgramError, match="call_module"):
        print_program(graph_module)


def test_names_do_not_clash(tmp_path):
    graph = fx.Graph()
    taken = [graph.placeholder(name) for name in ("torch", "aten", "l_x_", "x")]
    for node in taken:
        node.meta["val"] = torch.zeros(2)
    total = taken[0]
    for node in taken[1:]:
        total = graph.call_function(operator.add, (total, node))
    graph.output(total)
    same_as_graph(tmp_path, fx.GraphModule({}, graph))


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("l_self_modules_layers_modules_0_parameters_weight_", "layers_0_weight"),
        ("L_item_seq_", "item_seq"),
        ("l_self_buffers_mask_", "mask"),
        ("l_item_seq__1", "item_seq"),
        ("arg0_1", "arg0_1"),
        ("s77", "s77"),
        ("l_class_", "l_class_"),
    ],
)
def test_short_names(name, short):
    assert short_name(name) == short


def test_describe():
    assert describe(torch.zeros(2, 3, dtype=torch.bfloat16)) == "bf16[2, 3]"
    assert describe((torch.zeros(1), None, 3)) == "(f32[1], ?, 3)"
    assert describe(None) == ""


def test_recorded_inputs_are_rebuilt_alike(tmp_path, run, padded_inputs):
    inputs = padded_inputs()
    inputs[2] = inputs[2] * 3 + 10

    events = []
    run(prepare=lambda graph_module: record_inputs(graph_module, inputs)).tell(events.append)
    program = written(tmp_path, events[0].graph_module)
    ids, lengths, table, _weight, causal = program.make_inputs(5)
    assert ids.shape == (3, 6) and ids.max() <= 19 and ids.min() == 0
    present = ids != 0
    assert bool((present[:, :-1] | ~present[:, 1:]).all()), "padding stands right"
    assert torch.equal(lengths, present.sum(1))
    assert 8 < float(table.mean()) < 12
    assert torch.equal(causal, inputs[4]), "buffers are kept"
    again = program.make_inputs(5)
    assert all(torch.equal(a, b) for a, b in zip(again, program.make_inputs(5)))
    assert not torch.equal(again[0], program.make_inputs(6)[0])


def test_ids_without_a_record_stay_inside_their_table(tmp_path, run):
    events = []
    run().tell(events.append)
    ids = written(tmp_path, events[0].graph_module).make_inputs(0)[0]
    assert int(ids.min()) >= 0 and 1 < int(ids.max()) < 20


@pytest.mark.parametrize("stride", [(1, 4), (6, 1), (0, 1), (0, 0), (1, 1), (12, 3)])
def test_strides_are_rebuilt(stride):
    entry = replay.TensorInput("x", (4, 3), stride, torch.float32)
    (made,) = replay.make_inputs([entry], 0, __file__)
    assert made.shape == (4, 3) and made.stride() == stride


def test_size_hint_adds_no_guard():
    graph_module = make_fx(lambda x: x * 2, tracing_mode="symbolic")(torch.randn(5))
    size = next(iter(graph_module.graph.nodes)).meta["val"].shape[0]
    guards = len(size.node.shape_env.guards)
    assert size_hint(size) == 5 and len(size.node.shape_env.guards) == guards
