"""What the report says of a graph's operators, and the project beside it."""

from dataclasses import replace

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from gr_compile.analysis import expr as E
from gr_compile.analysis.expr import index
from gr_compile.lower import as_markdown
from gr_compile.lowering.ascendc.attention.printed import calls_of
from gr_compile.lowering.ascendc.attention.second_opinion import ENVIRONMENT
from gr_compile.lowering.ascendc.lowered import without_kernel, write_operators
from gr_compile.lowering.ascendc.machine import machine
from gr_compile.ops import ScoreProgram

gr = torch.ops.gr
b, i, j = (index(x) for x in "bij")
MACHINE = machine("910b1")


def report(found):
    whole = {"model": "m", "target": "ascend", "training": False, "dynamic": True, "passes": "default", "graphs": []}
    return as_markdown({**whole, "checked": [], "not_checked": [], "operators": found})


def test_each_call_has_its_tiling_and_each_operator_its_files(tmp_path):
    def function(x, index):
        packed = gr.pack(x, index)
        return gr.unpack(packed, index, 4, 100, 0), gr.pack(x * 2, index), gr.pack(x[..., :8], index)

    graph = make_fx(function, tracing_mode="symbolic")(torch.randn(4, 100, 32), torch.arange(300))
    types = {"GrPack", "GrUnpack", "GrLookupGradient", "GrJaggedAttention", "MatMulV2"}
    found = write_operators([(graph, {})], types, tmp_path, MACHINE)
    kernels = {(one["operator"], one.get("tiling", {}).get("row_bytes")): one for one in found["kernels"]}
    assert {key: one["calls"] for key, one in kernels.items()} == {
        ("gr::pack", 128): 2, ("gr::pack", 32): 1, ("gr::unpack", 128): 1, ("gr::lookup_gradient", None): 1,
    }  # fmt: skip
    assert kernels["gr::pack", 128]["tiling"]["tokens"] == 300 and kernels["gr::pack", 128]["blocks"] == 5
    assert found["without_kernel"] == [] and found["machine"] == "Ascend 910B1"
    assert {path.name for path in (tmp_path / "operators" / "op_kernel").iterdir() if path.is_dir()} == {
        "gr_pack", "gr_unpack", "gr_lookup_gradient",
    }  # fmt: skip
    text = report(found)
    assert "- `gr::pack` (2x): 352 rows of 128 bytes a tile" in text


def attention_graph(score, lengths, dtype=torch.float32):
    """Two calls with a leaf [B, N] and a table; the first with a gradient."""
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    places = torch.cat([torch.arange(x) for x in lengths])
    leaves = [torch.zeros(len(lengths), 20, dtype=torch.int64), torch.randn(9).to(dtype)]
    out = {torch.float32: "f32", torch.float64: "f64"}[dtype]
    program = ScoreProgram(score=score, leaves=("times", "table"), out_dtype=out).text()
    v = torch.randn(len(places), 2, 16).to(dtype)

    def function(q, k, v, times, table, offsets, places):
        rows = (offsets, places, offsets, places)
        seed = torch.tensor(1) if "dropout" in program else None
        return [gr.jagged_attention(q, k, v, [times, table], *rows, 2, [], seed, program) for _ in range(2)]

    return make_fx(function, tracing_mode="symbolic")(v, v, v, *leaves, offsets, places)


def _score(dtype):
    bucket = E.binary("minimum", E.unary("abs", E.sub(*(E.load("times", [b, x], "i") for x in (i, j)))), E.const(8), "i")
    return E.binary("add", E.make("s", (), dtype), E.load("table", [bucket], dtype), dtype)


