"""Run a model on batches and record, at every site, what storing it in 16 bits would do. The model stays as it is."""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.fx as fx
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from gr_compile.graph_pass import Match, Miss, Pass, PassResult, source_line
from gr_compile.ops.quantize import SCALES, STORED, rounded, scale_of
from gr_compile.optimize import is_optimized, optimize
from gr_compile.passes.insert_fp16.calibration import Calibration, SiteRecord, Stored, relative
from gr_compile.passes.insert_fp16.rewrite import InsertFP16
from gr_compile.passes.insert_fp16.sites import Blocked, Kind, Site, SiteFinder
from gr_compile.pipeline import PassContext

_WAYS = [(dtype, scale) for dtype in STORED for scale in SCALES]


def calibrate(
    model: nn.Module, batches: Iterable[Any], sites: str = "negatives", passes: str = "default", padding: Any = "auto"
) -> Calibration:
    """What insert-fp16 would find in `model` on `batches`; no gradient is made, no parameter moves.

    Args:
        batches: positional arguments of the model as a tuple, or keyword arguments as a mapping, one a call.
        sites: kinds of sites, joined by "+", as insert-fp16 takes them.
        passes: the pipeline that insert-fp16 will stand in; it is left out itself.
        padding: as `gr_compile.optimize` takes it.

    The model runs in the mode that it is in: in training, values of activations are those of training. Dropout draws
    from torch's generator and leaves it as it was.

    Raises:
        ValueError: no batches, one that is neither a tuple nor a mapping, a class for a model, or an unknown kind of
            site.
    """
    if isinstance(model, type):
        raise ValueError(f"calibrate: {model.__name__} is a class; give a model that is made")
    kinds, recorder = InsertFP16(sites).kinds, Recorder()
    pipeline: list[str | Pass] = [f"{passes},-insert-fp16", ObserveSites(kinds, recorder)]
    original: Any = model.original if is_optimized(model) else model
    fast = optimize(original, passes=pipeline, target="eager", padding=padding)
    given = _calls(batches)
    with torch.random.fork_rng(), _buffers_kept(original):
        for arguments, named in given:
            fast(*arguments, **named)
    return Calibration(recorder.records(), len(given))


@contextlib.contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """What forwards write to buffers, as batch norm does in training, is taken back."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in before and not torch.equal(buffer, before[name]):
                    buffer.copy_(before[name])


def _calls(batches: Iterable[Any]) -> list[tuple[Sequence[Any], Mapping[str, Any]]]:
    """Positional and keyword arguments of every call."""
    if isinstance(batches, (Mapping, Tensor)):
        raise ValueError(f"calibrate: batches must be a list of batches, not one {type(batches).__name__}")
    calls: list[tuple[Sequence[Any], Mapping[str, Any]]] = []
    for batch in batches:
        if isinstance(batch, Mapping):
            calls.append(((), batch))
        elif isinstance(batch, (tuple, list)):
            calls.append((batch, {}))
        else:
            raise ValueError(
                f"calibrate: batch {len(calls)} must be a tuple of arguments or a mapping of named ones, "
                f"not {type(batch).__name__}; one argument is (batch,)"
            )
    if not calls:
        raise ValueError("calibrate: there are no batches")
    return calls


@dataclass(frozen=True)
class ObserveSites(Pass):
    """Have every site's values recorded as the graph runs, by functions of Python: for target eager alone."""

    kinds: tuple[Kind, ...] = ("negatives",)
    recorder: Recorder = field(default_factory=lambda: Recorder(), compare=False)

    name: ClassVar[str] = "observe-sites"
    after: ClassVar[frozenset[str]] = InsertFP16.after

    def run(self, graph_module: fx.GraphModule, context: PassContext) -> PassResult:
        """Candidates: those of insert-fp16."""
        training, matches, misses = context.report.training, [], []
        for site in SiteFinder(graph_module, context.constants, training).find(self.kinds):
            if isinstance(site, Blocked):
                misses.append(Miss(site.reason, site.node, site.hint))
                continue
            matches.append(Match(f"{site.kind} of {site.name}", site.node))
            _observe(site, context, self.recorder.of(site), training)
        return PassResult(bool(matches), tuple(matches), tuple(misses))


