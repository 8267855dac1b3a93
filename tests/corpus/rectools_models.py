"""RecTools 0.19, its own datasets, batches, modules and losses."""

from __future__ import annotations

from typing import Any

import pandas
import torch
from rectools import models
from rectools.dataset import Dataset
from rectools.models.nn.transformers.ligr import LiGRLayers
from subject import Maker, Size, Subject
from torch import Tensor, nn

ITEMS = 500


class Step(nn.Module):
    """What its Lightning module's training_step computes."""

    def __init__(self, lightning: Any) -> None:
        super().__init__()
        self.lightning = lightning

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self.lightning.get_batch_logits(batch)
        loss: Tensor = self.lightning.loss_calculator(logits, batch["y"], batch["yw"])
        return loss


class Scores(nn.Module):
    """What `recommend` computes of a batch: scores of the catalogue after the last place."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        items = self.backbone.item_model.get_all_embeddings()
        last = self.backbone.encode_sessions(batch, items)[:, -1, :]
        scores: Tensor = last @ items.T
        return scores


def dataset(lengths: list[int]) -> Any:
    """Users with one event more than places: the next item of the last place. Every item is seen before one is again,
    so that long datasets have the same catalogue."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, ITEMS, (sum(lengths) + len(lengths),), generator=generator)
    items = iter(torch.cat([torch.randperm(ITEMS, generator=generator), drawn]).tolist())
    rows = [
        (user, next(items), 1.0, 1_600_000_000 + 3_333 * place)
        for user, length in enumerate(lengths)
        for place in range(length + 1)
    ]
    frame = pandas.DataFrame(rows, columns=["user_id", "item_id", "weight", "datetime"])
    frame["datetime"] = pandas.to_datetime(frame["datetime"], unit="s")
    return Dataset.construct(frame)


def maker(kind: str, scores: bool = False, **options: Any) -> Maker:
    def make(size: Size) -> Subject:
        model = getattr(models, kind)(
            session_max_len=size.n, batch_size=size.batch, dropout_rate=0.0, **options
        )
        model._build_model_from_dataset(dataset(size.lengths().tolist()))
        batch = next(iter(model.data_preparator.get_dataloader_train()))
        lightning = model.lightning_model
        lightning.on_train_start()  # initialises what its layers leave to it
        return Subject(Scores(lightning.torch_model) if scores else Step(lightning), (batch,))

    return make


CASES: dict[str, Maker] = {
    "RecTools HSTU": maker("HSTUModel"),
    "RecTools HSTU, scores": maker("HSTUModel", scores=True),
    "RecTools SASRec": maker("SASRecModel"),
    "RecTools SASRec, key mask": maker("SASRecModel", use_key_padding_mask=True),
    "RecTools SASRec, BCE": maker("SASRecModel", loss="BCE", n_negatives=3, use_key_padding_mask=True),
    "RecTools SASRec, gBCE": maker("SASRecModel", loss="gBCE", n_negatives=3, use_key_padding_mask=True),
    "RecTools SASRec, sampled softmax": maker(
        "SASRecModel", loss="sampled_softmax", n_negatives=3, use_key_padding_mask=True
    ),
    "RecTools BERT4Rec": maker("BERT4RecModel"),
    "RecTools SASRec, LiGR layers": maker(
        "SASRecModel", transformer_layers_type=LiGRLayers, use_key_padding_mask=True
    ),
}
