"""The pass: site by site, what evidence there is for 16 bits, and the operators around the site."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.fx as fx

from gr_compile.graph_pass import Match, Miss, Numerics, Pass, PassResult
from gr_compile.ops.quantize import SCALES
from gr_compile.passes.insert_fp16.calibration import Calibration
from gr_compile.passes.insert_fp16.evidence import against
from gr_compile.passes.insert_fp16.sites import KINDS, Blocked, Kind, Site, SiteFinder
from gr_compile.pipeline import PassContext

aten, gr = torch.ops.aten, torch.ops.gr
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_WAIT = torch.ops._c10d_functional.wait_tensor.default
_NEEDED = {
    "negatives": ("gr::sampled_logits", "gr::stored_rows"), "embeddings": ("gr::quantize", "gr::dequantize"),
    "activations": ("gr::quantize", "gr::dequantize"), "communication": ("gr::quantize", "gr::dequantize"),
}  # fmt: skip


@dataclass(frozen=True)
class InsertFP16(Pass):
    """Store chosen values in 16 bits: rows of negatives, embeddings, activations, what travels between processes.

    Attributes:
        sites: which, joined by "+": negatives, embeddings, activations, communication.
        scale: what values are divided by before they are rounded, a power of two: "per-token" (one for each row of
            features), "per-table" (one for a whole value), "none".
        dtype: "float16", or "bfloat16", which holds what float32 holds, with 8 bits of precision for 11.
        tolerance: the largest error of a site, relative, root of the mean square.
        calibration: a file that `calibrate` wrote; without a scale float16 needs one.
    """

    sites: str = "negatives"
    scale: str = "per-token"
    dtype: str = "float16"
    tolerance: float = 0.004
    calibration: str = ""

    name: ClassVar[str] = "insert-fp16"
    after: ClassVar[frozenset[str]] = frozenset({
        "canonicalize", "eliminate-padding", "fuse-jagged-attention", "fuse-sampled-logits", "share-logits",
        "fuse-token-operators", "offload-negatives",
    })  # fmt: skip
    numerics: ClassVar[Numerics] = "approximates"

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise ValueError(f"sites={self.sites}: one or more of {', '.join(KINDS)}, joined by +")
        for name, known in (("scale", SCALES), ("dtype", tuple(DTYPES))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)}: one of {', '.join(known)}")
        if not self.tolerance > 0:
            raise ValueError(f"tolerance={self.tolerance}: a share above 0")
        if self.calibration:
            Calibration.load(self.calibration)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return tuple(dict.fromkeys(self.sites.split("+")))  # type: ignore[arg-type]

    def run(self, graph_module: fx.GraphModule, context: PassContext) -> PassResult:
        """Candidates: values of the kinds that are asked for."""
        work = _Work(self, context)
        for found in SiteFinder(graph_module, context.constants, context.report.training).find(self.kinds):
            if isinstance(found, Blocked):
                work.misses.append(Miss(found.reason, found.node, found.hint))
            else:
                work.store(found)
        return PassResult(bool(work.matches), tuple(work.matches), tuple(work.misses))


@dataclass
class _Work:
    options: InsertFP16
    context: PassContext
    matches: list[Match] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)

    def __post_init__(self) -> None:
        options = self.options
        self._calibration = Calibration.load(options.calibration) if options.calibration else None
        self._dtype = DTYPES[options.dtype]

    def store(self, site: Site) -> None:
        miss = self._against(site)
        if miss is not None:
            self.misses.append(miss)
        elif self.context.allow(f"{site.kind} of {site.name}", site.node):
            self.matches.append(Match(f"{site.kind} of {site.name}", site.node, self._said()))
            with self.context.editor.at(before=site.node, like=site.node):
                emit = {"negatives": self._negatives, "communication": self._communication}
                emit.get(site.kind, self._result)(site)

    def _said(self) -> str:
        scaled = "" if self.options.scale == "none" else f", scaled {self.options.scale}"
        return f"{self.options.dtype}{scaled}"

    def _against(self, site: Site) -> Miss | None:
        options = self.options
        missing = [name for name in _NEEDED[site.kind] if not self.context.supports(name)]
        if missing:
            return Miss(f"the target has no kernel for {missing[0]}", site.node)
        found = against(site, self._dtype, options.scale, options.tolerance, self._calibration)
        return None if found is None else Miss(found.reason, site.node, found.hint)

    # --------------------------------------------------------------------------------------------- emit
    def _negatives(self, site: Site) -> None:
        editor, call = self.context.editor, site.node
        stored, scale = self._pair(gr.stored_rows.default, editor.call(aten.detach.default, site.value), call.args[2])
        editor.replace(call, editor.again(call, stored=stored, scale=scale))
        editor.erase(call)

    def _result(self, site: Site) -> None:
        editor, value = self.context.editor, site.node
        with editor.at(after=value, like=value):
            stored, scale = self._pair(gr.quantize.default, editor.call(aten.detach.default, value))
            made = editor.call(gr.dequantize.default, stored, scale, value)
        editor.replace(value, made, only=lambda user: user.op != "output" and not _is_ours(user, made))

    def _communication(self, site: Site) -> None:
        editor, call = self.context.editor, site.node
        stored, scale = self._pair(gr.quantize.default, site.value)
        parts = [None if x is None else self._moved(call, x) for x in (stored, scale)]
        with editor.at(before=call):
            like = editor.call(aten.empty_like.default, parts[0], dtype=torch.float32)
            made = editor.call(gr.dequantize.default, *parts, like)
        for wait in [user for user in call.users if user.target is _WAIT]:
            editor.replace(wait, made)
            editor.erase(wait)
        editor.replace(call, made)
        editor.erase(call)

    def _moved(self, call: fx.Node, value: fx.Node) -> fx.Node:
        editor = self.context.editor
        sent = editor.call(call.target, value, *call.args[1:], **call.kwargs)  # type: ignore[arg-type]
        return editor.call(_WAIT, sent)

    def _pair(self, make: Any, *operands: Any) -> tuple[fx.Node, fx.Node | None]:
        """(what is stored, its scale or None)."""
        editor, scale = self.context.editor, self.options.scale
        pair = editor.call(make, *operands, self._dtype, scale)
        stored = editor.call(operator.getitem, pair, 0)
        return stored, None if scale == "none" else editor.call(operator.getitem, pair, 1)


def _is_ours(user: fx.Node, made: fx.Node) -> bool:
    """What stores the value, and what stands for it."""
    stores = user.target is aten.detach.default and any(reader.target is gr.quantize.default for reader in user.users)
    return user is made or stores
