"""op_host/ of jagged attention and its backward: one operator, and a tiling key for each program that was printed.

    gr_jagged_attention_tiling.h   which program serves a call, and its tiling, from the formulas of attention/sizes.py
    gr_jagged_attention.cpp        OpDef, InferShape, InferDataType, the tiling function

What no program serves, and sizes beyond a kernel's limits, fail in the tiling function with the reason on stderr.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from gr_compile.lowering.ascendc.attention import sizes
from gr_compile.lowering.ascendc.attention.call import Call, dtype_name
from gr_compile.lowering.ascendc.attention.printed import BACKWARD, Printed, signatures
from gr_compile.lowering.ascendc.formulas import MACHINE, as_cpp
from gr_compile.lowering.ascendc.operators import OPERATORS, Operator, Port
from gr_compile.lowering.ascendc.project.host import GE_TYPES, definition, tiling_opening
from gr_compile.lowering.ascendc.vector import kernel_name

_DTYPES = {"f32": "DT_FLOAT", "f16": "DT_FLOAT16", "bf16": "DT_BF16"}


def tiling_fields(printed: Sequence[Printed]) -> list[str]:
    """Of the struct that all programs of an operator share."""
    return list(
        dict.fromkeys(x.name for one in printed for x in sizes.formulas(one.printer, one.tiling) if x.field)
    )


def tiling_data(row: Operator, printed: Sequence[Printed]) -> str:
    """The tiling struct, which host and kernel share; what a program does not have is 0."""
    fields = "\n".join(f"  int64_t {name};" for name in tiling_fields(printed))
    return f"#pragma once\n#include <cstdint>\n\nstruct {row.ge_type}TilingData {{\n{fields}\n}};\n"


def port_types(port: Port, printed: Sequence[Printed]) -> list[str]:
    """The dtype of a port in each signature."""
    found = signatures(printed)
    return [kinds[port.variable] if port.variable else port.types[0] for kinds in found]


def tiling_formulas(row: Operator, printed: Sequence[Printed]) -> str:
    """Which program serves a call, and its tiling."""
    name = kernel_name(row)
    keys = "\n".join(f"  if (serves_{one.key}(call)) return {one.key};" for one in printed)
    cases = "\n".join(f"    case {one.key}: return tiling_{one.key}(call, {', '.join(MACHINE)});" for one in printed)
    return f"""\
// Which program serves a call of gr::{row.name}, and its tiling, by the formulas that gr_compile evaluates, too.
#pragma once
#include "../op_kernel/{name}/{name}_tiling.h"
#include "formulas.h"

struct {row.ge_type}Launch {{
  {row.ge_type}TilingData tiling;
  int64_t blocks, workspace;
  const char* refused;  // why there is no kernel for these sizes
}};

namespace {name} {{
{chr(10).join(_program(row, one) for one in printed)}
// The tiling key of the program that serves the call; 0: there is none.
template <class Call> int64_t key(const Call& call) {{
{keys}
  return 0;
}}
template <class Call> {row.ge_type}Launch tiling(const Call& call, int64_t key, {_parameters()}) {{
  switch (key) {{
{cases}
  }}
  return {{}};
}}
}}  // namespace {name}
"""


def _parameters() -> str:
    return ", ".join(f"int64_t {number}" for number in MACHINE)


def _program(row: Operator, one: Printed) -> str:
    formulas = sizes.formulas(one.printer, one.tiling)
    lines = as_cpp(formulas, lambda _, words: _size(row, one.serves.call, words))
    lines += [f'if (!{x.name}) found.refused = {json.dumps(x.reason)};' for x in sizes.limits(one.printer, one.tiling)]
    lines += [f"found.tiling.{x.name} = {x.name};" for x in formulas if x.field]
    body = "\n".join(f"  {line}" for line in [*lines, "found.blocks = blocks, found.workspace = workspace;"])
    conditions = " &&\n         ".join(_conditions(row, one))
    return f"""\
