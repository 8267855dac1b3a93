"""A callable together with its session: checks a call's data, compiles where needed, says what blocked."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from gr_compile.backend import Backend, Session, find_target, passes_for
from gr_compile.breaks import breaks_since, breaks_so_far, skipped_since
from gr_compile.config import Config, ConfigError, check_declared_arguments
from gr_compile.declare import check_declared_padding
from gr_compile.graph_pass import GraphReport
from gr_compile.inspection.bisect import RewriteLimit
from gr_compile.inspection.dump import Dumper, check_writable
from gr_compile.inspection.logs import configure_logs, log_event
from gr_compile.numerics import NumericsError
from gr_compile.pipeline import Hook, PassError

log = logging.getLogger("gr_compile")
_RECOMPILE_LIMIT = (
    64  # train, eval, no_grad, autocast, B = 1, N = 1 each take a graph; torch's own limit is 8
)


def make_session(options: Mapping[str, Any], name: str) -> Session:
    """Check all options; nothing is compiled yet."""
    config = Config(**options, model=name)
    folder = config.dump or Dumper.folder_from_environment()
    if folder is not None:
        check_writable(folder)
    dumper = Dumper(folder)
    hooks: list[Hook] = [dumper, log_event]
    target = find_target(config.target)
    configure_logs()
    limit = RewriteLimit.from_environment()
    return Session(
        config, passes_for(target, config.passes), hooks, dumper if folder is not None else None, limit.allow
    )


class Compiled:
    """Compiles `function` on the first call, and again when a content guard failed."""

    def __init__(self, function: Callable[..., Any], options: Mapping[str, Any], name: str) -> None:
        self.function = function
        self.session = make_session(options, name)
        self.signature = signature_of(function)
        if self.signature is not None:
            check_declared_arguments(self.session.config.declared, self.signature, name)
        # One object for all calls: each config.patch() makes a context variable, which Python never frees.
        self._settings = torch._dynamo.config.patch(
            capture_dynamic_output_shape_ops=True,
            capture_scalar_outputs=True,
            skip_nnmodule_hook_guards=False,
        )
        self._run = self._compile()

    def _compile(self) -> Callable[..., Any]:
        self.session.stale = False
        make: Any = torch.compile  # its overloads do not know the last two arguments
        compiled = make(
            self.function, backend=Backend(self.session), dynamic=self.session.config.dynamic,
            recompile_limit=_RECOMPILE_LIMIT, isolate_recompiles=True,
        )  # fmt: skip
        return compiled.forward if isinstance(self.function, nn.Module) else compiled  # type: ignore[no-any-return]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.session.stale:
            self._run = self._compile()
        if self.session.config.declared:
            check_declared_padding(self.session.config, self.signature, args, kwargs)
        graphs, breaks, start = len(self.session.reports), breaks_so_far(), time.time()
        try:
            with self._settings:
                return self._run(*args, **kwargs)
        except torch._dynamo.exc.BackendCompilerFailed as failed:
            ours = failed.inner_exception
            if isinstance(ours, (PassError, NumericsError, ConfigError)):
                raise ours from ours.__cause__
            raise
        finally:
            if len(self.session.reports) > graphs or not self.session.reports:
                self._note_breaks(graphs, breaks, start)

    def _note_breaks(self, graphs: int, breaks: int, start: float) -> None:
        """Breaks that the backend could not see go to the first graph of this call, or to a report of their own."""
        session = self.session
        new = session.reports[graphs:]
        known = {str(miss) for report in new for miss in report.graph_breaks}
        found = [miss for miss in (*breaks_since(breaks), *skipped_since(start)) if str(miss) not in known]
        if found and not new:
            new = [
                GraphReport(session.config.model, "none", 0, session.config.target, session.pipeline.text())
            ]
            session.reports.extend(new)
        for miss in found:
            new[0].graph_breaks.append(miss)
        for miss in (miss for report in new for miss in report.graph_breaks):
            session.say_once(f"{session.config.model}: {miss}")


def signature_of(function: Callable[..., Any]) -> inspect.Signature | None:
    """The arguments that a call takes, where Python knows them."""
    target = function.forward if isinstance(function, nn.Module) else function
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):
        return None
