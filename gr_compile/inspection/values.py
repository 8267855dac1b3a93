"""Turns the values of a graph into Python source (arguments) and into short text (`f32[s0, 50]`)."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.fx as fx
from torch.utils._sympy.printers import PythonPrinter

_DTYPES = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "bool",
    torch.complex64: "c64",
    torch.complex128: "c128",
}
_INFIX = {
    "add": "+",
    "sub": "-",
    "mul": "*",
    "truediv": "/",
    "floordiv": "//",
    "mod": "%",
    "pow": "**",
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "and_": "&",
    "or_": "|",
    "xor": "^",
}
_DYNAMO_NAME = re.compile(r"^[lL]_(?P<rest>.*?)_*?(?:__\d+|_)?$")
# A size without a hint (an unbacked one) in a recorded input: small, and no 0 or 1 that torch specialises.
_SIZE_WITHOUT_HINT = 6


def size_hint(size: int | torch.SymInt) -> int:
    """The example value of a size, without a guard: `int(size)` would fix the size in the compiled graph."""
    if isinstance(size, int):
        return size
    node = size.node
    hint = node.hint if node.has_hint() else None
    return int(hint) if hint is not None else _SIZE_WITHOUT_HINT


def dtype_text(dtype: torch.dtype) -> str:
    """`f32`, `i64`, `bool` and so on."""
    return _DTYPES.get(dtype, str(dtype).removeprefix("torch."))


def describe(value: object) -> str:
    """A short type of a node's value: `f32[s0, 50]`, `Sym(2*s0)`, `(f32[3], i64[3])`; "" when unknown."""
    if isinstance(value, torch.Tensor):
        sizes = ", ".join(str(size) for size in value.shape)
        where = "" if value.device.type == "cpu" else f" {value.device}"
        return f"{dtype_text(value.dtype)}[{sizes}]{where}"
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return f"Sym({value.node.expr})"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(describe(item) or "?" for item in value) + ")"
    if isinstance(value, (bool, int, float)):
        return str(value)
    return "" if value is None else type(value).__name__


def short_name(name: str) -> str:
    """Dynamo's `l_self_modules_layers_modules_0_parameters_weight_` as `layers_0_weight`."""
    found = _DYNAMO_NAME.match(name)
    if not found:
        return name
    rest = found["rest"]
    if rest.startswith("self_"):
        rest = re.sub(r"(?:^|(?<=_))(?:modules|parameters|buffers)_", "", rest.removeprefix("self_"))
    rest = re.sub(r"_{2,}", "_", rest).strip("_")
    return rest if rest.isidentifier() and not keyword.iskeyword(rest) else name


@dataclass
class Imports:
    """What the printed program must import beside torch, and the operator namespaces that it abbreviates."""

    modules: set[str] = field(default_factory=set)
    namespaces: set[str] = field(default_factory=set)
    numbers: set[str] = field(default_factory=set)


@dataclass
class SourcePrinter:
    """Prints arguments, targets and calls as Python source; `names` maps nodes to their variable names."""

    names: Mapping[fx.Node, str]
    imports: Imports
    symbol: Callable[[str], str]

    def value(self, value: Any) -> str:
        """The source of one argument, however nested."""
        if isinstance(value, fx.Node):
            return self.names[value]
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return self._symbolic(value)
        if isinstance(value, float):
            return self._float(value)
        if isinstance(value, complex):
            return f"complex({self._float(value.real)}, {self._float(value.imag)})"
        if value is None or value is Ellipsis or isinstance(value, (bool, int, str, bytes)):
            return repr(int(value) if type(value) is not bool and isinstance(value, int) else value)
        return self._torch_constant(value) or self._container(value) or self._unprintable(value)

    def _torch_constant(self, value: Any) -> str:
        if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
            return str(value)
        if isinstance(value, torch.device):
            return f"torch.device({str(value)!r})"
        return ""

    def _container(self, value: Any) -> str:
        if isinstance(value, slice):
            return f"slice({self.value(value.start)}, {self.value(value.stop)}, {self.value(value.step)})"
        if isinstance(value, range):
            return repr(value)
        if isinstance(value, dict):
            return "{" + ", ".join(f"{self.value(k)}: {self.value(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(self.value(item) for item in value) + "]"
        if isinstance(value, (tuple, torch.Size)):
            inner = ", ".join(self.value(item) for item in value)
            return f"({inner},)" if len(value) == 1 else f"({inner})"
        return ""

    def _unprintable(self, value: Any) -> str:
        text = " ".join(repr(value).split())[:200]
        return f"replay.unprintable({text!r})"

    def _float(self, value: float) -> str:
        if math.isfinite(value):
            return repr(value)
        self.imports.numbers.add("nan" if math.isnan(value) else "inf")
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")

    def _symbolic(self, value: torch.SymInt | torch.SymFloat | torch.SymBool) -> str:
        expression = value.node.expr
        known = {str(free): self.symbol(str(free)) for free in getattr(expression, "free_symbols", ())}
        text = str(PythonPrinter().doprint(expression))
        if "math." in text:
            self.imports.modules.add("math")
        return re.sub(r"\b[A-Za-z_]\w*\b", lambda word: known.get(word[0], word[0]), text)

    def call(self, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """The source of `target(*args, **kwargs)`; operators of Python are written infix."""
        if getattr(target, "__module__", "") in ("_operator", "operator") and not kwargs:
            operation = target.__name__
            if operation == "getitem":
                return f"{self.value(args[0])}[{self.value(args[1])}]"
            if operation in _INFIX and len(args) == 2:
                return f"{self.value(args[0])} {_INFIX[operation]} {self.value(args[1])}"
        return f"{self.target(target)}({self.arguments(args, kwargs)})"

    def arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """The source between the brackets of a call."""
        parts = [self.value(argument) for argument in args]
        odd = {name: value for name, value in kwargs.items() if keyword.iskeyword(name)}
        parts += [f"{name}={self.value(value)}" for name, value in kwargs.items() if name not in odd]
        if odd:
            parts.append("**" + self.value(odd))
        return ", ".join(parts)

    def target(self, target: Any) -> str:
        """The source that names a called function."""
        if isinstance(target, torch._ops.OpOverload):
            return self._operator(target.namespace, target._opname, target._overloadname)
        if isinstance(target, torch._ops.OpOverloadPacket):
            namespace, _, name = target._qualified_op_name.partition("::")
            return self._operator(namespace, name)
        if isinstance(target, torch._ops.HigherOrderOperator):
            return f"torch.ops.higher_order.{target.__name__}"
        module = (getattr(target, "__module__", "") or "builtins").replace("_operator", "operator")
        name = getattr(target, "__qualname__", getattr(target, "__name__", ""))
        if not name.replace(".", "").isidentifier():
            return self._unprintable(target)
        if module == "builtins":
            return str(name)
        if not module.startswith("torch"):
            self.imports.modules.add(module)
        return f"{module}.{name}"

    def _operator(self, namespace: str, *path: str) -> str:
        self.imports.namespaces.add(namespace)
        text = namespace if namespace.isidentifier() else f"torch.ops.{namespace}"
        for name in path:
            text = f"getattr({text}, {name!r})" if keyword.iskeyword(name) else f"{text}.{name}"
        return text
