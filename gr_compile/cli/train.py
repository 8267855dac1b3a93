"""`gr-compile train`: trains a model of the zoo.

--json fields beside schema, command, versions: kind (eager, optimized, torch-compile), settings {model,
training} (all fields of ModelSettings and TrainSettings), data {name, users, items, interactions}, checkpoint
(or null), run (see `results.RUN_FIELDS`), passes [{graph, training, name, numerics, changed, matches, misses,
nodes_before, nodes_after, milliseconds, error}], dumps [folders].
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gr_compile.cli.options import (
    MODEL,
    TRAINING,
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
from gr_compile.cli.results import ConsoleReporter, run_as_json, show_losses, show_passes, show_runs

if TYPE_CHECKING:
    from gr_compile.training.loop import Trainer
    from gr_compile.training.variants import Kind


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("train")(train)


def train(
    model: Annotated[
        str, typer.Option(help="hstu, fuxi, stu, sasrec, or one of TurboGR's: hstu-large ...", rich_help_panel=MODEL)
    ] = "hstu",
    embedding_dim: Annotated[int, typer.Option(help="D.", rich_help_panel=MODEL)] = 64,
    num_layers: Annotated[int, typer.Option(help="Layers.", rich_help_panel=MODEL)] = 2,
    num_heads: Annotated[int, typer.Option(help="Heads.", rich_help_panel=MODEL)] = 2,
    head_dim: Annotated[int, typer.Option(help="Width of a head.", rich_help_panel=MODEL)] = 32,
    dropout: Annotated[float, typer.Option(help="Dropout.", rich_help_panel=MODEL)] = 0.2,
    max_attn_len: Annotated[int, typer.Option(help="stu: window; 0 is none.", rich_help_panel=MODEL)] = 0,
    max_seq_len: MaxSeqLenOption = 200,
    data: Annotated[str, typer.Option(help="ml-100k, movielens, kuairand or synthetic.")] = "ml-100k",
    path: PathOption = None,
    k_core: KCoreOption = None,
    feedback: FeedbackOption = None,
    users: UsersOption = 1000,
    items: ItemsOption = 2000,
    median_length: MedianOption = 1734.0,
    sigma: SigmaOption = 0.796,
    max_length: MaxLengthOption = 4096,
    kind: Annotated[
        str, typer.Option("--run", help="optimized (gr_compile), eager, or torch-compile.")
    ] = "optimized",
    passes: Annotated[str, typer.Option(help="Pipeline of --run optimized.")] = "default",
    dump: Annotated[Path | None, typer.Option(help="Folder for the compiler's dump.")] = None,
    epochs: Annotated[int, typer.Option(help="Epochs in all.", rich_help_panel=TRAINING)] = 10,
    batch_size: Annotated[int, typer.Option(help="Sequences a forward.", rich_help_panel=TRAINING)] = 32,
    accumulate: Annotated[int, typer.Option(help="Batches a step.", rich_help_panel=TRAINING)] = 1,
    learning_rate: Annotated[float, typer.Option(help="AdamW's.", rich_help_panel=TRAINING)] = 1e-3,
    weight_decay: Annotated[float, typer.Option(help="AdamW's.", rich_help_panel=TRAINING)] = 0.0,
    clip_norm: Annotated[
        float, typer.Option(help="Largest gradient norm; 0 is none.", rich_help_panel=TRAINING)
    ] = 1.0,
    negatives: Annotated[
        int, typer.Option(help="Sampled softmax with so many a target; 0: all items.", rich_help_panel=TRAINING)
    ] = 0,
    share: Annotated[
        int, typer.Option(help="K times as many --negatives: other tokens'.", rich_help_panel=TRAINING)
    ] = 1,
    fp16: Annotated[
        str, typer.Option(help="In 16 bits: negatives+embeddings+activations.", rich_help_panel=TRAINING)
    ] = "",
    bf16: Annotated[bool, typer.Option("--bf16", help="bf16 autocast.", rich_help_panel=TRAINING)] = False,
    seed: SeedOption = 0,
    deterministic: Annotated[
        bool,
        typer.Option("--deterministic", help="Refuse operators without one.", rich_help_panel=TRAINING),
    ] = False,
    filter_history: Annotated[
        bool,
        typer.Option("--filter-history", help="Rank only items not met before.", rich_help_panel=TRAINING),
    ] = False,
    max_steps: Annotated[int, typer.Option(help="Stop after; 0: never.", rich_help_panel=TRAINING)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...", rich_help_panel=TRAINING)] = "cpu",
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint file, written each epoch.", rich_help_panel=TRAINING)
    ] = None,
    checkpoint_every: Annotated[
        int, typer.Option(help="... and every so many steps.", rich_help_panel=TRAINING)
    ] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from --checkpoint, exactly.", rich_help_panel=TRAINING)
    ] = False,
    json_file: JsonOption = None,
) -> None:
    """Train a model of the zoo, optimised by gr_compile unless told otherwise, and evaluate it.

    Quality is HR@10 and NDCG@10 of leave-one-out against the full catalogue. A resumed run gives what the
    uninterrupted one would have given; eager and optimised runs continue one another's checkpoints.
    """
    check_json_path(json_file)
    from gr_compile.training.data.catalogue import DataRequest
    from gr_compile.training.data.synthetic import SyntheticSettings
    from gr_compile.training.models import ModelSettings
    from gr_compile.training.settings import TrainSettings
    from gr_compile.training.variants import VariantJob

    if resume and checkpoint is None:
        raise CommandError("--resume needs --checkpoint FILE")
    synthetic = SyntheticSettings(users, items, median_length, sigma, max_length=max_length, seed=seed)
    job = VariantJob(
        kind=checked_kind(kind),
        data=DataRequest(data, path, k_core, feedback, synthetic),
        model=ModelSettings(model, embedding_dim, num_layers, num_heads, head_dim, dropout, max_attn_len),
        settings=TrainSettings(
            epochs=epochs,
            batch_size=batch_size,
            max_seq_len=max_seq_len,
            accumulate=accumulate,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            clip_norm=clip_norm,
            negatives=negatives,
            seed=seed,
            deterministic=deterministic,
            bf16=bf16,
            filter_history=filter_history,
            max_steps=max_steps,
            checkpoint_every=checkpoint_every,
            device=device,
        ),
        passes=with_loss_passes(passes, kind, negatives, share, fp16),
        dump=dump,
    )
    write_json(json_file, "train", run_job(Output(), job, checkpoint, resume))


def with_loss_passes(passes: str, kind: str, negatives: int, share: int, fp16: str) -> str:
    """The pipeline with what --share and --fp16 ask for.

    Raises:
        CommandError: they are asked of a run that has no passes, or no negatives.
    """
    sites = [site.strip() for site in fp16.replace(",", "+").split("+") if site.strip()]
    if share < 1:
        raise CommandError(f"--share {share}: at least 1, which shares nothing")
    for option, given, needs_negatives in (("--share", share > 1, True), ("--fp16", bool(sites), "negatives" in sites)):
        if given and kind != "optimized":
            raise CommandError(f"{option} is for --run optimized: it is a pass")
        if given and needs_negatives and not negatives:
            raise CommandError(f"{option} needs --negatives: there are none to share or store")
    if share > 1:
        passes += f",share-logits{{expansion={share}}}"
    passes += f",insert-fp16{{sites={'+'.join(sites)}}}" if sites else ""
    if share > 1 or sites:
        objective(passes)  # a pipeline that cannot be is said before data are read
    return passes


def objective(passes: str) -> list[str]:
    """The passes of a pipeline that change what is trained: a checkpoint is continued with the same ones."""
    from gr_compile.pipeline import Pipeline

    return [item.text() for item in Pipeline.parse(passes).passes if item.numerics == "changes-objective"]


def checked_kind(kind: str) -> Kind:
    """`kind` as one of the three that there are."""
    from gr_compile.training.variants import KINDS

    for known in KINDS:
        if kind == known:
            return known
    raise CommandError(f"--run {kind}: there are {', '.join(KINDS)}")


def run_job(output: Output, job: Any, checkpoint: Path | None, resume: bool) -> dict[str, Any]:
    """Trains in this process, shows the result and answers the fields of the --json file."""
    import gr_compile
    from gr_compile.training.data.catalogue import load
    from gr_compile.training.loop import Trainer
    from gr_compile.training.passes import pass_rows
    from gr_compile.training.variants import build_seeded, make_run

    with output.progress() as progress:
        progress.message(f"reading {job.data.name} ...")
        data = load(job.data)
        case = build_seeded(job.model, job.settings, data.num_items)
        run = make_run(job.kind, case, job.passes, job.dump)
        identity = {"model": asdict(job.model), "objective": objective(job.passes)}
        reporter = ConsoleReporter(progress)
        trainer = Trainer(case, run, data, job.settings, reporter, checkpoint, identity)
        if resume:
            _resume(trainer, progress.message)
        result = trainer.train()
    reports = gr_compile.report(run) if job.kind == "optimized" else []
    rows = pass_rows(reports)
    dumps = [report.dump for report in reports if report.dump]
    show_losses(output, {job.kind: result})
    show_runs(output, {job.kind: result})
    if job.kind == "optimized":
        show_passes(output, rows)
    for folder in dumps:
        output.line(f"dump: {folder}")
    return {
        "kind": job.kind,
        "settings": {"model": asdict(job.model), "training": asdict(job.settings)},
        "data": {
            "name": data.name,
            "users": data.num_users,
            "items": data.num_items,
            "interactions": data.num_interactions,
        },
        "checkpoint": str(checkpoint) if checkpoint else None,
        "run": run_as_json(result),
        "passes": [asdict(row) for row in rows],
        "dumps": dumps,
    }


def _resume(trainer: Trainer, say: Any) -> None:
    trainer.resume()
    progress = trainer.progress
    say(f"resumed at epoch {progress.epoch + 1}, batch {progress.batch + 1}, step {progress.steps + 1}")
