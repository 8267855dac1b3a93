"""The package: a user's own `passes` and `model_zoo` stay theirs; wheel and sdist hold real folders."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("passes", "lowering", "model_zoo")
IMPORT_ALL = """
import sys
import gr_compile, gr_compile.passes, gr_compile.lowering, gr_compile.model_zoo
from gr_compile.backend import find_target
names = [pass_class.name for pass_class in gr_compile.list_passes()]
assert {"canonicalize", "eliminate-padding", "fuse-jagged-attention"} <= set(names), names
assert find_target("inductor").name == "inductor" and find_target("eager").name == "eager"
assert not {"passes", "lowering", "model_zoo"} & set(sys.modules)
"""


def run(*command: str, cwd: Path, **environment: str) -> str:
    """The command's output; its failure is the test's, with everything that it said."""
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{' '.join(command)[:200]}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def tracked_files() -> list[str]:
    """What a commit would hold, symlinks as such."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("needs a git checkout")
    listed = run("git", "ls-files", "-z", "-c", "-o", "--exclude-standard", cwd=ROOT)
    return [name for name in listed.split("\0") if name and (ROOT / name).exists()]


# -------------------------------------------------------------------------------------- hostile names
@pytest.mark.parametrize("form", ["module", "folder"])
def test_names_in_the_working_folder_do_not_shadow_ours(tmp_path, form):
    for name in NAMES:
        place = tmp_path / f"{name}.py" if form == "module" else tmp_path / name / "__init__.py"
        place.parent.mkdir(exist_ok=True)
        place.write_text(f"raise ImportError('the user has a {name} of their own')\n")
    run(sys.executable, "-c", IMPORT_ALL, cwd=tmp_path)
    script = tmp_path / "train.py"
    script.write_text(IMPORT_ALL)
    run(sys.executable, str(script), cwd=tmp_path)


def test_our_names_are_not_importable_bare(tmp_path):
    code = f"import importlib.util as u; print([n for n in {NAMES!r} if u.find_spec(n)])"
    assert run(sys.executable, "-c", code, cwd=tmp_path).strip() == "[]"


def test_the_links_in_the_tree():
    for name in NAMES:
        link = ROOT / "gr_compile" / name
        assert link.is_symlink() and os.readlink(link) == f"../{name}" and (ROOT / name / "__init__.py").is_file()


# ------------------------------------------------------------------------------------- wheel and sdist
@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """(wheel, sdist), built from a copy of the tree; the wheel from the sdist, as a user's would be."""
    pytest.importorskip("build")
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("package")
    for name in tracked_files():
        target = folder / "tree" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    run(
        sys.executable,
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        str(folder / "dist"),
        ".",
        cwd=folder / "tree",
    )
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    return wheel, sdist


DATA = {"gr_compile/lowering/torchair/wheels.txt", "gr_compile/lowering/cpu/runtime/numeric.h"}


def sources() -> set[str]:
    """Every module of the package, and every header and data file, as it must be in a distribution."""
    kinds = (".py", ".h", ".json")
    found = {name for name in tracked_files() if name.startswith("gr_compile/") and name.endswith(".py")}
    return found | {
        f"gr_compile/{name}" for name in tracked_files() if name.split("/")[0] in NAMES and name.endswith(kinds)
    }


def test_wheel(built):
    with zipfile.ZipFile(built[0]) as wheel:
        entries = wheel.infolist()
        names = {entry.filename for entry in entries}
        assert not any(stat.S_ISLNK(entry.external_attr >> 16) for entry in entries)
        assert sources() | DATA <= names, sorted((sources() | DATA) - names)
        tops = {name.split("/")[0] for name in names}
        assert {top for top in tops if not top.endswith(".dist-info")} == {"gr_compile"}
        ours = [name for name in names if "/ascendc/project/static/" not in name]  # printed for a device host
        assert not any("test" in part for name in ours for part in name.split("/")[:-1])
        (license_file,) = (name for name in names if name.endswith("/licenses/LICENSE"))
        assert wheel.read(license_file) == (ROOT / "LICENSE").read_bytes()


def test_sdist(built):
    with tarfile.open(built[1]) as sdist:
        members = sdist.getmembers()
    assert not any(member.issym() or member.islnk() for member in members)
    names = {member.name.partition("/")[2] for member in members}
    assert sources() | DATA <= names, sorted((sources() | DATA) - names)
    assert {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml"} <= names
    assert "docs/getting-started.md" in names
    assert not any(name.startswith("tests/") for name in names)


def test_the_wheel_works_alone(built, tmp_path):
    site = tmp_path / "site"
    pip = (
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
    )
    run(*pip, str(built[0]), cwd=tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    code = IMPORT_ALL + "print(gr_compile.__file__, gr_compile.passes.__file__)"
    said = run(sys.executable, "-c", code, cwd=empty, PYTHONPATH=str(site))
    assert all(Path(file).is_relative_to(site) for file in said.split()), said
    assert "eliminate-padding" in run(str(site / "bin" / "gr-compile"), "passes", cwd=empty, PYTHONPATH=str(site))
