"""torch_binding/binding.cpp: each operator's PrivateUse1 kernel, which calls the package's aclnn function.

Schema, meta function and autograd formula of a `gr::` operator are registered by gr_compile.ops; they are not printed
a second time.
"""

from __future__ import annotations

from collections.abc import Sequence

from gr_compile.lowering.ascendc.attention.printed import OPERATORS
from gr_compile.lowering.ascendc.formulas import Formula, as_cpp, calls
from gr_compile.lowering.ascendc.operators import NO_NUMBER, Operator, Port
from gr_compile.lowering.ascendc.project.attention_binding import attention_function
from gr_compile.lowering.ascendc.project.host import read_numbers
from gr_compile.lowering.ascendc.recipes import RECIPES
from gr_compile.lowering.ascendc.vector import kernel_name

_TYPES = {
    "Tensor": "const at::Tensor&", "Optional[Tensor]": "const std::optional<at::Tensor>&", "SymInt": "int64_t",
    "number": "const at::Scalar&", "float": "double", "Optional[float]": "std::optional<double>", "bool": "bool",
}  # fmt: skip


def binding(rows: Sequence[Operator]) -> str:
    """The file for all operators of the project."""
    includes = "\n".join(f'#include "aclnn_{kernel_name(row)}.h"' for row in rows)
    functions = "\n".join(
        attention_function(row) if f"gr::{row.name}" in OPERATORS else _function(row) for row in rows
    )
    registered = "\n".join(f'  m.impl("{row.name}", TORCH_FN({kernel_name(row)}));' for row in rows)
    return f"""\
// The gr:: operators on NPU tensors.
#include "aclnn_call.h"
{includes}

{functions}
TORCH_LIBRARY_IMPL(gr, PrivateUse1, m) {{
{registered}
}}
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {{}}
"""


def _function(row: Operator) -> str:
    recipe, name = RECIPES[f"gr::{row.name}"], kernel_name(row)
    arguments = row.overload._schema.arguments
    parameters = ", ".join(f"{_TYPES[_kind(argument)]} {argument.name}" for argument in arguments)
    whole = row.overload._schema.returns[0].type.kind() != "TensorType"
    read = read_numbers(recipe)
    device = arguments[0].name
    held = [f"  const {_operand(port, port.name in read, row)};" for port in row.inputs]
    made = [f"  at::Tensor {port.name} = {_made(row, port, shape)};" for port, shape in zip(row.outputs, recipe.shapes)]
    numbers = {argument.name for argument in arguments if _kind(argument) == "Optional[float]"}
    passed = ", ".join([
        *(f"{port.name}_" for port in row.inputs),
        *(f"{a.argument}.value_or({NO_NUMBER})" if a.argument in numbers else a.argument for a in row.attributes),
        *(f"{port.name}_" for port in row.outputs), "bytes", "executor",
    ])  # fmt: skip
    names = ", ".join(port.name for port in row.outputs)
    several = f"std::tuple<{', '.join(['at::Tensor'] * len(row.outputs))}>"
    result = "int64_t" if whole else "at::Tensor" if len(row.outputs) == 1 else several
    refused = [
        f'  TORCH_CHECK(!{argument.name}.has_value(), "gr::{row.name}: no kernel takes {argument.name}");'
        for argument in arguments if argument.name in row.without
    ]  # fmt: skip
    return "\n".join([
        f"static {result} {name}({parameters}) {{",
        *refused,
        *made,
        *held,
        *(f"  const Operand {port.name}_({port.name});" for port in row.outputs),
        f'  launch("gr::{row.name}", {device},',
        "         [&](uint64_t* bytes, aclOpExecutor** executor) {",
        f"           return aclnn{row.ge_type}GetWorkspaceSize({passed});",
        "         },",
        f"         aclnn{row.ge_type});",
        f"  return {'y.item<int64_t>()' if whole else names if len(row.outputs) == 1 else f'{{{names}}}'};",
        "}",
        "",
    ])  # fmt: skip


def _kind(argument: object) -> str:
    return "SymInt" if str(argument.real_type) == "int" else str(argument.real_type)  # type: ignore[attr-defined]


def _operand(port: Port, read: bool, row: Operator) -> str:
    """An argument as aclnn takes it: a number that the host reads, a tensor, or a number in a tensor's dtype."""
    like = (row.like or {}).get(port.argument)
    if read:
        return f"Number {port.name}_({port.name})"
    if like is not None:
        return f"Operand {port.name}_(at::full({{1}}, {port.name}, {like}.options()))"
    if port.role == "optional":
        return f"Optional {port.name}_({port.name})"
    return f"Operand {port.name}_({port.name})"


def _made(row: Operator, result: Port, shape: Sequence[str]) -> str:
    """The memory of a result."""
    for text in shape:
        ((what, words), *_) = calls(Formula("size", text))
        if what == "gradient":
            port, wanted = words
            return f"gradient({port}, {wanted}, {port})"
    return f"at::empty({_sizes(shape)}, {_options(row, result)})"


def _sizes(shape: Sequence[str]) -> str:
    numbers, rest, lead = [], "", ""
    for text in shape:
        ((what, words), *_) = calls(Formula("size", text))
        if what == "rest":
            rest = f", {words[0]}.sizes().slice({words[1]})"
        elif what == "lead":
            lead = f"{words[0]}.sizes().slice(0, {words[0]}.dim() - 1).vec()"
        else:
            (line,) = as_cpp([Formula("size", text)], _spell)
            numbers.append(line.removeprefix("int64_t size = ")[:-1])
    listed = f"{{{', '.join(numbers)}}}"
    return f"joined({lead}, {listed})" if lead else f"joined({listed}{rest})"


def _spell(what: str, words: Sequence[str | int]) -> str:
    if what in ("number", "attribute"):
        return str(words[0])
    return f"{words[0]}.has_value()" if what == "has" else f"{words[0]}.size({words[1]})"


def _options(row: Operator, result: Port) -> str:
    first = row.inputs[0].name
    if not result.variable:
        return f"{first}.options().dtype(at::kLong)"
    source = next((port.name for port in row.inputs if port.variable == result.variable), None)
    if source is not None:
        return f"{source}.options()"
    return f"{first}.options().dtype({first}.is_floating_point() ? {first}.scalar_type() : at::kLong)"
