"""The torch.compile backend: capture, pipeline, target; and the callable that guards what the analyses assumed."""

from __future__ import annotations

import importlib.metadata
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import torch
import torch.fx as fx
from torch._guards import CompileContext

from gr_compile.breaks import break_behind
from gr_compile.capture import CannotCapture, capture
from gr_compile.config import Config, ConfigError
from gr_compile.constants import Constants, ContentGuard
from gr_compile.editor import GraphEditor
from gr_compile.graph_pass import GraphReport, Miss, Pass, StageEvent
from gr_compile.host_sizes import WithHostSizes, split
from gr_compile.inspection.dump import Dumper
from gr_compile.inspection.inputs import record_inputs
from gr_compile.modes import WithoutAutocast, ambient_autocast, autocast_as
from gr_compile.numerics import NumericsCheck
from gr_compile.option_text import OptionError, options_of
from gr_compile.pipeline import Hook, PassContext, PassError, Pipeline, run_pipeline
from gr_compile.verify import VerificationError, verify_shapes
from gr_compile.writes import shared_write

log = logging.getLogger("gr_compile")


@dataclass
class Session:
    """What one optimised model keeps over its compilations.

    Attributes:
        reports: one for each graph compiled so far.
        changed: sources of buffers whose content changed after it was classified.
        distrusted: sources of buffers whose content changed again; they are inputs like any other.
        stale: a guard failed; the next call compiles anew.
        said: what the log has been told already.
        hooks: called after capture, after every pass and at the end; `dumper` is one of them.
    """

    config: Config
    pipeline: Pipeline
    hooks: Sequence[Hook] = ()
    dumper: Dumper | None = None
    allow: Callable[..., bool] = lambda what, where=None: True
    reports: list[GraphReport] = field(default_factory=list)
    changed: set[str] = field(default_factory=set)
    distrusted: set[str] = field(default_factory=set)
    stale: bool = False
    said: set[str] = field(default_factory=set)

    def content_changed(self, sources: Sequence[str]) -> None:
        """Classified contents have changed: classify them anew, and what changes again, never."""
        self.stale = True
        for source in sources:
            log.info("%s: the content of %s changed; compiling anew", self.config.model, source)
        self.distrusted |= self.changed & set(sources)
        self.changed |= set(sources)

    def say_once(self, text: str) -> None:
        """A warning in the log, the first time only."""
        if text not in self.said:
            self.said.add(text)
            log.warning("%s", text)


_TARGET = re.compile(r"(?P<name>[\w-]+)(?:\{(?P<options>[^}]*)\})?")


def target_class(text: str) -> tuple[Any, dict[str, Any]]:
    """The class of the target that an installed package offers under this name, and the options in braces.

    Raises:
        ConfigError: no such target, which lists those there are; or no such option of it.
    """
    found = _TARGET.fullmatch(text.strip())
    name = found["name"] if found is not None else text
    entries = {entry.name: entry for entry in importlib.metadata.entry_points(group="gr_compile.targets")}
    if found is None or name not in entries:
        raise ConfigError(f"target={text!r}: no such target; there are {', '.join(sorted(entries))}")
    made = entries[name].load()
    if found["options"] is None:
        return made, {}
    if not is_dataclass(made):
        raise ConfigError(f"target={text!r}: {name} takes no options")
    try:
        return made, options_of(made, name, found["options"])
    except OptionError as error:
        raise ConfigError(f"target={text!r}: {error}") from error


def find_target(text: str) -> Any:
    """A target that can run here.

    Raises:
        ConfigError: no such target, or none that runs on this host.
    """
    made, options = target_class(text)
    return made(**options)


def passes_for(target: Any, passes: Any) -> Pipeline:
    """The passes that were asked for, as the target needs them."""
    pipeline = Pipeline.parse(passes, target.name)
    adapt: Callable[[Pipeline], Pipeline] | None = getattr(target, "adapt", None)
    return pipeline if adapt is None else adapt(pipeline)


