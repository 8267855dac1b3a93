"""gr_compile: a compiler for generative-recommendation models, on torch.compile and FX."""

from gr_compile.autoload import import_torch as _import_torch

_import_torch()

# ruff: noqa: E402
from gr_compile import ops as _ops  # noqa: F401  (registers the gr:: operators)
from gr_compile.config import ConfigError, Padding
from gr_compile.declare import PaddingError
from gr_compile.graph_pass import Match, Miss, Pass, PassResult
from gr_compile.lower import LowerError, lower
from gr_compile.optimize import explain, optimize, report
from gr_compile.pipeline import PassContext, PassError, PipelineError, list_passes

__version__ = "0.1.0"
__all__ = [
    "ConfigError",
    "LowerError",
    "Match",
    "Miss",
    "Padding",
    "PaddingError",
    "Pass",
    "PassContext",
    "PassError",
    "PassResult",
    "PipelineError",
    "explain",
    "list_passes",
    "lower",
    "optimize",
    "report",
]
