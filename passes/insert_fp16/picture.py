"""The picture of a calibration: where the magnitudes of each site lie, and the error of each way to store them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gr_compile.passes.insert_fp16.calibration import Calibration, SiteRecord

_SMALLEST, _NORMAL, _LARGEST = -24, -14, 16  # log2 of float16's smallest numbers, of full precision, and of its end
_COLOURS = {"float16": "#d1495b", "bfloat16": "#5b7db1"}


def draw(calibration: Calibration, path: Path) -> None:
    """Writes the picture; the format is the file name's (png, svg, pdf)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sites = calibration.sites
    figure = Figure(figsize=(11, 2 + 2.2 * max(1, len(sites))), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(max(1, len(sites)), 2, squeeze=False, width_ratios=(3, 2))
    for (ranges, errors), site in zip(axes, sites):
        _ranges(ranges, site)
        _errors(errors, site)
    figure.suptitle(f"{len(sites)} sites, {calibration.batches} batches")
    figure.savefig(path)


def _ranges(axis: Any, site: SiteRecord) -> None:
    axis.bar([exponent + 0.5 for exponent in site.exponents], list(site.exponents.values()), 1.0, color="#9aa5b1")
    for place, label in ((_SMALLEST, "becomes 0"), (_NORMAL, "fewer bits"), (_LARGEST, "too large")):
        axis.axvline(place, color="#d1495b", linewidth=0.8, linestyle="--")
        axis.annotate(label, (place, 1), xycoords=("data", "axes fraction"), rotation=90, fontsize=6, va="top")
    if site.exponents:
        axis.set_yscale("log")
    axis.set_xlabel("log2 of magnitudes; dashed: float16 without a scale", fontsize=7)
    axis.set_title(f"{site.kind}: {site.name}", fontsize=9)


def _errors(axis: Any, site: SiteRecord) -> None:
    ways = list(site.stored)
    errors = [site.stored[way].error for way in ways]
    bars = axis.barh(ways, errors, color=[_COLOURS[way.split("/")[0]] for way in ways])
    overflows = [site.stored[way].overflows for way in ways]
    axis.bar_label(bars, [f"{e:.1e}" + (f", {n} overflow" if n else "") for e, n in zip(errors, overflows)], fontsize=7)
    axis.margins(x=0.4)
    axis.tick_params(labelsize=7)
    axis.set_xlabel("relative error", fontsize=7)
