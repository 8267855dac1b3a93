"""Named random choices, so that one choice can be changed without moving the others; and the source being written."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


class Draw:
    """Choices of one model. Each depends on the seed and on its own name only; `fixed` overrides some.

    The first option of every choice is the simplest one: minimising a failure moves choices there.
    """

    def __init__(self, seed: int, fixed: Mapping[str, int] | None = None) -> None:
        self.seed, self.fixed = seed, dict(fixed or {})
        self.taken: dict[str, int] = {}

    def pick(self, name: str, options: Sequence[T]) -> T:
        """One of the options, all equally likely."""
        drawn = random.Random(f"{self.seed}:{name}").randrange(len(options))
        chosen = min(self.fixed.get(name, drawn), len(options) - 1)
        self.taken[name] = chosen
        return options[chosen]

    def flag(self, name: str, one_in: int = 2) -> bool:
        """True once in `one_in`."""
        return bool(self.pick(name, [0] * (one_in - 1) + [1]))

    def some(self, name: str, options: Sequence[T], most: int, least: int = 0) -> list[T]:
        """Between `least` and `most` of the options, with repetition."""
        count = self.pick(f"{name}.count", list(range(least, most + 1)))
        return [self.pick(f"{name}.{k}", options) for k in range(count)]


@dataclass
class Source:
    """Lines of a module: what `__init__` makes, what `forward` does, and which variables there are.

    Attributes:
        width, heads: D and H of the token values.
        valid: the name of the boolean [B, N] mask.
        outputs: names or expressions that forward returns.
    """

    width: int
    heads: int
    setup: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    valid: str = "valid"
    count: int = 0

    def fresh(self, stem: str) -> str:
        """A name that is not in use."""
        self.count += 1
        return f"{stem}{self.count}"

    def module(self, stem: str, maker: str) -> str:
        """`self.<stem>k = <maker>`; returns `self.<stem>k`."""
        name = f"self.{self.fresh(stem)}"
        self.setup.append(f"{name} = {maker}")
        return name

    def let(self, stem: str, expression: str) -> str:
        """A new variable."""
        name = self.fresh(stem)
        self.body.append(f"{name} = {expression}")
        return name

    def do(self, *lines: str) -> None:
        """Lines of forward, as they are."""
        self.body += lines
