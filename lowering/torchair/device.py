"""A graph on a host with torch_npu and CANN: torchair's own backend, with our converters and decompositions.

    graph  --counts leave it-->  torchair.get_npu_backend(CompilerConfig)  -->  callable, with its counts computed first

torchair is imported here, in the user's own process, since what it compiles runs there. It replaces signal handlers
and the logging class when it is imported; both are put back.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
import torch.fx as fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from gr_compile.host_sizes import WithHostSizes
from gr_compile.lowering.target import Compiled
from gr_compile.lowering.torchair import converters, library, sizes
from gr_compile.lowering.torchair.decompositions import decompositions

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def compiled(
    graph_module: fx.GraphModule, inputs: Sequence[Any], mode: str, kernels: str, run_eagerly: bool = False
) -> Compiled:
    """torchair's compiled form of a graph. `run_eagerly`: it converts, and runs the FX graph of what it converted.

    Raises:
        DataDependentSize: a size is left that only the data tells.
        ImportError: torch_npu cannot be loaded.
    """
    torchair = imported()
    prepared = sizes.prepare(graph_module)
    chosen = library.choices(prepared.main, torch.is_grad_enabled()) if kernels == "library" else []
    converters.register_all({choice.program: choice.attributes for choice in chosen if choice.attributes})
    config = torchair.CompilerConfig()
    config.mode, config.debug.run_eagerly = mode, run_eagerly
    own = decompositions(converters.has_converter)
    backend = torchair.get_npu_backend(compiler_config=config, custom_decompositions=own)
    with sdpa_kernel(SDPBackend.MATH):
        run: Compiled = backend(prepared.main, [*inputs, *prepared.sizes])
    return run if prepared.counts is None else WithHostSizes(run, prepared.counts)


def imported() -> Any:
    """torchair. Importing torch_npu makes it importable."""
    with _handlers_kept():
        if find_spec("torch_npu") is not None:
            import torch_npu  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
        import torchair  # type: ignore[import-not-found, unused-ignore]
    return torchair


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Signal handlers and the logging class as they were."""
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    logger = logging.getLoggerClass()
    try:
        yield
    finally:
        logging.setLoggerClass(logger)
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
