"""The stand-in for torchair's one native module, so that its converter runs where CANN is not.

It answers what a converter asks while it builds a graph, and refuses what needs the engine. A real host's module knows
the operators that are installed there; this one knows those of the table, and Huawei's attention.
"""

from __future__ import annotations

import enum
import sys
import types
from typing import Any, NoReturn

from gr_compile.lowering.ascendc.operators import OPERATORS
from gr_compile.lowering.torchair import library

NAME = "torchair.core._torchair"
_SILENT = (
    "InitializeGraphEngine", "FinalizeGraphEngine", "InitDeviceStdoutChannel", "SetDebugLogPath", "AclmdlSetDump",
)  # fmt: skip
_REFUSED = ("export", "as_torch_tensors", "StupidRepeat", "AclopStartDumpArgs", "AclopStopDumpArgs", "GetSocName")
_DTYPES = (
    "BOOL", "UINT8", "INT8", "INT16", "UINT16", "INT32", "UINT32", "INT64", "UINT64", "BF16", "FLOAT16", "FLOAT32",
    "FLOAT64", "COMPLEX64", "COMPLEX128",
)  # fmt: skip


class _Graph:
    """What torchair's graph inherits from: it is built, never loaded or run."""

    def __init__(self, name: str = "") -> None:
        self.name = name

    def _refuse(self, *args: Any) -> NoReturn:
        raise NotImplementedError("a GE graph is loaded and run on a host with CANN alone")

    load = set_hint_shape = compile = run = auto_tune = _refuse


def registered(op_type: str) -> tuple[str, list[Any], list[Any], list[Any]]:
    """torchair's get_registered_ir_def: ("SUCCESS", inputs, outputs, attributes) of an operator that is installed."""
    if op_type == library.ATTENTION:
        return "SUCCESS", list(library.INPUTS), list(library.OUTPUTS), list(library.ATTRIBUTES.items())
    row = next((row for row in OPERATORS.values() if row.ge_type == op_type), None)
    if row is None:
        return "ERROR", [], [], []
    inputs = [(port.name, port.role) for port in row.inputs]
    outputs = [(port.name, port.role) for port in row.outputs]
    return "SUCCESS", inputs, outputs, [(attribute.name, attribute.type) for attribute in row.attributes]


def install() -> None:
    """Put the stand-in where torchair imports its module from."""
    module: Any = types.ModuleType(NAME)
    module.TorchNpuGraphBase = _Graph
    module.TorchDataType = enum.IntEnum("TorchDataType", _DTYPES)  # type: ignore[misc]
    module.check_cann_compat = lambda *_: ""
    module.get_registered_ir_def = registered
    for name in _SILENT:
        setattr(module, name, lambda *_: None)
    for name in _REFUSED:
        setattr(module, name, _Graph._refuse)
    sys.modules[NAME] = module
