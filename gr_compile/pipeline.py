"""The pass pipeline: its text, its presets, its contracts, and the loop with one hook between passes."""

from __future__ import annotations

import difflib
import importlib.metadata
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import networkx as nx
import torch
import torch.fx as fx

from gr_compile.editor import GraphEditor
from gr_compile.graph_pass import (
    NUMERICS,
    GraphReport,
    Match,
    Miss,
    Numerics,
    Pass,
    PassRecord,
    PassResult,
    StageEvent,
)
from gr_compile.option_text import OptionError, options_of
from gr_compile.verify import VerificationError, verify_shapes
from gr_compile.writes import settle_writes

if TYPE_CHECKING:
    from gr_compile.config import Config
    from gr_compile.constants import Constants

PRESETS: dict[str, Numerics | None] = {
    "none": None, "bitwise": "bitwise", "default": "reassociates", "all": "approximates",
}  # fmt: skip
_ITEM = re.compile(r"\s*(?P<minus>-?)(?P<name>[A-Za-z][\w-]*)\s*(?:\{(?P<options>[^}]*)\})?\s*")
Hook = Callable[[StageEvent], None]


class PipelineError(ValueError):
    """A pipeline that cannot run: an unknown pass or option, or passes that contradict one another."""


class PassError(RuntimeError):
    """A pass failed. Says which, which ones ran before it, and what to do. `culprit`: the pass."""

    def __init__(self, message: str, culprit: Pass | None = None) -> None:
        super().__init__(message)
        self.culprit = culprit


@dataclass
class PassContext:
    """What a pass may use: the editor, what is known of the inputs, and the limits set from outside.

    `facts`: what earlier passes leave for later ones; `upcoming`: the names of the passes that run after this one.
    """

    editor: GraphEditor
    config: Config
    constants: Constants
    report: GraphReport
    allow: Callable[..., bool] = lambda what, where=None: True
    supports: Callable[[str], bool] = lambda operator: True
    facts: dict[str, Any] = field(default_factory=dict)
    upcoming: frozenset[str] = frozenset()

    def fuses_later(self, name: str, operator: str) -> bool:
        """Whether a pass of this name runs after this one, and the target has the operator that it makes."""
        return name in self.upcoming and self.supports(operator)


# ------------------------------------------------------------------------------------------ known passes
@lru_cache(maxsize=1)
def list_passes() -> tuple[type[Pass], ...]:
    """All passes that installed packages offer under the entry point group `gr_compile.passes`, in pipeline order."""
    found = {}
    for entry in importlib.metadata.entry_points(group="gr_compile.passes"):
        pass_class = entry.load()
        if not (isinstance(pass_class, type) and issubclass(pass_class, Pass)):
            raise PipelineError(f"entry point {entry.name} of {entry.dist} is not a gr_compile Pass")
        found[pass_class.name] = pass_class
    return tuple(_sorted(list(found.values())))


def _sorted(passes: list[Any]) -> list[Any]:
    """Order by requires/provides and the soft `after`; ties in the given order.

    Raises:
        PipelineError: the contracts contradict one another; the cycle is named.
    """
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_nodes_from(range(len(passes)))
    for early, first in enumerate(passes):
        for late, second in enumerate(passes):
            if early != late and (first.provides & second.requires or first.name in second.after):
                graph.add_edge(early, late)
    try:
        return [passes[position] for position in nx.lexicographical_topological_sort(graph)]
    except nx.NetworkXUnfeasible:
        cycle = " -> ".join(passes[a].name for a, _ in nx.find_cycle(graph))
        raise PipelineError(f"the passes' contracts form a cycle: {cycle}") from None


