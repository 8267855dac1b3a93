"""Time compilation of a deep HSTU: torch.compile on the padded model against gr_compile, forward and backward.

    python benchmarks/compile_time.py --layers 16

Each variant runs in a process of its own with inductor's caches off. Prints one JSON object: seconds of the first
training step (compilation and one step), and what gr_compile's own passes took of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time

import torch

import gr_compile
from gr_compile.model_zoo import HSTU, HSTUConfig

VARIANTS = ("torch_compile", "gr_compile")


def measure(variant: str, layers: int, threads: int, dynamic: bool | None) -> dict[str, float]:
    """Seconds of the first training step of one variant, in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = HSTU(HSTUConfig(100, 64, 64, layers, 2, dropout=0.0))
    ids = torch.randint(1, 100, (4, 32))
    ids[:, 20:] = 0
    stamps = torch.randint(0, 1000, (4, 32)).sort(1).values
    compiler = torch.compile if variant == "torch_compile" else gr_compile.optimize
    fast = compiler(model, dynamic=dynamic)
    start = time.perf_counter()
    fast(ids, stamps, ids).backward()
    found = {"first_step_s": round(time.perf_counter() - start, 2)}
    if variant == "gr_compile":
        (report,) = gr_compile.report(fast)
        passes = sum(p.milliseconds + p.verify_milliseconds for p in report.passes)
        found["capture_s"] = round(report.capture_milliseconds / 1e3, 2)
        found["passes_s"] = round((passes + float(report.facts.get("verify_milliseconds", 0))) / 1e3, 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dynamic", action="store_true", help="Symbolic sizes from the first batch on.")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    dynamic = True if options.dynamic else None
    if options.variant:
        print(json.dumps(measure(options.variant, options.layers, options.threads, dynamic)))
        return
    result: dict[str, object] = {**vars(options), "torch": torch.__version__, "machine": platform.machine()}
    environment = {**os.environ, "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    for variant in VARIANTS:
        command = [sys.executable, __file__, "--variant", variant, "--layers", str(options.layers)]
        command += ["--threads", str(options.threads)] + (["--dynamic"] if options.dynamic else [])
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        result[variant] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
