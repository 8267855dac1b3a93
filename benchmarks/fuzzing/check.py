"""Runs a generated model eagerly and optimised; says what differs."""

from __future__ import annotations

import contextlib
import dataclasses
import linecache
import logging
import traceback
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

import gr_compile
from fuzzing.batches import FEATURES, GIVEN, make_batch
from fuzzing.direct import Direct

_PRODUCTS = {torch.ops.aten.mul, torch.ops.aten.div, torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm, torch.ops.aten.baddbmm}
_WASHES = {torch.ops.aten.nan_to_num, torch.ops.aten.argmax, torch.ops.aten.gt, torch.ops.aten.ge, torch.ops.aten.lt, torch.ops.aten.le, torch.ops.aten.eq}
_TOLERANCE = {"train": (1e-9, 1e-7), "eval": (1e-9, 1e-7), "no_grad": (1e-9, 1e-7), "autocast": (0.05, 0.3)}


@dataclass(frozen=True)
class Failure:
    """What went wrong: `kind` is "crash", "fallback", "forward" or "gradient"."""

    kind: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.what}"


@dataclass
class Outcome:
    """A checked model. `invalid`: eager execution or torch.compile itself cannot run it."""

    failure: Failure | None
    packed: bool = False
    fused: bool = False
    invalid: str = ""


def load(text: str, name: str = "fuzz_model") -> types.ModuleType:
    """The module of a source text; tracebacks show its lines."""
    path = f"<{name}>"
    linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
    module = types.ModuleType(name)
    exec(compile(text, path, "exec"), module.__dict__)
    return module


def check_text(text: str, dynamo: bool = True) -> Outcome:
    """Check the model of a source text."""
    module = load(text)
    return check(module.Model, module.BATCHES, module.DYNAMIC, module.MODE, dynamo)


def check(
    model_class: type[nn.Module], batches: list[dict[str, Any]], dynamic: bool | None = None, mode: str = "train",
    dynamo: bool = True,
) -> Outcome:  # fmt: skip
    """Compare all outputs and gradients of the model on every batch with eager execution.

    `dynamo=False` hands the model to the compiler directly, a graph for each size of batch.
    """
    torch._dynamo.reset()
    dtype = torch.float32 if mode == "autocast" else torch.float64
    torch.manual_seed(0)
    model = model_class().to(dtype).train(mode != "eval")
    with sdpa_kernel(SDPBackend.MATH):  # the backward of the CPU's flash kernel is wrong for rows that are all masked
        try:
            eager = [_run_watched(model, spec, mode, dtype) for spec in batches]
        except Exception as error:
            return Outcome(None, invalid=f"eager: {type(error).__name__}: {str(error)[:200]}")
        fast: Any = gr_compile.optimize(model, target="eager", dynamic=dynamic) if dynamo else Direct(model, symbolic=dynamic is True)
        failure = _compared(fast, model, batches, mode, dtype, eager)
        if failure is not None:
            why = _torch_fails_too(model, batches, mode, dtype, dynamic, eager)
            if why:
                return Outcome(None, invalid=why)
    reports = gr_compile.report(fast) if dynamo else [r for session in fast.sessions for r in session.reports]
    changed = {record.name for report in reports for record in report.passes if record.changed}
    return Outcome(failure, "eliminate-padding" in changed, "fuse-jagged-attention" in changed)


@dataclass(frozen=True)
class Results:
    """What one run gave.

    Attributes:
        finite: no product had a NaN or an infinity in it, as padding elimination assumes.
        washed: a product had, and something made numbers of NaN again: nothing can be said of what came out.
    """

    outputs: list[Any]
    gradients: list[torch.Tensor | None]
    finite: bool = True
    washed: bool = False


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes products with operands that are not finite: 0 * NaN is where eager execution and packing part."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.finite = True
        self.washed = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in _PRODUCTS:
            tensors = [a for a in args if isinstance(a, torch.Tensor) and a.dtype.is_floating_point]
            self.finite = self.finite and all(bool(torch.isfinite(a).all()) for a in tensors)
        elif not self.finite and func.overloadpacket in _WASHES:
            self.washed = self.washed or bool(args[0].isnan().any())
        return func(*args, **(kwargs or {}))


def _run_watched(model: nn.Module, spec: dict[str, Any], mode: str, dtype: torch.dtype) -> Results:
    with _Watch() as watch:
        found = _run(model, model, spec, mode, dtype)
    return dataclasses.replace(found, finite=watch.finite, washed=watch.washed)


def _run(
    model: nn.Module, call: Any, spec: dict[str, Any], mode: str, dtype: torch.dtype, blur: int | None = None
) -> Results:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.zero_grad(set_to_none=True)
    inputs = make_batch(spec, dtype)
    if blur is not None:
        _blur([*model.parameters(), inputs[FEATURES], inputs[GIVEN]], mode, blur)
    with torch.no_grad() if mode == "no_grad" else torch.enable_grad(), _cast(mode):
        outputs = list(call(*inputs))
    if mode != "no_grad":
        _loss(outputs).backward()  # type: ignore[no-untyped-call]
    leaves = [*model.parameters(), *(i for i in inputs if i.requires_grad)]
    gradients = [None if leaf.grad is None else leaf.grad.clone() for leaf in leaves]
    model.load_state_dict(state)
    return Results([o.detach() if isinstance(o, torch.Tensor) else o for o in outputs], gradients)


