"""How a training run's result is written as JSON and shown: shared by `train` and `demo`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gr_compile.cli.output import Output, ProgressLines

if TYPE_CHECKING:
    from gr_compile.training.loop import TrainResult
    from gr_compile.training.passes import PassRow
    from gr_compile.training.reporting import EpochRecord

RUN_FIELDS = """The fields of a run:
epochs [{epoch, loss, hit_rate, ndcg, seconds}] (hit_rate, ndcg of the validation split, or null),
test {hit_rate, ndcg, users, k}, speed {steps, step_seconds, tokens_per_second, useful_flops_per_second,
peak_flops, mfu, warm_up_seconds}, peak_memory_bytes, step_memory_bytes, memory_resettable, train_seconds,
evaluate_seconds."""


class ConsoleReporter:
    """Shows a run's batches as progress and its epochs as lines."""

    def __init__(self, progress: ProgressLines, label: str = "") -> None:
        self.progress = progress
        self.label = f"{label}: " if label else ""

    def batch(self, stage: str, done: int, total: int, loss: float | None) -> None:
        note = "" if loss is None else f"loss {loss:.4f}"
        self.progress.update(self.label + stage, done, total, note)

    def epoch(self, record: EpochRecord) -> None:
        quality = ""
        if record.hit_rate is not None and record.ndcg is not None:
            quality = f"  validation HR {record.hit_rate:.4f}  NDCG {record.ndcg:.4f}"
        text = f"{self.label}epoch {record.epoch}  loss {record.loss:.4f}{quality}  {record.seconds:.1f} s"
        self.progress.message(text)


def run_as_json(result: TrainResult) -> dict[str, Any]:
    """The fields named in RUN_FIELDS."""
    return {
        "epochs": [asdict(record) for record in result.epochs],
        "test": asdict(result.test),
        "speed": asdict(result.speed),
        "peak_memory_bytes": result.peak_memory,
        "step_memory_bytes": result.step_memory,
        "memory_resettable": result.memory_resettable,
        "train_seconds": result.train_seconds,
        "evaluate_seconds": result.evaluate_seconds,
    }


def show_runs(output: Output, results: dict[str, TrainResult]) -> None:
    """One column a run."""
    runs = list(results.values())
    k = runs[0].test.k
    rows = [
        (f"HR@{k}", *(f"{run.test.hit_rate:.4f}" for run in runs)),
        (f"NDCG@{k}", *(f"{run.test.ndcg:.4f}" for run in runs)),
        ("step, ms", *(f"{run.speed.step_seconds * 1e3:,.1f}" for run in runs)),
        ("tokens/s", *(f"{run.speed.tokens_per_second:,.0f}" for run in runs)),
        ("MFU", *(f"{run.speed.mfu:.1%}" for run in runs)),
        ("memory of a step, MiB", *(f"{run.step_memory / 2**20:,.0f}" for run in runs)),
        ("peak memory, MiB", *(f"{run.peak_memory / 2**20:,.0f}" for run in runs)),
        ("warm-up (compile), s", *(f"{run.speed.warm_up_seconds:,.1f}" for run in runs)),
        ("training, s", *(f"{run.train_seconds:,.1f}" for run in runs)),
    ]
    output.table("Test split and speed (medians over the steps)", ("", *results), rows)


def show_losses(output: Output, results: dict[str, TrainResult]) -> None:
    """Loss by epoch, one column a run."""
    epochs = max(len(run.epochs) for run in results.values())
    rows = [
        (str(index + 1), *(f"{run.epochs[index].loss:.5f}" for run in results.values()))
        for index in range(epochs)
    ]
    if rows:
        output.table("Loss by epoch", ("epoch", *results), rows)


def show_passes(output: Output, rows: list[PassRow]) -> None:
    """What each pass did to each graph, and why not, once for every reason."""
    table = [
        (
            f"{row.name} ({row.graph})",
            str(len(row.matches)),
            str(len(row.misses)),
            f"{row.nodes_before} -> {row.nodes_after}",
            f"{row.milliseconds:.0f}",
        )
        for row in rows
    ]
    if not table:
        output.line("No graph was compiled: nothing to say of the passes.")
        return
    output.table("Passes", ("pass (graph)", "matches", "misses", "nodes", "ms"), table)
    reasons = dict.fromkeys(f"{row.name}: {miss}" for row in rows for miss in row.misses)
    for reason in reasons:
        output.line(f"not done: {reason}")
    for row in rows:
        if row.error:
            output.line(f"failed: {row.name} ({row.graph}): {row.error}")
