"""All files of an operator project, and writing them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from pprint import pformat

from gr_compile.lowering.ascendc.attention.printed import Printed
from gr_compile.lowering.ascendc.formulas import HELPERS
from gr_compile.lowering.ascendc.operators import FORMAT, OPERATORS, VENDOR, Operator, Port
from gr_compile.lowering.ascendc.project import attention_host, attention_kernel, host
from gr_compile.lowering.ascendc.project.binding import binding
from gr_compile.lowering.ascendc.recipes import RECIPES
from gr_compile.lowering.ascendc.vector import kernel_name, kernel_source

_STATIC = Path(__file__).parent / "static"  # Python files end in .in there: they are no modules of this package
_PROTO_TYPES: Mapping[str, str] = {"float32": "float", "float16": "fp16", "bfloat16": "bf16"}
_EXECUTABLE = "build.sh"
_ATTENTION_TESTS = "tests/test_attention.py"
Attention = Mapping[str, Sequence[Printed]]
_NO_ATTENTION: Attention = {}


def project_files(
    operators: Iterable[str], attention: Attention = _NO_ATTENTION, without: Sequence[str] = ()
) -> dict[str, str]:
    """The text of every file, by its path in the project.

    Args:
        operators: names of `RECIPES`, such as "gr::pack".
        attention: the programs of "gr::jagged_attention" and of its backward.
        without: what graphs hold and this package does not, a sentence each.

    Raises:
        ValueError: an operator has no kernel here.
    """
    names = sorted({*operators, *attention}, key=list(OPERATORS).index)
    unknown = [name for name in names if name not in RECIPES and name not in attention]
    if unknown:
        raise ValueError(f"no kernel for {', '.join(unknown)}; there are kernels for {', '.join(RECIPES)}")
    rows = [OPERATORS[name] for name in names]
    found = {
        path.relative_to(_STATIC).as_posix().removesuffix(".in"): path.read_text(encoding="utf-8")
        for path in sorted(_STATIC.rglob("*")) if path.is_file()
    }  # fmt: skip
    for name, row in zip(names, rows):
        found |= _attention_files(name, attention[name]) if name in attention else _operator_files(row)
    if not attention:
        del found[_ATTENTION_TESTS]
    found["CMakeLists.txt"] = _CMAKE
    found["op_host/formulas.h"] = HELPERS
    found["op_host/CMakeLists.txt"] = _host_cmake(rows)
    found["op_kernel/CMakeLists.txt"] = _kernel_cmake(rows)
    found["torch_binding/binding.cpp"] = binding(rows)
    found["tests/operators.py"] = _listed([row for name, row in zip(names, rows) if name in RECIPES], attention)
    found["README.md"] = _readme(rows, attention, without)
    return dict(sorted(found.items()))


def write_project(
    operators: Iterable[str], folder: Path, attention: Attention = _NO_ATTENTION, without: Sequence[str] = ()
) -> list[str]:
    """Write the project into a folder, and return the paths of its files there."""
    found = project_files(operators, attention, without)
    for name, text in found.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (folder / _EXECUTABLE).chmod(0o755)
    return list(found)


def proto(row: Operator, types: Callable[[Port], Sequence[str]]) -> str:
    """The operator's description as msopgen reads it; `types`: the dtype of a port in each kernel."""
    described = {
        "op": row.ge_type,
        "language": "cpp",
        "input_desc": [_port(port, types(port)) for port in row.inputs],
        "output_desc": [_port(port, types(port)) for port in row.outputs],
        "attr": [{"name": a.name, "param_type": "required", "type": a.type} for a in row.attributes],
    }
    return json.dumps([described], indent=2) + "\n"


def _port(port: Port, dtypes: Sequence[str]) -> dict[str, object]:
    types = [_PROTO_TYPES.get(dtype, dtype) for dtype in dtypes]
    return {"name": port.name, "param_type": port.role, "format": [FORMAT] * len(types), "type": types}


def _operator_files(row: Operator) -> dict[str, str]:
    name = kernel_name(row)
    first = {port.variable: f"DTYPE_{port.name.upper()}" for port in reversed(row.inputs) if port.variable}
    return {
        f"proto/{name}.json": proto(row, partial(host.port_types, row)),
        f"op_host/{name}.cpp": host.operator_source(row),
        f"op_host/{name}_tiling.h": host.tiling_formulas(row),
        f"op_kernel/{name}/{name}_tiling.h": host.tiling_data(row),
        f"op_kernel/{name}/{name}.cpp": kernel_source(row, first, tiling=f"{row.ge_type}TilingData"),
    }


