"""`gr-compile data`: fetches or reads a dataset and shows what is in it.

--json fields beside schema, command, versions: name, users, items, interactions, lengths {min, median, mean,
p90, max} (interactions a user), first_timestamp, last_timestamp (seconds), max_seq_len,
splits {train, validation, test}: {sequences, tokens, fill} (fill = valid places / all places at max_seq_len).
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gr_compile.cli.options import (
    FeedbackOption,
    ItemsOption,
    KCoreOption,
    MaxLengthOption,
    MaxSeqLenOption,
    MedianOption,
    PathOption,
    SeedOption,
    SigmaOption,
    UsersOption,
)
from gr_compile.cli.output import CommandError, JsonOption, Output, check_json_path, write_json

if TYPE_CHECKING:
    from gr_compile.training.data.interactions import InteractionData


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("data")(data)


def data(
    name: Annotated[str, typer.Argument(help="ml-100k, movielens, kuairand or synthetic.")] = "ml-100k",
    path: PathOption = None,
    k_core: KCoreOption = None,
    feedback: FeedbackOption = None,
    users: UsersOption = 1000,
    items: ItemsOption = 2000,
    median_length: MedianOption = 1734.0,
    sigma: SigmaOption = 0.796,
    max_length: MaxLengthOption = 4096,
    max_seq_len: MaxSeqLenOption = 200,
    seed: SeedOption = 0,
    json_file: JsonOption = None,
) -> None:
    """Fetch or read a dataset, check it, and show its size, its lengths and how full its batches are.

    ml-100k is fetched on first use into $GR_COMPILE_CACHE (else the XDG cache folder) and checked by sha256;
    movielens (ratings.csv, ratings.dat, u.data) and kuairand (log_standard_*.csv) are read from --path.
    """
    check_json_path(json_file)
    from gr_compile.training.data.catalogue import DataRequest, load
    from gr_compile.training.data.synthetic import SyntheticSettings

    if max_seq_len < 2:
        raise CommandError(f"--max-seq-len must be at least 2, not {max_seq_len}")
    output = Output()
    synthetic = SyntheticSettings(users, items, median_length, sigma, max_length=max_length, seed=seed)
    with output.progress() as progress:
        progress.message(f"reading {name} ...")
        found = load(DataRequest(name, path, k_core, feedback, synthetic))
    summary = summarize(found, max_seq_len)
    show(output, summary)
    write_json(json_file, "data", summary)


def summarize(found: InteractionData, max_seq_len: int) -> dict[str, Any]:
    """The fields of the --json file."""
    import numpy as np

    lengths = found.lengths
    return {
        "name": found.name,
        "users": found.num_users,
        "items": found.num_items,
        "interactions": found.num_interactions,
        "lengths": {
            "min": int(lengths.min()),
            "median": float(np.median(lengths)),
            "mean": float(lengths.mean()),
            "p90": float(np.percentile(lengths, 90)),
            "max": int(lengths.max()),
        },
        "first_timestamp": int(found.timestamps.min()),
        "last_timestamp": int(found.timestamps.max()),
        "max_seq_len": max_seq_len,
        "splits": _splits(found, max_seq_len),
    }


def _splits(found: InteractionData, max_seq_len: int) -> dict[str, dict[str, float]]:
    """Sizes from the lengths alone, as `SequenceBatches` would batch them."""
    import numpy as np

    from gr_compile.training.data.batches import HELD_OUT, LEAST

    splits = {}
    for split, held_out in HELD_OUT.items():
        lengths = found.lengths[found.lengths >= LEAST[split]]
        tokens = int(np.minimum(lengths - held_out - 1, max_seq_len - 1).sum())
        places = len(lengths) * max_seq_len
        splits[split] = {
            "sequences": len(lengths),
            "tokens": tokens,
            "fill": tokens / places if places else 0.0,
        }
    return splits


def show(output: Output, summary: dict[str, Any]) -> None:
    """The same for people."""
    lengths = summary["lengths"]
    first, last = (
        datetime.fromtimestamp(summary[key], tz=timezone.utc).date().isoformat()
        for key in ("first_timestamp", "last_timestamp")
    )
    rows = [
        ("users", f"{summary['users']:,}"),
        ("items", f"{summary['items']:,}"),
        ("interactions", f"{summary['interactions']:,}"),
        ("length: median", f"{lengths['median']:,.0f}"),
        ("length: mean", f"{lengths['mean']:,.1f}"),
        ("length: min / p90 / max", f"{lengths['min']:,} / {lengths['p90']:,.0f} / {lengths['max']:,}"),
        ("from, to", f"{first} .. {last}"),
    ]
    output.table(summary["name"], ("", "value"), rows)
    split_rows = [
        (split, f"{numbers['sequences']:,}", f"{numbers['tokens']:,}", f"{numbers['fill']:.1%}")
        for split, numbers in summary["splits"].items()
    ]
    title = f"Leave-one-out, padded to {summary['max_seq_len']}"
    output.table(title, ("split", "sequences", "tokens", "fill"), split_rows)
