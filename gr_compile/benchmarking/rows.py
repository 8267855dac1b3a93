"""Rows of the benchmarks from their runs: the stable fields of the --json file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gr_compile.benchmarking.benchmark import Case, Measured
from gr_compile.benchmarking.flops import utilisation
from gr_compile.benchmarking.runs import ContenderRun
from gr_compile.benchmarking.settings import PRINCIPALS
from gr_compile.benchmarking.workload import UsefulWork, useful_work

MEBIBYTE = 2**20
MISSING = ContenderRun("", 0.0, "")  # stands in for a contender without a run: all its numbers are None


def speed_rows(measured: Measured) -> list[dict[str, Any]]:
    """One a case: times of the three, gr_compile's utilisation and memory, eager's memory."""
    return [_speed_row(case, runs, measured.peak_flops) for case, runs in zip(measured.cases, measured.runs)]


def memory_rows(measured: Measured) -> list[dict[str, Any]]:
    """One a case: peaks above the start of the process, and gr_compile's share of eager's."""
    return [_memory_row(case, runs) for case, runs in zip(measured.cases, measured.runs)]


def embedding_rows(measured: Measured) -> list[dict[str, Any]]:
    """One a case: forward and backward of the three, and how many times faster than torch.compile."""
    return [_embedding_row(case, runs) for case, runs in zip(measured.cases, measured.runs)]


def _speed_row(case: Case, runs: Sequence[ContenderRun], peak: float) -> dict[str, Any]:
    eager, compiled, ours = (find(runs, name) for name in PRINCIPALS)
    work = useful_work(case.settings, case.fill, case.mode)
    seconds = ours.median()
    return {
        "fill": case.fill,
        "mode": case.mode,
        "eager_ms": _milliseconds(eager.median()),
        "torch_compile_ms": _milliseconds(compiled.median()),
        "gr_compile_ms": _milliseconds(seconds),
        "speedup_vs_torch_compile": ratio(compiled.median(), seconds),
        "mfu": _mfu(work, seconds, peak),
        "hfu": utilisation(work.flops + work.recomputed, seconds, peak) if seconds else None,
        "gemm_gflops": peak / 1e9,
        "peak_mb": _mebibytes(ours),
        "padded_peak_mb": _mebibytes(eager),
    }


def _memory_row(case: Case, runs: Sequence[ContenderRun]) -> dict[str, Any]:
    eager, ours = find(runs, "eager"), find(runs, "gr_compile")
    return {
        "fill": case.fill,
        "mode": case.mode,
        "max_seq_len": case.settings.max_seq_len,
        "batch_size": case.settings.batch_size,
        "num_layers": case.settings.num_layers,
        "peak_mb": _mebibytes(ours),
        "padded_peak_mb": _mebibytes(eager),
        "ratio": ratio(_mebibytes(ours), _mebibytes(eager)),
        "steady_peak_mb": _mebibytes(ours, steady=True),
        "padded_steady_peak_mb": _mebibytes(eager, steady=True),
        "steady_ratio": ratio(_mebibytes(ours, steady=True), _mebibytes(eager, steady=True)),
    }


def _embedding_row(case: Case, runs: Sequence[ContenderRun]) -> dict[str, Any]:
    work = useful_work(case.settings, case.fill, case.mode)
    found: dict[str, Any] = {
        "fill": case.fill,
        "ids": work.places,
        "valid_ids": work.tokens,
        "embedding_dim": case.settings.embedding_dim,
        "items": case.settings.items,
    }
    for part in ("forward", "backward"):
        for name in PRINCIPALS:
            found[f"{name}_{part}_ms"] = _milliseconds(find(runs, name).median(part))
        theirs, ours = (find(runs, name).median(part) for name in ("torch_compile", "gr_compile"))
        found[f"{part}_speedup_vs_torch_compile"] = ratio(theirs, ours)
    return found


def loss_rows(measured: Measured) -> list[dict[str, Any]]:
    """One a loss: times of the three, and what a step adds to the table, the states and their gradients."""
    return [_loss_row(case, runs) for case, runs in zip(measured.cases, measured.runs)]


def _loss_row(case: Case, runs: Sequence[ContenderRun]) -> dict[str, Any]:
    sizes, work = case.settings, useful_work(case.settings, case.fill, case.mode)
    found: dict[str, Any] = {
        "fill": case.fill, "model": sizes.model, "tokens": work.tokens, "items": sizes.items,
        "negatives": sizes.negatives if sizes.model == "sampled_softmax" else None,
    }  # fmt: skip
    memory: dict[str, float | None] = {}
    for name in PRINCIPALS:
        run = find(runs, name)
        found[f"{name}_ms"] = _milliseconds(run.median())
        memory[name] = found[f"{name}_mb"] = None if run.footprint is None else run.footprint.step / MEBIBYTE
    found["speedup_vs_torch_compile"] = ratio(found["torch_compile_ms"], found["gr_compile_ms"])
    for name in ("eager", "torch_compile"):
        found[f"memory_vs_{name}"] = ratio(memory["gr_compile"], memory[name])
    return found


def offload_rows(measured: Measured) -> list[dict[str, Any]]:
    """One a case: training steps with the table in memory and in a file, and what went to and from the file."""
    return [_offload_row(case, runs) for case, runs in zip(measured.cases, measured.runs)]


def _offload_row(case: Case, runs: Sequence[ContenderRun]) -> dict[str, Any]:
    sizes, work = case.settings, useful_work(case.settings, case.fill, case.mode)
    memory, file = find(runs, "gr_compile"), find(runs, "offloaded")
    table = (sizes.items + 1) * sizes.embedding_dim * sizes.torch_dtype.itemsize / MEBIBYTE
    found: dict[str, Any] = {
        "fill": case.fill, "tokens": work.tokens, "items": sizes.items, "negatives": sizes.negatives,
        "segments": sizes.segments, "table_mb": table, "in_memory_ms": _milliseconds(memory.median()),
        "offloaded_ms": _milliseconds(file.median()), "speed_vs_in_memory": ratio(memory.median(), file.median()),
    }  # fmt: skip
    for part in ("forward", "backward", "update", "waited"):
        found[f"{part}_ms"] = _milliseconds(file.median(part))
    for part in ("buffers_mb", "limit_mb", "read_mb", "written_mb", "major_faults", "direct"):
        found[part] = file.median(part)
    return found


def turbogr_rows(measured: Measured) -> list[dict[str, Any]]:
    """One a model: gr_compile's step, its utilisation and its memory."""
    return [_turbogr_row(case, runs, measured.peak_flops) for case, runs in zip(measured.cases, measured.runs)]