# --------------------------------------------------------------------------------------------- the text
@dataclass(frozen=True)
class Pipeline:
    """Passes in the order in which they run."""

    passes: tuple[Pass, ...]

    @classmethod
    def parse(cls, passes: str | Pass | Sequence[str | Pass] | None, target: str = "") -> Pipeline:
        """From text ("default,-canonicalize", "eliminate-padding{mode=bucket}"), Pass objects, or a list of both.

        `target`: the name of the target that presets are for; "" is none that a pass is reserved for.

        Raises:
            PipelineError: unknown pass or option (with the closest ones), unmet requirement, conflict, cycle.
        """
        listed = passes is None or (isinstance(passes, Iterable) and not isinstance(passes, (str, type)))
        items: list[Any] = list(passes or ()) if listed else [passes]  # type: ignore[arg-type]
        chosen: dict[str, Pass] = {}
        for item in items:
            if isinstance(item, Pass):
                chosen[item.name] = item
            elif isinstance(item, str):
                _apply_text(item, chosen, target)
            else:
                given = (
                    f"the class {item.__name__}; write {item.__name__}()"
                    if isinstance(item, type)
                    else type(item).__name__
                )
                raise PipelineError(f"passes: text, a Pass or a list of both; got {given}")
        pipeline = cls(tuple(_sorted(list(chosen.values()))))
        pipeline._check_contracts()
        return pipeline

    def text(self) -> str:
        """The pipeline as text that `parse` reads back."""
        return ",".join(item.text() for item in self.passes) or "none"

    def without(self, left_out: Iterable[Pass]) -> Pipeline:
        """The other passes, in the same order."""
        gone = list(left_out)
        return Pipeline(tuple(item for item in self.passes if item not in gone))

    def _check_contracts(self) -> None:
        provided: set[str] = set()
        for item in self.passes:
            missing = item.requires - provided
            if missing:
                offers = [p.name for p in list_passes() if p.provides & missing]
                raise PipelineError(
                    f"{item.name} requires {', '.join(sorted(missing))}, which no pass before it provides"
                    + (f"; add {' or '.join(offers)}" if offers else "")
                )
            others = [other for other in self.passes if other is not item]
            present = {other.name for other in others}.union(*(other.provides for other in others))
            if clash := item.conflicts & present:
                listed = ", ".join(sorted(clash))
                raise PipelineError(f"{item.name} conflicts with {listed} in the same pipeline")
            provided |= item.provides


def _apply_text(text: str, chosen: dict[str, Pass], target: str) -> None:
    position = 0
    while position < len(text):
        found = _ITEM.match(text, position)
        if found is None or (found.end() < len(text) and text[found.end()] != ","):
            expected = "expected name or name{option=value}"
            raise PipelineError(f"cannot read the pipeline at {text[position:]!r}; {expected}")
        position = found.end() + 1
        name, options = found["name"], found["options"]
        if found["minus"]:
            if name in PRESETS:
                raise PipelineError(f"-{name}: a preset cannot be taken away, only passes can")
            if options is not None:
                raise PipelineError(f"-{name} takes no options")
            chosen.pop(_find(name).name, None)
        elif name in PRESETS:
            if options is not None:
                raise PipelineError(f"the preset {name} takes no options")
            for item in _preset(name, target):
                chosen.setdefault(item.name, item)
        else:
            chosen[name] = _with_options(_find(name), options or "")


def _preset(name: str, target: str) -> list[Pass]:
    limit = PRESETS[name]
    if limit is None:
        return []
    allowed = NUMERICS[: NUMERICS.index(limit) + 1]
    return [
        pass_class() for pass_class in list_passes()
        if pass_class.numerics in allowed
        and (pass_class.preset_targets is None or target in pass_class.preset_targets)
    ]  # fmt: skip


def _find(name: str) -> type[Pass]:
    known = {pass_class.name: pass_class for pass_class in list_passes()}
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, [*known, *PRESETS], n=3, cutoff=0.4)
    hint = f"; closest: {', '.join(close)}" if close else ""
    raise PipelineError(
        f"no pass is called {name!r}{hint}. Known: {', '.join(known)}; presets: {', '.join(PRESETS)}"
    )


def _with_options(pass_class: type[Pass], text: str) -> Pass:
    try:
        return pass_class(**options_of(pass_class, pass_class.name, text))
    except OptionError as error:
        raise PipelineError(str(error)) from error
    except (TypeError, ValueError) as error:
        raise PipelineError(f"{pass_class.name}: {error}") from error


