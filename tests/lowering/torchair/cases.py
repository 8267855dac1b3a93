"""Models and batches that are lowered, and what their GE graphs must hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import gr_compile.model_zoo as zoo
from gr_compile.backend import Session
from gr_compile.config import Config
from gr_compile.lower import CapturedGraph, capture_graphs
from gr_compile.lowering.torchair.target import AscendLowering
from gr_compile.pipeline import Pipeline

_MODELS: dict[str, Any] = {
    "hstu": (zoo.HSTU, zoo.HSTUConfig, ("item_ids", "timestamps")),
    "stu": (zoo.STU, zoo.STUConfig, ("item_ids", "timestamps", "lengths")),
    "fuxi": (zoo.FuXi, zoo.FuXiConfig, ("item_ids", "timestamps")),
    "sasrec": (zoo.SASRec, zoo.SASRecConfig, ("item_ids",)),
}


class Encoder(nn.Module):
    """A stranger's: torch's own encoder, as people use it over padded sequences."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.items, self.places = nn.Embedding(20, 8, padding_idx=0), nn.Embedding(6, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

    def forward(self, item_ids: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        x = self.items(item_ids) + self.places(torch.arange(item_ids.shape[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(item_ids.shape[1]).bool()
        x = self.encoder(x, mask=mask, src_key_padding_mask=item_ids == 0, is_causal=True)
        if targets is None:
            return (x * (item_ids != 0)[..., None]).sum(1)
        return F.cross_entropy((x @ self.items.weight.T).flatten(0, 1), targets.flatten(), ignore_index=0)


class Plain(nn.Module):
    """SiLU attention without biases, of a width that Huawei's operator takes."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.items, self.project = nn.Embedding(20, 32, padding_idx=0), nn.Linear(32, 96)

    def forward(self, item_ids: torch.Tensor) -> torch.Tensor:
        b, n = item_ids.shape
        q, k, v = self.project(self.items(item_ids)).view(b, n, 3, 2, 16).unbind(2)
        weights = F.silu(torch.einsum("bihd,bjhd->bhij", q, k) * 0.25) / n
        mixed = torch.einsum("bhij,bjhd->bihd", weights * torch.tril(torch.ones(n, n)), v).flatten(2)
        return (mixed * (item_ids != 0)[..., None]).sum(1)


class Constants(nn.Module):
    """Constants of more elements than a program's text holds: beside a product, as boundaries, in a score program."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.items, self.project = nn.Embedding(20, 17, padding_idx=0), nn.Linear(17, 17)

    def forward(self, item_ids: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        x = self.project(self.items(item_ids)) * torch.tensor([1.0 + k / 16 for k in range(17)])
        bucket = torch.bucketize(item_ids * 5, torch.tensor([3 * k for k in range(18)]))
        distances = (item_ids[:, :, None] - item_ids[:, None, :]).abs()
        bias = torch.tensor([0.01 * k for k in range(300)])[distances]
        n = item_ids.shape[1]
        mixed = (F.silu(x @ x.mT + bias) / n * torch.tril(torch.ones(n, n))) @ x * bucket[..., None]
        pooled = (mixed * (item_ids != 0)[..., None]).sum(1)
        return pooled if targets is None else (pooled * targets[:, :1]).sum()


class Masked(nn.Module):
    """Reads at the places of a mask, as losses and read-outs have them, and ids as rows of ones."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.items, self.project = nn.Embedding(20, 8, padding_idx=0), nn.Linear(8, 8)

    def forward(self, item_ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        x = self.project(F.one_hot(item_ids, 20).float() @ self.items.weight)
        logits, seen = x @ self.items.weight.T, torch.nonzero(item_ids, as_tuple=True)
        loss = F.cross_entropy(logits[targets != 0], targets[targets != 0])
        loss = loss + F.cross_entropy(logits[seen], item_ids[seen] // 2)
        return loss + x.mean(-1).masked_select(targets != 0).sum() + x[item_ids != 0].square().mean()


_MAPS = {"fuxi": 3}  # a layer's attention maps, where they are several
_STRANGERS: dict[str, Any] = {"encoder": Encoder, "plain": Plain, "constants": Constants, "masked": Masked}


@dataclass(frozen=True)
class Case:
    """A model of the zoo, its way of being lowered, and its depth."""

    model: str
    training: bool
    dynamic: bool
    layers: int = 1
    passes: str = "default"
    dropout: float = 0.0
    mode: str = "max-autotune"
    kernels: str = "generated"
    negatives: int = 0

    def __str__(self) -> str:
        words = [self.model, "training" if self.training else "forward", "dynamic" if self.dynamic else "static"]
        words += [f"{self.layers}-layers", *(["dropout"] if self.dropout else [])]
        words += [f"{self.negatives}-negatives"] if self.negatives else []
        words += [option for option in (self.mode, self.kernels) if option not in ("max-autotune", "generated")]
        return "-".join([*words, *({BUCKET: ["bucket"], SHARE: ["shared"], "none": ["untouched"]}.get(self.passes, []))])

    @property
    def attentions(self) -> int:
        """How many there are in the model."""
        return self.layers * _MAPS.get(self.model, 1)

    def build(self) -> tuple[Any, dict[str, torch.Tensor]]:
        """The model and one batch of right-padded sequences."""
        torch.manual_seed(0)
        if self.model in _STRANGERS:
            ids, targets = torch.tensor([[3, 1, 0, 0], [5, 6, 7, 8]]), torch.tensor([[1, 0, 0, 0], [6, 7, 8, 0]])
            wanted = self.training or self.model == "masked"
            batch = {"item_ids": ids, **({"targets": targets} if wanted else {})}
            return _STRANGERS[self.model](self.layers).train(self.training), batch
        model_class, config_class, arguments = _MODELS[self.model]
        config = config_class(
            num_items=20, max_seq_len=6, embedding_dim=8, num_layers=self.layers, dropout=self.dropout
        )
        ids = torch.tensor([[3, 1, 0, 0], [5, 6, 7, 8], [9, 0, 0, 0]])
        everything = {"item_ids": ids, "timestamps": ids * 1000, "lengths": torch.tensor([2, 4, 1])}
        batch = {name: everything[name] for name in arguments}
        if self.training:
            batch["targets"] = torch.tensor([[1, 0, 0, 0], [6, 7, 8, 0], [1, 0, 0, 0]])
        if self.negatives:
            batch["negatives"] = torch.randint(1, 21, (*ids.shape, self.negatives))
        return model_class(config).train(self.training), batch

    def capture(self) -> CapturedGraph:
        """Its one graph, named after the case."""
        model, batch = self.build()
        config = Config(target="ascend", passes=self.passes, dynamic=self.dynamic, model=self.model)
        lowering = AscendLowering(self.mode, self.kernels)
        session = Session(config, lowering.adapt(Pipeline.parse(self.passes, lowering.name)))
        (graph,) = capture_graphs(model, (), batch, session, lowering, self.training)
        graph.name = str(self)
        return graph


SHARE = "default,share-logits{expansion=3}"
BUCKET = "default,eliminate-padding{mode=bucket,multiple=4}"
DEFAULT = (Case("hstu", True, True), Case("sasrec", False, False), Case("encoder", True, False), Case("constants", True, True))
MASKED = (Case("masked", True, True), Case("masked", False, False))
NEGATIVES = (Case("hstu", True, True, negatives=5), Case("sasrec", True, False, negatives=5))
SHARED = Case("hstu", True, True, negatives=5, passes=SHARE)
REPLAYED = Case("stu", False, True, mode="npugraph_ex")
SHIPPED = Case("plain", False, False, kernels="library")
SLOW = (
    *(Case(m, training, dynamic, 2) for m in (*_MODELS, "encoder") for training in (True, False) for dynamic in (True, False)),
    Case("hstu", True, True, passes=BUCKET),
    Case("stu", False, True, passes="none"),
    Case("hstu", True, True, dropout=0.2),
    Case("sasrec", True, True, dropout=0.2),
)
