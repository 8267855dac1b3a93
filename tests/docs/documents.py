"""The documents and what stands in them: fenced blocks, links, inline code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
_FENCE = re.compile(r"^```(\w*)\s*$")
_COMMENT = re.compile(r"^<!-- (.*) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block. `note` is the comment in the line above it: `not run: why`, or `file: path`."""

    document: Path
    line: int
    language: str
    text: str
    note: str

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return f"{self.document.relative_to(ROOT)}:{self.line}"


def blocks(document: Path) -> list[Block]:
    """The fenced blocks of a document, in order."""
    found, lines = [], document.read_text(encoding="utf-8").splitlines()
    start = None
    for number, line in enumerate(lines):
        fence = _FENCE.match(line)
        if fence is None:
            continue
        if start is None:
            start, language = number, fence[1]
            continue
        note = _COMMENT.match(lines[start - 1]) if start else None
        text = "\n".join(lines[start + 1 : number]) + "\n"
        found.append(Block(document, start + 1, language, text, note[1] if note else ""))
        start = None
    assert start is None, f"{document}:{start} is not closed"
    return found


def prose(document: Path) -> str:
    """The document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def inline_code(document: Path) -> list[str]:
    """What stands in backticks in the prose."""
    return re.findall(r"`([^`\n]+)`", prose(document))


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(document), flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def shell_commands() -> list[tuple[str, str]]:
    """(place, command) of every `gr-compile` command in the documents' shell blocks and inline code."""
    found = []
    for document in DOCUMENTS:
        for block in blocks(document):
            if block.language in ("sh", "bash", "shell"):
                for line in block.text.replace("\\\n", " ").splitlines():
                    found += [(block.place, part.strip()) for part in line.split("&&")]
        found += [(document.name, text) for text in inline_code(document)]
    without_variables = ((place, re.sub(r"^(?:[A-Z_]+=\S* )+", "", text)) for place, text in found)
    return [(place, text) for place, text in without_variables if text.startswith("gr-compile ")]
