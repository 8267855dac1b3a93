"""Options as text: what stands in the braces of `name{key=value,...}`, for passes and for targets.

Options are the fields of a dataclass, spelled with hyphens or underscores; a field's default gives its type.
"""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any


class OptionError(ValueError):
    """An option that is not there, or a value that it cannot have; says which there are."""


def options_of(kind: Any, owner: str, text: str) -> dict[str, Any]:
    """The fields of the dataclass `kind` that the text names, converted.

    Raises:
        OptionError: an unknown option (with the closest one), or a value of another type.
    """
    fields = {field.name.replace("_", "-"): field for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        key, _, value = part.partition("=")
        key = key.strip().replace("_", "-")
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise OptionError(f"{owner} has no option {key!r} (it has: {', '.join(fields) or 'none'}){hint}")
        values[fields[key].name] = _convert(owner, fields[key], value.strip())
    return values


def _convert(owner: str, option: dataclasses.Field[Any], text: str) -> Any:
    kind: type[Any] = type(option.default)
    try:
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[text.lower()]
        return kind(text) if kind in (int, float) else text
    except (KeyError, ValueError):
        raise OptionError(f"{owner}{{{option.name}={text}}}: expected {kind.__name__}") from None
