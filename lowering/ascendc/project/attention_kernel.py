"""op_kernel/ of jagged attention and its backward: a header a program, and the kernel that a tiling key chooses by."""

from __future__ import annotations

from collections.abc import Sequence

from gr_compile.lowering.ascendc.attention.operands_text import pointers
from gr_compile.lowering.ascendc.attention.printed import Printed
from gr_compile.lowering.ascendc.operators import Operator
from gr_compile.lowering.ascendc.project.attention_host import leaf_place
from gr_compile.lowering.ascendc.vector import kernel_name


def program_header(row: Operator, one: Printed) -> str:
    """A program in a namespace of its own: every one has its own types and constants."""
    text = "".join(f"//   {line}\n" for line in one.serves.call.program.text().splitlines())
    return (
        f"// Program {one.key} of gr::{row.name}:\n{text}#pragma once\n"
        f"namespace {one.name} {{\n{one.printer.body()}}}  // namespace {one.name}\n"
    )


def kernel_source(row: Operator, printed: Sequence[Printed]) -> str:
    """The kernel of the operator."""
    name = kernel_name(row)
    names = [*(port.name for port in (*row.inputs, *row.outputs)), "workspace", "tiling"]
    includes = "\n".join(f'#include "{one.name}.h"' for one in printed)
    chosen = " else ".join(f"if (TILING_KEY_IS({one.key})) {{\n    {_run(one)}\n  }}" for one in printed)
    return f"""\
// gr::{row.name}: {row.summary}.
#include "kernel_operator.h"

#include "{name}_tiling.h"
{includes}

// A tensor of a dynamic input or output.
__aicore__ inline GM_ADDR element(GM_ADDR list, uint32_t index) {{
  AscendC::ListTensorDesc tensors((__gm__ void*)list);
  return (GM_ADDR)tensors.GetDataPtr<uint8_t>(index);
}}

extern "C" __global__ __aicore__ void {name}({", ".join(f"GM_ADDR {x}" for x in names)}) {{
  KERNEL_TASK_TYPE_DEFAULT(KERNEL_TYPE_MIX_AIC_1_2);
  REGISTER_TILING_DEFAULT({row.ge_type}TilingData);
  GET_TILING_DATA(t, tiling);
  GM_ADDR user = AscendC::GetUserWorkspace(workspace);
  {chosen}
}}
"""


def _run(one: Printed) -> str:
    passed = [_operand(one, name) for name in pointers(one.printer)]
    return f"{one.name}::run({', '.join([*passed, 'user', 't'])});"


def _operand(one: Printed, name: str) -> str:
    """The operator's parameter behind one of a program's."""
    call, needs = one.serves.call, one.serves.needs or ()
    if name.startswith("grad_leaf"):
        at = int(name.removeprefix("grad_leaf"))
        wanted = [x for x, dtype in enumerate(call.leaf_dtypes) if dtype == call.leaf_dtypes[at] and needs[3 + x]]
        return f"element(grad_{leaf_place(call, at)[0]}, {wanted.index(at)})"
    if name.startswith("leaf"):
        port, element = leaf_place(call, int(name.removeprefix("leaf")))
        return f"element({port}, {element})"
    return {"grad": "grad_out", "out": "y"}.get(name, name)
