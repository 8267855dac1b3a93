"""Reads the text that torchair writes of a GE graph: nodes with inputs, attributes, and shapes of what they give."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class GeNode:
    """One node. `inputs`: "name:output" each, "" where an optional input is not fed; `attributes`: their text."""

    name: str
    type: str
    inputs: tuple[str, ...]
    attributes: dict[str, str]

    def strings(self, key: str) -> list[str]:
        """The elements of an attribute that is a list of strings, or the string that it is."""
        return [ast.literal_eval(f'"{text}"') for text in re.findall(r's: "((?:[^"\\]|\\.)*)"', self.attributes[key])]

    def numbers(self, key: str) -> list[int]:
        return [int(text) for text in re.findall(r"\bi: (-?\d+)", self.attributes[key])]

    def flags(self, key: str) -> list[bool]:
        return [text == "true" for text in re.findall(r"\bb: (\w+)", self.attributes[key])]

    def named_inputs(self) -> dict[str, str]:
        return dict(zip(self.strings("_input_name_key"), self.inputs))

    def sizes(self) -> list[int]:
        """The dimensions of a Data node; -1: known when the graph runs."""
        return [int(text) for text in re.findall(r"dim: (-?\d+)", self.attributes["[o]y"])]


def read(path: Path) -> dict[str, GeNode]:
    """The nodes by name."""
    found = {}
    for block in re.split(r"^node \{$", path.read_text(), flags=re.MULTILINE)[1:]:
        head = dict(re.findall(r'^    (name|op): "(.*)"$', block, flags=re.MULTILINE))
        inputs = re.findall(r'^    input: "(.*)"$', block, flags=re.MULTILINE)
        pairs = re.findall(r"key: \"(.*)\"\n        value \{\n            s: (.*)\n", block)
        attributes = {key: ast.literal_eval(text) for key, text in pairs}
        found[head["name"]] = GeNode(head["name"], head["op"], tuple(inputs), attributes)
    return found
