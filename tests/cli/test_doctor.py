"""`gr-compile doctor`: what it finds on hosts of several kinds, and what it says to do."""

import json

import pytest
from typer.testing import CliRunner

from gr_compile.cli import doctor
from gr_compile.cli.__main__ import make_app
from gr_compile.lowering.torchair import files


@pytest.fixture(autouse=True)
def no_torch_npu(monkeypatch):
    monkeypatch.setattr(doctor, "torch_npu_version", lambda: None)


def found(**arguments):
    return {finding.name: finding for finding in doctor.examine(**arguments)}


def host(tmp_path, *folders):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    return {"environment": {}, "usual": tmp_path / "Ascend", "devices": tmp_path / "dev"}


def test_a_host_without_an_npu(tmp_path):
    report = found(**host(tmp_path))
    states = {name: report[name].state for name in ("torch", "torch_npu", "import torch", "CANN", "Ascend device")}
    assert states == {"torch": "yes", "torch_npu": "no", "import torch": "yes", "CANN": "no", "Ascend device": "no"}
    last = report['target="ascend"']
    assert last.state == "no" and "CANN" in last.detail and "gr_compile.lower" in last.hint
    assert report["gr_compile.lower"].state == report["torchair's files"].state


def test_a_whole_host(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "torch_npu_version", lambda: "2.13.0")
    monkeypatch.setattr(doctor, "_failure", lambda statement, environment: None)
    latest = "Ascend/ascend-toolkit/latest"
    where = host(tmp_path, f"{latest}/opp/vendors/gr_compile/op_impl", f"{latest}/opp/vendors/empty", "dev/davinci0")
    report = found(**where)
    assert "CANN" not in report['target="ascend"'].detail and "operator" not in report['target="ascend"'].detail
    assert report["operator packages"].detail == "gr_compile" and report["Ascend device"].detail == "davinci0"


def test_where_nothing_is_missing_ascend_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr("gr_compile.lowering.torchair.host.find_spec", lambda name: name)
    report = found(**host(tmp_path, "Ascend/latest/opp/vendors/gr_compile/op_impl"))
    assert report['target="ascend"'].state == "yes" and not report['target="ascend"'].hint


def test_a_folder_that_is_named_and_gone(tmp_path):
    where = {**host(tmp_path), "environment": {"ASCEND_HOME_PATH": str(tmp_path / "gone")}}
    assert found(**where)["CANN"].state == "broken" and "set_env.sh" in found(**where)["CANN"].hint


def test_packages_named_by_the_environment(tmp_path):
    where = host(tmp_path, "mine/op_impl")
    where["environment"] = {"ASCEND_CUSTOM_OPP_PATH": str(tmp_path / "mine")}
    assert found(**where)["operator packages"].detail == "mine"


@pytest.mark.parametrize(
    ("fails", "npu", "torch"),
    [
        ({"import torch": "RuntimeError: Failed to load the backend extension: torch_npu."}, "broken", "broken"),
        ({"import torch": "ImportError: libtorch.so"}, "yes", "broken"),
        ({"import torch, torch_npu": "ImportError: libhccl.so"}, "broken", "yes"),
        ({}, "yes", "yes"),
    ],
)
def test_the_autoload_trap(tmp_path, monkeypatch, fails, npu, torch):
    monkeypatch.setattr(doctor, "torch_npu_version", lambda: "2.13.0")
    monkeypatch.setattr("gr_compile.autoload.torch_npu_version", lambda: "2.13.0")
    monkeypatch.setattr(doctor, "_failure", lambda statement, environment: fails.get(statement))
    report = found(**host(tmp_path))
    assert (report["torch_npu"].state, report["import torch"].state) == (npu, torch)
    is_trap = "torch_npu" in fails.get("import torch", "")
    assert ("TORCH_DEVICE_BACKEND_AUTOLOAD=0" in report["import torch"].hint) == is_trap


def test_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv(files.OVERRIDE, str(tmp_path))
    target = tmp_path / "doctor.json"
    done = CliRunner().invoke(make_app(), ["doctor", "--json", str(target)])
    assert done.exit_code == 0 and 'target="inductor"' in done.output and files.OVERRIDE in done.output
    assert {"name", "state", "detail", "hint"} == set(json.loads(target.read_text())["findings"][0])


def test_a_fetch_that_fails_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv(files.OVERRIDE, str(tmp_path / "nothing"))
    done = CliRunner().invoke(make_app(), ["doctor", "--fetch-torchair"])
    assert done.exit_code == 1 and "no torchair/__init__.py there" in str(done.exception)
