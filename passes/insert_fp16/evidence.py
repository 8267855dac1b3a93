"""What speaks against storing a site in 16 bits: its form, its range, its error."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.fx as fx

from gr_compile.analysis import operators as ops
from gr_compile.analysis.kinds import Contract
from gr_compile.passes.insert_fp16.calibration import Calibration
from gr_compile.passes.insert_fp16.sites import Site

_NARROW = 2  # values of a row that are no wider than their halves and a scale


class Against(NamedTuple):
    """A reason, and what the user can do."""

    reason: str
    hint: str = ""


def against(
    site: Site, dtype: torch.dtype, scale: str, tolerance: float, calibration: Calibration | None
) -> Against | None:
    """Why a site stays in 32 bits; None where it need not. A calibration is believed before what holds in general."""
    form = _form(site, scale)
    if form is not None:
        return form
    if calibration is None:
        return _range(site, dtype, scale, tolerance)
    name = str(dtype).removeprefix("torch.")
    reason = calibration.against(site.kind, site.name, name, scale, tolerance)
    return None if reason is None else Against(reason, calibration.hint(site.kind, site.name))


def _form(site: Site, scale: str) -> Against | None:
    shape = site.value.meta["val"].shape
    width = shape[-1] if shape else 1
    if scale == "per-token" and isinstance(width, int) and width <= _NARROW:
        return Against(f"with a scale a row of {width} takes as much in 16 bits as in 32", "scale=per-table")
    if site.kind == "communication" and scale == "per-table":
        return Against("each process would have a scale of its own", "scale=per-token")
    if site.kind == "communication" and scale == "per-token" and ops.rank(site.value) < 2:
        hint = "scale=none with a calibration, or dtype=bfloat16,scale=none"
        return Against("a value of one dimension is one row: its parts would travel without their scale", hint)
    return None


def _range(site: Site, dtype: torch.dtype, scale: str, tolerance: float) -> Against | None:
    """Without a calibration."""
    unit, name = torch.finfo(dtype).eps / 2, str(dtype).removeprefix("torch.")
    if unit > tolerance:
        return Against(f"{name} rounds by up to {unit:.1e}, and tolerance is {tolerance:.1e}")
    if _adds_a_value(site.node):
        hint = "calibration=FILE of gr-compile calibrate shows whether it is one"
        return Against("what is added to the products may be a mask, beside which they would become 0", hint)
    if scale == "none" and dtype is torch.float16:
        hint = "scale=per-token, or calibration=FILE of gr-compile calibrate, or dtype=bfloat16"
        return Against("nothing is known of the range, and float16 ends at 65504", hint)
    return None


def _adds_a_value(node: fx.Node) -> bool:
    """Whether products have a value for each row added, as addmm and baddbmm do, and not a bias alone."""
    kind = ops.kind_of(node)
    return isinstance(kind, Contract) and kind.bias is not None and ops.rank(kind.bias) > 1
