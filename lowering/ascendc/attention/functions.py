"""Functions of float32 that no vector instruction computes, composed of those that one does.

Errors are absolute, for scores that a weight of order one is made of: some 1e-7 where not said otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from gr_compile.analysis.derive import derivative
from gr_compile.analysis.expr import Expr, unary
from gr_compile.lowering.cpu.lanes import Unsupported

if TYPE_CHECKING:
    from gr_compile.lowering.ascendc.attention.instructions import Register
    from gr_compile.lowering.ascendc.attention.vector import Function

_ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
_ERF_P = 0.3275911


def _direct(name: str) -> Callable[[Function, Register], Register]:
    return lambda f, x: f.unary(name, x)


def _rounding(mode: str) -> Callable[[Function, Register], Register]:
    return lambda f, x: f.emit(f"Cast({{d:f}}, {{0:f}}, RoundMode::CAST_{mode}, #);", x.shape, x)


def _negative(f: Function, x: Register) -> Register:
    return f.scalar("Muls", x, "-1.0f")


def _one_plus_exp(f: Function, x: Register) -> Register:
    """1 + exp(-x), which a function and its slope share."""
    found = f.one_plus_exp.get(x)
    if found is None:
        found = f.one_plus_exp[x] = f.scalar("Adds", f.unary("Exp", _negative(f, x)), "1.0f")
    return found


def _reciprocal(f: Function, x: Register) -> Register:
    """1 / x by Div: Reciprocal is an approximation on a device."""
    return f.binary("Div", f.emit("Duplicate({d:f}, 1.0f, #);", x.shape), x)


def _rsqrt(f: Function, x: Register) -> Register:
    """1 / sqrt(x) as kernels/norm.h has it: Rsqrt is an approximation on a device."""
    return _reciprocal(f, f.unary("Sqrt", x))


def _sigmoid(f: Function, x: Register) -> Register:
    return _reciprocal(f, _one_plus_exp(f, x))


def _silu(f: Function, x: Register) -> Register:
    """x / (1 + exp(-x)): where the exponential overflows, x / inf is 0."""
    f.silu[x] = f.binary("Div", x, _one_plus_exp(f, x))
    return f.silu[x]


@functools.lru_cache(maxsize=65536)
def silu_slope_of(node: Expr) -> Expr | None:
    """x where `node` is SiLU'(x) as gr_compile.analysis.derive writes it."""
    first = node.args[0] if node.op == "mul" and node.dtype == "f32" else None
    if first is None or first.op != "sigmoid":
        return None
    x = first.args[0]
    return x if derivative(unary("silu", x), x) == node else None


def silu_slope(f: Function, x: Register) -> Register:
    """(1 + x - SiLU(x)) / (1 + exp(-x)): of what SiLU has computed, and 0 where the exponential overflows."""
    rest = f.binary("Sub", x, f.silu[x] if x in f.silu else _silu(f, x))
    return f.binary("Div", f.scalar("Adds", rest, "1.0f"), _one_plus_exp(f, x))


def _tanh(f: Function, x: Register) -> Register:
    """1 - 2 / (exp(2 x) + 1), which is 1 and -1 where the exponential overflows and vanishes."""
    two = f.emit("Duplicate({d:f}, -2.0f, #);", x.shape)
    below = f.scalar("Adds", f.unary("Exp", f.scalar("Muls", x, "2.0f")), "1.0f")
    return f.scalar("Adds", f.binary("Div", two, below), "1.0f")


def _erf(f: Function, x: Register) -> Register:
    """Abramowitz and Stegun 7.1.26, within 1.5e-7, of |x|; the sign of x is put back."""
    size = f.unary("Abs", x)
    t = _reciprocal(f, f.scalar("Adds", f.scalar("Muls", size, f"{_ERF_P}f"), "1.0f"))
    total = f.scalar("Muls", t, f"{_ERF[-1]}f")
    for coefficient in _ERF[-2::-1]:
        total = f.binary("Mul", f.scalar("Adds", total, f"{coefficient}f"), t)
    tail = f.binary("Mul", total, f.unary("Exp", _negative(f, f.binary("Mul", x, x))))
    positive = f.scalar("Adds", _negative(f, tail), "1.0f")
    return f.binary("Mul", positive, _sign(f, x))


def _sign(f: Function, x: Register) -> Register:
    """-1, 0 or 1: x scaled beyond 1 twice, so that subnormal numbers get there, too, and cut."""
    for _ in range(2):
        x = f.scalar("Mins", f.scalar("Maxs", f.scalar("Muls", x, "0x1p127f"), "-1.0f"), "1.0f")
    return x