def _attention_files(name: str, printed: Sequence[Printed]) -> dict[str, str]:
    row = OPERATORS[name]
    kernel = kernel_name(row)
    found = {
        f"proto/{kernel}.json": proto(row, lambda port: attention_host.port_types(port, printed)),
        f"op_host/{kernel}.cpp": attention_host.operator_source(name, printed),
        f"op_host/{kernel}_tiling.h": attention_host.tiling_formulas(row, printed),
        f"op_kernel/{kernel}/{kernel}_tiling.h": attention_host.tiling_data(row, printed),
        f"op_kernel/{kernel}/{kernel}.cpp": attention_kernel.kernel_source(row, printed),
    }
    return found | {f"op_kernel/{kernel}/{x.name}.h": attention_kernel.program_header(row, x) for x in printed}


def _listed(rows: Sequence[Operator], attention: Attention) -> str:
    lines = ['"""The operators of this package."""', "", f"OPERATORS = {[row.name for row in rows]!r}"]
    if attention:
        programs = [one.serves.described() for printed in attention.values() for one in printed]
        lines.append(f"ATTENTION = {pformat(programs, width=110, sort_dicts=False)}")
    return "\n".join(lines) + "\n"


_CMAKE = f"""\
# The package of the gr:: operators. Needs CANN 9.0 or later, whose set_env.sh has been sourced.
cmake_minimum_required(VERSION 3.21)
project(gr_operators CXX)
find_package(ASC REQUIRED)

set(package_name {VENDOR})
npu_op_package(${{package_name}}
    TYPE RUN
    CONFIG
        INSTALL_PATH ${{CMAKE_BINARY_DIR}}
)
add_subdirectory(op_host)
add_subdirectory(op_kernel)
"""


def _host_cmake(rows: Sequence[Operator]) -> str:
    sources = "\n".join(f"    {kernel_name(row)}.cpp" for row in rows)
    return f"""\
set(host_sources
{sources}
)
npu_op_code_gen(SRC ${{host_sources}} PACKAGE ${{package_name}} OUT_DIR ${{ASCEND_AUTOGEN_PATH}})
npu_op_library(cust_optiling TILING ${{host_sources}})

file(GLOB aclnn_sources ${{ASCEND_AUTOGEN_PATH}}/aclnn_*.cpp)
set_source_files_properties(${{aclnn_sources}} PROPERTIES GENERATED TRUE)
npu_op_library(cust_opapi ACLNN ${{aclnn_sources}})

file(GLOB proto_sources ${{ASCEND_AUTOGEN_PATH}}/op_proto.cc)
set_source_files_properties(${{proto_sources}} PROPERTIES GENERATED TRUE)
npu_op_library(cust_op_proto GRAPH ${{host_sources}} ${{proto_sources}})

npu_op_package_add(${{package_name}} LIBRARY cust_optiling cust_opapi cust_op_proto)
"""


def _kernel_cmake(rows: Sequence[Operator]) -> str:
    sources = "\n".join(
        f"npu_op_kernel_sources(gr_kernels OP_TYPE {row.ge_type} KERNEL_DIR {name} KERNEL_FILE {name}.cpp)"
        for row, name in ((row, kernel_name(row)) for row in rows)
    )
    return f"""\
{sources}
npu_op_kernel_library(gr_kernels SRC_BASE ${{CMAKE_CURRENT_SOURCE_DIR}} TILING_LIBRARY cust_optiling)
npu_op_package_add(${{package_name}} LIBRARY gr_kernels)
"""


_PROGRAMS = """\
Attention is printed for the score programs, heads, widths and dtypes of the graphs that were lowered: one tiling key
and one `program_*.h` each. What none of them serves fails in the tiling function, which says so on stderr.

"""


def _readme(rows: Sequence[Operator], attention: Attention, without: Sequence[str]) -> str:
    more = _PROGRAMS if attention else ""
    if without:
        listed = "\n".join(f"- {text}" for text in without)
        more += f"**Not in this package**, and in the graphs that it was printed for:\n\n{listed}\n\n"
    table = "\n".join(f"| `gr::{row.name}` | `{row.ge_type}` | {row.summary} |" for row in rows)
    return f"""\
# gr:: operators for Ascend 910B

Printed by gr_compile for CANN 9.0 or later. Not built and not run on a device by what printed it: the kernels' sources
run on gr_compile's functional model of AscendC, and everything else here is text that no compiler of CANN has read.

| operator | GE type | |
|---|---|---|
{table}

```sh
source /usr/local/Ascend/cann/set_env.sh
./build.sh                              # build/custom_opp_*.run
./build/custom_opp_*.run                # installs the package under vendors/{VENDOR}
source "$ASCEND_OPP_PATH"/vendors/{VENDOR}/bin/set_env.bash
./build.sh --binding                    # torch_binding/gr_operators, needs torch_npu and gr_compile
PYTHONPATH=torch_binding pytest tests
```

{more}The operators' tiling is computed on the host by `op_host/*_tiling.h`, from the formulas that gr_compile
evaluates, too; core counts and buffer sizes come from the platform. `proto/` holds the operators' descriptions for
msopgen.
"""
