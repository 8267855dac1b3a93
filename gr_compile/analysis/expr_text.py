"""Expressions as text: `to_text` and `parse` are an exact round trip, `show` is for people.

gr_expr 1
%0 = index:i "j"
%1 = load:f32 "bias" (%0)
%2 = const:f32 -0x1.3880000000000p+13
score = %1
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from gr_compile.analysis.algebra import not_, terms
from gr_compile.analysis.node import Expr, make, walk

_HEADER = "gr_expr 1"
_TOKEN = re.compile(r'\s*(?:(%\d+)|("(?:[^"\\]|\\.)*")|([()])|([^\s()"%]+))')
_LINE = re.compile(r"(?:%(?P<number>\d+)|(?P<name>[^\s=%]+)) = (?P<value>.+)")


def to_text(exprs: Mapping[str, Expr]) -> str:
    """The named expressions as text, a line a node: shared nodes stay shared. The same in every process.

    Names must not be empty or contain white space, "=" or "%".
    """
    names = sorted(exprs)
    for name in names:
        if not re.fullmatch(r"[^\s=%]+", name):
            raise ValueError(f"{name!r} cannot name an expression")
    numbers: dict[Expr, int] = {}
    lines = [_HEADER]
    for node in walk(*(exprs[name] for name in names)):
        words = [f"%{len(numbers)} = {node.op}:{node.dtype}", *(_word(x, numbers) for x in node.args)]
        numbers[node] = len(numbers)
        lines.append(" ".join(words))
    lines += [f"{name} = %{numbers[exprs[name]]}" for name in names]
    return "\n".join(lines) + "\n"


def _word(value: Any, numbers: Mapping[Expr, int]) -> str:
    if isinstance(value, Expr):
        return f"%{numbers[value]}"
    if isinstance(value, tuple):
        return "(" + " ".join(_word(x, numbers) for x in value) + ")"
    if isinstance(value, str):
        return json.dumps(value)
    return value.hex() if isinstance(value, float) else str(value)


def parse(text: str) -> dict[str, Expr]:
    """The expressions that `to_text` wrote. ValueError, with the line, for anything else."""
    lines = text.splitlines()
    if not lines or lines[0] != _HEADER:
        raise ValueError(f"line 1: expected {_HEADER!r}")
    nodes: list[Expr] = []
    named: dict[str, Expr] = {}
    for number, line in enumerate(lines[1:], start=2):
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"line {number}: expected '%number = ...' or 'name = %number', got {line!r}")
        try:
            if match["number"] is None:
                (named[match["name"]],) = _values(match["value"], nodes)
            elif int(match["number"]) == len(nodes):
                head, _, rest = match["value"].partition(" ")
                op, _, dtype = head.partition(":")
                nodes.append(make(op, _values(rest, nodes), dtype))
            else:
                raise ValueError(f"expected %{len(nodes)}")
        except (ValueError, IndexError) as error:
            raise ValueError(f"line {number}: {error} in {line!r}") from error
    return named


def _values(text: str, nodes: list[Expr]) -> tuple[Any, ...]:
    """The arguments written in `text`."""
    stack: list[list[Any]] = [[]]
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"cannot read {text[position:]!r}")
        position = match.end()
        reference, string, bracket, word = match.groups()
        if reference:
            stack[-1].append(nodes[int(reference[1:])])
        elif string:
            stack[-1].append(json.loads(string))
        elif bracket == "(":
            stack.append([])
        elif bracket == ")":
            inner = tuple(stack.pop())
            if not stack:
                raise ValueError("unbalanced )")
            stack[-1].append(inner)
        else:
            stack[-1].append(_number(word))
    if len(stack) != 1:
        raise ValueError("unbalanced (")
    return tuple(stack[0])


def _number(word: str) -> bool | int | float:
    if word in ("True", "False"):
        return word == "True"
    if re.fullmatch(r"-?\d+", word):
        return int(word)
    return float.fromhex(word)


# ---------------------------------------------------------------------- for people
_INFIX = {"add": "+", "sub": "-", "mul": "*", "div": "/", "lt": "<", "le": "<=", "eq": "=="}


def show(expr: Expr, limit: int = 4000) -> str:
    """`expr` in one line, as a person would write it; parts are cut after `limit` characters."""
    texts: dict[Expr, str] = {}
    for node in walk(expr):
        text = _show_node(node, texts.__getitem__)
        texts[node] = text if len(text) <= limit else text[:limit] + "…"
    return texts[expr]


def _show_node(node: Expr, text: Callable[[Expr], str]) -> str:
    op, args = node.op, node.args
    if op == "const":
        return f"{args[0]:g}" if isinstance(args[0], float) else str(args[0])
    if op in ("index", "size"):
        return str(args[0])
    if op == "poly":
        return _show_terms(dict(args), text)
    if op == "load":
        return f"{args[0]}[{', '.join(map(text, args[1]))}]"
    if op in ("ge0", "eq0"):
        return _show_comparison(node, text)
    if op == "compare":
        return f"({text(args[1])} {_INFIX[args[0]]} {text(args[2])})"
    if op == "and":
        return "(" + " & ".join(map(text, args)) + ")"
    if op == "not" and args[0].op == "and":
        return "(" + " | ".join(_show_negation(x, text) for x in node.args[0].args) + ")"
    if op == "not":
        return _show_negation(args[0], text)
    if op in _INFIX:
        return f"({text(args[0])} {_INFIX[op]} {text(args[1])})"
    if op == "cast":
        return f"{node.dtype}({text(args[0])})"
    return f"{op}({', '.join(text(x) if isinstance(x, Expr) else str(x) for x in args)})"


def _show_negation(node: Expr, text: Callable[[Expr], str]) -> str:
    """`not node` as a part of an `or`; that is no operand of the `or`, so `text` may not know it."""
    if node.op == "ge0":
        return _show_comparison(not_(node), text)
    if node.op == "not":
        return text(node.args[0])
    return _show_comparison(node, text, "!=") if node.op == "eq0" else "~" + text(node)


def _show_terms(coefficients: Mapping[tuple[Expr, ...], int], text: Callable[[Expr], str]) -> str:
    ordered = sorted(coefficients.items(), key=lambda term: (term[1] < 0, not term[0]))
    words: list[str] = []
    for monomial, coefficient in ordered:
        factors = [text(x) for x in monomial]
        if abs(coefficient) != 1 or not factors:
            factors.insert(0, str(abs(coefficient)))
        sign = "-" if coefficient < 0 else "+"
        words.append((f" {sign} " if words else "-" if coefficient < 0 else "") + "*".join(factors))
    return "".join(words) or "0"


def _show_comparison(node: Expr, text: Callable[[Expr], str], sign: str = "") -> str:
    """`p >= 0` or `p == 0` with the negative terms of p brought to the right, and `p - 1 >= 0` as `>`."""
    coefficients = terms(node.args[0])
    if node.op == "ge0" and coefficients.get((), 0) == -1:
        del coefficients[()]
        sign = ">"
    left = {m: c for m, c in coefficients.items() if c > 0}
    right = {m: -c for m, c in coefficients.items() if c < 0}
    sign = sign or (">=" if node.op == "ge0" else "==")
    return f"{_show_terms(left, text)} {sign} {_show_terms(right, text)}"
