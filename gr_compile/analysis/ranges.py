"""What is known about the indices of a grid: their ranges, and what follows for integers over them.

Import these names from `gr_compile.analysis.expr`.
"""

from __future__ import annotations

from gr_compile.analysis.algebra import (
    Monomial,
    add,
    atoms,
    coefficient_of,
    mul,
    poly,
    scale,
    sub,
    terms,
)
from gr_compile.analysis.node import Expr, const, is_const, is_mask_cast, make, order

_MAX_STEPS = 24
_MAX_TERMS = 256


class Ranges:
    """Inclusive ranges of indices and of integer tensors. Every size is at least `min_size`.

    Attributes:
        lo, hi: bounds by index name.
        load_lo, load_hi: bounds by tensor name, for integer loads.
    """

    def __init__(self, min_size: int = 1) -> None:
        self.min_size = min_size
        self.lo: dict[str, Expr] = {}
        self.hi: dict[str, Expr] = {}
        self.load_lo: dict[str, Expr] = {}
        self.load_hi: dict[str, Expr] = {}

    def bound(self, name: str, extent: Expr) -> None:
        """The index `name` runs over 0 .. extent - 1."""
        self.lo[name], self.hi[name] = const(0), sub(extent, const(1))

    def bound_load(self, name: str, lo: Expr | None = None, hi: Expr | None = None) -> None:
        """Every element of the integer tensor `name` is within lo .. hi."""
        if lo is not None:
            self.load_lo[name] = lo
        if hi is not None:
            self.load_hi[name] = hi

    def lower(self, atom: Expr) -> Expr | None:
        """A lower bound of an atom of a polynomial, or None. A size has the bound `min_size`, but not what is computed
        of sizes: `N // 4` may be 0."""
        if atom.op == "index":
            return self.lo.get(atom.args[0])
        if atom.op == "load":
            return self.load_lo.get(atom.args[0])
        if atom.op == "size":
            return const(self.min_size) if _is_size(atom) else None
        if is_mask_cast(atom) or atom.op == "abs" or (atom.op == "mod" and self._positive(atom.args[1])):
            return const(0)
        return None

    def upper(self, atom: Expr) -> Expr | None:
        """An upper bound of an atom of a polynomial, or None."""
        if atom.op == "index":
            return self.hi.get(atom.args[0])
        if atom.op == "load":
            return self.load_hi.get(atom.args[0])
        if is_mask_cast(atom):
            return const(1)
        if atom.op == "mod" and self._positive(atom.args[1]):
            return sub(atom.args[1], const(1))
        return None

    def extreme(self, value: Expr, up: bool) -> Expr | None:
        """An upper (or lower) bound of `value` over sizes only; None when none is known."""
        for _ in range(_MAX_STEPS):
            variable = next((x for x in atoms(value) if x.op != "size"), None)
            if variable is None:
                return value
            linear = coefficient_of(value, variable)
            if linear is None:
                return None
            sign = self.sign(linear[0])
            if sign is None:
                return None
            bound = self.upper(variable) if (sign > 0) == up else self.lower(variable)
            if bound is None or len(terms(value)) > _MAX_TERMS:
                return None
            value = add(mul(linear[0], bound), linear[1])
        return None

    def sign(self, value: Expr) -> int | None:
        """1 when `value`, a polynomial over sizes, is surely >= 0; -1 when it is surely <= 0; else None."""
        for sign in (1, -1):
            least = self.size_min(scale(value, sign))
            if least is not None and least >= 0:
                return sign
        return None

    def size_min(self, value: Expr) -> int | None:
        """The least value of a polynomial over sizes when every size grows it; else None."""
        if not all(_is_size(atom) for atom in atoms(value)):
            return None
        shifted = const(0)  # with size = min_size + size', size' >= 0, every coefficient must be >= 0
        for monomial, coefficient in terms(value).items():
            term = const(coefficient)
            for atom in monomial:
                term = mul(term, add(atom, const(self.min_size)))
            shifted = add(shifted, term)
        coefficients = terms(shifted)
        if any(c < 0 for m, c in coefficients.items() if m):
            return None
        return coefficients.get((), 0)

    def ge0(self, value: Expr) -> bool:
        """Is `value >= 0` everywhere? False when that is not known."""
        lowest = self.extreme(value, up=False)
        if lowest is None:
            return False
        least = self.size_min(lowest)
        return least is not None and least >= 0

    def within(self, value: Expr, extent: Expr) -> bool:
        """Is `0 <= value < extent` everywhere? False when that is not known."""
        return self.ge0(value) and self.ge0(sub(sub(extent, value), const(1)))

    def _positive(self, value: Expr) -> bool:
        least = self.size_min(value)
        return least is not None and least > 0


