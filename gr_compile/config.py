"""What the user asked for: the arguments of `optimize`, checked and frozen."""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

PaddedOutputs = Literal["exact", "zero"]
Verify = Literal["off", "shapes", "full", "numerics"]
_VERIFY: tuple[Verify, ...] = ("off", "shapes", "full", "numerics")


class ConfigError(ValueError):
    """An argument of `optimize` that cannot be meant: says which, and what would be right."""


@dataclass(frozen=True)
class Padding:
    """Where an argument is padding. Exactly one of `mask`, `lengths` and `pad_id` says which places are valid.

    Attributes:
        mask: name of the argument that holds the mask [B, N] (true or 1 = valid); "self": the argument itself.
        lengths: name of the argument that holds the lengths [B], 0 <= length <= N.
        pad_id: the value that marks a padded place of the argument itself.
        side: with `lengths`: the side on which the padding stands.
    """

    mask: str | None = None
    lengths: str | None = None
    pad_id: int | None = None
    side: Literal["right", "left"] = "right"

    def __post_init__(self) -> None:
        given = [name for name in ("mask", "lengths", "pad_id") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(f"Padding takes exactly one of mask, lengths, pad_id; got {given or 'none'}")
        if self.pad_id is not None and type(self.pad_id) is not int:
            raise ConfigError(f"Padding(pad_id={self.pad_id!r}): pad_id is an int")
        for name, value in (("mask", self.mask), ("lengths", self.lengths)):
            if value is not None and not isinstance(value, str):
                raise ConfigError(
                    f"Padding({name}=...): {name} is the name of an argument, not {type(value).__name__}"
                )
        if self.side not in ("right", "left"):
            raise ConfigError(f"Padding(side={self.side!r}): side is 'right' or 'left'")


@dataclass(frozen=True)
class Config:
    """The arguments of `optimize` after checking. `padding` maps an argument's name to its declaration."""

    passes: Any = "default"
    target: str = "inductor"
    padding: Mapping[str, int | str | Padding] | Literal["auto", "none"] = "auto"
    padded_outputs: PaddedOutputs | None = None
    dump: str | None = None
    verify: Verify = "shapes"
    dynamic: bool | None = None
    strict: bool = False
    expected_fill: float | None = None
    model: str = field(default="model", compare=False)

    def __post_init__(self) -> None:
        if self.verify not in _VERIFY:
            raise ConfigError(f"verify={self.verify!r}: one of {', '.join(map(repr, _VERIFY))}")
        if self.padded_outputs not in (None, "exact", "zero"):
            raise ConfigError(f"padded_outputs={self.padded_outputs!r}: 'exact', 'zero' or None")
        if self.dynamic not in (None, True, False):
            raise ConfigError(f"dynamic={self.dynamic!r}: True, False or None")
        if not isinstance(self.strict, bool):
            raise ConfigError(f"strict={self.strict!r}: True or False")
        if not (self.dump is None or isinstance(self.dump, (str, os.PathLike))):
            raise ConfigError(f"dump={self.dump!r}: a folder, or None")
        fill = self.expected_fill
        if fill is not None and not (isinstance(fill, (int, float)) and 0 < fill <= 1):
            raise ConfigError(f"expected_fill={self.expected_fill!r}: a share of valid places in (0, 1]")
        self._check_padding()

    def _check_padding(self) -> None:
        padding = self.padding
        if isinstance(padding, str):
            if padding not in ("auto", "none"):
                raise ConfigError(
                    f"padding={padding!r}: 'auto', 'none', or a mapping from argument name to its padding"
                )
            return
        if not isinstance(padding, Mapping):
            raise ConfigError(f"padding: 'auto', 'none' or a mapping, not {type(padding).__name__}")
        for name, declared in padding.items():
            if (
                not isinstance(name, str)
                or isinstance(declared, bool)
                or not isinstance(declared, (int, str, Padding))
            ):
                raise ConfigError(
                    f"padding[{name!r}]={declared!r}: an int (pad id), the name of a lengths or mask argument, "
                    "or gr_compile.Padding(...)"
                )

    @property
    def declared(self) -> Mapping[str, int | str | Padding]:
        """The declarations, empty when padding is only detected."""
        return self.padding if isinstance(self.padding, Mapping) else {}

    @property
    def outputs_at_padding(self) -> PaddedOutputs:
        """`padded_outputs`, or its default: "zero" once the user declares padding, "exact" otherwise."""
        return self.padded_outputs or ("zero" if self.declared else "exact")


def check_declared_arguments(
    declared: Mapping[str, int | str | Padding], signature: inspect.Signature, model: str
) -> None:
    """Every name in a padding declaration is an argument of the model; one that collects (**fields) may take any.

    Raises:
        ConfigError: an unknown name; it lists the arguments and the closest ones.
    """
    arguments = list(signature.parameters)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        return
    for unknown in (name for name in _names(declared) if name not in arguments):
        close = difflib.get_close_matches(unknown, arguments, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        listed = ", ".join(arguments)
        raise ConfigError(
            f"padding names {unknown!r}, which is no argument of {model} (its arguments: {listed}){hint}"
        )


def _names(declared: Mapping[str, int | str | Padding]) -> Iterator[str]:
    """The names of arguments that declarations use."""
    for name, value in declared.items():
        others = (value.mask, value.lengths) if isinstance(value, Padding) else (value,)
        yield name
        yield from (other for other in others if isinstance(other, str) and other != "self")
