"""What the report says of a graph's operators, and the project beside it."""

import torch
from torch.fx.experimental.proxy_tensor import make_fx

from gr_compile.lower import as_markdown
from gr_compile.lowering.ascendc.lowered import write_operators
from gr_compile.lowering.ascendc.machine import machine

gr = torch.ops.gr
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
    found = write_operators([graph], types, tmp_path, MACHINE)
    kernels = {(one["operator"], one.get("tiling", {}).get("row_bytes")): one for one in found["kernels"]}
    assert {key: one["calls"] for key, one in kernels.items()} == {
        ("gr::pack", 128): 2, ("gr::pack", 32): 1, ("gr::unpack", 128): 1, ("gr::lookup_gradient", None): 1,
    }  # fmt: skip
    assert kernels["gr::pack", 128]["tiling"]["tokens"] == 300 and kernels["gr::pack", 128]["blocks"] == 5
    assert found["without_kernel"] == ["gr::jagged_attention"] and found["machine"] == "Ascend 910B1"
    assert {path.name for path in (tmp_path / "operators" / "op_kernel").iterdir() if path.is_dir()} == {
        "gr_pack", "gr_unpack", "gr_lookup_gradient",
    }  # fmt: skip
    text = report(found)
    assert "- `gr::pack` (2x): 352 rows of 128 bytes a tile" in text
    assert "- `gr::jagged_attention`: no kernel is printed" in text


def test_a_graph_without_our_operators_has_no_project(tmp_path):
    graph = make_fx(lambda x: x + 1, tracing_mode="fake")(torch.ones(2))
    found = write_operators([graph], {"Add"}, tmp_path, MACHINE)
    assert found["folder"] is None and found["kernels"] == [] and not list(tmp_path.iterdir())
    assert "## Operators" not in report(found)
