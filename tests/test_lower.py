"""`lower`: the folder is whole or not there, the errors say what to do; with a lowering that writes a line a graph."""

import contextlib
import errno
import json
import os
import stat
import sys

import pytest
import torch
from models import Mlp, vectors
from torch import nn

import gr_compile
from gr_compile import ConfigError, LowerError
from gr_compile.lower import as_markdown, find_lowering
from gr_compile.output_folder import written_whole


class Written:
    """A lowering that writes what it was given."""

    name = "written"
    machine = "one"
    fails = False
    graphs = None

    def adapt(self, pipeline):
        return pipeline

    def supports(self, operator):
        return True

    @contextlib.contextmanager
    def at_work(self):
        yield self.write

    def write(self, graphs, folder):
        type(self).graphs = graphs
        (folder / "half.txt").write_text("half")
        if self.fails:
            raise LowerError("no")
        described = [{"name": g.name, "parts": [], "notes": []} for g in graphs]
        return {"graphs": described, "checked": ["that"], "not_checked": ["this"]}


@pytest.fixture
def lowering(monkeypatch):
    made = type("Made", (Written,), {})
    monkeypatch.setattr(sys.modules["gr_compile.lower"], "find_lowering", lambda target, machine: made())
    return made


def lower(tmp_path, model=None, *args, **options):
    return gr_compile.lower(model or Mlp().eval(), *(args or (vectors(),)), out=tmp_path / "out", **options)


def test_the_folder_and_the_report(tmp_path, lowering):
    report = lower(tmp_path)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["half.txt", "report.json", "report.md"]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report
    assert report["model"] == "Mlp" and report["training"] is False and report["not_checked"] == ["this"]
    assert (tmp_path / "out" / "report.md").read_text() == as_markdown(report)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_a_lowering_gets(tmp_path, lowering):
    model, x = Mlp().train(), vectors()
    lower(tmp_path, model, x)
    (graph,) = lowering.graphs
    assert graph.training and graph.dynamic and not graph.ignore_zeros
    assert torch.ops.aten.linear.default in [node.target for node in graph.captured.graph.nodes]
    assert len(graph.inputs) == len(graph.captured.graph.find_nodes(op="placeholder"))
    torch.testing.assert_close(graph.captured(*graph.inputs)[0], model(x))
    assert sum(isinstance(v, torch.Tensor) and v.requires_grad for v in graph.inputs) == 4


