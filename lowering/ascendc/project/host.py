"""op_host/: what GE asks of an operator on the host - its definition, the result's shape and dtype, its tiling.

    gr_pack_tiling.h   GrPackTiling(call, cores, buffer) -> numbers: C++ alone, from the formulas of the recipe
    gr_pack.cpp        OpDef, InferShape, InferDataType and the tiling function, which asks GE and calls the former
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial

from gr_compile.lowering.ascendc.formulas import MACHINE, Formula, as_cpp, calls
from gr_compile.lowering.ascendc.operators import FORMAT, Operator, Port
from gr_compile.lowering.ascendc.recipe import Recipe
from gr_compile.lowering.ascendc.recipes import RECIPES
from gr_compile.lowering.ascendc.vector import kernel_name, tiling_fields

GE_TYPES = {
    "float32": "DT_FLOAT", "float16": "DT_FLOAT16", "bfloat16": "DT_BF16", "int32": "DT_INT32", "int64": "DT_INT64",
    "bool": "DT_BOOL",
}  # fmt: skip
SOCS = ("ascend910b", "ascend910_93")
_ATTRIBUTES = {"int": "Int()", "float": "Float()", "bool": "Bool()", "str": "String()", "list_bool": "ListBool()"}
_OF_ATTRIBUTES = ("attribute", "truth", "bits", "given")


def tiling_data(row: Operator) -> str:
    """The tiling struct, which host and kernel share."""
    fields = "\n".join(f"  {ctype} {name};" for name, ctype in tiling_fields(RECIPES[f"gr::{row.name}"]))
    return f"#pragma once\n#include <cstdint>\n\nstruct {row.ge_type}TilingData {{\n{fields}\n}};\n"


def tiling_formulas(row: Operator) -> str:
    """The formulas as a function of whatever answers their questions about a call."""
    recipe, name = RECIPES[f"gr::{row.name}"], row.ge_type
    lines = "\n".join(f"  {line}" for line in as_cpp(recipe.formulas, lambda what, words: spell_fact(row, what, words)))
    fields = ", ".join(field for field, _ in tiling_fields(recipe))
    parameters = ", ".join(f"int64_t {number}" for number in MACHINE)
    return f"""\
// The tiling of gr::{row.name}, by the formulas that gr_compile evaluates, too.
#pragma once
#include "../op_kernel/{kernel_name(row)}/{kernel_name(row)}_tiling.h"
#include "formulas.h"

struct {name}Launch {{
  {name}TilingData tiling;
  int64_t blocks, workspace;
}};

template <class Call> {name}Launch {name}Tiling(const Call& call, {parameters}) {{
  using namespace formulas;
{lines}
  return {{{{{fields}}}, blocks, workspace}};
}}
"""


def spell_fact(row: Operator, what: str, words: Sequence[str | int]) -> str:
    """What is known of a call, asked of an object `call`: ports and attributes by number."""
    names = [item.name for item in (row.attributes if what in _OF_ATTRIBUTES else row.inputs)]
    port, *rest = words
    return f"call.{what}({', '.join([f'/*{port}*/ {names.index(str(port))}', *map(str, rest)])})"


def tiling_opening(row: Operator) -> str:
    """How the .cpp of an operator begins: its tiling function, up to what the platform and the call are."""
    return f"""\
// gr::{row.name}: {row.summary}.
#include "{kernel_name(row)}_tiling.h"

#include "call.h"
#include "register/op_def_registry.h"
#include "tiling/platform/platform_ascendc.h"

namespace optiling {{
static ge::graphStatus Tile(gert::TilingContext* context) {{
  platform_ascendc::PlatformAscendC platform(context->GetPlatformInfo());
  uint64_t unified_buffer = 0;
  platform.GetCoreMemSize(platform_ascendc::CoreMemType::UB, unified_buffer);
  const Call<gert::TilingContext> call{{context}};
"""


def operator_source(row: Operator) -> str:
    """The .cpp of an operator on the host."""
    recipe, name = RECIPES[f"gr::{row.name}"], row.ge_type
    mode = "  context->SetScheduleMode(1);  // cores wait for each other: all or none start\n" if recipe.meets else ""
    return f"""\
{tiling_opening(row)}\
  const {name}Launch found = {name}Tiling(call, platform.GetCoreNumAiv(), platform.GetCoreNumAic(), unified_buffer);
  *context->GetTilingData<{name}TilingData>() = found.tiling;
  context->SetBlockDim(static_cast<uint32_t>(found.blocks));
{mode}  context->GetWorkspaceSizes(1)[0] = platform.GetLibApiWorkSpaceSize() + static_cast<size_t>(found.workspace);
  return ge::GRAPH_SUCCESS;
}}
}}  // namespace optiling

