"""Random padded models, optimised and compared with eager execution.

    python benchmarks/fuzz_models.py --seeds 0:1000        # prints failing models, minimised, as runnable files
    python benchmarks/fuzz_models.py --file failure.py     # checks one of them again; --dynamo-every 1: through Dynamo
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import time
from collections import Counter
from pathlib import Path

import torch
from fuzzing.check import check_text
from fuzzing.minimise import minimise
from fuzzing.models import OWN_SIZES, generate


def main() -> int:
    """The number of failures, at most 1."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", default="0:100", help="A:B, as in range(A, B)")
    parser.add_argument("--file", type=Path, help="check this model instead")
    parser.add_argument("--out", type=Path, help="folder for the sources of failing models")
    parser.add_argument("--dynamo-every", type=int, default=20, metavar="K", help="one seed in K through Dynamo (slow)")
    parser.add_argument("--minimise", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--show", action="store_true", help="print the sources without checking them")
    options = parser.parse_args()
    torch.set_num_threads(1)
    gc.set_threshold(200_000, 20, 100)  # every graph is a heap of small objects that die together
    logging.getLogger("gr_compile").setLevel(logging.ERROR)
    if options.file is not None:
        outcome = check_text(options.file.read_text(), options.dynamo_every == 1)
        print(outcome)
        return int(outcome.failure is not None)
    first, last = (int(part) for part in options.seeds.split(":"))
    return _run(range(first, last), options)


def _run(seeds: range, options: argparse.Namespace) -> int:
    counts: Counter[str] = Counter()
    start = time.perf_counter()
    for seed in seeds:
        through_dynamo = options.dynamo_every > 0 and seed % options.dynamo_every == 0
        fixed = OWN_SIZES if through_dynamo else {}
        model = generate(seed, fixed)
        if options.show:
            print(model.text)
            continue
        outcome = check_text(model.text, through_dynamo)
        counts.update(models=1, dynamo=through_dynamo, invalid=bool(outcome.invalid))
        counts.update(packed=outcome.packed, fused=outcome.fused)
        if outcome.invalid:
            print(f"seed {seed} invalid: {outcome.invalid}", flush=True)
        if outcome.failure is not None:
            counts["failures"] += 1
            failure = outcome.failure
            if options.minimise:
                model, failure = minimise(seed, failure, through_dynamo, fixed)
            print(f"==== seed {seed}: {failure}\n{model.text}", flush=True)
            if options.out is not None:
                options.out.mkdir(parents=True, exist_ok=True)
                (options.out / f"seed_{seed}.py").write_text(model.text)
        if counts["models"] % 500 == 0:
            print(f"up to seed {seed}: {dict(counts)} in {time.perf_counter() - start:.0f} s", flush=True)
    print(f"{dict(counts)} in {time.perf_counter() - start:.0f} s")
    return int(counts["failures"] > 0)


if __name__ == "__main__":
    sys.exit(main())
