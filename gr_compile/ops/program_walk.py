"""Visit the nodes of a score program, operands first and none twice: what printers of every target share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

from gr_compile.analysis.expr import Expr

V = TypeVar("V")


class OperandsFirst(ABC, Generic[V]):
    """Nodes become values. `known` holds those that are given, and fills with those that are made."""

    known: dict[Expr, V]

    @abstractmethod
    def needs(self, node: Expr) -> tuple[Expr, ...]:
        """What `node` is made of."""

    @abstractmethod
    def make(self, node: Expr) -> V:
        """The value of `node`; the values of its needs are known."""

    def value(self, node: Expr) -> V:
        """The value of `node`, after those of everything that it needs; deep programs do not recurse."""
        stack = [node]
        while stack:
            top = stack[-1]
            if top in self.known:
                stack.pop()
                continue
            waiting = [x for x in self.needs(top) if x not in self.known]
            if waiting:
                stack.extend(waiting)
                continue
            self.known[stack.pop()] = self.make(top)
        return self.known[node]