def _gelu(f: Function, x: Register) -> Register:
    grown = f.scalar("Adds", _erf(f, f.scalar("Muls", x, "0.70710678118654752f")), "1.0f")
    return f.binary("Mul", f.scalar("Muls", x, "0.5f"), grown)


def _gelu_tanh(f: Function, x: Register) -> Register:
    """x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)."""
    cube = f.binary("Mul", f.binary("Mul", x, x), x)
    u = f.binary("Add", x, f.scalar("Muls", cube, "0.044715f"))
    return f.binary("Div", x, _one_plus_exp(f, f.scalar("Muls", u, "1.5957691216057308f")))


def _log1p(f: Function, x: Register) -> Register:
    return f.unary("Ln", f.scalar("Adds", x, "1.0f"))


def _softplus(f: Function, x: Register) -> Register:
    """max(x, 0) + log(1 + exp(-|x|))."""
    return f.binary("Add", f.unary("Relu", x), _log1p(f, f.unary("Exp", _negative(f, f.unary("Abs", x)))))


UNARY: Mapping[str, Callable[[Function, Register], Register]] = {
    "abs": _direct("Abs"),
    "ceil": _rounding("CEIL"),
    "erf": _erf,
    "exp": _direct("Exp"),
    "expm1": lambda f, x: f.scalar("Adds", f.unary("Exp", x), "-1.0f"),
    "floor": _rounding("FLOOR"),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "log": _direct("Ln"),
    "log1p": _log1p,
    "log2": lambda f, x: f.scalar("Muls", f.unary("Ln", x), "1.4426950408889634f"),
    "neg": _negative,
    "reciprocal": _reciprocal,
    "relu": _direct("Relu"),
    "round": _rounding("RINT"),
    "rsqrt": _rsqrt,
    "sigmoid": _sigmoid,
    "sign": _sign,
    "silu": _silu,
    "softplus": _softplus,
    "sqrt": _direct("Sqrt"),
    "tanh": _tanh,
    "trunc": _rounding("TRUNC"),
}


def power(f: Function, node: Expr) -> Register:
    """x to a small whole constant, or to a half."""
    base, exponent = node.args
    if node.op == "pow" and exponent.op == "const" and f.known[base].register is not None:
        x = f.register(base, node)
        if exponent.args[0] == 0.5:
            return f.unary("Sqrt", x)
        if exponent.args[0] in (2.0, 3.0, 4.0):
            square = f.binary("Mul", x, x)
            return {2.0: lambda: square, 3.0: lambda: f.binary("Mul", square, x),
                    4.0: lambda: f.binary("Mul", square, square)}[float(exponent.args[0])]()  # fmt: skip
    raise Unsupported(f"no instruction computes {node.op!r}, and it is not composed of others: {node}")


def divide(f: Function, x: Register, by: str) -> tuple[Register, Register]:
    """(quotient, remainder) of int32 by a number of 1 to 2^22, rounded down.

    The quotient in float32 is off by at most |x| 3 2^-24 / by + 1, so the remainder is at most 384 + by in size: at the
    second round it is exact in float32, and the quotient is off by one at most.
    """
    quotient, rest = None, x
    for _ in range(2):
        real = f.emit("Cast({d:f}, {0:i}, RoundMode::CAST_RINT, #);", x.shape, rest)
        scaled = f.scalar("Muls", real, f"1.0f / (float)({by})")
        part = f.emit("Cast({d:i}, {0:f}, RoundMode::CAST_FLOOR, #);", x.shape, scaled)
        rest = f.binary("Sub", rest, f.scalar("Muls", part, f"(int32_t)({by})", "i"), "i")
        quotient = part if quotient is None else f.binary("Add", quotient, part, "i")
    assert quotient is not None
    for shift in (0, 1):
        beyond = f.scalar("Adds", rest, f"-(int32_t)({by})", "i") if shift else rest
        step = f.scalar("Mins", f.scalar("Maxs", beyond, "-1", "i"), "0", "i")  # -1 where negative, else 0
        step = f.scalar("Adds", step, "1", "i") if shift else step
        quotient = f.binary("Add", quotient, step, "i")
        rest = f.binary("Sub", rest, f.scalar("Muls", step, f"(int32_t)({by})", "i"), "i")
    return quotient, rest
