"""The documents' Python runs; the example of a pass installs, is found, and passes its tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documents import DOCUMENTS, ROOT, blocks

EXAMPLES = ROOT / "docs" / "examples"
# Target "eager" compiles in a tenth of the time; README runs as it stands.
EAGER = """
import functools, gr_compile
gr_compile.optimize = functools.partial(gr_compile.optimize, target="eager")
"""
WITH_PYTHON = [
    document
    for document in DOCUMENTS
    if any(block.language == "python" and not block.note for block in blocks(document))
]


def run(*command: str, cwd: Path, paths: tuple[Path, ...] = ()) -> str:
    """The command's output; its failure is the test's."""
    path = os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, f"{' '.join(command)[:200]}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def program(document: Path) -> str:
    """All runnable blocks as one program; blank lines keep the document's line numbers."""
    lines: list[str] = []
    for block in blocks(document):
        if block.language == "python" and not block.note:
            lines += [""] * (block.line - len(lines)) + block.text.splitlines()
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("document", WITH_PYTHON, ids=lambda path: path.name)
def test_python_of_a_document_runs(document, tmp_path):
    folder = tmp_path / "docs" / "examples"
    shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("__pycache__"))
    script = tmp_path / f"{document.stem.replace('-', '_')}.py"
    script.write_text(program(document))
    head = "" if document.name == "README.md" else EAGER
    starter = f"{head}\nimport runpy\nrunpy.run_path({str(script)!r}, run_name='__main__')"
    run(sys.executable, "-c", starter, cwd=tmp_path, paths=(folder, folder / "hoist_scale"))


def test_the_pass_of_the_example():
    run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", ".", cwd=EXAMPLES / "hoist_scale")


def test_the_pass_is_found_once_it_is_installed(tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(EXAMPLES / "hoist_scale", source, ignore=shutil.ignore_patterns("__pycache__"))
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    run(sys.executable, *pip, "--target", str(site), str(source), cwd=tmp_path)
    listed = run(sys.executable, "-m", "gr_compile.cli", "passes", cwd=tmp_path, paths=(site,))
    assert "hoist-scale  (forward, reassociates)" in listed
    assert "{min-widening=2.0}: least ratio of the linear's output features to its input features" in listed
    pipeline = "Pipeline.parse('default,hoist-scale{min-widening=4}').text()"
    code = f"from gr_compile.pipeline import Pipeline; print({pipeline})"
    text = run(sys.executable, "-c", code, cwd=tmp_path, paths=(site,)).strip()
    names = re.sub(r"\{[^}]*\}", "", text).split(",")
    assert "hoist-scale{min-widening=4.0}" in text and names.index("canonicalize") < names.index(
        "hoist-scale"
    )


def test_explain_of_the_example_model(tmp_path):
    command = ("explain", str(EXAMPLES / "model.py") + ":Recommender", "--target", "eager", "--dump", "dumps")
    said = run(sys.executable, "-m", "gr_compile.cli", *command, cwd=tmp_path)
    assert "fuse-jagged-attention" in said and "places kept" in said
    (stage,) = tmp_path.rglob("04_fuse-jagged-attention.py")
    check = run(sys.executable, str(stage), "--check", "--against", "00_captured.py", cwd=tmp_path)
    assert "equal to 00_captured.py" in check
