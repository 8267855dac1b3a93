"""Formulas of a tiling: written once, evaluated here for a call, printed as C++ for the host of an operator project.

    row_bytes = product(dense, 2) * item(dense)
    tile      = 1 if row_bytes > width else min(4095, max(1, room // width))

A formula is a Python expression of whole numbers: names of earlier formulas, of the machine (vector_cores, cube_cores,
unified_buffer), + - * //, comparisons, `a if c else b`, min, max, ceil_div(a, b), round_up(a, unit), and what is known
of the operator's call: size(port, dim), product(port, from), elements(port), item(port) in bytes, is_float32(port),
number(port) of an input that is one number, has(port) of one that need not be there, attribute(name), truth(name) of a
boolean one, bits(name) of a float one's float32, given(name) of a float one that need not be there. Operands of a
division are not negative, where Python and C++ agree.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

MACHINE = ("vector_cores", "cube_cores", "unified_buffer")
_OPERATORS: Mapping[type, tuple[str, Callable[[int, int], int]]] = {
    ast.Add: ("+", lambda a, b: a + b),
    ast.Sub: ("-", lambda a, b: a - b),
    ast.Mult: ("*", lambda a, b: a * b),
    ast.FloorDiv: ("/", lambda a, b: a // b),
    ast.Lt: ("<", lambda a, b: int(a < b)),
    ast.LtE: ("<=", lambda a, b: int(a <= b)),
    ast.Gt: (">", lambda a, b: int(a > b)),
    ast.Eq: ("==", lambda a, b: int(a == b)),
}
_FUNCTIONS: Mapping[str, Callable[[int, int], int]] = {
    "min": min,
    "max": max,
    "ceil_div": lambda a, b: -(-a // b),
    "round_up": lambda a, unit: -(-a // unit) * unit,
}
HELPERS = """\
// What tiling formulas are made of.
#pragma once
#include <cstdint>

namespace formulas {
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a < b ? b : a; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t unit) { return ceil_div(a, unit) * unit; }
}  // namespace formulas
"""


@dataclass(frozen=True)
class Formula:
    """A number of the tiling. Those that are no `field` serve later formulas, the launch or the workspace."""

    name: str
    text: str
    field: bool = True


class Facts(Protocol):
    """What is known of a call: the functions of ports and attributes, by name, called with the formula's words."""

    def fact(self, name: str, words: Sequence[str | int]) -> int: ...


def evaluate(formulas: Sequence[Formula], facts: Facts, machine: Mapping[str, int]) -> dict[str, int]:
    """Every formula's value, in order.

    Raises:
        ValueError: a formula is none, or names what no earlier one defines.
    """
    known = {name: machine[name] for name in MACHINE}
    for formula in formulas:
        known[formula.name] = _value(parse(formula), known, facts)
    return {formula.name: known[formula.name] for formula in formulas}


def as_cpp(formulas: Sequence[Formula], fact: Callable[[str, Sequence[str | int]], str]) -> list[str]:
    """A line of C++ a formula, in order: `int64_t tile = ...;`. `fact` spells what is known of the call."""
    return [f"int64_t {formula.name} = {_spell(parse(formula), fact)};" for formula in formulas]


def calls(formula: Formula) -> list[tuple[str, list[str | int]]]:
    """What a formula asks of the call: (function, words), in the order in which it stands there."""
    found = [node for node in ast.walk(parse(formula)) if isinstance(node, ast.Call)]
    named = [(node.func.id, node) for node in found if isinstance(node.func, ast.Name)]
    return [(name, [_word(word) for word in node.args]) for name, node in named if name not in _FUNCTIONS]


def parse(formula: Formula) -> ast.expr:
    """The formula's expression.

    Raises:
        ValueError: it is no expression.
    """
    try:
        return ast.parse(formula.text, mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{formula.name} = {formula.text}: no expression") from error


def _value(node: ast.expr, known: Mapping[str, int], facts: Facts) -> int:
    def value(part: ast.expr) -> int:
        return _value(part, known, facts)

    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name) if name in known:
            return known[name]
        case ast.BinOp(left=a, op=op, right=b) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)][1](value(a), value(b))
        case ast.Compare(left=a, ops=[op], comparators=[b]) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)][1](value(a), value(b))
        case ast.IfExp(test=test, body=a, orelse=b):
            return value(a) if value(test) else value(b)
        case ast.Call(func=ast.Name(id=name), args=[a, b]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](value(a), value(b))
        case ast.Call(func=ast.Name(id=name), args=words):
            return facts.fact(name, [_word(word) for word in words])
    raise ValueError(f"{ast.unparse(node)}: not a part of a formula")


def _spell(node: ast.expr, fact: Callable[[str, Sequence[str | int]], str]) -> str:
    match node:
        case ast.Constant(value=int(number)):
            return str(number)
        case ast.Name(id=name):
            return name
        case ast.BinOp(left=a, op=op, right=b) | ast.Compare(left=a, ops=[op], comparators=[b]):
            return f"({_spell(a, fact)} {_OPERATORS[type(op)][0]} {_spell(b, fact)})"
        case ast.IfExp(test=test, body=a, orelse=b):
            return f"({_spell(test, fact)} ? {_spell(a, fact)} : {_spell(b, fact)})"
        case ast.Call(func=ast.Name(id=name), args=[a, b]) if name in _FUNCTIONS:
            return f"{name}({_spell(a, fact)}, {_spell(b, fact)})"
        case ast.Call(func=ast.Name(id=name), args=words):
            return fact(name, [_word(word) for word in words])
    raise ValueError(f"{ast.unparse(node)}: not a part of a formula")


def _word(node: ast.expr) -> str | int:
    match node:
        case ast.Name(id=name):
            return name
        case ast.Constant(value=int(number)):
            return number
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(number))):
            return -number
    raise ValueError(f"{ast.unparse(node)}: a name or a number is wanted")
