"""Time a retrieval model whose items go through a tower of three layers, with dedupe-lookups and without it.

    python benchmarks/item_tower.py --items 20000 --tokens 4000 --negatives 8 --popularity 0.8

States, targets and `--negatives` a token are looked up in one table of `--items` rows and go through the tower; the
loss is a sampled softmax over cosines. Ids are drawn with probabilities rank ** -popularity (0: all alike). One step
of training without the optimizer, the variants alternately, medians. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gr_compile

VARIANTS = {"default": "default", "dedupe-lookups": "default,dedupe-lookups"}


class Retrieval(nn.Module):
    """A tower of items [V, D], and a linear layer for the state that follows an item."""

    def __init__(self, items: int, width: int, hidden: int) -> None:
        super().__init__()
        self.items = nn.Embedding(items, width, padding_idx=0)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, width)
        )
        self.state = nn.Linear(width, width)

    def tower(self, ids: Tensor) -> Tensor:
        """ids [...] -> [..., D], of norm 1."""
        return F.normalize(self.mlp(self.items(ids)), dim=-1)

    def forward(self, inputs: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
        """inputs, targets [T], negatives [T, R] -> the mean loss."""
        state = self.state(self.tower(inputs))
        positive = (state * self.tower(targets)).sum(-1, keepdim=True)
        drawn = torch.einsum("td,trd->tr", state, self.tower(negatives))
        logits = torch.cat([positive, drawn], -1) / 0.05
        return F.cross_entropy(logits, torch.zeros(logits.shape[0], dtype=torch.long))


def drawn(items: int, popularity: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Ids in [1, items), in an order of popularity that is none of the table."""
    weights = torch.arange(1, items, dtype=torch.float64) ** -popularity
    ranks = torch.multinomial(weights, torch.Size(shape).numel(), replacement=True, generator=generator)
    return (torch.randperm(items - 1, generator=generator)[ranks] + 1).reshape(shape)


def milliseconds(step: Callable[..., Tensor], model: nn.Module, batch: tuple[Tensor, ...]) -> float:
    """Wall time of one training step without the optimizer."""
    model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    step(*batch).backward()
    return (time.perf_counter() - start) * 1e3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, value in (("items", 20_000), ("tokens", 4000), ("negatives", 8), ("width", 64), ("hidden", 128)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--popularity", type=float, default=0.0)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    shapes: list[tuple[int, ...]] = [(args.tokens,), (args.tokens,), (args.tokens, args.negatives)]
    batch = tuple(drawn(args.items, args.popularity, shape, generator) for shape in shapes)
    model = Retrieval(args.items, args.width, args.hidden)
    steps, report = {}, None
    for name, passes in VARIANTS.items():
        torch._dynamo.reset()
        steps[name] = gr_compile.optimize(model, passes=passes, dynamic=True)
        milliseconds(steps[name], model, batch)
        report = gr_compile.report(steps[name])[-1]
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for _ in range(args.repeats):
        for name, step in steps.items():
            times[name].append(milliseconds(step, model, batch))
    medians = {name: round(statistics.median(x), 2) for name, x in times.items()}
    first, second = medians.values()
    (record,) = [x for x in report.passes if x.name == "dedupe-lookups"] if report is not None else []
    result: dict[str, Any] = {
        **vars(args), "distinct": len(torch.cat([ids.flatten() for ids in batch]).unique()), "milliseconds": medians,
        "times as fast": round(first / second, 2),
        "gate": [x.detail for x in record.matches] + [x.reason for x in record.misses],
    }  # fmt: skip
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
