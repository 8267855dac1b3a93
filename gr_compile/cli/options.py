"""Options that several commands share: which data, which model, how long."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DATA = "Data"
MODEL = "Model"
TRAINING = "Training"

PathOption = Annotated[
    Path | None,
    typer.Option(
        "--path",
        help="Where your files are (movielens: a rating file; kuairand: a folder).",
        rich_help_panel=DATA,
    ),
]
KCoreOption = Annotated[
    int | None,
    typer.Option(
        help="Keep users and items with this many interactions (kuairand: 5).", rich_help_panel=DATA
    ),
]
FeedbackOption = Annotated[
    str | None,
    typer.Option(help="kuairand: only rows whose 0/1 column of this name is 1.", rich_help_panel=DATA),
]
UsersOption = Annotated[int, typer.Option("--users", help="synthetic: users.", rich_help_panel=DATA)]
ItemsOption = Annotated[int, typer.Option("--items", help="synthetic: items.", rich_help_panel=DATA)]
MedianOption = Annotated[
    float, typer.Option("--median-length", help="synthetic: median length.", rich_help_panel=DATA)
]
SigmaOption = Annotated[
    float, typer.Option("--sigma", help="synthetic: sigma of the lengths' logarithm.", rich_help_panel=DATA)
]
MaxLengthOption = Annotated[
    int, typer.Option("--max-length", help="synthetic: longest sequence.", rich_help_panel=DATA)
]
SeedOption = Annotated[int, typer.Option(help="Seed of everything random.", rich_help_panel=TRAINING)]
MaxSeqLenOption = Annotated[
    int, typer.Option("--max-seq-len", help="N: sequences are padded or cut to it.", rich_help_panel=MODEL)
]
