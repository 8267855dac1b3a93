"""What a benchmark measures: sizes, fills, modes; and the presets of `gr-compile bench`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch

from gr_compile.model_zoo.fuxi import FuXiConfig
from gr_compile.model_zoo.turbogr import PUBLISHED, turbogr_config

Mode = Literal["inference", "training"]
MODES: tuple[Mode, ...] = ("inference", "training")
MODELS = ("hstu", "fuxi", "stu", "sasrec", "lookup", "sampled_softmax", "full_softmax")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CONTENDERS = ("eager", "torch_compile", "gr_compile", "flex_attention", "nested", "rectools", "offloaded")
PRINCIPALS = ("eager", "torch_compile", "gr_compile")


@dataclass(frozen=True)
class BenchSettings:
    """Sizes are B, N, D, H, dqk = dv and V; `negatives` are those of a token in a sampled loss; `fills` are shares of
    valid places; `repeats` are rounds in which every contender has its turn. `memory_limit` (GiB) is the most that one
    process may allocate; None is what the machine has available when the process starts. `trains`: a step ends with
    SGD's part. `segments`: of a table in a file, which lies in `folder` (None: that of temporary files)."""

    model: str = "hstu"
    dtype: str = "float32"
    threads: int = 2
    batch_size: int = 16
    max_seq_len: int = 1024
    embedding_dim: int = 256
    num_heads: int = 4
    head_dim: int = 64
    num_layers: int = 2
    items: int = 1000
    negatives: int = 128
    fills: tuple[float, ...] = (0.15, 0.5, 1.0)
    modes: tuple[Mode, ...] = MODES
    repeats: int = 5
    passes: str = "default"
    contenders: tuple[str, ...] = CONTENDERS
    memory_limit: float | None = None
    trains: bool = False
    segments: int = 8
    folder: str | None = None

    def __post_init__(self) -> None:
        _one_of("model", self.model, MODELS)
        _one_of("dtype", self.dtype, tuple(DTYPES))
        for name in self.contenders:
            _one_of("contender", name, CONTENDERS)
        for field in ("threads", "batch_size", "max_seq_len", "embedding_dim", "num_heads", "head_dim",
                      "num_layers", "items", "negatives", "repeats", "segments"):  # fmt: skip
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, not {getattr(self, field)}")
        for fill in self.fills:
            if not 0 < fill <= 1:
                raise ValueError(f"a fill is a share of the places within 0..1, not {fill}")
        if self.memory_limit is not None and self.memory_limit <= 0:
            raise ValueError(f"the memory limit must be above 0 GiB, not {self.memory_limit}")
        if self.model == "sasrec" and self.embedding_dim != self.num_heads * self.head_dim:
            raise ValueError("sasrec needs embedding_dim = num_heads * head_dim")

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]


def _one_of(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"unknown {what} {name!r}; there are {', '.join(known)}")


def named(settings: BenchSettings, name: str) -> BenchSettings:
    """The settings with a model of that name: one of TurboGR's brings its sizes and its N."""
    if name not in PUBLISHED:
        return replace(settings, model=name)
    config = turbogr_config(name, settings.items)
    return replace(
        settings, model="fuxi" if isinstance(config, FuXiConfig) else "hstu", max_seq_len=config.max_seq_len,
        embedding_dim=config.embedding_dim, num_heads=config.num_heads, head_dim=config.linear_dim,
        num_layers=config.num_layers,
    )  # fmt: skip


# The published configuration, and one that fits into three minutes on two cores: mostly compilation.
SPEED = {
    False: BenchSettings(),
    True: BenchSettings(batch_size=8, max_seq_len=256, num_layers=1, fills=(0.15,), repeats=3),
}

# N by mode: one layer whose padded form still fits into 24 GiB.
MEMORY_LENGTHS: dict[bool, dict[Mode, int]] = {
    False: {"inference": 8192, "training": 4096},
    True: {"inference": 2048, "training": 1024},
}
MEMORY = BenchSettings(
    batch_size=2, num_layers=1, fills=(0.5,), repeats=1, contenders=("eager", "gr_compile")
)

# One training step of one full sequence, of each of TurboGR's configurations; small ones to see that it works.
TURBOGR = BenchSettings(batch_size=1, fills=(1.0,), modes=("training",), repeats=1, contenders=("gr_compile",))


def turbogr_settings(settings: BenchSettings, quick: bool) -> list[BenchSettings]:
    """The four models; `quick`: two layers and a sixteenth of N."""
    found = [named(settings, name) for name in PUBLISHED]
    if not quick:
        return found
    return [replace(one, num_layers=2, max_seq_len=one.max_seq_len // 16) for one in found]


# The loss alone, of about 8000 full places: sampled from a million items, and over all of 50,000.
LOSS = BenchSettings(
    "sampled_softmax", batch_size=8, fills=(1.0,), modes=("training",), contenders=PRINCIPALS, items=1_000_000
)
_LOSS_ITEMS = {"sampled_softmax": (1_000_000, 20_000), "full_softmax": (50_000, 5_000)}


def loss_settings(settings: BenchSettings, quick: bool, own_items: bool) -> list[BenchSettings]:
    """Both losses, each with a catalogue of its own unless one was given; `quick`: fewer items, places, negatives."""
    found = []
    for model, items in _LOSS_ITEMS.items():
        one = replace(settings, model=model) if own_items else replace(settings, model=model, items=items[quick])
        found.append(replace(one, batch_size=1, negatives=min(one.negatives, 16)) if quick else one)
    return found


# Training steps of the sampled loss, the table in memory and in a file.
_OFFLOAD = replace(LOSS, contenders=("gr_compile", "offloaded"), trains=True)
OFFLOAD = {
    False: _OFFLOAD,
    True: replace(_OFFLOAD, batch_size=1, max_seq_len=256, embedding_dim=64, items=20_000, negatives=16, repeats=3),
}

# A million ids, half of them padding.
_LOOKUP = BenchSettings(
    "lookup", embedding_dim=128, fills=(0.5,), modes=("training",), contenders=PRINCIPALS
)
EMBEDDING = {
    False: replace(_LOOKUP, batch_size=1000, max_seq_len=1000, items=100_000),
    True: replace(_LOOKUP, batch_size=250, max_seq_len=400, items=10_000, repeats=3),
}