def test_torchs_own_encoder_is_written_out_in_inference(tmp_path, lowering):
    """Eager takes one fused kernel of the CPU's, and does so again afterwards."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    lower(tmp_path, layer, x)
    (graph,) = lowering.graphs
    called = {str(node.target) for node in graph.captured.graph.nodes if node.op == "call_function"}
    assert "aten.linear.default" in called and not any("encoder" in name or "native_multi" in name for name in called)
    assert torch.backends.mha.get_fastpath_enabled()
    torch.testing.assert_close(graph.captured(*graph.inputs)[0], layer(x))


@pytest.mark.parametrize(("given", "expected"), [({}, False), ({"training": True}, True)])
def test_training_is_the_models_or_what_is_said(tmp_path, lowering, given, expected):
    lower(tmp_path, **given)
    assert lowering.graphs[0].training is expected


def test_the_inputs_are_those_before_the_call(tmp_path, lowering):
    model = nn.Sequential(nn.BatchNorm1d(4)).train()
    lower(tmp_path, model, vectors())
    means = [v for v in lowering.graphs[0].inputs if isinstance(v, torch.Tensor) and v.shape == (4,)]
    assert any(bool((mean == 0).all()) and not mean.requires_grad for mean in means)


@pytest.mark.parametrize("training", ["yes", 1, "no"])
def test_training_is_true_or_false(tmp_path, lowering, training):
    with pytest.raises(ConfigError, match=f"training={training!r}: True, False, or None"):
        lower(tmp_path, training=training)
    assert not list(tmp_path.iterdir())


def test_folders_that_were_made_for_a_failure_are_removed(tmp_path, lowering):
    lowering.fails = True
    (tmp_path / "mine").mkdir()
    with pytest.raises(LowerError, match="no"):
        gr_compile.lower(Mlp(), vectors(), out=tmp_path / "mine" / "new" / "newer" / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]
    lowering.fails = False
    gr_compile.lower(Mlp(), vectors(), out=tmp_path / "mine" / "new" / "newer" / "out")
    assert (tmp_path / "mine" / "new" / "newer" / "out" / "report.json").exists()


def test_models_of_one_class_are_lowered_any_number_of_times(tmp_path, lowering):
    with torch._dynamo.config.patch(recompile_limit=1):
        for _ in range(3):
            assert lower(tmp_path)["graphs"]


def test_an_earlier_run_is_replaced(tmp_path, lowering):
    lower(tmp_path)
    (tmp_path / "out" / "old.txt").touch()
    lower(tmp_path)
    assert not (tmp_path / "out" / "old.txt").exists()


def test_a_failure_leaves_what_was_there(tmp_path, lowering):
    lower(tmp_path)
    lowering.fails = True
    with pytest.raises(LowerError, match="no"):
        lower(tmp_path)
    assert (tmp_path / "out" / "report.json").exists() and [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("report", [None, "{", '{"schema": 1}'])
def test_what_lower_did_not_write_whole_is_not_touched(tmp_path, lowering, report):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    if report is not None:
        (tmp_path / "out" / "report.json").write_text(report)
    with pytest.raises(LowerError, match=r"no whole report\.json of gr_compile\.lower"):
        lower(tmp_path)
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine" and lowering.graphs is None


def test_a_file_in_its_place(tmp_path, lowering):
    (tmp_path / "out").touch()
    with pytest.raises(LowerError, match="is no folder"):
        lower(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path, lowering):
    (tmp_path / "file").touch()
    with pytest.raises(LowerError, match="cannot be written"):
        gr_compile.lower(Mlp(), vectors(), out=tmp_path / "file" / "out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_permission(tmp_path, lowering):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(LowerError, match="cannot be written"):
        lower(tmp_path)


def reads(x):
    with open("/there/is/none", encoding="utf-8") as file:
        return x * len(file.read())


def test_what_the_model_cannot_open_is_the_models_error(tmp_path, lowering):
    with pytest.raises(FileNotFoundError, match="/there/is/none"):
        gr_compile.lower(reads, vectors(), out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_while_files_are_written(tmp_path, lowering, monkeypatch):
    def full(self, graphs, folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lowering, "write", full)
    with pytest.raises(LowerError, match=r"out=.* cannot be written: .*No space left"):
        lower(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_block_that_fails_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), written_whole(tmp_path / "out", "report.json", {"graphs"}) as folder:
        (folder / "half").touch()
        raise KeyError
    assert not list(tmp_path.iterdir())


def mutates(x):
    x.add_(1)
    return x * 2


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (mutates, "is not captured whole.*changed in place"),
        (lambda x: 3, "computes nothing with tensors"),
    ],
)
def test_models_that_cannot_be_lowered(tmp_path, lowering, model, said):
    with pytest.raises(LowerError, match=said):
        lower(tmp_path, model)
    assert not (tmp_path / "out").exists()


def test_targets():
    with pytest.raises(ConfigError, match="no such target; there are ascend, eager, inductor"):
        find_lowering("ascent", "910b1")
    with pytest.raises(ConfigError, match="writes no files"):
        find_lowering("eager", "910b1")
    found = find_lowering("ascend", "910b1")
    assert found.supports("gr::pack") and not found.supports("gr::sort")


@pytest.mark.parametrize(
    ("target", "machine", "said"),
    [
        ("ascend", "910z", "unknown machine '910z'; known: .*910b1"),
        ("ascend{mode=fast}", "910b1", "mode is one of max-autotune, npugraph_ex"),
        ("ascend{kernels=mine}", "910b1", "kernels is one of generated, library"),
        ("ascend{kernel=library}", "910b1", r"no option 'kernel' \(it has: mode, kernels\); did you mean 'kernels'"),
        ("ascend{mode=npugraph_ex,kernels=library}", "910b1", "npugraph_ex makes none; take kernels=generated"),
        ("eager{mode=fast}", "910b1", "eager takes no options"),
        ("ascend{", "910b1", "no such target"),
    ],
)
def test_options_that_cannot_be_meant(tmp_path, target, machine, said):
    with pytest.raises(ConfigError, match=said):
        gr_compile.lower(Mlp(), vectors(), out=tmp_path / "out", target=target, machine=machine)
    assert not list(tmp_path.iterdir())


def test_options_reach_the_lowering():
    found = find_lowering("ascend{mode=max-autotune, kernels=library}", "910b1")
    assert (found.mode, found.kernels, found.machine) == ("max-autotune", "library", "910b1")
    assert find_lowering("ascend{mode=npugraph_ex}", "910b1").mode == "npugraph_ex"


def test_torchair_of_another_version_is_refused(tmp_path, monkeypatch):
    (tmp_path / "torch_npu" / "dynamo" / "torchair").mkdir(parents=True)
    (tmp_path / "torch_npu" / "dynamo" / "torchair" / "__init__.py").touch()
    (tmp_path / "torch_npu" / "version.py").write_text("__version__ = '2.9.0'")
    monkeypatch.setenv("GR_COMPILE_TORCHAIR", str(tmp_path))
    with pytest.raises(LowerError, match=r"is of torch_npu 2\.9\.0; torch 2\.13 needs 2\.13\.0"):
        lower(tmp_path)
    assert not (tmp_path / "out").exists()


def test_running_on_ascend_is_refused_and_names_lower():
    with pytest.raises(ConfigError, match=r"CANN.*gr_compile\.lower\(model"):
        gr_compile.optimize(Mlp(), target="ascend")
