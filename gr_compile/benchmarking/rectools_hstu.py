"""RecTools' HSTU as a user would run it: its dataset, its batches, its module, eager; an optional peer.

Nothing of it is part of this project. It is used where it can be imported, or fetched by pip when asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from gr_compile.benchmarking.lengths import Sequences, sequences_for
from gr_compile.benchmarking.settings import BenchSettings, Mode

# Without dependencies, which would bring a second torch and an older numpy; these are the ones it imports.
PACKAGES = (
    "rectools==0.19.0", "pm-implicit", "pandas<3", "scipy", "pytorch-lightning==2.5.2", "lightning-utilities",
    "torchmetrics", "typeguard", "tqdm", "attrs", "pytz", "python-dateutil", "six", "pyyaml", "packaging",
    "threadpoolctl", "pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions",
)  # fmt: skip


class PeerError(Exception):
    """The peer cannot be had; the message says why."""


def why_absent(folder: Path) -> str | None:
    """None where RecTools can be imported, here or from `folder`; else the reason in one line."""
    if importlib.util.find_spec("rectools") or (folder / "rectools").is_dir():
        return None
    return "RecTools is not installed; --fetch-rectools fetches it into the cache"


def fetch(folder: Path, timeout_seconds: float = 600.0) -> None:
    """Installs RecTools into `folder`, apart from everything else, unless it can be imported already."""
    if why_absent(folder) is None:
        return
    scratch = folder.with_name(folder.name + ".part")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
    command += ["--target", str(scratch), *PACKAGES]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_seconds)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PeerError(f"RecTools could not be fetched: {error}") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["pip said nothing"]
        raise PeerError(f"RecTools could not be fetched: {said[-1]}")
    scratch.replace(folder)


class RectoolsTrial:
    """A step of its HSTU over the same sequences: what its Lightning module does in a training step, or what
    `recommend` does with a batch. Left-padded, as RecTools pads."""

    def __init__(self, settings: BenchSettings, fill: float, mode: Mode, folder: Path) -> None:
        if importlib.util.find_spec("rectools") is None:
            sys.path.append(str(folder))
        batch = sequences_for(fill, settings.batch_size, settings.max_seq_len, settings.items)
        self.mode = mode
        self.model = _model(settings, _dataset(batch))
        self.lightning: Any = self.model.lightning_model
        self.lightning.train(mode == "training")
        self.lightning.log = lambda *arguments, **options: None  # there is no Lightning trainer to log to
        self.batch = next(iter(self.model.data_preparator.get_dataloader_train()))

    def run(self) -> dict[str, float]:
        """Seconds of one step."""
        start = time.perf_counter()
        if self.mode == "inference":
            with torch.no_grad():
                self._scores()
            return {"step": time.perf_counter() - start}
        self.lightning.zero_grad(set_to_none=True)
        loss = self.lightning.training_step(self.batch, 0)
        middle = time.perf_counter()
        loss.backward()
        end = time.perf_counter()
        return {"step": end - start, "forward": middle - start, "backward": end - middle}

    def checks(self) -> dict[str, float]:
        """None: its weights are its own."""
        return {}

    def _scores(self) -> torch.Tensor:
        backbone = self.model.torch_model
        items = backbone.item_model.get_all_embeddings()
        states = backbone.encode_sessions(self.batch, items)[:, -1, :]
        similarity = backbone.similarity_module
        scores: torch.Tensor = similarity.session_tower_forward(states) @ similarity.item_tower_forward(items).T
        return scores


def _dataset(batch: Sequences) -> Any:
    """A RecTools dataset: every sequence and the target of its last place, which is the item to predict."""
    pandas = importlib.import_module("pandas")
    dataset = importlib.import_module("rectools.dataset").Dataset
    users, items, stamps = [], [], []
    for user, length in enumerate(batch.lengths.tolist()):
        row = batch.timestamps[user, :length].tolist()
        users += [user] * (length + 1)
        items += [*batch.item_ids[user, :length].tolist(), int(batch.targets[user, length - 1])]
        stamps += [*row, row[-1] + 1]
    frame = pandas.DataFrame({"user_id": users, "item_id": items, "weight": 1.0})
    frame["datetime"] = pandas.to_datetime(stamps, unit="s")
    return dataset.construct(frame)


def _model(settings: BenchSettings, dataset: Any) -> Any:
    hstu = importlib.import_module("rectools.models").HSTUModel
    model = hstu(
        n_blocks=settings.num_layers,
        n_heads=settings.num_heads,
        n_factors=settings.embedding_dim,
        session_max_len=settings.max_seq_len,
        batch_size=settings.batch_size,
        dropout_rate=0.0,
    )
    model._build_model_from_dataset(dataset)
    return model
