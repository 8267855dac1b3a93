"""Checkpoints from which a run continues as if it had never stopped.

One file, written beside its place and renamed, so that a crash leaves the checkpoint before it. It holds the
module's state (an eager run's and an optimised run's are the same), the optimizer's, torch's random states,
and the position in the data, which together with the settings' seed determines every batch to come.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

SCHEMA = 1


class CheckpointError(Exception):
    """A checkpoint cannot be written, is damaged, or belongs to another run."""


@dataclass
class Progress:
    """Where a run is: `epoch` from 0, the next `batch` of that epoch, optimizer `steps` so far, and the sums
    of the epoch's losses and targets up to here."""

    epoch: int = 0
    batch: int = 0
    steps: int = 0
    loss_sum: float = 0.0
    target_sum: int = 0


def save_checkpoint(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    identity: dict[str, Any],
    history: list[dict[str, Any]],
) -> None:
    """Writes the state of a run; `identity` is what a resumed run must have in common with it."""
    state = {
        "schema": SCHEMA,
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": _random_states(),
        "progress": asdict(progress),
        "identity": identity,
        "history": history,
    }
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.open("wb") as handle:
            torch.save(state, handle)
            handle.flush()
            os.fsync(handle.fileno())
        scratch.replace(path)
    except OSError as error:
        raise CheckpointError(f"{path}: the checkpoint cannot be written: {error}") from error
    finally:
        scratch.unlink(missing_ok=True)


def load_checkpoint(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, identity: dict[str, Any]
) -> tuple[Progress, list[dict[str, Any]]]:
    """Restores module, optimizer and random states in place; answers where the run was, and its history."""
    state = read_checkpoint(path)
    for name, value in identity.items():
        if state["identity"].get(name) != value:
            was = state["identity"].get(name)
            raise CheckpointError(
                f"{path}: the checkpoint's run had {name} = {was!r}, this one has {value!r}"
            )
    try:
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path}: the checkpoint is of another model: {error}") from error
    torch.set_rng_state(state["random"]["cpu"])
    if state["random"]["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["random"]["cuda"])
    known = {f.name for f in fields(Progress)}
    return Progress(**{k: v for k, v in state["progress"].items() if k in known}), state["history"]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint file, with only tensors and plain values unpickled."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: there is no such checkpoint") from error
    except Exception as error:  # on damage the unpickler fails with whatever comes: KeyError, EOFError, ...
        raise CheckpointError(
            f"{path}: the checkpoint is damaged: {(str(error) or 'it ends early').splitlines()[0]}"
        ) from error
    if not isinstance(state, dict) or state.get("schema") != SCHEMA:
        raise CheckpointError(f"{path}: not a checkpoint of schema {SCHEMA}")
    return state


def _random_states() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}
