"""The picture of a benchmark: times, utilisation and memory as bars, one group a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gr_compile.benchmarking.contenders import LABELS
from gr_compile.benchmarking.settings import PRINCIPALS

COLOURS = {
    "eager": "#9aa5b1",
    "torch_compile": "#5b7db1",
    "gr_compile": "#d1495b",
    "flex_attention": "#66a182",
    "nested": "#edae49",
    "rectools": "#7d5ba6",
}
Series = dict[str, list[float | None]]


def draw_speed(path: Path, title: str, rows: list[dict[str, Any]], runs: list[dict[str, Any]]) -> None:
    """Writes the picture; the format is the file name's (png, svg, pdf)."""
    groups = [f"{row['mode']}\n{row['fill']:.0%}" for row in rows]
    order = [(row["mode"], row["fill"]) for row in rows]
    times, memory = _by_contender(runs, order, "step_ms"), _by_contender(runs, order, "peak_mb")
    shares: Series = {name: [row[name] for row in rows] for name in ("mfu", "hfu")}
    figure, axes = _figure(3, title, len(groups))
    _bars(axes[0], groups, times, "ms a step (log)", log=True)
    peak = f"{rows[0]['gemm_gflops']:.0f} GFLOP/s" if rows else "the peak"
    _bars(axes[1], groups, shares, f"share of {peak}", shown=lambda value: f"{value:.1%}")
    _bars(axes[2], groups, memory, "peak above the start, MiB")
    axes[1].set_ylim(0, 1)
    _save(figure, path)


def draw_memory(path: Path, title: str, rows: list[dict[str, Any]], runs: list[dict[str, Any]]) -> None:
    """Peaks, compilation included and without."""
    groups = [f"{row['mode']}\nN {row['max_seq_len']}" for row in rows]
    order = [(row["mode"], row["fill"]) for row in rows]
    figure, axes = _figure(2, title, len(groups))
    _bars(axes[0], groups, _by_contender(runs, order, "peak_mb"), "peak above the start, MiB")
    _bars(axes[1], groups, _by_contender(runs, order, "steady_peak_mb"), "... of steps after warm-up, MiB")
    _save(figure, path)


def draw_embedding(path: Path, title: str, rows: list[dict[str, Any]], runs: list[dict[str, Any]]) -> None:
    """Forward and backward."""
    groups = [f"fill {row['fill']:.0%}" for row in rows]
    order = [("training", row["fill"]) for row in rows]
    figure, axes = _figure(2, title, len(groups))
    for axis, part in zip(axes, ("forward", "backward")):
        _bars(axis, groups, _by_contender(runs, order, f"{part}_ms"), f"{part}, ms")
    _save(figure, path)


def draw_loss(path: Path, title: str, rows: list[dict[str, Any]], runs: list[dict[str, Any]]) -> None:
    """Time of a step, and memory above the table and its gradient."""
    groups = [f"{row['model']}\nV {row['items']:,}" for row in rows]
    figure, axes = _figure(2, title, len(groups))
    for axis, unit, label in zip(axes, ("ms", "mb"), ("ms a step", "a step adds to tables and gradients, MiB")):
        _bars(axis, groups, {name: [row[f"{name}_{unit}"] for row in rows] for name in PRINCIPALS}, label)
    _save(figure, path)


def draw_offload(path: Path, title: str, rows: list[dict[str, Any]], runs: list[dict[str, Any]]) -> None:
    """Time of a step, and what of it waits for the file."""
    groups = [f"V {row['items']:,}\nR {row['negatives']}" for row in rows]
    figure, axes = _figure(2, title, len(groups))
    steps = {"gr_compile": [row["in_memory_ms"] for row in rows], "offloaded": [row["offloaded_ms"] for row in rows]}
    _bars(axes[0], groups, steps, "ms a step")
    _bars(axes[1], groups, {"offloaded": [row["waited_ms"] for row in rows]}, "of which it waits for the file, ms")
    _save(figure, path)


def draw_turbogr(path: Path, title: str, rows: list[dict[str, Any]], runs: list[dict[str, Any]]) -> None:
    """Time, utilisation and memory of TurboGR's models; they have one contender, so the rows say all."""
    groups = [f"{row['model']}\nN {row['max_seq_len']}" for row in rows]
    figure, axes = _figure(3, title, len(groups))
    _bars(axes[0], groups, {"gr_compile": [row["gr_compile_ms"] for row in rows]}, "ms a step")
    shares: Series = {"mfu": [row["mfu"] for row in rows]}
    _bars(axes[1], groups, shares, "share of the peak", shown=lambda value: f"{value:.1%}")
    _bars(axes[2], groups, {"gr_compile": [row["peak_mb"] for row in rows]}, "peak above the start, MiB")
    _save(figure, path)


def _by_contender(
    runs: Sequence[dict[str, Any]], order: Sequence[tuple[str, float]], field: str
) -> Series:
    found: Series = {}
    for name in LABELS:
        values = {(run["mode"], run["fill"]): run[field] for run in runs if run["contender"] == name}
        if any(value is not None for value in values.values()):
            found[name] = [values.get(place) for place in order]
    return found


def _figure(panels: int, title: str, groups: int) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(8.0, 1.9 * groups), 3.1 * panels), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    return figure, figure.subplots(panels, 1, squeeze=False)[:, 0]


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 10 else f"{value:,.0f}"


def _bars(
    axis: Any,
    groups: Sequence[str],
    series: Series,
    label: str,
    log: bool = False,
    shown: Callable[[float], str] = _number,
) -> None:
    width = 0.84 / max(len(series), 1)
    for index, (name, values) in enumerate(series.items()):
        places = [group + (index - (len(series) - 1) / 2) * width for group in range(len(groups))]
        known = [(place, value) for place, value in zip(places, values) if value is not None]
        if not known:
            continue
        text = LABELS.get(name, name.upper())
        colour = COLOURS.get(name, COLOURS["gr_compile"] if name == "mfu" else COLOURS["eager"])
        bars = axis.bar([p for p, _ in known], [v for _, v in known], width, label=text, color=colour)
        axis.bar_label(bars, [shown(value) for _, value in known], fontsize=7, padding=1)
    if log:
        axis.set_yscale("log")
    axis.margins(y=0.15)
    axis.set_xticks(range(len(groups)), groups)
    axis.set_ylabel(label, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    if axis.containers:
        axis.legend(fontsize=7, ncols=len(series), frameon=False, loc="upper left", bbox_to_anchor=(0, 1.16))


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=150)
