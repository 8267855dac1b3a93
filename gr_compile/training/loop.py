"""The training loop: next-item prediction with AdamW, evaluated by leave-one-out on the full catalogue."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gr_compile.benchmarking.flops import peak_flops, synchronize
from gr_compile.benchmarking.memory import PeakMemory
from gr_compile.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from gr_compile.training.data.batches import Batch, SequenceBatches, Split
from gr_compile.training.data.interactions import InteractionData
from gr_compile.training.metrics import Quality, excluded, quality, ranks
from gr_compile.training.models import ModelCase
from gr_compile.training.reporting import EpochRecord, Reporter, SilentReporter
from gr_compile.training.settings import TrainSettings
from gr_compile.training.timing import Speed, StepClock

Run = Callable[..., torch.Tensor]

# What a resumed run may change without becoming another run.
FREE_SETTINGS = ("epochs", "max_steps", "checkpoint_every", "evaluate_every", "device")


class TrainingError(Exception):
    """Training cannot go on."""


@dataclass(frozen=True)
class TrainResult:
    """What a run gave. Memory is in bytes: `peak_memory` the process's (or the GPU allocator's) peak during
    the measured steps, `step_memory` its rise above what was resident between steps."""

    epochs: list[EpochRecord]
    test: Quality
    speed: Speed
    peak_memory: int
    step_memory: int
    memory_resettable: bool
    train_seconds: float
    evaluate_seconds: float


class Trainer:
    """Trains `case.module` through `run`: the module itself or anything compiled from it.

    `run` shares the module's parameters; the optimizer and the checkpoints are the module's, so that runs of
    different kinds continue one another's checkpoints.
    """

    def __init__(
        self,
        case: ModelCase,
        run: Run,
        data: InteractionData,
        settings: TrainSettings,
        reporter: Reporter | None = None,
        checkpoint: Path | None = None,
        identity: dict[str, Any] | None = None,
    ) -> None:
        self.case = case
        self.run = run
        self.data = data
        self.settings = settings
        self.reporter = reporter or SilentReporter()
        self.checkpoint = checkpoint
        self.device = torch.device(settings.device)
        case.module.to(self.device)
        self.optimizer = torch.optim.AdamW(
            case.module.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.identity = run_identity(data, settings) | (identity or {})
        self.progress = Progress()
        self.history: list[EpochRecord] = []
        self.clock = StepClock(case.cost)
        self.memory = PeakMemory(settings.device)
        self._peak_memory = 0
        self._warm_steps = 0
        self._evaluate_seconds = 0.0

    def resume(self) -> None:
        """Continues from the checkpoint: the next batch, its random numbers and its optimizer state are those
        that the interrupted run would have had."""
        if self.checkpoint is None:
            raise TrainingError("there is no checkpoint to resume from: none was named")
        self.progress, history = load_checkpoint(
            self.checkpoint, self.case.module, self.optimizer, self.identity
        )
        self.history = [EpochRecord(**record) for record in history]

    def train(self, measure_peak_flops: bool = True) -> TrainResult:
        """Trains to the end of the settings' epochs (or steps) and evaluates on the test split."""
        start = time.perf_counter()
        with deterministic_torch(self.settings.deterministic):
            batches = self._batches("train", shuffle=True)
            self._warm_steps = self._steps_before_measuring(len(batches))
            while self.progress.epoch < self.settings.epochs and not self._finished():
                self._epoch(batches)
            train_seconds = time.perf_counter() - start - self._evaluate_seconds
            test = self.evaluate("test")
        peak = peak_flops(self.settings.device) if measure_peak_flops else 0.0
        return TrainResult(
            epochs=self.history,
            test=test,
            speed=self.clock.speed(peak),
            peak_memory=self._peak_memory,
            step_memory=max(0, self._peak_memory - self.memory.baseline_bytes),
            memory_resettable=self.memory.resettable,
            train_seconds=train_seconds,
            evaluate_seconds=self._evaluate_seconds,
        )

    def evaluate(self, split: Split) -> Quality:
        """HR@k and NDCG@k of a split."""
        start = time.perf_counter()
        found = self.ranks(split)
        self._evaluate_seconds += time.perf_counter() - start
        return quality(found, self.settings.top_k)

    def ranks(self, split: Split) -> torch.Tensor:
        """[U] int64: how many items stand before each user's target; 0 is the best."""
        found = []
        for batch, logits in self._scored(split):
            seen = batch.item_ids if self.settings.filter_history else None
            found.append(ranks(logits, batch.last_targets, seen).cpu())
        return torch.cat(found)

    def top_items(self, split: Split) -> torch.Tensor:
        """[U, k] int64: the items recommended to each user of a split, best first."""
        lists = []
        for batch, logits in self._scored(split):
            seen = batch.item_ids if self.settings.filter_history else None
            lists.append(excluded(logits, batch.last_targets, seen).topk(self.settings.top_k).indices.cpu())
        return torch.cat(lists)

    def save(self) -> None:
        """Writes the checkpoint, where one was named."""
        if self.checkpoint is not None:
            history = [asdict(record) for record in self.history]
            save_checkpoint(
                self.checkpoint, self.case.module, self.optimizer, self.progress, self.identity, history
            )

    def _epoch(self, batches: SequenceBatches) -> None:
        settings, progress = self.settings, self.progress
        self._mode(training=True)
        start = time.perf_counter()
        for group in self._groups(batches):
            if len(self.clock.seconds) == self._warm_steps:
                self.memory.start()
            self._step(group)
            mean = progress.loss_sum / progress.target_sum
            self.reporter.batch(f"epoch {progress.epoch + 1}", progress.batch, len(batches), mean)
            if self._finished():
                break
            if settings.checkpoint_every and progress.steps % settings.checkpoint_every == 0:
                self.save()
        if len(self.clock.seconds) > self._warm_steps and not self._peak_memory:
            self._peak_memory = self.memory.read()
        if progress.batch < len(batches):
            self.save()
            return
        self._close_epoch(time.perf_counter() - start)

    def _steps_before_measuring(self, batches: int) -> int:
        """Steps by which everything that compiles has compiled: an epoch, or 3 in a run that is shorter."""
        steps = -(-batches // self.settings.accumulate)
        if self.settings.epochs - self.progress.epoch > 1 and not self.settings.max_steps:
            return steps
        return min(3, steps // 2, max(self.settings.max_steps - 1, 0) if self.settings.max_steps else steps)

    def _close_epoch(self, seconds: float) -> None:
        progress = self.progress
        found = None
        if (progress.epoch + 1) % self.settings.evaluate_every == 0:
            found = self.evaluate("validation")
        loss = progress.loss_sum / progress.target_sum
        hit_rate, ndcg = (found.hit_rate, found.ndcg) if found else (None, None)
        self.history.append(EpochRecord(progress.epoch + 1, loss, hit_rate, ndcg, seconds))
        self.progress = Progress(epoch=progress.epoch + 1, steps=progress.steps)
        self.save()
        self.reporter.epoch(self.history[-1])

    def _step(self, group: list[Batch]) -> None:
        """One optimizer step over a group of batches, as if they were one batch."""
        synchronize(self.settings.device)
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        counts = [int((batch.targets != 0).sum()) for batch in group]
        for batch, count in zip(group, counts):
            with self._autocast():
                loss = self.case.loss(self.run, batch.to(self.device))
            torch.autograd.backward(loss * (count / sum(counts)))
            self._account(float(loss.detach()), count)
        if self.settings.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.case.module.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        synchronize(self.settings.device)
        self.progress.steps += 1
        self.clock.add(time.perf_counter() - start, group)

    def _account(self, loss: float, count: int) -> None:
        progress = self.progress
        progress.batch += 1
        if not math.isfinite(loss):
            place = f"epoch {progress.epoch + 1}, batch {progress.batch}"
            raise TrainingError(f"the loss is {loss} at {place}; a lower learning rate or clipping may help")
        progress.loss_sum += loss * count
        progress.target_sum += count

    def _groups(self, batches: SequenceBatches) -> Iterator[list[Batch]]:
        group: list[Batch] = []
        for batch in batches.epoch(self.progress.epoch, self.progress.batch):
            group.append(batch)
            if len(group) == self.settings.accumulate:
                yield group
                group = []
        if group:
            yield group

    def _scored(self, split: Split) -> Iterator[tuple[Batch, torch.Tensor]]:
        self._mode(training=False)
        batches = self._batches(split)
        with torch.no_grad():
            for index, batch in enumerate(batches.epoch()):
                batch = batch.to(self.device)
                with self._autocast():
                    logits = self.case.scores(self.run, batch)
                yield batch, logits
                self.reporter.batch(split, index + 1, len(batches), None)

    def _batches(self, split: Split, shuffle: bool = False) -> SequenceBatches:
        settings = self.settings
        negatives = settings.negatives if split == "train" else 0
        return SequenceBatches(
            self.data, split, settings.max_seq_len, settings.batch_size, shuffle, settings.seed, negatives
        )

    def _mode(self, training: bool) -> None:
        self.case.module.train(training)
        if isinstance(self.run, torch.nn.Module) and self.run is not self.case.module:
            self.run.train(training)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.settings.bf16)

    def _finished(self) -> bool:
        return bool(self.settings.max_steps) and self.progress.steps >= self.settings.max_steps


def run_identity(data: InteractionData, settings: TrainSettings) -> dict[str, Any]:
    """What two runs must share for one to continue the other, beside the model."""
    fixed = {name: value for name, value in asdict(settings).items() if name not in FREE_SETTINGS}
    return fixed | {"data": data.name, "users": data.num_users, "interactions": data.num_interactions}


@contextlib.contextmanager
def deterministic_torch(enabled: bool) -> Iterator[None]:
    """Makes torch refuse operators without a deterministic form, for the length of the block."""
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(enabled or before, warn_only=warn_only)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
