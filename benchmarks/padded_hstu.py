"""Time HSTU (research form) padded in eager, padded under torch.compile, and optimised: one run, side by side.

    python benchmarks/padded_hstu.py --batch 16 --length 1024 --fill 0.15 --mode training

Lengths are those of `gr-compile bench`, which also has processes apart, memory, MFU and peers; here all variants share
one process, to be profiled. Medians of `--repeats`.
Prints one JSON object. The catalogue is small (`--items`), so that the layers and not the loss are measured.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch

import gr_compile
from gr_compile.benchmarking.lengths import sequences_for
from gr_compile.model_zoo import HSTU, HSTUConfig


def inputs_for(fill: float, batch: int, length: int, items: int) -> tuple[torch.Tensor, ...]:
    """item ids, timestamps and targets, right padded."""
    made = sequences_for(fill, batch, length, items)
    return made.item_ids, made.timestamps, made.targets


def median_ms(step: Callable[[], None], repeats: int, warm_up: int) -> float:
    """Median wall time of a step in milliseconds."""
    times = []
    for index in range(warm_up + repeats):
        start = time.perf_counter()
        step()
        if index >= warm_up:
            times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def step_of(
    model: Callable[..., torch.Tensor], parameters: list[torch.nn.Parameter], args: tuple[torch.Tensor, ...], mode: str
) -> Callable[[], None]:
    """One inference call, or one training step without the optimizer."""

    def inference() -> None:
        with torch.no_grad():
            model(*args[:2])

    def training() -> None:
        for parameter in parameters:
            parameter.grad = None
        model(*args).backward()

    return inference if mode == "inference" else training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--fill", type=float, default=0.15)
    parser.add_argument("--mode", choices=("inference", "training"), default="training")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--without-torch-compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    head = options.dim // options.heads
    config = HSTUConfig(
        options.items, options.length, options.dim, options.layers, options.heads, attention_dim=head,
        linear_dim=head, dropout=0.0,
    )  # fmt: skip
    model = HSTU(config).train(options.mode == "training")
    args = inputs_for(options.fill, options.batch, options.length, options.items)
    variants: dict[str, Callable[..., torch.Tensor]] = {"eager": model, "gr_compile": gr_compile.optimize(model)}
    if not options.without_torch_compile:
        variants["torch_compile"] = torch.compile(model)
    result: dict[str, object] = {
        **vars(options),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    result["real_fill"] = round(float((args[0] != 0).float().mean()), 4)
    for name, variant in variants.items():
        start = time.perf_counter()
        step = step_of(variant, list(model.parameters()), args, options.mode)
        step()
        result[f"{name}_first_ms"] = round((time.perf_counter() - start) * 1e3)
        result[f"{name}_ms"] = round(median_ms(step, options.repeats, 1), 1)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
