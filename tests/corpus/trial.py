"""Tries subjects of one family in a process of its own: `python trial.py WHEELS REQUEST`, JSON in, JSON out.

A request: {names, batch, n, fill, declared, target}. The answer, by name: whether outputs and gradients are eager's,
what the passes matched and missed, the operators that ran over padded places, places, valid ones and those computed,
graphs and torch.compile's; with "times" (fills) also medians of milliseconds against torch.compile, by fill and mode;
with "dropout" how often drawn losses and gradients of both are; or {error} where it failed.
"""

from __future__ import annotations

import copy
import importlib
import json
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor, nn

DENSE = frozenset(
    f"aten::{name}" for name in (
        "embedding", "linear", "matmul", "mm", "bmm", "addmm", "einsum", "layer_norm", "gelu", "relu", "silu", "softmax",
        "scaled_dot_product_attention",
    )
)  # fmt: skip


def main(wheels: str, request: dict[str, Any]) -> dict[str, Any]:
    """The answers to a request."""
    sys.path.append(wheels)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(request.get("threads", 1))
    return {name: tried(name, request) for name in request["names"]}


def tried(name: str, request: dict[str, Any]) -> dict[str, Any]:
    """The answer for one subject."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    try:
        subject, valid = made(name, request, request["fill"])
        if request.get("dropout"):
            return drawn(subject, request)
        fast, answer = compare(subject, request, valid)
        fills = {fill: made(name, request, fill)[0].arguments for fill in request.get("times", ())}
        if fills:
            answer["times"] = times(subject.model, fast, fills, request["repeats"])
        return answer | {"count_of_torch_compile": graphs_of_torch_compile(subject.model, subject.arguments)}
    except Exception:
        return {"error": traceback.format_exc()}


def made(name: str, request: dict[str, Any], fill: float) -> tuple[Any, int]:
    """The subject at a fill, in training mode, and its valid places."""
    size = importlib.import_module("subject").Size(request["batch"], request["n"], fill)
    subject = maker_of(name)(size)
    subject.model.train()
    return subject, int(size.lengths().sum())


def family_of(name: str) -> str:
    """The module that has the subject, without its ending."""
    return next(x for x, starts in PREFIX.items() if name.lower().startswith(starts))


def maker_of(name: str) -> Callable[[Any], Any]:
    """The subject's maker; only the family that has it is imported."""
    family = family_of(name)
    found: Callable[[Any], Any] = importlib.import_module(f"{family}_models").CASES[name]
    return found


