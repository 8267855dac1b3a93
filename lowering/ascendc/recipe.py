"""What a vector kernel is made of: files, the formulas of its tiling, the shapes of its results."""

from __future__ import annotations

from dataclasses import dataclass

from gr_compile.lowering.ascendc.formulas import Formula


@dataclass(frozen=True)
class Recipe:
    """A vector kernel of one operator.

    Attributes:
        operator: as in the table, "gr::pack".
        shape: of the result: formulas, rest(port, from) for the sizes of a port from one on, lead(port) for all but
            the last, and gradient(port, name) for all where that attribute is true, for none ([0]) where it is not.
        files: of kernels/, in the order in which they follow one another.
        formulas: of the tiling, `blocks` and `workspace`, in order.
        reason: why the tiling is what it is; formulas' names in braces stand for their values.
        meets: blocks wait for each other, so that all of them must run at once.
        others: the shapes of further results.
    """

    operator: str
    shape: tuple[str, ...]
    files: tuple[str, ...]
    formulas: tuple[Formula, ...]
    reason: str
    meets: bool = False
    others: tuple[tuple[str, ...], ...] = ()

    @property
    def shapes(self) -> tuple[tuple[str, ...], ...]:
        """Of all results."""
        return (self.shape, *self.others)


def local_formula(name: str, text: str) -> Formula:
    """A formula that is no field of the tiling."""
    return Formula(name, text, field=False)


def fields(**texts: str) -> tuple[Formula, ...]:
    """Fields of the tiling, in order."""
    return tuple(Formula(name, text) for name, text in texts.items())
