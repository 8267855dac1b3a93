"""`gr-compile doctor`: what it finds on hosts of several kinds, and what it says to do."""

import json
import re

import pytest
from typer.testing import CliRunner

from gr_compile.cli import doctor
from gr_compile.cli.__main__ import make_app
from gr_compile.lowering.ascendc.operators import VENDOR
from gr_compile.lowering.ascendc.project import project_files
from gr_compile.lowering.torchair import files
from gr_compile.lowering.torchair import host as ascend

PACKAGE = f"Ascend/latest/opp/vendors/{VENDOR}/op_impl"


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
    monkeypatch.setattr(ascend, "failure", lambda statement, environment: None)
    report = found(**host(tmp_path, PACKAGE, "Ascend/latest/opp/vendors/empty", "dev/davinci0"))
    assert report['target="ascend"'].state == "yes" and not report['target="ascend"'].hint
    assert report["operator packages"].detail == VENDOR and report["Ascend device"].detail == "davinci0"


@pytest.mark.parametrize(
    ("folders", "fails", "missing"),
    [
        ((PACKAGE,), {}, "an Ascend device"),
        (("Ascend/latest/opp/vendors/other/op_impl", "dev/davinci0"), {}, "an operator package with the gr:: operators"),
        ((PACKAGE, "dev/davinci0"), {"import torch, torch_npu": "ImportError: libhccl.so"}, "a torch_npu"),
    ],
)
def test_what_is_missing_for_a_run(tmp_path, monkeypatch, folders, fails, missing):
    monkeypatch.setattr(doctor, "torch_npu_version", lambda: "2.13.0")
    monkeypatch.setattr(ascend, "failure", lambda statement, environment: fails.get(statement))
    verdict = found(**host(tmp_path, *folders))['target="ascend"']
    assert verdict.state == "no" and verdict.detail.startswith(f"lacks {missing}") and "CANN" not in verdict.detail


def test_a_torch_npu_that_cannot_be_imported_is_missing(tmp_path, monkeypatch):
    host(tmp_path, PACKAGE, "dev/davinci0")
    where = {"environment": {}, "usual": tmp_path / "Ascend", "folder": tmp_path / "dev"}
    monkeypatch.setattr(ascend, "torch_npu_version", lambda: "2.13.0")
    monkeypatch.setattr(ascend, "failure", lambda statement, environment: "ImportError: libhccl.so")
    assert ascend.lacking(**where) == ["a torch_npu that can be imported"]
    monkeypatch.setattr(ascend, "failure", lambda statement, environment: None)
    assert ascend.lacking(**where) == []


def test_the_package_that_lower_writes_is_the_one_that_is_looked_for(tmp_path, monkeypatch):
    """Installed as its own CMakeLists.txt says, it is what a host is found to have."""
    text = project_files(["gr::pack"])
    (name,) = re.findall(r"set\(package_name (\w+)\)", text["CMakeLists.txt"])
    assert f'"$ASCEND_OPP_PATH"/vendors/{name}/bin/set_env.bash' in text["README.md"]
    where = host(tmp_path, f"Ascend/latest/opp/vendors/{name}/op_impl")
    assert "operator package" not in found(**where)['target="ascend"'].detail


def test_a_folder_that_is_named_and_gone(tmp_path):
    where = {**host(tmp_path), "environment": {"ASCEND_HOME_PATH": str(tmp_path / "gone")}}
    assert found(**where)["CANN"].state == "broken" and "set_env.sh" in found(**where)["CANN"].hint


def test_packages_named_by_the_environment(tmp_path):
    where = host(tmp_path, "mine/op_impl")
    where["environment"] = {"ASCEND_CUSTOM_OPP_PATH": str(tmp_path / "mine")}
    assert found(**where)["operator packages"].detail == "mine"


def test_a_package_that_both_variables_name_is_one(tmp_path):
    where = host(tmp_path, PACKAGE)
    vendors = tmp_path / "Ascend" / "latest" / "opp" / "vendors"
    where["environment"] = {"ASCEND_CUSTOM_OPP_PATH": f"{vendors / VENDOR}", "ASCEND_OPP_PATH": f"{vendors.parent}"}
    assert found(**where)["operator packages"].detail == VENDOR


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
    monkeypatch.setattr(ascend, "failure", lambda statement, environment: fails.get(statement))
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
