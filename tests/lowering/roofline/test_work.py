"""What steps have to do, counted by hand on graphs of a few nodes."""

from dataclasses import replace

import pytest
import torch
import torch.fx as fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from gr_compile.analysis.expr import add, const, index, load, make, sub
from gr_compile.lowering.ascendc.machine import machine
from gr_compile.lowering.roofline.attention import AttentionWork, vector_operations
from gr_compile.lowering.roofline.estimate import Efficiency, _limits, _row
from gr_compile.lowering.roofline.memory import peak_activations
from gr_compile.lowering.roofline.work import Step, steps_of
from gr_compile.ops.score_program import ScoreProgram

MACHINE = machine("910b1")
T, D, F = 6, 4, 8
F32 = 4


def graph_of(function, *shapes: tuple[int, ...]) -> fx.GraphModule:
    return make_fx(function, tracing_mode="fake")(*(torch.ones(shape) for shape in shapes))


def found(function, *shapes):
    return {(step.kind, step.label): step for step in steps_of(graph_of(function, *shapes).graph, [T], MACHINE)}


def test_a_product_reads_and_writes_its_operands_once():
    step = found(lambda x, w: x @ w, (T, D), (D, F))["product", f"[{T}, {D}] x [{D}, {F}]"]
    assert step.flops == 2 * T * D * F and step.bytes == F32 * (T * D + D * F + T * F)


def test_operators_between_two_products_are_one_step():
    def layer(x, w, u):
        y = torch.nn.functional.silu(x @ w) * 2 + 1
        return y @ u

    step = found(layer, (T, D), (D, F), (F, D))["memory", f"[{T}, {F}]"]
    assert step.bytes == F32 * 2 * T * F and step.vector == 3 * T * F


def test_a_residual_across_a_product_goes_through_memory():
    def layer(x, w):
        x = x + 1
        return x + x @ w

    steps = [s for s in steps_of(graph_of(layer, (T, D), (D, D)).graph, [T], MACHINE) if s.kind == "memory"]
    assert sorted(s.bytes for s in steps) == [F32 * 2 * T * D, F32 * 3 * T * D]


def test_a_value_that_is_cheap_to_make_is_made_where_it_is_read():
    """double(x) is no smaller than x: made behind the product, it is not stored; a sum over rows is."""
    def wide(x, w):
        return x.double() + (x @ w)

    def narrow(x, w):
        return x.sum(1, keepdim=True) + (x @ w)

    (step,) = (s for s in steps_of(graph_of(wide, (T, D), (D, D)).graph, [T], MACHINE) if s.kind == "memory")
    assert step.bytes == F32 * 2 * T * D + 8 * T * D
    assert sum(s.kind == "memory" for s in steps_of(graph_of(narrow, (T, D), (D, D)).graph, [T], MACHINE)) == 2


def test_lookups_and_table_gradients_cost_by_the_row():
    def lookup(table, grad):
        ids = torch.zeros(T, dtype=torch.int64)
        return torch.ops.aten.embedding(table, ids), torch.ops.aten.embedding_dense_backward(grad, ids, 100, 0, False)

    steps = found(lookup, (100, D), (T, D))
    assert {steps["lookup", name].bytes for name in ("embedding", "embedding_dense_backward")} == {F32 * 2 * T * D}


# ------------------------------------------------------------------------------------------- attention
SCORE, QUERY, KEY = make("s", (), "f32"), index("i"), index("j")
AHEAD = add(QUERY, const(1, "i"))
BIAS = load("bias", (sub(QUERY, KEY),), "f32")


def attention(program: ScoreProgram, backward: bool = False, heads: int = 2) -> tuple[float, float]:
    """(cube FLOPs, vector operations): dqk = 3, dv = 5, sequences of 4 and 2 places."""
    graph = fx.Graph()
    q, k, v, offsets, places, leaf = (graph.placeholder(name) for name in ("q", "k", "v", "offsets", "places", "leaf"))
    with FakeTensorMode():
        for node, width in ((q, 3), (k, 3), (v, 5)):
            node.meta["val"] = torch.empty(T, heads, width)
        offsets.meta["val"], places.meta["val"] = (torch.empty(n, dtype=torch.int64) for n in (3, T))
        kind = torch.int64 if "end" in program.leaves else torch.float32
        leaf.meta["val"] = torch.empty(T, dtype=kind)
    reads = (q, k) if program.product is not None else (None, None)
    at = (offsets, places) * 2
    operands = (*reads, v, [leaf] * len(program.leaves), *at, heads, [], None, program.text())
    needs = ([program.product is not None] * 2 + [True] + [x != "end" for x in program.leaves],)
    target = torch.ops.gr.jagged_attention_backward if backward else torch.ops.gr.jagged_attention
    arguments = (v, *operands, *needs) if backward else operands
    found = AttentionWork([4, 2], MACHINE).of(graph.call_function(target.default, arguments))
    return found.flops, found.vector