def _turbogr_row(case: Case, runs: Sequence[ContenderRun], peak: float) -> dict[str, Any]:
    ours, work = find(runs, "gr_compile"), useful_work(case.settings, case.fill, case.mode)
    return {
        "fill": case.fill,
        "mode": case.mode,
        "model": case.settings.model,
        "max_seq_len": case.settings.max_seq_len,
        "num_layers": case.settings.num_layers,
        "gr_compile_ms": _milliseconds(ours.median()),
        "compile_s": ours.compile_seconds,
        "useful_gflop": work.flops / 1e9,
        "mfu": _mfu(work, ours.median(), peak),
        "gemm_gflops": peak / 1e9,
        "peak_mb": _mebibytes(ours),
        "steady_peak_mb": _mebibytes(ours, steady=True),
    }


def runs_as_json(measured: Measured) -> list[dict[str, Any]]:
    """Everything that was measured, one entry a process."""
    return [
        _run_as_json(case, run, measured.peak_flops)
        for case, runs in zip(measured.cases, measured.runs)
        for run in runs
    ]


def _run_as_json(case: Case, run: ContenderRun, peak: float) -> dict[str, Any]:
    work = useful_work(case.settings, case.fill, case.mode)
    seconds = run.median()
    return {
        "contender": run.contender,
        "fill": run.fill,
        "mode": run.mode,
        "max_seq_len": case.settings.max_seq_len,
        "tokens": work.tokens,
        "real_fill": work.tokens / work.places,
        "status": run.status,
        "reason": run.reason,
        "step_ms": _milliseconds(seconds),
        "forward_ms": _milliseconds(run.median("forward")),
        "backward_ms": _milliseconds(run.median("backward")),
        "samples_ms": [1e3 * sample for sample in run.samples.get("step", [])],
        "first_step_s": run.first_seconds,
        "compile_s": run.compile_seconds,
        "cold": run.cold,
        "peak_mb": _mebibytes(run),
        "steady_peak_mb": _mebibytes(run, steady=True),
        "useful_gflop": work.flops / 1e9,
        "mfu": _mfu(work, seconds, peak),
        "deviation": run.deviation,
    }


def find(runs: Sequence[ContenderRun], name: str) -> ContenderRun:
    """The contender's run, or one without numbers."""
    return next((run for run in runs if run.contender == name), MISSING)


def ratio(above: float | None, below: float | None) -> float | None:
    """The quotient; None where a number is missing."""
    return above / below if above is not None and below else None


def _mfu(work: UsefulWork, seconds: float | None, peak: float) -> float | None:
    return utilisation(work.flops, seconds, peak) if seconds and work.flops and peak else None


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def _mebibytes(run: ContenderRun, steady: bool = False) -> float | None:
    if run.footprint is None:
        return None
    return (run.footprint.steady_peak if steady else run.footprint.peak) / MEBIBYTE
