"""What a calibration found: by site, the range of its values and the error of each way to store them in 16 bits."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

_VERSION = 1


@dataclass(frozen=True)
class Stored:
    """How one dtype and scale did at a site.

    Attributes:
        error: relative, root of the mean square over finite values.
        overflows: finite values that became infinite; flushed: values other than 0 that became 0.
    """

    error: float
    overflows: int
    flushed: int


@dataclass(frozen=True)
class SiteRecord:
    """One site over all batches of a calibration.

    Attributes:
        kind, name: which site; `where`: its line in the user's program.
        values: how many were seen; `not_finite`: of them infinite or NaN.
        largest, smallest: magnitudes of finite values other than 0.
        bytes_before, bytes_after: read or kept at the site in 32 bits and in 16, over all batches.
        exponents: floor(log2 |x|) -> how many values.
        stored: "float16/per-table" and so on -> how that did.
    """

    kind: str
    name: str
    where: str
    values: int
    not_finite: int
    largest: float
    smallest: float
    bytes_before: int
    bytes_after: int
    exponents: dict[int, int] = field(default_factory=dict)
    stored: dict[str, Stored] = field(default_factory=dict)

    def best(self) -> str:
        """The dtype and scale with the least error, of those that nothing overflowed in."""
        fits = {way: found.error for way, found in self.stored.items() if not found.overflows}
        return min(fits, key=lambda way: (fits[way], "none" not in way), default="")


class CalibrationError(ValueError):
    """A file that holds no calibration."""


@dataclass(frozen=True)
class Calibration:
    """The report of `calibrate`."""

    sites: tuple[SiteRecord, ...]
    batches: int

    def save(self, path: str | Path) -> None:
        """As JSON, which the option `calibration` of insert-fp16 reads."""
        content = {"version": _VERSION, "batches": self.batches, "sites": [asdict(site) for site in self.sites]}
        Path(path).write_text(json.dumps(content, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """The calibration in a file.

        Raises:
            CalibrationError: there is none; it says what is wrong.
        """
        try:
            content: Any = json.loads(Path(path).read_text())
            if content["version"] != _VERSION:
                raise CalibrationError(f"{path}: version {content['version']}, not {_VERSION}; calibrate anew")
            return cls(tuple(_site(entry) for entry in content["sites"]), int(content["batches"]))
        except OSError as error:
            raise CalibrationError(f"{path}: no calibration can be read ({error.strerror}); run calibrate") from error
        except CalibrationError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise CalibrationError(f"{path}: this is no calibration ({error}); run calibrate") from error

    def of(self, kind: str, name: str) -> SiteRecord | None:
        """The record of a site."""
        return next((site for site in self.sites if (site.kind, site.name) == (kind, name)), None)

    def against(self, kind: str, name: str, dtype: str, scale: str, tolerance: float) -> str | None:
        """Why a site must not be stored so; None where nothing speaks against it."""
        site = self.of(kind, name)
        if site is None:
            return f"the calibration has no {kind} of {name}"
        found = site.stored.get(f"{dtype}/{scale}")
        if found is None:
            return f"the calibration did not try {dtype} with scale={scale} at the {kind} of {name}"
        if found.overflows:
            return f"{found.overflows} of {site.values} values are too large for {dtype}: up to {site.largest:.3g}"
        if not found.error <= tolerance:
            flushed = f", {found.flushed} of {site.values} values became 0" if found.flushed else ""
            return f"the error in {dtype} is {found.error:.1e}, and tolerance is {tolerance:.1e}{flushed}"
        if found.flushed > tolerance * site.values:  # the largest values have the error to themselves
            count = f"{found.flushed} of {site.values} values"
            return f"{count} became 0 in {dtype}, beside others of up to {site.largest:.3g}"
        return None

    def hint(self, kind: str, name: str) -> str:
        """What to do where a site is refused."""
        site = self.of(kind, name)
        if site is None:
            return "calibrate this model with these sites"
        whole = {way: one.error for way, one in site.stored.items() if not one.overflows and not one.flushed}
        best = min(whole, key=lambda way: (whole[way], "none" not in way), default=site.best())
        return "" if not best else f"{best} had an error of {site.stored[best].error:.1e}"

    def picture(self, path: str | Path) -> None:
        """How the magnitudes of each site lie in what float16 holds, and the error of each way to store them.

        Raises:
            ValueError: matplotlib does not know the file's ending.
        """
        from gr_compile.passes.insert_fp16.picture import draw

        draw(self, Path(path))


def _site(entry: dict[str, Any]) -> SiteRecord:
    exponents = {int(exponent): int(count) for exponent, count in entry["exponents"].items()}
    stored = {
        way: Stored(float(found["error"]), int(found["overflows"]), int(found["flushed"]))
        for way, found in entry["stored"].items()
    }
    return SiteRecord(**{**entry, "exponents": exponents, "stored": stored})


def relative(error_squares: float, squares: float) -> float:
    """The root of the mean square error, relative; 0 of nothing."""
    return math.sqrt(error_squares / squares) if squares else (math.inf if error_squares else 0.0)
