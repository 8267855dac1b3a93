"""Models and batches that are lowered, and what their GE graphs must hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

import gr_compile.model_zoo as zoo
from gr_compile.backend import Session
from gr_compile.config import Config
from gr_compile.lower import CapturedGraph, capture_graphs
from gr_compile.lowering.torchair.target import AscendLowering
from gr_compile.pipeline import Pipeline

_MODELS: dict[str, Any] = {
    "hstu": (zoo.HSTU, zoo.HSTUConfig, ("item_ids", "timestamps")),
    "stu": (zoo.STU, zoo.STUConfig, ("item_ids", "timestamps", "lengths")),
    "sasrec": (zoo.SASRec, zoo.SASRecConfig, ("item_ids",)),
}


@dataclass(frozen=True)
class Case:
    """A model of the zoo, its way of being lowered, and its depth."""

    model: str
    training: bool
    dynamic: bool
    layers: int = 1
    passes: str = "default"
    dropout: float = 0.0

    def __str__(self) -> str:
        words = [self.model, "training" if self.training else "forward", "dynamic" if self.dynamic else "static"]
        words += [f"{self.layers}-layers", *(["dropout"] if self.dropout else [])]
        return "-".join([*words, *({BUCKET: ["bucket"], "none": ["untouched"]}.get(self.passes, []))])

    def build(self) -> tuple[Any, dict[str, torch.Tensor]]:
        """The model and one batch of right-padded sequences."""
        torch.manual_seed(0)
        model_class, config_class, arguments = _MODELS[self.model]
        config = config_class(
            num_items=20, max_seq_len=6, embedding_dim=8, num_layers=self.layers, dropout=self.dropout
        )
        ids = torch.tensor([[3, 1, 0, 0], [5, 6, 7, 8], [9, 0, 0, 0]])
        everything = {"item_ids": ids, "timestamps": ids * 1000, "lengths": torch.tensor([2, 4, 1])}
        batch = {name: everything[name] for name in arguments}
        if self.training:
            batch["targets"] = torch.tensor([[1, 0, 0, 0], [6, 7, 8, 0], [1, 0, 0, 0]])
        return model_class(config).train(self.training), batch

    def capture(self) -> CapturedGraph:
        """Its one graph, named after the case."""
        model, batch = self.build()
        config = Config(target="ascend", passes=self.passes, dynamic=self.dynamic, model=self.model)
        session = Session(config, Pipeline.parse(self.passes))
        (graph,) = capture_graphs(model, (), batch, session, AscendLowering(), self.training)
        graph.name = str(self)
        return graph


BUCKET = "default,eliminate-padding{mode=bucket,multiple=4}"
DEFAULT = (Case("hstu", True, True), Case("sasrec", False, False))
SLOW = (
    *(Case(m, training, dynamic, 2) for m in _MODELS for training in (True, False) for dynamic in (True, False)),
    Case("hstu", True, True, passes=BUCKET),
    Case("stu", False, True, passes="none"),
    Case("hstu", True, True, dropout=0.2),
    Case("sasrec", True, True, dropout=0.2),
)