WIDTHS = {
    "forward": (ScoreProgram(score=SCORE), False, 20, 3 + 5),
    "backward": (ScoreProgram(score=SCORE), True, 20, 3 * 3 + 2 * 5),
    "causal": (ScoreProgram(score=SCORE, key_high=AHEAD), False, 10 + 3, 3 + 5),
    "interval that data decides": (ScoreProgram(score=SCORE, leaves=("end",), key_high=load("end", (QUERY,), "i")), False, 20, 3 + 5),
    "map without scores": (ScoreProgram(score=BIAS, leaves=("bias",)), False, 20, 5),
    "map without scores, backward": (ScoreProgram(score=BIAS, leaves=("bias",)), True, 20, 2 * 5),
}


@pytest.mark.parametrize("name", WIDTHS)
def test_attention_multiplies_inside_its_key_intervals(name: str) -> None:
    program, backward, pairs, width = WIDTHS[name]
    assert attention(program, backward)[0] == 2 * pairs * 2 * width


def test_what_no_head_differs_in_is_computed_once() -> None:
    position = make("cast", (sub(QUERY, KEY),), "f32")
    shared, by_head = vector_operations(ScoreProgram(score=make("mul", (SCORE, make("exp", (position,), "f32")), "f32")), None)
    assert (shared, by_head) == (3, 1)  # i - j, its cast, exp; then a product for each head
    assert attention(ScoreProgram(score=make("exp", (SCORE,), "f32")))[1] == 20 * 2


def test_what_one_side_needs_is_no_work_of_a_pair() -> None:
    one_sided = make("exp", (make("cast", (QUERY,), "f32"),), "f32")
    assert vector_operations(ScoreProgram(score=make("mul", (SCORE, one_sided), "f32")), None) == (0, 1)


# --------------------------------------------------------------------------------------- memory and time
def test_what_is_saved_lives_until_its_last_reader() -> None:
    """Forward: two products are saved. Backward: the first is read once, then freed."""
    def forward(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = x @ w
        return (y @ w).view(-1), y

    def backward(y: torch.Tensor, z: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return z.view(T, D) @ (w @ (y @ w).t() @ y)

    first, second = graph_of(forward, (T, D), (D, D)), graph_of(backward, (T, D), (T * D,), (D, D))
    flat, y = first.graph.output_node().all_input_nodes
    for made, read in zip((y, flat), second.graph.find_nodes(op="placeholder")):
        made.name = read.name = f"saved_{read.name}"  # as the partitioner names them
    steps = [steps_of(x.graph, [T], MACHINE) for x in (first, second)]
    # y and z come in, y @ w and then w times it are made; behind them y @ w and y go, and z stays for the result
    assert peak_activations(first.graph, second.graph, steps) == 4 * F32 * T * D


def test_time_is_that_of_the_slowest_unit() -> None:
    described = machine("910b1")
    choice = Efficiency(product=1, attention=0.5, vector=1, memory=1, launch=1e-6)
    second_of = {"flops": described.cube_flops, "bytes": described.memory_bandwidth}
    limits = _limits(Step("attention", "", flops=second_of["flops"], bytes=second_of["bytes"]), described, choice)
    assert limits["cube"] == 2 and limits["memory"] == 1
    row = _row("forward", [Step("product", "", flops=second_of["flops"], bytes=1.0)] * 2, described, choice)
    assert row.seconds == pytest.approx(2 + 2e-6) and row.bound == "cube" and row.kernels == 2
    vector = described.vector_cores * 64 * described.megahertz * 1e6
    assert _row("forward", [Step("memory", "", vector=3 * vector, bytes=1.0)], described, choice).bound == "vector"


def test_attention_takes_the_time_of_its_tiling() -> None:
    described, program = MACHINE, ScoreProgram(score=SCORE, key_high=AHEAD)
    work = AttentionWork([4096] * 4, described)
    with FakeTensorMode():
        values = [torch.empty(4 * 4096, 8, 128, dtype=torch.float16)] * 3
        at = [torch.empty(5, dtype=torch.int64), torch.empty(4 * 4096, dtype=torch.int64)] * 2
    graph = fx.Graph()
    nodes = []
    for name, value in zip(("q", "k", "v", "qo", "qp", "ko", "kp"), [*values, *at]):
        nodes.append(graph.placeholder(name))
        nodes[-1].meta["val"] = value
    arguments = (*nodes[:3], [], *nodes[3:], 8, [], None, replace(program, out_dtype="f16").text())
    found = work.of(graph.call_function(torch.ops.gr.jagged_attention.default, arguments))
    assert found.tiled is not None and found.tiled.bound in ("cube", "vector", "memory", "scalar")
    utilisation = found.flops / described.cube_flops / found.tiled.seconds
    assert 0.2 < utilisation < 1
    assert found.label.split(", ")[-1].count(" x ") == 1
    step = Step("attention", found.label, found.flops, found.vector, 1.0, [], found.tiled)
    assert _limits(step, described, Efficiency()) == {found.tiled.bound: found.tiled.seconds}
