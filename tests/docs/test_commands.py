"""Commands in the documents parse; docs/cli.md names every command, option and JSON field, and no others."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import pytest
import typer
from documents import ROOT, prose, shell_commands

from gr_compile.cli.__main__ import COMMANDS, make_app

COMMAND_LINES = shell_commands()
PLACEHOLDERS = {"…", "..."}


@pytest.fixture(scope="module")
def group() -> Any:
    return typer.main.get_command(make_app())


def section(command: str) -> str:
    """What docs/cli.md says of a command."""
    text = prose(ROOT / "docs" / "cli.md")
    found = re.search(rf"^## {command}$(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/cli.md has no section {command}"
    return found[1]


@pytest.mark.parametrize(("place", "line"), COMMAND_LINES, ids=[f"{p} {c}"[:70] for p, c in COMMAND_LINES])
def test_a_command_parses(group, place, line):
    words = shlex.split(line.partition(" > ")[0])[1:]
    words = [word for word in words if word not in ("--help", "--debug")]
    if not words or PLACEHOLDERS & set(words):
        return
    name, *arguments = words
    assert name in COMMANDS, f"{place}: there is no command {name!r}"
    if not arguments:
        return  # named, or its help
    with group.commands[name].make_context(name, arguments):
        pass


@pytest.mark.parametrize("command", COMMANDS)
def test_options_are_documented(group, command):
    options = {
        option
        for parameter in group.commands[command].params
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("--")
    }
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", section(command)))
    assert options - {"--help"} <= named, f"not in docs/cli.md: {sorted(options - named)}"
    assert named <= options | {"--check", "--debug"}, f"no such option: {sorted(named - options)}"


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command):
    from typer.testing import CliRunner

    done = CliRunner().invoke(make_app(), [command, "--help"])
    assert done.exit_code == 0 and "--json" in done.output


def test_json_fields_are_documented(tmp_path):
    from typer.testing import CliRunner

    for command, arguments in {
        "passes": [],
        "data": [
            "synthetic",
            "--users",
            "40",
            "--items",
            "30",
            "--median-length",
            "20",
            "--max-length",
            "50",
        ],
    }.items():
        file = tmp_path / f"{command}.json"
        done = CliRunner().invoke(make_app(), [command, *arguments, "--json", str(file)])
        assert done.exit_code == 0, done.output
        common = {"schema", "command", "versions"}
        assert_named(command, {k: v for k, v in json.loads(file.read_text()).items() if k not in common})


def assert_named(command: str, value: Any) -> None:
    """Every key, at every depth, stands in backticks in the command's section."""
    if isinstance(value, list):
        for item in value:
            assert_named(command, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            assert re.search(rf"`[^`]*\b{key}\b[^`]*`", section(command)), (
                f"{command}: {key} is not documented"
            )
            assert_named(command, item)