// Program {one.key}. The tile: {one.tiling.reason or 'given'}.
template <class Call> bool serves_{one.key}(const Call& call) {{
  return {conditions};
}}
template <class Call> {row.ge_type}Launch tiling_{one.key}(const Call& call, {_parameters()}) {{
  using namespace formulas;
  {row.ge_type}Launch found{{}};
{body}
  return found;
}}
"""


def _size(row: Operator, call: Call, words: Sequence[str | int]) -> str:
    port, dim = str(words[0]), words[1]
    name, element = leaf_place(call, int(port.removeprefix("leaf"))) if port.startswith("leaf") else (port, 0)
    return f"call.size({_port(row, name)}, {dim}{f', {element}' if element else ''})"


def leaf_place(call: Call, at: int) -> tuple[str, int]:
    """The dynamic input that a leaf is in, and its number there."""
    dtype = call.leaf_dtypes[at]
    return f"leaves_{dtype_name(dtype)}", call.leaf_dtypes[:at].count(dtype)


def _port(row: Operator, name: str) -> str:
    return f"/*{name}*/ {[port.name for port in row.inputs].index(name)}"


def _attribute(row: Operator, name: str) -> str:
    return f"/*{name}*/ {[attribute.name for attribute in row.attributes].index(name)}"


def _conditions(row: Operator, one: Printed) -> list[str]:
    """What a call has that the program was printed for."""
    call, needs = one.serves.call, one.serves.needs

    def typed(port: str, dtype: str) -> str:
        return f"call.type({_port(row, port)}) == ge::{GE_TYPES[dtype]}"

    def sized(port: str, dim: int, size: int, element: int = 0) -> str:
        return f"call.size({_port(row, port)}, {dim}{f', {element}' if element else ''}) == {size}"

    types = ",".join(dtype_name(dtype) for dtype in call.leaf_dtypes)
    found = [
        f'call.says({_attribute(row, "program")}, R"gr({call.program.text()})gr")',
        f'call.says({_attribute(row, "leaves_types")}, "{types}")',
        f"call.attribute({_attribute(row, 'heads')}) == {call.heads}",
        typed("v", dtype_name(call.v_dtype)), sized("v", 1, call.v_heads), sized("v", 2, call.dv),
    ]  # fmt: skip
    if call.program.product is not None:
        found += [f"call.has({_port(row, 'q')})", typed("q", dtype_name(call.qk_dtype)), sized("q", 1, call.q_heads)]
        found += [sized("q", 2, call.d), sized("k", 1, call.k_heads)]
    for at, extents in enumerate(call.extents):
        place = leaf_place(call, at)
        fixed = [(dim, extent) for dim, extent in enumerate(extents) if (at, dim) not in call.open]
        found += [sized(place[0], dim, extent, place[1]) for dim, extent in fixed]
    for at, need in enumerate(needs or ()):
        found.append(f"{'' if need else '!'}call.flag({_attribute(row, 'needs_grad')}, {at})")
    return found


def operator_source(name: str, printed: Sequence[Printed]) -> str:
    """The .cpp of an operator on the host."""
    row = OPERATORS[name]
    kernel = kernel_name(row)
    shape, kinds = (_backward_shape, _backward_types) if name == BACKWARD else (_forward_shape, _forward_types)
    return f"""\
{tiling_opening(row)}\
  const int64_t key = {kernel}::key(call);
  if (key == 0)
    return call.refuse("this package has no kernel for this call of", call.text({_attribute(row, "program")}));
  const {row.ge_type}Launch found =
      {kernel}::tiling(call, key, platform.GetCoreNumAiv(), platform.GetCoreNumAic(), unified_buffer);
  if (found.refused != nullptr) return call.refuse(found.refused);
  *context->GetTilingData<{row.ge_type}TilingData>() = found.tiling;
  context->SetTilingKey(static_cast<uint64_t>(key));
  context->SetBlockDim(static_cast<uint32_t>(found.blocks));
  context->SetScheduleMode(1);  // cores wait for each other: all or none start
  context->GetWorkspaceSizes(1)[0] = platform.GetLibApiWorkSpaceSize() + static_cast<size_t>(found.workspace);
  return ge::GRAPH_SUCCESS;
}}
}}  // namespace optiling

