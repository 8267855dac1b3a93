"""How a `gr::` operator is made: a schema, a reference in plain torch for every device, an exact fake."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

LIBRARY: Any = torch.library.Library("gr", "FRAGMENT")  # type: ignore[no-untyped-call]


def define_operator(
    schema: str, reference: Callable[..., Any], fake: Callable[..., Any], tags: tuple[torch.Tag, ...] = ()
) -> Any:
    """Register `gr::<schema>` and return its default overload, e.g. `torch.ops.gr.pack.default`.

    `reference` is registered as CompositeExplicitAutograd: every device has it until a kernel registers
    the device's own key. It must be functional (no output aliases an operand), and it is run outside
    autocast by `outside_autocast` where it calls operators that autocast would cast. It must take operands of any
    strides: Inductor lays them out as it likes (flexible_layout), instead of writing the parts of a split into
    buffers that are as sparse as the views were. `tags`: further ones.
    """
    name = schema.split("(", 1)[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout, *tags))
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"gr::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.gr, name).default


def require(condition: object, message: Callable[[], str]) -> None:
    """Raise ValueError with `message()` when `condition` is surely false.

    Symbolic conditions on sizes that depend on data are recorded for the run time, not decided.
    """
    if isinstance(condition, bool):
        if not condition:
            raise ValueError(message())
        return
    torch._check_value(condition, message)  # type: ignore[arg-type, no-untyped-call, unused-ignore]


def outside_autocast(device: torch.device) -> Any:
    """A context in which operators keep their operands' dtypes."""
    return torch.autocast(device.type, enabled=False)
