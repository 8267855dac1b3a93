"""The module, its inputs and its cost for one fill and one mode of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from gr_compile.benchmarking.flops import forward_flops, recomputed_flops, step_flops
from gr_compile.benchmarking.lengths import lengths_for, sequences_for
from gr_compile.benchmarking.losses import FullSoftmax, SampledSoftmax
from gr_compile.benchmarking.model_cost import Config, cost_of
from gr_compile.benchmarking.settings import BenchSettings, Mode
from gr_compile.model_zoo import STU, FuXiConfig, HSTUConfig, SASRec, SASRecConfig, STUConfig
from gr_compile.model_zoo.turbogr import model_of


@dataclass(frozen=True)
class Workload:
    """`module(*arguments)` is inference, `module(*arguments, **training_arguments)` gives the loss.

    gradients_kept: parameters have gradients before a step, which adds to them; otherwise a step makes them.
    """

    module: nn.Module
    arguments: tuple[torch.Tensor, ...]
    training_arguments: dict[str, torch.Tensor] = field(default_factory=dict)
    gradients_kept: bool = False


@dataclass(frozen=True)
class UsefulWork:
    """FLOPs of one step: useful ones, and scores computed again in the backward. tokens: valid places."""

    flops: int
    recomputed: int
    tokens: int
    places: int


class Lookup(nn.Module):
    """An embedding lookup in front of a narrow linear layer, whose product needs the rows in memory.

    Without such a layer a compiler would fuse the lookup into what reads it, and there would be no lookup to
    measure; in a recommender the first layer's product reads the rows.
    """

    def __init__(self, items: int, dim: int, width: int = 16) -> None:
        super().__init__()
        self.table = nn.Embedding(items + 1, dim, padding_idx=0)
        self.narrow = nn.Linear(dim, width, bias=False)

    def forward(self, item_ids: torch.Tensor) -> torch.Tensor:
        """`item_ids` [B, N] int64, 0 is padding -> scalar: a mean over the valid places."""
        valid = item_ids != 0
        energy = self.narrow(self.table(item_ids)).square().sum(dim=-1)
        mean: torch.Tensor = (energy * valid).sum() / valid.sum()
        return mean


def build(settings: BenchSettings, fill: float, mode: Mode) -> Workload:
    """Seeded: the same module and the same sequences in every process."""
    torch.manual_seed(0)
    batch = sequences_for(fill, settings.batch_size, settings.max_seq_len, settings.items)
    config = config_of(settings)
    targets = {"targets": batch.targets}
    if isinstance(config, HSTUConfig | FuXiConfig):
        workload = Workload(model_of(config), (batch.item_ids, batch.timestamps), targets)
    elif isinstance(config, STUConfig):
        workload = Workload(STU(config), (batch.item_ids, batch.timestamps, batch.lengths), targets)
    elif isinstance(config, SASRecConfig):
        workload = Workload(SASRec(config), (batch.item_ids,), targets)
    elif settings.model == "lookup":
        workload = Workload(Lookup(settings.items, settings.embedding_dim), (batch.item_ids,))
    else:
        workload = _loss(settings, batch.targets)
    workload.module.to(settings.torch_dtype).train(mode == "training")
    return workload


def _loss(settings: BenchSettings, targets: torch.Tensor) -> Workload:
    """Negatives are drawn evenly from all items."""
    sizes = (settings.items, settings.embedding_dim, settings.batch_size, settings.max_seq_len)
    if settings.model == "full_softmax":
        return Workload(FullSoftmax(*sizes), (targets,), gradients_kept=True)
    negatives = torch.randint(1, settings.items + 1, (*targets.shape, settings.negatives))
    return Workload(SampledSoftmax(*sizes), (targets, negatives), gradients_kept=True)


def config_of(settings: BenchSettings) -> Config | None:
    """The zoo's configuration of these sizes, without dropout; None for what is no model."""
    sizes = (settings.items, settings.max_seq_len, settings.embedding_dim, settings.num_layers)
    heads, width = settings.num_heads, settings.head_dim
    if settings.model == "hstu":
        return HSTUConfig(*sizes, heads, attention_dim=width, linear_dim=width, dropout=0.0)
    if settings.model == "fuxi":
        return FuXiConfig(*sizes, heads, attention_dim=width, linear_dim=width, dropout=0.0)
    if settings.model == "stu":
        return STUConfig(*sizes, heads, attention_dim=width, hidden_dim=width, dropout=0.0)
    if settings.model == "sasrec":
        return SASRecConfig(*sizes, heads, feedforward_dim=4 * settings.embedding_dim, dropout=0.0)
    return None


def useful_work(settings: BenchSettings, fill: float, mode: Mode) -> UsefulWork:
    """By the formula of flops.py; the loss reads every valid place, inference the last of each sequence."""
    lengths = lengths_for(fill, settings.batch_size, settings.max_seq_len)
    tokens = int(lengths.sum())
    places = settings.batch_size * settings.max_seq_len
    config = config_of(settings)
    if config is None:
        return UsefulWork(0, 0, tokens, places)
    cost = cost_of(config)
    if mode == "inference":
        return UsefulWork(forward_flops(cost, lengths, settings.batch_size), 0, tokens, places)
    return UsefulWork(step_flops(cost, lengths, tokens), recomputed_flops(cost, lengths), tokens, places)
