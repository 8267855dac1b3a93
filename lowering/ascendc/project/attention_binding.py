"""torch_binding/binding.cpp: the PrivateUse1 kernels of jagged attention and its backward."""

from __future__ import annotations

from gr_compile.lowering.ascendc.attention.printed import BACKWARD
from gr_compile.lowering.ascendc.operators import Operator, Port
from gr_compile.lowering.ascendc.vector import kernel_name

_TYPES = {
    "Tensor": "const at::Tensor&", "Optional[Tensor]": "const std::optional<at::Tensor>&",
    "List[Tensor]": "at::TensorList", "int": "int64_t", "SymInt": "int64_t", "List[int]": "at::IntArrayRef",
    "List[SymInt]": "at::IntArrayRef", "str": "c10::string_view", "List[bool]": "const c10::List<bool>&",
}  # fmt: skip
_SCALARS = {"float32": "at::kFloat", "float16": "at::kHalf", "bfloat16": "at::kBFloat16", "int32": "at::kInt",
            "int64": "at::kLong", "bool": "at::kBool"}  # fmt: skip


def attention_function(row: Operator) -> str:
    """The C++ function of either operator."""
    name, backward = kernel_name(row), f"gr::{row.name}" == BACKWARD
    arguments = row.overload._schema.arguments
    parameters = ", ".join(f"{_TYPES[str(argument.real_type)]} {argument.name}" for argument in arguments)
    held = [f"  {_operand(port)};" for port in row.inputs]
    held.append("  std::string leaves_types_ = types_of(leaves), program_(program);")
    attributes = {"leaves_types": "leaves_types_.data()", "heads": "heads", "program": "program_.data()"}
    results = _gradients(row) if backward else _result()
    passed = [f"{port.name}_" for port in row.inputs]
    passed += [attributes.get(attribute.name, f"{attribute.name}_") for attribute in row.attributes]
    passed += [f"{port.name}_" for port in row.outputs]
    return "\n".join([
        f"static {'std::vector<at::Tensor>' if backward else 'at::Tensor'} {name}({parameters}) {{",
        *held,
        *results,
        f'  launch("gr::{row.name}", v,',
        "         [&](uint64_t* bytes, aclOpExecutor** executor) {",
        f"           return aclnn{row.ge_type}GetWorkspaceSize({', '.join([*passed, 'bytes', 'executor'])});",
        "         },",
        f"         aclnn{row.ge_type});",
        f"  return {'found' if backward else 'y'};",
        "}",
        "",
    ])  # fmt: skip


def _operand(port: Port) -> str:
    name = port.name
    if port.role == "dynamic":
        return f"const Operands {name}_(of_type({port.argument}, {_SCALARS[port.types[0]]}))"
    if port.role == "optional":
        return f"const Optional {name}_({name})"
    if name == "sizes":  # the kernel reads them, not the host
        return "const Operand sizes_(at::tensor(sizes, v.options().dtype(at::kLong)))"
    return f"const Operand {name}_({name})"


def _result() -> list[str]:
    return [
        "  const at::TensorOptions options = v.options().dtype(type_in(program_));",
        "  at::Tensor y = at::empty({query_positions.size(0), heads, v.size(2)}, options);",
        "  const Operand y_(y);",
    ]


def _gradients(row: Operator) -> list[str]:
    """Gradients in torch's order: q, k, v and the leaves; one that nobody wants has no elements."""
    lines = [
        "  std::vector<at::Tensor> found = {gradient(q, needs_grad[0], v), gradient(k, needs_grad[1], v),",
        "                                   gradient(v, needs_grad[2], v)};",
        "  for (size_t leaf = 0; leaf < leaves.size(); leaf++)",
        "    found.push_back(gradient(leaves[leaf], needs_grad[3 + leaf], v));",
        "  std::vector<at::Tensor> wanted;",
        "  for (size_t leaf = 3; leaf < found.size(); leaf++)",
        "    if (needs_grad[leaf]) wanted.push_back(found[leaf]);",
        "  const Flags needs_grad_(needs_grad);",
    ]
    for at, port in enumerate(row.outputs):
        if port.role == "dynamic":
            lines.append(f"  const Operands {port.name}_(of_type(wanted, {_SCALARS[port.types[0]]}));")
        else:
            lines.append(f"  const Operand {port.name}_(found[{at}]);")
    return lines
