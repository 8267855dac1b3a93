"""What a pass is: its contract (class attributes), its options (dataclass fields), and what it answers."""

from __future__ import annotations

import dataclasses
import linecache
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch.fx as fx

if TYPE_CHECKING:
    from gr_compile.pipeline import PassContext

Stage = Literal["forward", "scheduled"]
Numerics = Literal["bitwise", "reassociates", "approximates", "changes-objective"]
NUMERICS: tuple[Numerics, ...] = ("bitwise", "reassociates", "approximates", "changes-objective")

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)')


@dataclass(frozen=True)
class SourceLine:
    """A line of the user's program."""

    file: str
    line: int
    function: str
    code: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}: {self.code}"


def source_line(node: fx.Node | None) -> SourceLine | None:
    """The innermost line of the user's program that made `node`; torch's own frames are passed over."""
    if node is None:
        return None
    frames = list(_FRAME.finditer(node.meta.get("stack_trace") or ""))
    if not frames:
        return None
    outside = [frame for frame in frames if "/site-packages/torch/" not in frame["file"]]
    frame = (outside or frames)[-1]
    code = linecache.getline(frame["file"], int(frame["line"])).strip()
    return SourceLine(frame["file"], int(frame["line"]), frame["function"], code)


@dataclass(frozen=True)
class Match:
    """A candidate that the pass rewrote."""

    what: str
    node: dataclasses.InitVar[fx.Node | None] = None
    detail: str = ""
    where: SourceLine | None = None
    node_name: str = ""

    def __post_init__(self, node: fx.Node | None) -> None:
        _locate(self, node)


@dataclass(frozen=True)
class Miss:
    """A candidate that the pass left alone: why, the operation that blocks, and what the user can do."""

    reason: str
    node: dataclasses.InitVar[fx.Node | None] = None
    hint: str = ""
    where: SourceLine | None = None
    node_name: str = ""

    def __post_init__(self, node: fx.Node | None) -> None:
        _locate(self, node)

    def __str__(self) -> str:
        place = f" [{self.where}]" if self.where else (f" [{self.node_name}]" if self.node_name else "")
        return self.reason + place + (f" -> {self.hint}" if self.hint else "")


def _locate(found: Match | Miss, node: fx.Node | None) -> None:
    if isinstance(node, fx.Node):
        object.__setattr__(found, "where", found.where or source_line(node))
        object.__setattr__(found, "node_name", found.node_name or node.name)


@dataclass(frozen=True)
class PassResult:
    """`changed` must be true to the graph: the pipeline checks it."""

    changed: bool
    matches: tuple[Match, ...] = ()
    misses: tuple[Miss, ...] = ()


@dataclass(frozen=True)
class Pass(ABC):
    """One rewrite of the graph. Subclasses are frozen dataclasses; their fields are the pass's options."""

    name: ClassVar[str]
    stage: ClassVar[Stage] = "forward"
    requires: ClassVar[frozenset[str]] = frozenset()
    provides: ClassVar[frozenset[str]] = frozenset()
    conflicts: ClassVar[frozenset[str]] = frozenset()
    after: ClassVar[frozenset[str]] = frozenset()  # names of passes that, where present, run first
    numerics: ClassVar[Numerics] = "bitwise"
    preset_targets: ClassVar[frozenset[str] | None] = None  # presets take it for these targets alone; None: for all

    @abstractmethod
    def run(self, graph_module: fx.GraphModule, context: PassContext) -> PassResult:
        """Rewrite `graph_module` in place through `context.editor`; record every candidate."""

    @property
    def options(self) -> dict[str, Any]:
        """The options by their names in pipeline text (underscores become hyphens)."""
        return {f.name.replace("_", "-"): getattr(self, f.name) for f in dataclasses.fields(self)}

    def text(self) -> str:
        """The pass as pipeline text: `name{option=value,...}`, with the options that are not default."""
        changed = [
            f"{f.name.replace('_', '-')}={getattr(self, f.name)}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        ]
        return self.name + ("{" + ",".join(changed) + "}" if changed else "")


@dataclass
class PassRecord:
    """What one run of one pass did: a row of `explain`, of report.json and of the HTML page."""

    name: str
    text: str
    stage: Stage
    numerics: Numerics
    changed: bool
    matches: tuple[Match, ...]
    misses: tuple[Miss, ...]
    milliseconds: float
    verify_milliseconds: float
    nodes_before: int
    nodes_after: int
    operators_before: Mapping[str, int]
    operators_after: Mapping[str, int]
    error: str = ""


@dataclass(eq=False)
class GraphReport:
    """Everything known of one compiled graph (one Dynamo frame, one compile id, one attempt)."""

    model: str
    compile_id: str
    attempt: int
    target: str
    pipeline: str
    passes: list[PassRecord] = field(default_factory=list)
    passes_failed: str = ""
    not_captured: Miss | None = None
    graph_breaks: list[Miss] = field(default_factory=list)
    captured_nodes: int = 0
    capture_milliseconds: float = 0.0
    target_milliseconds: float = 0.0
    training: bool = False
    facts: dict[str, str] = field(default_factory=dict)
    dump: str = ""

    @property
    def matches(self) -> list[Match]:
        return [match for record in self.passes for match in record.matches]

    @property
    def misses(self) -> list[Miss]:
        return [miss for record in self.passes for miss in record.misses]


@dataclass(frozen=True)
class StageEvent:
    """What the one between-pass hook is told. `stage`: "captured", a pass's name, or "final"."""

    index: int
    stage: str
    graph_module: fx.GraphModule
    record: PassRecord | None
    report: GraphReport
