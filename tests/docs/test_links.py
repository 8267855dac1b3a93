"""Links lead somewhere; files and environment variables that the documents name exist."""

from __future__ import annotations

import re
import subprocess

import pytest
from documents import DOCUMENTS, ROOT, anchors, blocks, inline_code, prose

TOPS = ("gr_compile", "passes", "lowering", "model_zoo", "docs", "tests", "benchmarks", ".ci")
SUFFIXES = ("py", "md", "toml", "ipynb", "in", "yml")
BY_NAME = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


@BY_NAME
def test_links(document):
    for text, target in re.findall(r"\[([^\]]+)\]\(([^)]+)\)", prose(document)):
        if target.startswith(("https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        path = (document.parent / file).resolve() if file else document
        assert path.exists(), f"[{text}]({target}): no such file"
        if anchor and path.suffix == ".md":
            assert anchor in anchors(path), f"[{text}]({target}): no such heading in {path.name}"


@BY_NAME
def test_files_that_are_named_exist(document):
    for text in inline_code(document):
        path = text.partition(":")[0]
        if not re.fullmatch(r"[\w.\-]+(/[\w.\-]+)+/?", path):
            continue
        if path.split("/")[0] in TOPS or (path.startswith("docs/") and path.rpartition(".")[2] in SUFFIXES):
            assert (ROOT / path).exists(), f"`{text}`: no such file"


@BY_NAME
def test_variables_that_are_named_are_read(document):
    text = document.read_text(encoding="utf-8")
    for name in set(re.findall(r"\bGR_COMPILE_[A-Z_]+\b", text)):
        found = subprocess.run(
            ["grep", "-RqF", "--include=*.py", name, str(ROOT / "gr_compile")], check=False
        )
        assert found.returncode == 0, f"{name} is read nowhere"


@BY_NAME
def test_files_of_blocks_are_whole(document):
    """A block that shows a file shows all of it, as it is."""
    for block in blocks(document):
        if block.note.startswith("file: "):
            path = ROOT / block.note.removeprefix("file: ")
            assert path.read_text(encoding="utf-8") == block.text, f"{block.place} differs from {path}"
