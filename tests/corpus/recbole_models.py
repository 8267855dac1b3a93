"""RecBole 1.2.1, its own configuration, dataset, batches and losses."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy
import torch

# Names that numpy 2 dropped and RecBole reads, while it is imported and after.
for _old, _new in {"float_": "float64", "complex_": "complex128", "unicode_": "str_", "bool8": "bool_"}.items():
    if not hasattr(numpy, _old):
        setattr(numpy, _old, getattr(numpy, _new))

from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from recbole.utils import get_model, init_seed  # noqa: E402
from subject import Maker, Size, Subject  # noqa: E402
from torch import Tensor, nn  # noqa: E402

ITEMS = 500


class Step(nn.Module):
    """What its trainer computes of a batch."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, fields: dict[str, Tensor]) -> Tensor:
        loss: Tensor = self.model.calculate_loss(fields)  # type: ignore[operator]
        return loss


def write(folder: Path, lengths: list[int]) -> None:
    """Atomic files: interactions, and items with a class feature."""
    generator = torch.Generator().manual_seed(0)
    folder.mkdir()
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user, length in enumerate(lengths):
        items = torch.randint(0, ITEMS, (length + 3,), generator=generator).tolist()  # test, valid, target
        lines += [f"u{user}\ti{item}\t{1 + (item * 7 + k) % 5}\t{1e9 + 100 * k}" for k, item in enumerate(items)]
    (folder / "tiny.inter").write_text("\n".join(lines) + "\n")
    features = [f"i{item}\tc{item % 5} c{item % 7}" for item in range(ITEMS)]
    (folder / "tiny.item").write_text("\n".join(["item_id:token\tclass:token_seq", *features]) + "\n")


def maker(kind: str, mode: str = "full", **options: Any) -> Maker:
    def make(size: Size) -> Subject:
        with tempfile.TemporaryDirectory() as scratch:
            write(Path(scratch) / "tiny", size.lengths().tolist())
            settings = {
                "data_path": scratch, "checkpoint_dir": scratch, "state": "ERROR", "use_gpu": False,
                "show_progress": False, "load_col": {
                    "inter": ["user_id", "item_id", "rating", "timestamp"], "item": ["item_id", "class"]},
                "MAX_ITEM_LIST_LENGTH": size.n, "train_batch_size": size.batch, "hidden_dropout_prob": 0.0,
                "attn_dropout_prob": 0.0, "eval_args": {
                    "split": {"LS": "valid_and_test"}, "order": "TO", "mode": mode, "group_by": "user"},
                **options,
            }  # fmt: skip
            sys.argv = sys.argv[:1]  # its configuration reads the command line
            config = Config(model=kind, dataset="tiny", config_dict=settings)
            init_seed(1, True)
            train, _, _ = data_preparation(config, create_dataset(config))
        model = get_model(kind)(config, train.dataset)
        return Subject(Step(model), (next(iter(train)).interaction,))

    return make


CASES: dict[str, Maker] = {
    "RecBole SASRec": maker("SASRec", train_neg_sample_args=None),
    "RecBole SASRec, BPR": maker("SASRec", loss_type="BPR"),
    "RecBole BERT4Rec": maker("BERT4Rec", train_neg_sample_args=None, loss_type="CE"),
    "RecBole SASRecF": maker("SASRecF", train_neg_sample_args=None),
    "RecBole DIN": maker("DIN", "labeled", threshold={"rating": 3}),
}
