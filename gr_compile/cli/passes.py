"""`gr-compile passes`: the table of passes, generated from their dataclasses (docs/passes.md too)."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import textwrap
from typing import Annotated, Any

import typer

from gr_compile.cli.output import JsonOption, Output, check_json_path, write_json
from gr_compile.graph_pass import Pass


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def passes(
        markdown: Annotated[
            bool, typer.Option("--markdown", help="Print the content of docs/passes.md.")
        ] = False,
        json_file: JsonOption = None,
    ) -> None:
        """List the passes: stage, numerics, what they need and give, and their options.

        The JSON has passes: [{name, summary, stage, numerics, requires, provides, conflicts, after,
        options: [{name, type, default, help}]}].
        """
        from gr_compile.pipeline import list_passes

        check_json_path(json_file)
        described = [describe(pass_class) for pass_class in list_passes()]
        output = Output()
        if markdown:
            output.line(as_markdown(described).rstrip("\n"))
        else:
            _print(output, described)
        write_json(json_file, "passes", {"passes": described})


def describe(pass_class: type[Pass]) -> dict[str, Any]:
    """One pass as plain data."""
    return {
        "name": pass_class.name,
        "summary": _summary(pass_class),
        "stage": pass_class.stage,
        "numerics": pass_class.numerics,
        **{
            key: sorted(getattr(pass_class, key, ()))
            for key in ("requires", "provides", "conflicts", "after")
        },
        "options": _options(pass_class),
    }


def _summary(pass_class: type[Pass]) -> str:
    text = inspect.cleandoc(pass_class.__doc__ or "")
    return " ".join(text.split("\n\n")[0].split())


def _options(pass_class: type[Pass]) -> list[dict[str, Any]]:
    texts = _attribute_texts(pass_class)
    return [
        {
            "name": field.name.replace("_", "-"),
            "type": field.type
            if isinstance(field.type, str)
            else getattr(field.type, "__name__", str(field.type)),
            "default": _default(field),
            "help": field.metadata.get("help") or texts.get(field.name, ""),
        }
        for field in dataclasses.fields(pass_class)
    ]


def _default(field: dataclasses.Field[Any]) -> str | int | float | bool | None:
    value = field.default_factory() if callable(field.default_factory) else field.default
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def _attribute_texts(pass_class: type[Pass]) -> dict[str, str]:
    """Help of fields without metadata["help"]: "name: text" lines of the class's Attributes section, or the
    string that stands below the field."""
    found: dict[str, str] = {}
    for owner in reversed(pass_class.__mro__):
        if dataclasses.is_dataclass(owner) and owner is not Pass:
            found.update(_strings_below(owner))
    _, _, section = inspect.cleandoc(pass_class.__doc__ or "").partition("Attributes:\n")
    for entry in _entries(section):
        name, _, text = entry.partition(":")
        found.setdefault(name.strip(), text.strip())
    return found


def _entries(section: str) -> list[str]:
    """The entries of an indented docstring section, each on one line."""
    entries: list[str] = []
    for line in section.splitlines():
        if not line.startswith("    "):
            break
        if line.startswith("     ") and entries:
            entries[-1] += " " + line.strip()
        else:
            entries.append(line.strip())
    return entries


def _strings_below(owner: type) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    except (OSError, TypeError, SyntaxError):
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    return {
        first.target.id: inspect.cleandoc(second.value.value)
        for first, second in itertools.pairwise(body)
        if isinstance(first, ast.AnnAssign)
        and isinstance(first.target, ast.Name)
        and isinstance(second, ast.Expr)
        and isinstance(second.value, ast.Constant)
        and isinstance(second.value.value, str)
    }


def as_markdown(described: list[dict[str, Any]]) -> str:
    """The content of docs/passes.md."""
    lines = [
        "# Passes",
        "",
        "Generated from the passes' dataclasses by `gr-compile passes --markdown`; do not edit.",
        "",
        "| pass | stage | numerics | requires | provides | what it does |",
        "|---|---|---|---|---|---|",
    ]
    for entry in described:
        needs, gives = (", ".join(entry[key]) or "–" for key in ("requires", "provides"))
        row = (f"[`{entry['name']}`](#{entry['name']})", entry["stage"], entry["numerics"], needs, gives)
        lines.append("| " + " | ".join((*row, entry["summary"].replace("|", "\\|"))) + " |")
    for entry in described:
        lines += ["", f"## {entry['name']}", "", entry["summary"]]
        if entry["conflicts"]:
            lines += ["", f"Conflicts with: {', '.join(entry['conflicts'])}."]
        if entry["options"]:
            lines += ["", "| option | type | default | |", "|---|---|---|---|"]
        for option in entry["options"]:
            text = " ".join(option["help"].split()).replace("|", "\\|")
            kind = option["type"].replace("|", "\\|")
            lines.append(f"| `{option['name']}` | `{kind}` | `{option['default']}` | {text} |")
    return "\n".join(lines) + "\n"


def _print(output: Output, described: list[dict[str, Any]]) -> None:
    for entry in described:
        output.line(f"{entry['name']}  ({entry['stage']}, {entry['numerics']})")
        output.line(textwrap.indent(textwrap.fill(entry["summary"], 96), "    "))
        for key in ("requires", "provides", "conflicts", "after"):
            if entry[key]:
                output.line(f"    {key}: {', '.join(entry[key])}")
        for option in entry["options"]:
            text = f": {' '.join(option['help'].split())}" if option["help"] else ""
            output.line(f"    {{{option['name']}={option['default']}}}{text}")