def test_attention_has_a_kernel_or_a_reason(tmp_path):
    graph = attention_graph(_score("f32"), [3, 4])
    calls = calls_of(graph)
    assert [sorted(one.call.open) for one in calls] == [[(0, 0), (0, 1), (1, 0)]] * 2  # all sizes are symbols here
    dropped = E.make("dropout", (_score("f32"), E.const(0.5, "f32")), "f32")
    calls += calls_of(attention_graph(dropped, [3])) + calls_of(attention_graph(_score("f64"), [3], torch.float64))
    calls.append(replace(calls[0], needs=(True, True, True, False, True)))
    found = write_operators([], {"GrJaggedAttention", "GrJaggedAttentionBackward"}, tmp_path, MACHINE, calls)
    assert [(one["operator"], one["tiling_key"], one["calls"]) for one in found["kernels"]] == [
        ("gr::jagged_attention", 1, 2), ("gr::jagged_attention_backward", 1, 1),
    ]  # fmt: skip
    tiling = found["kernels"][0]["tiling"]
    assert (tiling["q_rows"], tiling["batch"], tiling["extent0_1"]) == (7, 2, 20) and found["kernels"][0]["blocks"] == 24
    reasons = {one["reason"].split(":")[0]: one["calls"] for one in found["without_kernel"]}
    assert reasons == {"dropout": 2, "operands in torch.float64": 2}
    assert (tmp_path / "operators" / "op_kernel" / "gr_jagged_attention_backward" / "program_1.h").exists()
    text = report(found)
    assert "- `gr::jagged_attention` (2x): no kernel is printed: dropout" in text
    dropout, wide = without_kernel(found["without_kernel"])
    assert dropout.startswith("2 calls of gr::jagged_attention: no kernel is printed (dropout") and "float64" in wide
    assert "do not run on a device" in dropout and len(dropout) < 600
    readme = (tmp_path / "operators" / "README.md").read_text()
    assert f"- {dropout}\n- {wide}\n" in readme


def test_a_project_without_gaps_says_nothing_of_them(tmp_path):
    write_operators([], {"GrJaggedAttention"}, tmp_path, MACHINE, calls_of(attention_graph(_score("f32"), [3, 4])))
    assert "Not in this package" not in (tmp_path / "operators" / "README.md").read_text()


@pytest.mark.parametrize(
    ("says", "reported"),
    [
        ("External hivmc run fails, returning module before running external compiler", "fits its 2 functions of tiles"),
        ("error: ub overflow, requires 4194304 bits while 1572864 bits available!", "refuses it: 524288 bytes of 196608"),
        ("error: custom op is unknown", "no opinion: bishengir-compile says: error: custom op is unknown"),
        (None, "was not asked whether attention's tilings fit"),
    ],
)
def test_the_report_has_the_second_opinion(tmp_path, monkeypatch, says, reported):
    environment, out = tmp_path / "environment", tmp_path / "out"
    monkeypatch.setenv(ENVIRONMENT, str(environment))
    if says is not None:
        planner = environment / "lib" / "python3.11" / "site-packages" / "ascendnpuir" / "bin" / "bishengir-compile"
        planner.parent.mkdir(parents=True)
        planner.write_text(f"#!/bin/sh\necho '{says}' >&2\nexit 1\n")
        planner.chmod(0o755)
    found = write_operators([], {"GrJaggedAttention"}, out, MACHINE, calls_of(attention_graph(_score("f32"), [3, 4])))
    assert len(found["second_opinion"]) == 1 and reported in found["second_opinion"][0]
    assert f"- {found['second_opinion'][0]}" in report(found)


def test_a_graph_whose_operators_have_no_kernel_names_no_project(tmp_path):
    calls = calls_of(attention_graph(_score("f64"), [3], torch.float64))
    found = write_operators([], {"GrJaggedAttention"}, tmp_path, MACHINE, calls)
    text = report(found)
    assert found["folder"] is None and "No project is written" in text and "None" not in text


def test_a_graph_without_our_operators_has_no_project(tmp_path):
    graph = make_fx(lambda x: x + 1, tracing_mode="fake")(torch.ones(2))
    found = write_operators([(graph, {})], {"Add"}, tmp_path, MACHINE)
    assert found["folder"] is None and found["kernels"] == [] and not list(tmp_path.iterdir())
    assert "## Operators" not in report(found)
