"""The zoo's models by name: how to build one for a dataset, what it takes from a batch, what it costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from gr_compile.benchmarking.flops import ModelCost
from gr_compile.benchmarking.model_cost import cost_of
from gr_compile.model_zoo.fuxi import FuXiConfig
from gr_compile.model_zoo.hstu import HSTUConfig
from gr_compile.model_zoo.sasrec import SASRec, SASRecConfig
from gr_compile.model_zoo.stu import STU, STUConfig
from gr_compile.model_zoo.turbogr import PUBLISHED, model_of, turbogr_config
from gr_compile.training.data.batches import Batch

NAMES = ("hstu", "fuxi", "stu", "sasrec", *PUBLISHED)


@dataclass(frozen=True)
class ModelSettings:
    """Sizes that all models share; head_dim is the width of q, k and v of one head. TurboGR's models have their own
    widths, heads and layers: for them only the dropout is read."""

    name: str = "hstu"
    embedding_dim: int = 64
    num_layers: int = 2
    num_heads: int = 2
    head_dim: int = 32
    dropout: float = 0.2
    max_attn_len: int = 0

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ValueError(f"unknown model {self.name!r}; there are {', '.join(NAMES)}")
        if min(self.embedding_dim, self.num_layers, self.num_heads, self.head_dim) < 1:
            raise ValueError("embedding_dim, num_layers, num_heads and head_dim must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be within 0..1, not {self.dropout}")
        if self.name == "sasrec" and self.embedding_dim % self.num_heads:
            raise ValueError("sasrec needs an embedding_dim that num_heads divides")


@dataclass(frozen=True)
class ModelCase:
    """A model ready to train: the module, its arguments from a batch, its cost."""

    module: nn.Module
    arguments: Callable[[Batch], tuple[torch.Tensor, ...]]
    cost: ModelCost

    def loss(self, run: Callable[..., torch.Tensor], batch: Batch) -> torch.Tensor:
        """Mean cross entropy over the batch's targets, computed by `run` (the module or a compiled one).

        Over all items, or over the target and the batch's negatives where it has any."""
        sampled = {} if batch.negatives is None else {"negatives": batch.negatives}
        return run(*self.arguments(batch), targets=batch.targets, **sampled)

    def scores(self, run: Callable[..., torch.Tensor], batch: Batch) -> torch.Tensor:
        """Logits [B, V + 1] at the last valid place of each row."""
        return run(*self.arguments(batch))


def build(settings: ModelSettings, num_items: int, max_seq_len: int) -> ModelCase:
    """The named model for a catalogue of `num_items` and sequences padded to `max_seq_len`."""
    if settings.name in PUBLISHED:
        config = turbogr_config(settings.name, num_items)
        return _timed_case(replace(config, max_seq_len=max_seq_len, dropout=settings.dropout))
    timed: dict[str, type[HSTUConfig | FuXiConfig]] = {"hstu": HSTUConfig, "fuxi": FuXiConfig}
    if settings.name in timed:
        return _timed(timed[settings.name], settings, num_items, max_seq_len)
    builders = {"stu": _stu, "sasrec": _sasrec}
    return builders[settings.name](settings, num_items, max_seq_len)


def _timed(
    kind: type[HSTUConfig | FuXiConfig], settings: ModelSettings, num_items: int, max_seq_len: int
) -> ModelCase:
    config = kind(
        num_items,
        max_seq_len,
        embedding_dim=settings.embedding_dim,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads,
        attention_dim=settings.head_dim,
        linear_dim=settings.head_dim,
        dropout=settings.dropout,
    )
    return _timed_case(config)


def _timed_case(config: HSTUConfig | FuXiConfig) -> ModelCase:
    return ModelCase(model_of(config), lambda batch: (batch.item_ids, batch.timestamps), cost_of(config))


def _stu(settings: ModelSettings, num_items: int, max_seq_len: int) -> ModelCase:
    config = STUConfig(
        num_items,
        max_seq_len,
        embedding_dim=settings.embedding_dim,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads,
        attention_dim=settings.head_dim,
        hidden_dim=settings.head_dim,
        max_attn_len=settings.max_attn_len,
        dropout=settings.dropout,
    )
    return ModelCase(
        STU(config), lambda batch: (batch.item_ids, batch.timestamps, batch.lengths), cost_of(config)
    )


def _sasrec(settings: ModelSettings, num_items: int, max_seq_len: int) -> ModelCase:
    dim = settings.embedding_dim
    config = SASRecConfig(
        num_items,
        max_seq_len,
        embedding_dim=dim,
        num_layers=settings.num_layers,
        num_heads=settings.num_heads,
        feedforward_dim=4 * dim,
        dropout=settings.dropout,
    )
    return ModelCase(SASRec(config), lambda batch: (batch.item_ids,), cost_of(config))
