"""Who is measured: how each contender runs a workload, and why one has no row."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from gr_compile.benchmarking.offloaded import InMemoryTrial, OffloadedTrial
from gr_compile.benchmarking.rectools_hstu import RectoolsTrial, why_absent
from gr_compile.benchmarking.settings import BenchSettings, Mode
from gr_compile.benchmarking.workload import Workload, build

LABELS = {
    "eager": "eager, padded",
    "torch_compile": "torch.compile, padded",
    "gr_compile": "gr_compile",
    "flex_attention": "FlexAttention",
    "nested": "nested tensors",
    "rectools": "RecTools HSTU",
    "offloaded": "gr_compile, table in a file",
}

Run = Callable[..., torch.Tensor]


class Trial(Protocol):
    """A step that can be repeated."""

    def run(self) -> dict[str, float]:
        """Does it once; seconds of `step`, and in training of its `forward` and `backward`."""

    def checks(self) -> dict[str, float]:
        """Numbers of the last step that agree between contenders; empty where they cannot."""


def absence(name: str, settings: BenchSettings, mode: Mode, peers: Path) -> str | None:
    """Why a contender has no row; None where it has one. `peers` is where fetched packages lie."""
    if name == "flex_attention":
        if settings.model in ("hstu", "fuxi", "stu"):
            return "FlexAttention computes softmax: SiLU attention is not expressible"
        if settings.model == "sasrec" and mode == "training":
            return "FlexAttention has no backward on the CPU"
    if name == "nested" and settings.model in ("hstu", "fuxi", "stu"):
        return "nested tensors have softmax attention only: SiLU attention is not expressible"
    if name in ("flex_attention", "nested") and settings.model == "lookup":
        return "compared with sasrec only"
    if name == "offloaded" and not settings.trains:
        return "the table in a file is measured by bench offload"
    if name == "rectools":
        return _rectools_absence(settings, peers)
    return None


def _rectools_absence(settings: BenchSettings, peers: Path) -> str | None:
    if settings.model != "hstu":
        return "RecTools' HSTU is compared with hstu only"
    if settings.dtype != "float32":
        return "RecTools' HSTU is measured in float32 only"
    if settings.embedding_dim != settings.num_heads * settings.head_dim:
        return "RecTools' HSTU has embedding_dim = num_heads * head_dim"
    return why_absent(peers)


def make_trial(name: str, settings: BenchSettings, fill: float, mode: Mode, peers: Path) -> Trial:
    """The contender's step, not yet run."""
    if name == "rectools":
        return RectoolsTrial(settings, fill, mode, peers)
    workload = build(settings, fill, mode)
    if settings.trains:
        return OffloadedTrial(workload, settings) if name == "offloaded" else InMemoryTrial(workload, settings.passes)
    return WorkloadTrial(make_run(name, workload, settings.passes), workload, mode)


def make_run(name: str, workload: Workload, passes: str) -> Run:
    """The callable that a contender makes of the module."""
    if name == "eager":
        return workload.module
    if name == "gr_compile":
        import gr_compile

        fast: Run = gr_compile.optimize(workload.module, passes=passes)
        return fast
    from gr_compile.benchmarking.hand_written import FlexSASRec, NestedSASRec
    from gr_compile.model_zoo import SASRec

    module = workload.module
    if name == "nested":
        assert isinstance(module, SASRec)
        return NestedSASRec(module)
    if name == "flex_attention":
        assert isinstance(module, SASRec)
        return FlexSASRec(module, compiled=True)
    compiled: Run = torch.compile(module)
    return compiled


class WorkloadTrial:
    """Inference without gradients, or a training step without the optimizer's part."""

    def __init__(self, run: Run, workload: Workload, mode: Mode) -> None:
        self.call = run
        self.workload = workload
        self.mode = mode
        self.parameters = list(workload.module.parameters())
        self.output = torch.empty(0)

    def run(self) -> dict[str, float]:
        """Seconds of one step."""
        self.output = torch.empty(0)
        for parameter in self.parameters:
            parameter.grad = self._cleared(parameter)
        return self._inference() if self.mode == "inference" else self._training()

    def _cleared(self, parameter: torch.nn.Parameter) -> torch.Tensor | None:
        """Nothing, or zeros in memory that is there already."""
        if not self.workload.gradients_kept:
            return None
        return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.zero_()

    def _inference(self) -> dict[str, float]:
        start = time.perf_counter()
        with torch.no_grad():
            self.output = self.call(*self.workload.arguments)
        return {"step": time.perf_counter() - start}

    def _training(self) -> dict[str, float]:
        start = time.perf_counter()
        loss = self.call(*self.workload.arguments, **self.workload.training_arguments)
        middle = time.perf_counter()
        torch.autograd.backward(loss)
        end = time.perf_counter()
        self.output = loss.detach()
        return {"step": end - start, "forward": middle - start, "backward": end - middle}

    def checks(self) -> dict[str, float]:
        """The size of the output, and of the gradients."""
        found = {"output": float(self.output.float().abs().mean())}
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if gradients:
            found["gradients"] = float(torch.stack([g.double().norm() for g in gradients]).norm())
        return found
