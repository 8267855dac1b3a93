"""What passes that change the loss's numbers do to quality: paired runs on MovieLens-100K, seed by seed.

    python benchmarks/loss_quality.py --out shared.json --seeds 0:5 --negatives 32 128 32+share4
    python benchmarks/loss_quality.py --out fp16.json --seeds 0:10 --negatives 128 128+fp16

A run is R, the drawn negatives a target, with +shareK (share-logits), +fp16 or +bf16 (insert-fp16 on negatives). The
first run is what the others are compared with. Runs of one seed have the same weights at the start and the same
batches and negatives. The file is written after each run, and a run that is in it is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import gr_compile
from gr_compile.training.data.catalogue import DataRequest, load
from gr_compile.training.loop import Trainer
from gr_compile.training.metrics import quality
from gr_compile.training.models import ModelSettings
from gr_compile.training.settings import TrainSettings
from gr_compile.training.variants import build_seeded

CUTS = (10, 50, 200)
# Student's t, two-sided 95 %, by degrees of freedom.
T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 14: 2.145, 19: 2.093}


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    text: str
    negatives: int
    passes: str

    @classmethod
    def parse(cls, text: str) -> Arm:
        found = re.fullmatch(r"(\d+)(?:\+share(\d+))?(?:\+(fp16|bf16))?", text)
        if found is None:
            raise SystemExit(f"{text}: R, R+shareK, R+fp16, R+bf16 or R+shareK+fp16")
        count, share, half = found.groups()
        passes = "default"
        if share:
            passes += f",share-logits{{expansion={share}}}"
        if half:
            passes += ",insert-fp16" + ("{dtype=bfloat16,scale=none}" if half == "bf16" else "")
        return cls(text, int(count), passes)


def main() -> None:
    """Runs what is missing, and prints means, spreads and paired differences."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="results, read and written")
    parser.add_argument("--seeds", default="0:5", help="A:B, as in range(A, B)")
    parser.add_argument("--negatives", nargs="+", required=True, metavar="RUN", help="R, R+shareK, R+fp16, ...")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    arms = [Arm.parse(text) for text in options.negatives]
    first, last = (int(part) for part in options.seeds.split(":"))
    done: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for seed in range(first, last):
        for arm in arms:
            key = f"{arm.text}/{seed}/{options.epochs}"
            if key not in done:
                done[key] = one_run(arm, seed, options.epochs)
                options.out.write_text(json.dumps(done, indent=1) + "\n")
                print(key, {k: round(v, 4) for k, v in done[key].items() if not isinstance(v, list)}, flush=True)
    seeds = range(first, last)
    report([arm.text for arm in arms], {a.text: [done[f"{a.text}/{s}/{options.epochs}"] for s in seeds] for a in arms})


def one_run(arm: Arm, seed: int, epochs: int) -> dict[str, Any]:
    """Trains and evaluates on the test split; the lists of the first arm's weights are compared later."""
    torch._dynamo.reset()
    data = load(DataRequest("ml-100k"))
    settings = TrainSettings(
        epochs=epochs, learning_rate=2e-3, seed=seed, filter_history=True, negatives=arm.negatives,
        evaluate_every=epochs,
    )  # fmt: skip
    case = build_seeded(ModelSettings("hstu", dropout=0.2), settings, data.num_items)
    fast = gr_compile.optimize(case.module, passes=arm.passes)
    trainer = Trainer(case, fast, data, settings)
    start = time.perf_counter()
    result = trainer.train(measure_peak_flops=False)
    ranks = trainer.ranks("test")
    found: dict[str, Any] = {"loss": result.epochs[-1].loss, "step_ms": 1e3 * result.speed.step_seconds}
    found["seconds"] = time.perf_counter() - start
    for cut in CUTS:
        at = quality(ranks, cut)
        found[f"hr@{cut}"], found[f"ndcg@{cut}"] = at.hit_rate, at.ndcg
    found["same_lists"] = same_lists(case, trainer)
    return found


def same_lists(case: Any, trainer: Trainer) -> float:
    """The share of users whose list stays when the table that scores them is rounded to float16."""
    before = trainer.top_items("test")
    tables = [module.weight for module in case.module.modules() if isinstance(module, torch.nn.Embedding)]
    kept = [table.detach().clone() for table in tables]
    with torch.no_grad():
        for table in tables:
            table.copy_(table.half())
        after = trainer.top_items("test")
        for table, value in zip(tables, kept):
            table.copy_(value)
    return float((before == after).all(1).double().mean())


def report(names: list[str], runs: dict[str, list[dict[str, Any]]]) -> None:
    """Means and standard deviations; differences to the first arm, paired by seed, with their 95 % interval."""
    columns = [f"{metric}@{cut}" for cut in CUTS for metric in ("hr", "ndcg")] + ["step_ms", "same_lists"]
    print(f"{len(runs[names[0]])} seeds; mean (standard deviation)")
    for name in names:
        cells = []
        for column in columns:
            values = [run[column] for run in runs[name]]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{column} {statistics.mean(values):.4f} ({spread:.4f})")
        print(f"  {name:14}", "  ".join(cells))
    for name in names[1:]:
        print(f"{name} - {names[0]}: mean difference [95 % interval]")
        for column in columns[:-2]:
            differences = [a[column] - b[column] for a, b in zip(runs[name], runs[names[0]])]
            print(f"  {column:9} {interval(differences)}")


def interval(differences: list[float]) -> str:
    """The mean, and Student's interval of it."""
    mean, count = statistics.mean(differences), len(differences)
    if count < 2:
        return f"{mean:+.5f}"
    reach = T95.get(count - 1, 1.96) * statistics.stdev(differences) / math.sqrt(count)
    return f"{mean:+.5f} [{mean - reach:+.5f}, {mean + reach:+.5f}]"


if __name__ == "__main__":
    main()