namespace ge {{
static ge::graphStatus InferShape(gert::InferShapeContext* context) {{
  const Call<gert::InferShapeContext> call{{context}};
{shape(row)}
  return GRAPH_SUCCESS;
}}
static ge::graphStatus InferDataType(gert::InferDataTypeContext* context) {{
  const Call<gert::InferDataTypeContext> call{{context}};
{kinds(row)}
  return GRAPH_SUCCESS;
}}
}}  // namespace ge

{definition(row, lambda port: port_types(port, printed), ())}"""


def _forward_shape(row: Operator) -> str:
    return f"""\
  gert::Shape& shape = *context->GetOutputShape(0);
  shape.SetDimNum(0);
  shape.AppendDim(call.size({_port(row, "query_positions")}, 0));
  shape.AppendDim(call.attribute({_attribute(row, "heads")}));
  shape.AppendDim(call.size({_port(row, "v")}, 2));"""


def _forward_types(row: Operator) -> str:
    program = _attribute(row, "program")
    half, brain = (f'call.holds({program}, "\\nout_dtype {x}\\n")' for x in ("f16", "bf16"))
    types = f"{half} ? ge::{_DTYPES['f16']} : {brain} ? ge::{_DTYPES['bf16']} : ge::{_DTYPES['f32']}"
    return f"  context->SetOutputDataType(0, {types});"


def _backward_shape(row: Operator) -> str:
    """A gradient that nobody wants has no elements; that of a leaf is no output then."""
    needs = _attribute(row, "needs_grad")
    lines = []
    for at, name in enumerate(("q", "k", "v")):
        port = _port(row, name)
        lines.append(f"  call.gradient(*context->GetOutputShape({at}), {port}, call.flag({needs}, {at}));")
    lines.append("  size_t out = 3;")
    for name, dtype in _leaf_outputs(row):
        body = f"call.gradient(*context->GetOutputShape(out++), {_port(row, name)}, true, element);"
        lines.append(_each_leaf(row, dtype, body))
    return "\n".join(lines)


def _backward_types(row: Operator) -> str:
    q, k, v = (_port(row, name) for name in ("q", "k", "v"))
    lines = [
        f"  const ge::DataType values = context->GetDynamicInputDataType({v}, 0);",
        f"  context->SetOutputDataType(0, call.has({q}) ? context->GetDynamicInputDataType({q}, 0) : values);",
        f"  context->SetOutputDataType(1, call.has({k}) ? context->GetDynamicInputDataType({k}, 0) : values);",
        "  context->SetOutputDataType(2, values);", "  size_t out = 3;",
    ]  # fmt: skip
    for _, dtype in _leaf_outputs(row):
        body = f"context->SetOutputDataType(out++, ge::{GE_TYPES[dtype]});"
        lines.append(_each_leaf(row, dtype, body, "int64_t"))
    return "\n".join(lines)


def _leaf_outputs(row: Operator) -> list[tuple[str, str]]:
    """The dynamic outputs' inputs, and their dtype."""
    return [(port.name.removeprefix("grad_"), port.types[0]) for port in row.outputs if port.role == "dynamic"]


def _each_leaf(row: Operator, dtype: str, body: str, parameter: str = "int64_t element") -> str:
    places = f"{_attribute(row, 'leaves_types')}, {_attribute(row, 'needs_grad')}"
    return f'  call.wanted({places}, "{dtype}", [&]({parameter}) {{ {body} }});'