def _observe(site: Site, context: PassContext, totals: Totals, training: bool) -> None:
    editor, node = context.editor, site.node
    if site.kind == "negatives":
        ids: Any = node.args[2]
        with editor.at(before=node, like=node):
            seen = editor.call(LookedUp(totals, 2 if training else 1), site.value, ids)
        editor.replace(ids, seen, only=lambda user: user is node)
    elif site.kind == "communication":
        with editor.at(before=node, like=node):
            seen = editor.call(Given(totals), site.value)
        editor.replace(site.value, seen, only=lambda user: user is node)
    else:
        with editor.at(after=node, like=node):
            seen = editor.call(Given(totals), node)
        editor.replace(node, seen, only=lambda user: user.op != "output")


@dataclass(frozen=True, eq=False)
class Given:
    """Gives a value on, recorded."""

    totals: Totals
    __name__: ClassVar[str] = "observed"

    def __call__(self, value: Tensor) -> Tensor:
        if not isinstance(value, FakeTensor):
            self.totals.add(value.detach(), value.numel() * 4, value.numel() * 2)
        return value


@dataclass(frozen=True, eq=False)
class LookedUp:
    """Gives ids on; the rows that they name are recorded. `times`: how often a step reads each lookup."""

    totals: Totals
    times: int
    __name__: ClassVar[str] = "observed_rows"

    def __call__(self, table: Tensor, ids: Tensor) -> Tensor:
        if not isinstance(table, FakeTensor):
            rows = table.detach()[torch.unique(ids)]
            lookups = self.times * ids.numel() * table.shape[1]
            self.totals.add(rows, lookups * 4, lookups * 2 + rows.numel() * 4)
        return ids


@dataclass(eq=False)
class Totals:
    """A site so far."""

    kind: str
    name: str
    where: str
    values: int = 0
    not_finite: int = 0
    largest: float = 0.0
    smallest: float = math.inf
    bytes_before: int = 0
    bytes_after: int = 0
    squares: float = 0.0
    exponents: Counter[int] = field(default_factory=Counter)
    errors: dict[str, float] = field(default_factory=dict)
    overflows: Counter[str] = field(default_factory=Counter)
    flushed: Counter[str] = field(default_factory=Counter)

    def add(self, x: Tensor, before: int, after: int) -> None:
        """Values [*, D] of one run, and the bytes that they are in 32 bits and in 16."""
        finite = x.isfinite()
        magnitudes = x.abs()[finite & (x != 0)]
        self.values += x.numel()
        self.not_finite += x.numel() - int(finite.sum())
        self.bytes_before, self.bytes_after = self.bytes_before + before, self.bytes_after + after
        if magnitudes.numel():
            self.largest = max(self.largest, float(magnitudes.max()))
            self.smallest = min(self.smallest, float(magnitudes.min()))
            exponents, counts = torch.unique(torch.frexp(magnitudes).exponent - 1, return_counts=True)
            self.exponents.update(dict(zip(exponents.tolist(), counts.tolist())))
        self.squares += float(magnitudes.double().square().sum())
        for dtype, scale in _WAYS:
            self._store(x, finite, dtype, scale)

    def _store(self, x: Tensor, finite: Tensor, dtype: torch.dtype, scale: str) -> None:
        way = f"{str(dtype).removeprefix('torch.')}/{scale}"
        factor = scale_of(x, scale)
        stored = rounded(x, factor, dtype)
        back = stored.double() * factor.double() if factor.numel() else stored.double()
        kept = finite & back.isfinite()
        self.errors[way] = self.errors.get(way, 0.0) + float((back - x.double())[kept].square().sum())
        self.overflows[way] += int((finite & ~back.isfinite()).sum())
        self.flushed[way] += int(((back == 0) & (x != 0)).sum())

    def record(self) -> SiteRecord:
        """What is known of the site."""
        stored = {
            way: Stored(relative(squares, self.squares), self.overflows[way], self.flushed[way])
            for way, squares in self.errors.items()
        }
        smallest = self.smallest if math.isfinite(self.smallest) else 0.0
        return SiteRecord(
            self.kind, self.name, self.where, self.values, self.not_finite, self.largest, smallest,
            self.bytes_before, self.bytes_after, dict(sorted(self.exponents.items())), stored,
        )  # fmt: skip


class Recorder:
    """Totals by site; graphs of one model that have a site in common share them."""

    def __init__(self) -> None:
        self._totals: dict[tuple[str, str], Totals] = {}

    def of(self, site: Site) -> Totals:
        """The totals of a site, begun if need be."""
        where = source_line(site.node)
        made = Totals(site.kind, site.name, "" if where is None else f"{where.file}:{where.line}")
        return self._totals.setdefault((site.kind, site.name), made)

    def records(self) -> tuple[SiteRecord, ...]:
        """Of the sites that values were seen at."""
        return tuple(totals.record() for totals in self._totals.values() if totals.errors)