PREFIX: dict[str, tuple[str, ...]] = {
    "rectools": ("rectools",), "recbole": ("recbole",), "transformers": ("llama", "gpt-2"),
    "torch": ("transformerencoder", "multiheadattention", "sdpa", "gru"), "jagged": ("hstu", "keyed", "nested"),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------- right?
def compare(subject: Any, request: dict[str, Any], valid: int) -> tuple[nn.Module, dict[str, Any]]:
    """The optimised model; outputs, gradients and what the passes say, against eager."""
    import gr_compile

    eager = subject.model
    padding = subject.padding if request.get("declared") else "auto"
    fast = gr_compile.optimize(copy.deepcopy(eager), padding=padding, target=request["target"])
    got, want = step(fast, subject.arguments), step(eager, subject.arguments)
    if padding != "auto":  # places that were declared to be padding hold anything in eager's outputs
        mask = subject.arguments[1].bool()
        got, want = [x[mask] for x in got], [x[mask] for x in want]
    grads = gradients_of(fast, eager)
    kept = [x for x in zip(fast.buffers(), eager.buffers()) if x[0].is_floating_point()]
    buffers = max((distance(a, b, 0.0) for a, b in kept), default=0.0)
    farthest = farthest_of(grads)
    if farthest > 1e-4:  # which of the two is off, float64 says
        exact = copy.deepcopy(eager).double()
        exact.zero_grad()
        step(exact, pytree.tree_map(doubled, subject.arguments))
        farthest = farthest_of(gradients_of(fast, exact))
    told = gr_compile.explain(fast).to_json()
    count = len(gr_compile.report(fast))
    dense, computed = watched(fast, subject)
    return fast, {
        "outputs": max(distance(a, b, 0.0) for a, b in zip(got, want)),
        "gradients": farthest,
        "buffers": buffers,
        "missing": sum((p is None) != (q is None) for p, q in grads),
        "graphs": told["graphs"],
        "failed": [report.passes_failed for report in gr_compile.report(fast) if report.passes_failed],
        "dense": dense,
        "places": request["batch"] * request["n"], "valid": valid, "computed": computed,
        "count": count,
    }  # fmt: skip


def gradients_of(model: nn.Module, wanted: nn.Module) -> list[tuple[Tensor | None, Tensor | None]]:
    """Of each parameter, in both models."""
    return [(p.grad, q.grad) for p, q in zip(model.parameters(), wanted.parameters())]


def farthest_of(grads: list[tuple[Tensor | None, Tensor | None]]) -> float:
    """The largest relative distance; gradients below a thousandth of the largest are measured by that."""
    largest = max([float(q.norm()) for _, q in grads if q is not None], default=1.0)
    return max((distance(p, q, 1e-3 * largest) for p, q in grads), default=0.0)


def doubled(value: Any) -> Any:
    """Floating tensors in float64."""
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def graphs_of_torch_compile(model: nn.Module, arguments: tuple[Any, ...]) -> int:
    """Into how many graphs Dynamo cuts the model."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    torch.compile(model, backend=counter)(*arguments)
    return int(counter.frame_count)


def step(model: nn.Module, arguments: tuple[Any, ...]) -> list[Tensor]:
    """Floating outputs; gradients are left in the parameters."""
    outputs = [x for x in pytree.tree_leaves(model(*arguments)) if isinstance(x, Tensor) and x.is_floating_point()]
    weights = [torch.ones_like(x) for x in outputs]
    torch.autograd.backward(list(outputs), [w * (arguments_mask(arguments, w)) for w in weights])
    return [x.detach() for x in outputs]


def arguments_mask(arguments: tuple[Any, ...], like: Tensor) -> Tensor:
    """1 where an output over places is read: at the valid ones."""
    if like.dim() < 3 or len(arguments) < 2 or not isinstance(arguments[1], Tensor):
        return torch.ones(())
    return arguments[1].to(like.dtype)[..., None] if arguments[1].shape == like.shape[:2] else torch.ones(())


def distance(got: Tensor | None, want: Tensor | None, least: float) -> float:
    """Relative to the tensor's norm, or to `least` where that is more."""
    if got is None or want is None:
        return 0.0
    return float((got.double() - want.double()).norm() / want.double().norm().clamp(min=max(least, 1e-12)))


def watched(fast: nn.Module, subject: Any) -> tuple[list[str], int]:
    """Operators of one forward that ran over all places of all sequences, and the rows that jagged ones had."""
    batch, n = subject_shape(subject)
    with torch.no_grad():
        fast(*subject.arguments)  # compiles for no_grad
        with torch.profiler.profile(record_shapes=True) as seen:
            fast(*subject.arguments)
    dense: set[str] = set()
    rows = 0
    for event in seen.events() or []:
        shapes = [list(x) for x in event.input_shapes or [] if x]
        if event.name in ("gr::pack", "gr::jagged_attention"):
            rows = max(rows, *(x[0] for x in shapes[: 1 + (event.name == "gr::pack")][-1:]))
        if event.name in DENSE and any(is_dense(x, batch, n) for x in shapes):
            dense.add(event.name.removeprefix("aten::"))
    return sorted(dense), rows or batch * n


def is_dense(shape: list[int], batch: int, n: int) -> bool:
    """Over all places: B and N beside each other or apart, or B * N rows of features."""
    return (len(shape) > 2 and n in shape[1:] and batch in shape[:2]) or (len(shape) == 2 and shape[0] == batch * n)


def subject_shape(subject: Any) -> tuple[int, int]:
    """B and N of the first integer argument over places."""
    given = [x for x in pytree.tree_leaves(subject.arguments) if isinstance(x, Tensor) and not x.is_nested]
    return next((x.shape[0], x.shape[1]) for x in given if x.dim() == 2 and x.dtype == torch.int64)


# ----------------------------------------------------------------------------------------------- dropout
def drawn(subject: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Two statistics of each of some training steps with dropout, eager and optimised: [draws, 2] each."""
    import gr_compile

    for module in subject.model.modules():
        for name in ("p", "dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, request["dropout"])
    fast = gr_compile.optimize(copy.deepcopy(subject.model), target=request["target"])
    return {
        "eager": [statistics_of(subject.model, subject.arguments) for _ in range(request["draws"])],
        "optimised": [statistics_of(fast, subject.arguments) for _ in range(request["draws"])],
        "failed": [report.passes_failed for report in gr_compile.report(fast) if report.passes_failed],
    }


def statistics_of(model: nn.Module, arguments: tuple[Any, ...]) -> tuple[float, float]:
    """A step's loss and the norm of its gradients."""
    model.zero_grad()
    outputs = step(model, arguments)
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    return float(sum(x.sum() for x in outputs)), float(norm)


# ------------------------------------------------------------------------------------------------- times
def times(
    eager: nn.Module, fast: nn.Module, fills: dict[float, tuple[Any, ...]], repeats: int
) -> dict[str, dict[str, dict[str, float]]]:
    """By fill and mode: medians of milliseconds over rounds in which torch.compile and gr_compile take turns."""
    runs = {"torch_compile": torch.compile(copy.deepcopy(eager)), "gr_compile": fast}
    return {
        str(fill): {mode: medians(runs, arguments, mode, repeats) for mode in ("inference", "training")}
        for fill, arguments in fills.items()
    }


def medians(runs: dict[str, Any], arguments: tuple[Any, ...], mode: str, repeats: int) -> dict[str, float]:
    """Milliseconds of a run in this mode; the first three rounds, which compile and warm up, are not counted."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(3 + repeats):
        for name, model in runs.items():
            start = time.perf_counter()
            if mode == "training":
                model.zero_grad(set_to_none=True)
                step(model, arguments)
            else:
                with torch.no_grad():
                    model(*arguments)
            if turn >= 3:
                samples[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(found) for name, found in samples.items()}


if __name__ == "__main__":
    answer = main(sys.argv[1], json.loads(sys.argv[2]))
    print("\n" + json.dumps(answer))