def _blur(values: list[torch.Tensor], mode: str, seed: int) -> None:
    """Every value is off by about the last bit that the mode computes with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in values:
            eps = torch.finfo(torch.bfloat16 if mode == "autocast" else value.dtype).eps
            value.mul_(1 + eps * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype))


def _rounding(
    model: nn.Module, spec: dict[str, Any], mode: str, dtype: torch.dtype, wanted: Results
) -> tuple[list[float], list[float]]:
    """How far eager's own outputs and gradients move when the last bits of what it reads do.

    A result whose terms cancel (the mean of a layer norm over its own features is 0; its gradient grows with the cube of 1 / std)
    is off by the rounding of the terms, which its own norm does not tell: no constant bounds it, and this run does.
    """
    runs = [_run(model, model, spec, mode, dtype, blur=seed) for seed in range(4)]

    def moved(values: list[Any], of: Any) -> float:
        if not isinstance(of, torch.Tensor) or not of.dtype.is_floating_point:
            return 0.0
        return max(float(torch.nan_to_num(v - of).double().norm()) for v in values if v is not None)

    outputs = [moved([r.outputs[k] for r in runs], of) for k, of in enumerate(wanted.outputs)]
    return outputs, [moved([r.gradients[k] for r in runs], of) for k, of in enumerate(wanted.gradients)]


def _cast(mode: str) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if mode == "autocast" else contextlib.nullcontext()


def _loss(outputs: list[Any]) -> torch.Tensor:
    """A sum of all outputs with weights of their own."""
    total = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for number, output in enumerate(outputs):
        if isinstance(output, torch.Tensor) and output.requires_grad:
            weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
            total = total + (output.double() * weights).sum()
    return total


def _compared(
    call: Any, model: nn.Module, batches: list[dict[str, Any]], mode: str, dtype: torch.dtype, eager: list[Results]
) -> Failure | None:
    for number, (spec, wanted) in enumerate(zip(batches, eager)):
        with _errors_logged() as errors:
            try:
                got = _run(model, call, spec, mode, dtype)
            except Exception as error:
                return Failure("crash", f"batch {number}: {type(error).__name__}: {error}\n{_frames(error)}")
        if errors:
            return Failure("fallback", f"batch {number}: {errors[0]}")
        failure = _difference(got, wanted, mode) if not wanted.washed else None
        if failure is not None and failure.kind in ("forward", "gradient"):
            failure = _difference(got, wanted, mode, _rounding(model, spec, mode, dtype, wanted))
        if failure is not None:
            return Failure(failure.kind, f"batch {number}: {failure.what}")
    return None


def _frames(error: BaseException) -> str:
    chain: BaseException | None = error
    lines: list[str] = []
    while chain is not None:
        lines += [f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_tb(chain.__traceback__)][-6:]
        chain = chain.__cause__ or chain.__context__
    return "\n".join(lines)


@contextlib.contextmanager
def _errors_logged() -> Iterator[list[str]]:
    """Fallbacks of our own passes are logged as errors."""
    found: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler, log = Collect(level=logging.ERROR), logging.getLogger("gr_compile")
    log.addHandler(handler)
    try:
        yield found
    finally:
        log.removeHandler(handler)


def _difference(
    got: Results, wanted: Results, mode: str, rounding: tuple[list[float], list[float]] | None = None
) -> Failure | None:
    forward, backward = _TOLERANCE[mode]
    of_outputs, of_gradients = rounding or ([0.0] * len(wanted.outputs), [0.0] * len(wanted.gradients))
    if len(got.outputs) != len(wanted.outputs):
        return Failure("forward", "another number of outputs")
    for number, (a, b) in enumerate(zip(got.outputs, wanted.outputs)):
        if not isinstance(b, torch.Tensor):
            if a != b:
                return Failure("forward", f"output {number}: {a} instead of {b}")
            continue
        problem = _unequal(a, b, forward, 1e-12 + 4 * of_outputs[number], wanted.finite)
        if problem:
            return Failure("forward", f"output {number}: {problem}")
    if not wanted.finite:
        return None
    scale = max((float(torch.nan_to_num(g).norm()) for g in wanted.gradients if g is not None), default=0.0)
    for number, (a, b) in enumerate(zip(got.gradients, wanted.gradients)):
        if (a is None) != (b is None) and torch.count_nonzero(b if a is None else a):  # type: ignore[arg-type]
            return Failure("gradient", f"gradient {number}: one of them is missing")
        if a is None or b is None:
            continue
        problem = _unequal(a, b, backward, backward * scale + 1e-14 + 4 * of_gradients[number], True)
        if problem:
            return Failure("gradient", f"gradient {number}: {problem}")
    return None


def _unequal(a: torch.Tensor, b: torch.Tensor, relative: float, absolute: float, strict: bool) -> str:
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{a.dtype}{list(a.shape)} instead of {b.dtype}{list(b.shape)}"
    if not a.dtype.is_floating_point:
        return "" if torch.equal(a, b) else f"{int((a != b).sum())} values differ"
    finite = torch.isfinite(b)
    if strict and not torch.equal(torch.nan_to_num(a[~finite], 7.0), torch.nan_to_num(b[~finite], 7.0)):
        return "NaN or infinity at other places"
    if not torch.isfinite(a[finite]).all():
        return f"NaN or infinity at other places ({int(a.isnan().sum())} NaN instead of {int(b.isnan().sum())} of {b.numel()})"
    error, norm = float((a[finite] - b[finite]).double().norm()), float(b[finite].double().norm())
    return "" if error <= relative * norm + absolute else f"error {error:.3g} of norm {norm:.3g}"


def _torch_fails_too(
    model: nn.Module, batches: list[dict[str, Any]], mode: str, dtype: torch.dtype, dynamic: bool | None, eager: list[Results]
) -> str:  # fmt: skip
    """Why torch.compile, without anything of ours, does not run this model as eager execution does; "" where it does."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True, recompile_limit=64):
        failure = _compared(torch.compile(model, backend="aot_eager", dynamic=dynamic), model, batches, mode, dtype, eager)
    return f"torch.compile: {failure}" if failure is not None else ""
