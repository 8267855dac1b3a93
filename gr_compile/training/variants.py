"""One training run in a process of its own, so that its memory is its own and its compiler's caches too.

The child tells of its progress through a pipe and answers with a `VariantResult`.
"""

from __future__ import annotations

import multiprocessing
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch

from gr_compile.training.data.catalogue import DataRequest, load
from gr_compile.training.loop import Run, Trainer, TrainResult
from gr_compile.training.models import ModelCase, ModelSettings, build
from gr_compile.training.passes import PassRow, pass_rows
from gr_compile.training.reporting import EpochRecord, Reporter
from gr_compile.training.settings import TrainSettings

Kind = Literal["eager", "optimized", "torch-compile"]
KINDS: tuple[Kind, ...] = ("eager", "optimized", "torch-compile")


class VariantError(Exception):
    """A variant's process failed; the message is that of its exception."""


@dataclass(frozen=True)
class VariantJob:
    """What to train and how to run it. `compare_weights` is a file with another run's weights: from them
    this variant computes the lists of recommended items, too. `save_weights` is where to leave its own."""

    kind: Kind
    data: DataRequest
    model: ModelSettings
    settings: TrainSettings
    passes: str = "default"
    dump: Path | None = None
    save_weights: Path | None = None
    compare_weights: Path | None = None


@dataclass(frozen=True)
class VariantResult:
    """`top_items` [U][k] are recommended from the saved or compared weights, if the job named any."""

    kind: Kind
    result: TrainResult
    passes: list[PassRow] = field(default_factory=list)
    dumps: list[str] = field(default_factory=list)
    top_items: list[list[int]] = field(default_factory=list)


def make_run(kind: Kind, case: ModelCase, passes: str = "default", dump: Path | None = None) -> Run:
    """The callable that runs the module: itself, optimised, or compiled by torch alone."""
    if kind == "eager":
        return case.module
    if kind == "torch-compile":
        compiled: Run = torch.compile(case.module)
        return compiled
    import gr_compile

    fast: Run = gr_compile.optimize(case.module, passes=passes, dump=str(dump) if dump else None)
    return fast


def build_seeded(model: ModelSettings, settings: TrainSettings, num_items: int) -> ModelCase:
    """The model as it is at the start of every run with these settings; leaves torch's generator seeded."""
    torch.manual_seed(settings.seed)
    return build(model, num_items, settings.max_seq_len)


def train_variant(job: VariantJob, reporter: Reporter) -> VariantResult:
    """Does the job in this process."""
    data = load(job.data)
    case = build_seeded(job.model, job.settings, data.num_items)
    run = make_run(job.kind, case, job.passes, job.dump)
    trainer = Trainer(case, run, data, job.settings, reporter)
    result = trainer.train()
    top_items: list[list[int]] = []
    if job.save_weights is not None:
        torch.save(case.module.state_dict(), job.save_weights)
    if job.compare_weights is not None:
        case.module.load_state_dict(torch.load(job.compare_weights, weights_only=True))
    if job.save_weights is not None or job.compare_weights is not None:
        top_items = trainer.top_items("test").tolist()
    if job.kind != "optimized":
        return VariantResult(job.kind, result, top_items=top_items)
    import gr_compile

    reports = gr_compile.report(run)
    dumps = [report.dump for report in reports if report.dump]
    return VariantResult(job.kind, result, pass_rows(reports), dumps, top_items)


def run_variant(job: VariantJob, reporter: Reporter) -> VariantResult:
    """Does the job in a fresh process; `reporter` hears of its progress here."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(job, sender), name=f"gr-compile {job.kind}")
    process.start()
    sender.close()
    try:
        return _listen(receiver, reporter, job.kind)
    except EOFError as error:
        process.join()
        code = process.exitcode
        hint = "; it may have run out of memory" if code == -9 else ""
        raise VariantError(f"the process of the {job.kind} run ended with code {code}{hint}") from error
    finally:
        receiver.close()
        process.join(timeout=30)
        if process.is_alive():
            process.terminate()


def _listen(receiver: Connection, reporter: Reporter, kind: Kind) -> VariantResult:
    while True:
        event, content = receiver.recv()
        if event == "batch":
            reporter.batch(*content)
        elif event == "epoch":
            reporter.epoch(content)
        elif event == "error":
            message, trace = content
            raise VariantError(f"the {kind} run failed: {message}") from RuntimeError(trace)
        else:
            result: VariantResult = content
            return result


class _PipeReporter:
    def __init__(self, sender: Connection) -> None:
        self.sender = sender

    def batch(self, stage: str, done: int, total: int, loss: float | None) -> None:
        self.sender.send(("batch", (stage, done, total, loss)))

    def epoch(self, record: EpochRecord) -> None:
        self.sender.send(("epoch", record))


def _child(job: VariantJob, sender: Connection) -> None:
    answer: tuple[str, Any]
    try:
        answer = ("result", train_variant(job, _PipeReporter(sender)))
    except Exception as error:
        answer = ("error", (f"{type(error).__name__}: {error}", traceback.format_exc()))
    sender.send(answer)
    sender.close()