def divide(value: Expr, divisor: Expr) -> tuple[Expr, Expr]:
    """`(q, r)` with `value = q * divisor + r`, as far as the leading term of `divisor` divides."""
    leading, coefficient = max(
        terms(divisor).items(), key=lambda term: (len(term[0]), [order(atom) for atom in term[0]])
    )
    quotient, rest = const(0), value
    for _ in range(_MAX_STEPS):
        step = next(
            (
                poly({factor: c // coefficient})
                for monomial, c in terms(rest).items()
                if c // coefficient and (leading == () or c % coefficient == 0)
                if (factor := _without(monomial, leading)) is not None
            ),
            None,
        )
        if step is None:
            break
        quotient, rest = add(quotient, step), sub(rest, mul(step, divisor))
    return quotient, rest


def _without(monomial: Monomial, factors: Monomial) -> Monomial | None:
    """`monomial` divided by `factors`, or None when it does not divide."""
    left = list(monomial)
    for factor in factors:
        if factor not in left:
            return None
        left.remove(factor)
    return tuple(left)


def divmod_(value: Expr, divisor: Expr, ranges: Ranges) -> tuple[Expr, Expr]:
    """`(value // divisor, value % divisor)` of integers, floored, for a divisor that is not 0.

    Each coefficient of an index is divided by the divisor, and the ranges decide whether what is left is the
    remainder; this undoes flattening. What they cannot decide becomes a "floordiv" and a "mod" node.
    """
    if is_const(divisor, 1):
        return value, const(0)
    if ranges.within(value, divisor):
        return const(0), value
    quotient, rest = const(0), const(0)
    for variables, coefficient in _by_variables(value).items():
        factor = poly({variables: 1})
        q, r = divide(coefficient, divisor)
        quotient, rest = add(quotient, mul(q, factor)), add(rest, mul(r, factor))
    for shift in (0, 1, -1, 2, -2):
        remainder = add(rest, scale(divisor, shift))
        if ranges.within(remainder, divisor):
            return sub(quotient, const(shift)), remainder
    if rest.op == "const" and divisor.op == "const":
        return add(quotient, const(rest.args[0] // divisor.args[0])), const(rest.args[0] % divisor.args[0])
    return add(quotient, make("floordiv", (rest, divisor), "i")), make("mod", (rest, divisor), "i")


def _by_variables(value: Expr) -> dict[Monomial, Expr]:
    """`value` as {product of indices and opaque atoms: coefficient over sizes}."""
    groups: dict[Monomial, dict[Monomial, int]] = {}
    for monomial, coefficient in terms(value).items():
        variables = tuple(x for x in monomial if x.op != "size")
        sizes = tuple(x for x in monomial if x.op == "size")
        groups.setdefault(variables, {})[sizes] = coefficient
    return {variables: poly(group) for variables, group in groups.items()}


def _is_size(atom: Expr) -> bool:
    """A size, as a symbol; not what is computed of sizes, whose name is a formula."""
    return atom.op == "size" and str(atom.args[0]).isidentifier()