class Backend:
    """A torch.compile backend for one `Session`. `target`: takes the graphs, in place of the target that is named."""

    def __init__(self, session: Session, target: Any = None) -> None:
        self.session = session
        self.target = target if target is not None else find_target(session.config.target)

    def __deepcopy__(self, memo: dict[int, Any]) -> Backend:
        """Itself: it is of its session. Wrappers of torch.compile (Lightning's) copy the arguments that they see."""
        return self

    def __call__(self, graph_module: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        pipeline = self.session.pipeline
        while True:
            report = self._new_report(pipeline)
            if (ended_by := break_behind(graph_module)) is not None:
                report.graph_breaks.append(ended_by)
            self.session.reports.append(report)
            try:
                return self._compile(graph_module, inputs, pipeline, report)
            except torch._dynamo.exc.RestartAnalysis:
                self._forget(report)  # torch traces the function again; this graph never runs
                raise
            except PassError as error:
                blamed = self._blamed(error, pipeline, report)
                if self.session.config.strict or not blamed or not all(map(_is_our_own, blamed)):
                    raise
                report.passes_failed = str(error)
                log.error(
                    "%s compiles without %s: %s", report.model, ", ".join(p.name for p in blamed), error
                )
                pipeline = pipeline.without(blamed)

    def _forget(self, report: GraphReport) -> None:
        self.session.reports.remove(report)
        if self.session.dumper is not None:
            self.session.dumper.finish(report)

    @staticmethod
    def _blamed(error: PassError, pipeline: Pipeline, report: GraphReport) -> list[Pass]:
        """The pass that the error names, or all that changed the graph."""
        if error.culprit is not None:
            return [error.culprit]
        changed = {record.name for record in report.passes if record.changed}
        return [item for item in pipeline.passes if item.name in changed]

    def _compile(
        self, graph_module: fx.GraphModule, inputs: list[Any], pipeline: Pipeline, report: GraphReport
    ) -> Callable[..., Any]:
        start = time.perf_counter()
        try:
            captured = capture(graph_module)
            if (shared := shared_write(captured, inputs)) is not None:
                raise CannotCapture("a buffer that is written shares its memory with another input", shared)
        except CannotCapture as blocked:
            return self._run_as_torch_compile_would(graph_module, inputs, report, blocked)
        report.capture_milliseconds = (time.perf_counter() - start) * 1e3
        report.captured_nodes = sum(node.op == "call_function" for node in captured.graph.nodes)
        constants = Constants.of(captured, inputs, frozenset(self.session.distrusted))
        if self.session.dumper is not None:
            record_inputs(captured, inputs, [node.name for node in constants.positions])
        self._optimise(captured, inputs, constants, pipeline, report)
        start = time.perf_counter()
        compiled = self._lower(captured, inputs, report)
        report.target_milliseconds = (time.perf_counter() - start) * 1e3
        if self.session.dumper is not None:
            self.session.dumper.finish(report)
        guards = constants.guards()
        run = WithoutAutocast(compiled) if ambient_autocast() else compiled
        return GuardedGraph(run, graph_module, guards, self.session) if guards else run

    def _lower(
        self, captured: fx.GraphModule, inputs: Sequence[Any], report: GraphReport
    ) -> Callable[..., Any]:
        try:
            with autocast_as({}):
                parts = split(captured)
                if parts is None:
                    whole: Callable[..., Any] = self.target.compile(captured, inputs)
                    return whole
                report.facts["sizes counted before the graph"] = str(len(parts.sizes))
                return WithHostSizes(self.target.compile(parts.main, [*inputs, *parts.sizes]), parts)
        except (torch._dynamo.exc.RestartAnalysis, torch._dynamo.exc.SkipFrame):
            raise
        except Exception as error:
            if not any(record.changed for record in report.passes):
                raise
            reason = f"{type(error).__name__}: {error}"
            raise PassError(
                f"target {report.target} rejects the graph after {report.pipeline}: {reason}"
            ) from error

    def _optimise(
        self, captured: fx.GraphModule, inputs: Sequence[Any], constants: Constants, pipeline: Pipeline,
        report: GraphReport,
    ) -> None:  # fmt: skip
        session = self.session
        report.facts["padded_outputs"] = session.config.outputs_at_padding
        editor = GraphEditor(captured)
        context = PassContext(editor, session.config, constants, report, session.allow, self.target.supports)
        self._tell(StageEvent(0, "captured", captured, None, report))
        hooks = [*session.hooks]
        if session.config.verify == "numerics":
            hooks.append(NumericsCheck(captured, inputs, session.config.outputs_at_padding))
        run_pipeline(pipeline, captured, context, hooks)
        if session.config.verify != "off" and any(record.changed for record in report.passes):
            start = time.perf_counter()
            try:
                verify_shapes(captured, editor, None)
            except VerificationError as error:
                raise PassError(f"the graph after {report.pipeline} does not verify: {error}") from error
            report.facts["verify_milliseconds"] = f"{(time.perf_counter() - start) * 1e3:.1f}"
        captured.recompile()
        self._tell(StageEvent(99, "final", captured, None, report))

    def _tell(self, event: StageEvent) -> None:
        for hook in self.session.hooks:
            hook(event)

    def _new_report(self, pipeline: Pipeline) -> GraphReport:
        context = CompileContext.get() if CompileContext.try_get() is not None else None
        identity = context.compile_id if context is not None else None
        session = self.session
        return GraphReport(
            model=session.config.model,
            compile_id=str(identity).replace("/", "_") if identity is not None else f"{len(session.reports)}",
            attempt=context.attempt if context is not None else 0,
            target=self.target.name,
            pipeline=pipeline.text(),
            training=torch.is_grad_enabled(),
        )

    def _run_as_torch_compile_would(
        self, graph_module: fx.GraphModule, inputs: list[Any], report: GraphReport, blocked: CannotCapture
    ) -> Callable[..., Any]:
        report.not_captured = Miss(blocked.reason, _with_source(blocked.node))
        if self.session.config.strict and self.session.pipeline.passes:
            raise PassError(f"strict=True and a graph was not captured: {report.not_captured}")
        self.session.say_once(
            f"{report.model}: a region runs as torch.compile would run it: {report.not_captured}"
        )
        compiled: Callable[..., Any] = self.target.compile(graph_module, inputs)
        return compiled


def _with_source(node: fx.Node | None) -> fx.Node | None:
    """The node, or the nearest one (its users first) that knows its source line: mode calls and inputs do not."""
    candidate = node
    while candidate is not None and candidate.op != "root":
        for found in (candidate, *candidate.users):
            if found.meta.get("stack_trace"):
                return found
        candidate = candidate.next
    return node


def _is_our_own(culprit: Pass) -> bool:
    """A defect of our own pass must not stop a model that torch.compile can run; a user's own must be heard of."""
    return type(culprit).__module__.startswith("gr_compile.passes.")


class GuardedGraph:
    """A compiled graph that relies on the content of some inputs.

    Where a content has changed, this call runs the uncompiled graph, which assumes nothing, and the session's
    next call compiles anew.
    """

    def __init__(
        self,
        compiled: Callable[..., Any],
        original: fx.GraphModule,
        guards: Sequence[ContentGuard],
        session: Session,
    ) -> None:
        self.compiled, self.original, self.guards, self.session = compiled, original, guards, session

    def __call__(self, *args: Any) -> Any:
        broken = [guard for guard in self.guards if not guard.holds(args[guard.position])]
        if not broken:
            return self.compiled(*args)
        if not self.session.stale:
            self.session.content_changed([guard.source for guard in broken])
        return self.original.forward(*args)