# --------------------------------------------------------------------------------------------- the loop
def run_pipeline(
    pipeline: Pipeline, graph_module: fx.GraphModule, context: PassContext, hooks: Sequence[Hook] = ()
) -> fx.GraphModule:
    """Run the forward passes over `graph_module`; records go to `context.report`.

    Raises:
        PassError: a pass raised, said "unchanged" of a graph that it changed (or the reverse), broke the graph's
            shapes, or, under `strict`, missed.
    """
    for index, item in enumerate(pipeline.passes, start=1):
        context.upcoming = frozenset(later.name for later in pipeline.passes[index:])
        record = _run_one(item, pipeline, graph_module, context)
        context.report.passes.append(record)
        for hook in hooks:
            hook(StageEvent(index, item.name, graph_module, record, context.report))
        if context.config.strict and record.misses:
            listed = "\n  ".join(str(miss) for miss in record.misses)
            raise PassError(f"strict=True and {item.name} missed:\n  {listed}")
    return graph_module


def _run_one(
    item: Pass, pipeline: Pipeline, graph_module: fx.GraphModule, context: PassContext
) -> PassRecord:
    editor = context.editor
    editor.stamp(item.name)
    before, code_before = _operators(graph_module), _structure(graph_module)
    start = time.perf_counter()

    def wrong(what: str) -> PassError:
        return PassError(f"{_ran(item, pipeline, context)} {what}", item)

    try:
        result = item.run(graph_module, context)
    except Exception as error:
        raise wrong(f"raised {type(error).__name__}: {error}") from error
    if not isinstance(result, PassResult):
        raise wrong(f"returned {type(result).__name__}, not a PassResult")
    try:
        settle_writes(editor)
        editor.eliminate_dead_code()
    except RuntimeError as error:
        raise wrong(f"broke the graph: {error}") from error
    elapsed = (time.perf_counter() - start) * 1e3
    changed = _structure(graph_module) != code_before
    if changed != result.changed:
        truth = "changed" if changed else "did not change"
        raise wrong(f"says changed={result.changed}, but it {truth} the graph")
    start = time.perf_counter()
    if changed:
        try:
            _verify(graph_module, context)
        except VerificationError as error:
            raise wrong(f"broke the graph: {error}") from error
        graph_module.recompile()
    after = _operators(graph_module)
    return PassRecord(
        item.name, item.text(), item.stage, item.numerics, changed, tuple(result.matches), tuple(result.misses),
        elapsed, (time.perf_counter() - start) * 1e3, sum(before.values()), sum(after.values()), before, after,
    )  # fmt: skip


def _verify(graph_module: fx.GraphModule, context: PassContext) -> None:
    if context.config.verify == "off":
        return
    touched = None if context.config.verify in ("full", "numerics") else context.editor.rewired
    verify_shapes(graph_module, context.editor, touched)


def _ran(item: Pass, pipeline: Pipeline, context: PassContext) -> str:
    earlier = [record.name for record in context.report.passes]
    rest = pipeline.without([item])
    installed = {pass_class.name for pass_class in list_passes()}
    spelled = {other.name for other in rest.passes} <= installed
    how = f"with passes={rest.text()!r}" if spelled else "of passes="
    return f"pass {item.name!r} (after {', '.join(earlier) or 'no other pass'}; leave it out {how})"


def _operators(graph_module: fx.GraphModule) -> Mapping[str, int]:
    return Counter(_operator_name(node) for node in graph_module.graph.nodes if node.op == "call_function")


def _operator_name(node: fx.Node) -> str:
    target = node.target
    return (
        str(target) if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", str(target))
    )


def _structure(graph_module: fx.GraphModule) -> tuple[Any, ...]:
    """The graph without names: what must differ when a pass says "changed"."""
    order = {node: position for position, node in enumerate(graph_module.graph.nodes)}

    def spell(value: Any) -> Any:
        return fx.map_arg(value, lambda node: f"%{order[node]}")

    return tuple(
        (
            node.op,
            _operator_name(node) if node.op == "call_function" else str(node.target),
            repr(spell(node.args)),
            repr(spell(node.kwargs)),
        )
        for node in order
    )


__all__ = [
    "PRESETS",
    "Match",
    "Miss",
    "PassContext",
    "PassError",
    "Pipeline",
    "PipelineError",
    "list_passes",
    "run_pipeline",
]
