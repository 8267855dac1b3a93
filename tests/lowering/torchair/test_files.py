"""torchair's files: found where the user says or in the cache, of the right version, never a mixture."""

import hashlib
import zipfile

import pytest

from gr_compile.lowering.torchair import files


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GR_COMPILE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(files.OVERRIDE, raising=False)
    monkeypatch.setattr(files.metadata, "version", lambda name: "7.36.2")


def dynamo(folder, version="2.13.0"):
    (folder / "torch_npu" / "dynamo" / "torchair").mkdir(parents=True)
    (folder / "torch_npu" / "dynamo" / "torchair" / "__init__.py").touch()
    if version:
        (folder / "torch_npu" / "version.py").write_text(f"__version__ = '{version}'\n")
    return folder / "torch_npu" / "dynamo"


@pytest.mark.parametrize("below", ["", "torch_npu", "torch_npu/dynamo"])
def test_the_users_folder(tmp_path, monkeypatch, below):
    expected = dynamo(tmp_path)
    monkeypatch.setenv(files.OVERRIDE, str(tmp_path / below))
    found = files.find()
    assert found.paths == (expected,) and found.version == "2.13.0" and found.origin == files.OVERRIDE


@pytest.mark.parametrize(
    ("version", "said"), [("2.12.0", "is of torch_npu 2.12.0"), ("2.13.0.post1", None), ("", None)]
)
def test_versions(tmp_path, monkeypatch, version, said):
    monkeypatch.setenv(files.OVERRIDE, str(dynamo(tmp_path, version)))
    if said is None:
        assert files.find().version == ("2.13.0" if version else "unknown")
        return
    with pytest.raises(files.TorchairMissing, match=said):
        files.find()


def test_a_folder_that_holds_no_torchair(tmp_path, monkeypatch):
    monkeypatch.setenv(files.OVERRIDE, str(tmp_path))
    with pytest.raises(files.TorchairMissing, match=r"no torchair/__init__\.py there"):
        files.find()


def test_nothing_here_says_what_to_run():
    with pytest.raises(files.TorchairMissing, match="doctor --fetch-torchair"):
        files.find()


def wheels(target):
    target.mkdir()
    npu = {
        "torch_npu/__init__.py": "raise ImportError('libhccl.so')",
        "torch_npu/version.py": "__version__ = '2.13.0'",
        "torch_npu/dynamo/torchair/__init__.py": "",
        "torch_npu/dynamo/torchair/core/_torchair.so": "",
        "torch_npu-2.13.0.dist-info/entry_points.txt": "[torch.backends]",
    }
    for name, contents in (("torch_npu", npu), ("protobuf", {"google/protobuf/__init__.py": ""})):
        with zipfile.ZipFile(target / f"{name}-1-any.whl", "w") as archive:
            for path, text in contents.items():
                archive.writestr(path, text)


def test_a_fetch_takes_torchair_alone(monkeypatch):
    monkeypatch.setattr(files, "_download", wheels)
    (folder,) = files.fetch().paths
    kept = {str(path.relative_to(folder.parent.parent)) for path in folder.parent.rglob("*") if path.is_file()}
    assert kept == {"torch_npu/version.py", "torch_npu/dynamo/torchair/__init__.py"}
    monkeypatch.setattr(files, "_download", None)  # what is in the cache is not fetched again
    assert files.fetch().paths == (folder,)


def test_protobuf_comes_from_the_cache_where_it_is_not_installed(monkeypatch):
    def missing(name):
        raise files.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(files.metadata, "version", missing)
    monkeypatch.setattr(files, "_download", wheels)
    torchair, protobuf = files.fetch().paths
    assert (protobuf / "google" / "protobuf").is_dir() and not (protobuf / "torch_npu").exists()
    assert not (torchair / "google").exists()


def test_a_failing_pip_is_said_and_leaves_nothing(tmp_path, monkeypatch):
    class Failed:
        returncode, stderr = 1, "WARNING: x\nERROR: No matching distribution found for torch_npu==2.13.0\n"

    monkeypatch.setattr(files.subprocess, "run", lambda *arguments, **options: Failed)
    with pytest.raises(files.TorchairMissing, match="No matching distribution"):
        files.fetch()
    assert not list((tmp_path / "cache").rglob("*.whl"))


def test_every_pin_is_a_hash():
    pins = files._PINS.read_text()
    hashes = [word.rpartition(":")[2] for word in pins.split() if word.startswith("--hash")]
    assert len(hashes) == len(set(hashes)) == 13
    assert all(len(bytes.fromhex(found)) == hashlib.sha256().digest_size for found in hashes)
    assert f"torch_npu=={files.VERSION} " in pins
