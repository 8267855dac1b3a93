"""Programs without their dropout: two that draw random numbers in another order can be compared only so."""

from __future__ import annotations

from typing import Any

from torch.overrides import TorchFunctionMode

from gr_compile.ops.score_program import ScoreProgram


class WithoutDropout(TorchFunctionMode):
    """Operators that run inside drop nothing: ATen's, and our attention operators, whose programs say what to drop."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given: Any = [*args]
        named: Any = dict(kwargs or {})
        schema = getattr(func, "_schema", None)
        rate = "p" if "dropout" in getattr(func, "__name__", "") else "dropout_p"
        for place, argument in enumerate(schema.arguments if schema is not None else ()):
            if argument.name in (rate, "program"):
                holder, key = (given, place) if place < len(given) else (named, argument.name)
                if holder is given or key in named:
                    holder[key] = _switched_off(holder[key])
        return func(*given, **named)


def _switched_off(what: Any) -> Any:
    """A rate of dropout or a score program, dropping nothing."""
    return ScoreProgram.parse(what).without_dropout().text() if isinstance(what, str) else 0.0
