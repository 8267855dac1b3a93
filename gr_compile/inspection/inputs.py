"""Recorded inputs of a graph: what a printed program needs to rebuild inputs like those seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
import torch.fx as fx

from gr_compile.inspection.values import describe, size_hint

_META = "gr_compile_input"
# Float statistics are taken of at most so many elements; integer ranges always of all.
_SAMPLE = 1 << 20


@dataclass(frozen=True)
class RecordedInput:
    """What was seen of one real example input.

    `low`/`high`: range of an integer, bool or whole-number float tensor. `mean`/`scale`: of other floats.
    `pattern`: "right" or "left" (zeros only at the end, or only at the start, of each row) or "sorted".
    `lengths_of`: the input whose count of non-zeros by row this one is. `exact`: contents that count.
    """

    low: int | None = None
    high: int | None = None
    mean: float = 0.0
    scale: float = 1.0
    pattern: str = ""
    lengths_of: str = ""
    exact: torch.Tensor | None = None


def record_inputs(
    graph_module: fx.GraphModule, example_inputs: Sequence[object], exact: Collection[str] | None = None
) -> None:
    """Note ranges and patterns of the real example inputs on the graph's placeholders, for later dumps.

    `example_inputs` are in the placeholders' order. The contents of the placeholders named in `exact`
    (default: buffers, by Dynamo's names) are kept whole, because a compiler may rely on them; of the others,
    which hold users' data, only statistics are kept. Fake inputs and sizes are passed over.
    """
    placeholders = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
    with torch.no_grad():
        real = {
            node: value
            for node, value in zip(placeholders, example_inputs)
            if isinstance(value, torch.Tensor) and _is_plain(value)
        }
        for node, value in real.items():
            keep = node.name in exact if exact is not None else "buffers_" in node.name
            recorded = RecordedInput(exact=value.detach()) if keep else _statistics(value.detach())
            node.meta[_META] = recorded
        _find_lengths(real)


def recorded_input(node: fx.Node) -> RecordedInput:
    """What `record_inputs` noted of a placeholder, or a safe guess from its fake value and its readers."""
    recorded = node.meta.get(_META)
    if isinstance(recorded, RecordedInput):
        return recorded
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return RecordedInput()
    if value.dtype == torch.bool:
        return RecordedInput(low=0, high=1)
    if not value.is_floating_point() and not value.is_complex():
        return RecordedInput(low=0, high=_safe_high(node))
    return RecordedInput(scale=_parameter_scale(value))


def _is_plain(value: torch.Tensor) -> bool:
    return type(value) in (torch.Tensor, torch.nn.Parameter) and value.layout == torch.strided


def _safe_high(node: fx.Node) -> int:
    """The largest row number of the table that the input looks up; 1 where no embedding reads it."""
    rows = [
        size_hint(user.args[0].meta["val"].shape[0])
        for user in node.users
        if user.target is torch.ops.aten.embedding.default
        and isinstance(user.args[0], fx.Node)
        and user.args[1] is node
        and isinstance(user.args[0].meta.get("val"), torch.Tensor)
    ]
    return max(1, min(rows) - 1) if rows else 1


def _parameter_scale(value: torch.Tensor) -> float:
    is_matrix = value.dim() >= 2 and (value.requires_grad or isinstance(value, torch.nn.Parameter))
    return round(1 / math.sqrt(max(1, size_hint(value.shape[-1]))), 6) if is_matrix else 1.0


def _statistics(value: torch.Tensor) -> RecordedInput:
    if value.numel() == 0:
        return RecordedInput(low=0, high=1) if not value.is_floating_point() else RecordedInput()
    if value.is_complex():
        return RecordedInput()
    if not value.is_floating_point():
        low, high = (int(bound) for bound in value.aminmax())
        return RecordedInput(low=low, high=high, pattern=_pattern(value))
    sample = value.reshape(-1)[:_SAMPLE].double()
    sample = sample[sample.isfinite()]
    if sample.numel() == 0:
        return RecordedInput()
    if value.dim() >= 2 and sample.numel() == value.numel() and bool((sample == sample.round()).all()):
        low, high = (int(bound) for bound in sample.aminmax())
        return RecordedInput(low=low, high=high, pattern=_pattern(value))
    scale = float(sample.std()) if sample.numel() > 1 else 0.0
    return RecordedInput(mean=float(f"{float(sample.mean()):.4g}"), scale=float(f"{scale:.4g}"))


def _pattern(value: torch.Tensor) -> str:
    if value.dim() < 2 or value.shape[-1] < 2:
        return ""
    present = (value != 0).to(torch.int8)
    steps = present[..., 1:] - present[..., :-1]
    if bool((present == 0).any()) and bool((steps <= 0).all()):
        return "right"
    if bool((present == 0).any()) and bool((steps >= 0).all()):
        return "left"
    if value.dtype != torch.bool and bool((value[..., 1:] >= value[..., :-1]).all()):
        return "sorted"
    return ""


def _find_lengths(real: dict[fx.Node, torch.Tensor]) -> None:
    """Vectors that count the non-zeros of another input's rows: rebuilt from it, so that they still agree."""
    vectors = [(n, v) for n, v in real.items() if v.dim() == 1 and v.dtype in (torch.int32, torch.int64)]
    tables = [(n, v) for n, v in real.items() if v.dim() == 2 and n.meta[_META].pattern in ("right", "left")]
    for node, vector in vectors:
        for other, table in tables:
            if table.shape[0] == vector.shape[0] and bool(((table != 0).sum(1) == vector).all()):
                node.meta[_META] = RecordedInput(lengths_of=other.name)
                break


def input_source(
    node: fx.Node, names: dict[fx.Node, str], save: Callable[[torch.Tensor], str]
) -> tuple[str, str]:
    """One entry of a program's INPUTS and its comment; `save` stores exact contents and answers the file."""
    value = node.meta.get("val")
    name = names[node]
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        return f"replay.SizeInput({name!r}, {size_hint(value)})", describe(value)
    if isinstance(value, (float, bool, torch.SymFloat, torch.SymBool)):
        hint = value if isinstance(value, (float, bool)) else value.node.hint
        return f"replay.SizeInput({name!r}, {hint!r})", describe(value)
    if not isinstance(value, torch.Tensor):
        return f"replay.SizeInput({name!r}, None)", "nothing is known of this input"
    recorded = recorded_input(node)
    parts = [
        repr(name),
        repr(tuple(size_hint(size) for size in value.shape)),
        repr(tuple(size_hint(step) for step in value.stride())),
        str(value.dtype),
    ]
    if value.device.type != "cpu":
        parts.append(f"device={str(value.device)!r}")
    by_name = {other.name: text for other, text in names.items()}
    if recorded.exact is not None:
        parts.append(f"file={save(recorded.exact)!r}")
    elif recorded.lengths_of in by_name:
        parts.append(f"lengths_of={by_name[recorded.lengths_of]!r}")
    else:
        parts += _range_source(recorded)
    return f"replay.TensorInput({', '.join(parts)})", describe(value)


def _range_source(recorded: RecordedInput) -> list[str]:
    if recorded.low is None:
        parts = [f"mean={recorded.mean!r}"] if recorded.mean else []
        return parts + ([f"scale={recorded.scale!r}"] if recorded.scale != 1.0 else [])
    parts = [f"low={recorded.low}", f"high={recorded.high}"]
    return parts + ([f"pattern={recorded.pattern!r}"] if recorded.pattern else [])
