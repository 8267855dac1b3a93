"""AscendC kernels compiled by g++ and run on the CPU, core by core, with the API's documented constraints enforced.

    cumsum.cpp  --g++, include/*.h-->  a program  --arguments, tiling, machine-->  results, or the rule that was broken

The headers are our own: the API's names, with our own account of what each does. docs/ascend.md says what is modelled,
and what a pass on the model proves and what not.
"""

from gr_compile.lowering.ascendc.functional_model.arguments import In, InOut, Listed, Out, Tiling, Workspace
from gr_compile.lowering.ascendc.functional_model.build import CompileError
from gr_compile.lowering.ascendc.functional_model.driver import Broken, Program, compile_kernels

__all__ = [
    "Broken", "CompileError", "In", "InOut", "Listed", "Out", "Program", "Tiling", "Workspace", "compile_kernels",
]  # fmt: skip