namespace ge {{
static ge::graphStatus InferShape(gert::InferShapeContext* context) {{
  const Call<gert::InferShapeContext> call{{context}};
{chr(10).join(_shape(row, number, shape) for number, shape in enumerate(recipe.shapes))}
  return GRAPH_SUCCESS;
}}
static ge::graphStatus InferDataType(gert::InferDataTypeContext* context) {{
{_data_type(row)}
  return GRAPH_SUCCESS;
}}
}}  // namespace ge

{definition(row, partial(port_types, row), read_numbers(recipe))}"""


def definition(row: Operator, types: Callable[[Port], Sequence[str]], read: Collection[str]) -> str:
    """The class that defines an operator.

    Args:
        types: the dtype of a port in each kernel.
        read: the inputs whose value the host reads.
    """
    lines = [_port("Input", port, types(port), port.name in read) for port in row.inputs]
    lines += [_port("Output", port, types(port), False) for port in row.outputs]
    lines += [f'    this->Attr("{a.name}").AttrType(REQUIRED).{_ATTRIBUTES[a.type]};' for a in row.attributes]
    return f"""\
namespace ops {{
class {row.ge_type} : public OpDef {{
 public:
  explicit {row.ge_type}(const char* name) : OpDef(name) {{
{chr(10).join(lines)}
    this->SetInferShape(ge::InferShape).SetInferDataType(ge::InferDataType);
    this->AICore().SetTiling(optiling::Tile);
{chr(10).join(f'    this->AICore().AddConfig("{soc}");' for soc in SOCS)}
  }}
}};
OP_ADD({row.ge_type});
}}  // namespace ops
"""


def read_numbers(recipe: Recipe) -> set[str]:
    """The inputs whose value the host reads."""
    asked = [*recipe.formulas, *(Formula("size", text) for shape in recipe.shapes for text in shape)]
    return {str(words[0]) for formula in asked for what, words in calls(formula) if what == "number"}


def signatures(row: Operator) -> list[dict[str, str]]:
    """The dtypes of all type variables in each kernel: a result that no input decides has the first input's dtype where
    it may have it, and int64 where not (a sum of whole numbers)."""
    decided = {port.variable for port in row.inputs if port.variable}
    found = []
    for chosen in row.signatures():
        first = next((chosen[variable] for variable in row.types if variable in decided), "int64")
        full = {
            variable: dtype if variable in decided else first if first in row.types[variable] else "int64"
            for variable, dtype in chosen.items()
        }
        if full not in found:
            found.append(full)
    return found


def port_types(row: Operator, port: Port) -> list[str]:
    """The dtype of a port in each signature."""
    return [signature[port.variable] if port.variable else port.types[0] for signature in signatures(row)]


def _shape(row: Operator, number: int, sizes: Sequence[str]) -> str:
    lines = [f"  gert::Shape& shape_{number} = *context->GetOutputShape({number});", f"  shape_{number}.SetDimNum(0);"]
    for text in sizes:
        ((what, words), *_) = calls(Formula("size", text))
        if what == "gradient":
            port, wanted = words
            number_of = [item.name for item in row.inputs].index(str(port))
            truth = spell_fact(row, "truth", [wanted])
            lines.append(f"  call.gradient(shape_{number}, /*{port}*/ {number_of}, {truth});")
        elif what in ("rest", "lead"):
            lines.append(f"  {spell_fact(row, what, words)[:-1]}, shape_{number});")
        else:
            (line,) = as_cpp([Formula("size", text)], lambda fact, given: spell_fact(row, fact, given))
            size = line.removeprefix("int64_t size = ")[:-1]
            lines.append(f"  shape_{number}.AppendDim(formulas::max({size}, -1));")
    return "\n".join(lines)


def _data_type(row: Operator) -> str:
    return "\n".join(_type_of(row, number, result) for number, result in enumerate(row.outputs))


def _type_of(row: Operator, number: int, result: Port) -> str:
    if not result.variable:
        return f"  context->SetOutputDataType({number}, ge::DT_INT64);"
    source = next((i for i, port in enumerate(row.inputs) if port.variable == result.variable), None)
    if source is not None:
        return f"  context->SetOutputDataType({number}, context->GetInputDataType({source}));"
    kept = " || ".join(f"type == ge::{GE_TYPES[dtype]}" for dtype in row.types[result.variable])
    return (
        "  const ge::DataType type = context->GetInputDataType(0);\n"
        f"  context->SetOutputDataType({number}, {kept} ? type : ge::DT_INT64);"
    )


def _port(kind: str, port: Port, types: Sequence[str], read: bool) -> str:
    names = ", ".join(f"ge::{GE_TYPES[dtype]}" for dtype in types)
    formats = ", ".join([f"ge::FORMAT_{FORMAT}"] * len(types))
    more = ".ValueDepend(OPTIONAL)" if read else ""
    return (
        f'    this->{kind}("{port.name}").ParamType({port.role.upper()})\n        .DataType({{{names}}})\n'
        f"        .Format({{{formats}}})\n        .UnknownShapeFormat({{{formats}}}){more};"
    )
