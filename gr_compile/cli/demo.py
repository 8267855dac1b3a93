"""`gr-compile demo`: trains one padded HSTU eagerly and optimised, and shows the difference and its causes.

--json fields beside schema, command, versions: data {name, users, items, interactions, synthetic, reason}
(reason: why synthetic data, or null), settings {model, training}, runs {eager, optimized, and with
--compare-torch-compile torch-compile} (see `results.RUN_FIELDS`), comparison {max_loss_difference (relative),
hit_rate_difference, ndcg_difference, same_top_items (share of users whose top-10 lists are identical, both
from the eager run's weights), speedup, memory_ratio}, passes (see train.py), dumps [folders], seconds.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gr_compile.cli.options import TRAINING, SeedOption
from gr_compile.cli.output import JsonOption, Output, ProgressLines, check_json_path, write_json
from gr_compile.cli.results import ConsoleReporter, run_as_json, show_losses, show_passes, show_runs

if TYPE_CHECKING:
    from gr_compile.training.data.catalogue import DataRequest
    from gr_compile.training.data.interactions import InteractionData
    from gr_compile.training.models import ModelSettings
    from gr_compile.training.settings import TrainSettings
    from gr_compile.training.variants import VariantResult


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("demo")(demo)


def demo(
    epochs: Annotated[int, typer.Option(help="Epochs of each run.", rich_help_panel=TRAINING)] = 5,
    batch_size: Annotated[int, typer.Option(help="Sequences a step.", rich_help_panel=TRAINING)] = 32,
    max_seq_len: Annotated[int, typer.Option(help="N, the padded length.", rich_help_panel=TRAINING)] = 200,
    negatives: Annotated[
        int, typer.Option(help="Sampled softmax with so many a target; 0: all items.", rich_help_panel=TRAINING)
    ] = 0,
    seed: SeedOption = 0,
    dump: Annotated[Path, typer.Option(help="Folder for the compiler's dump.")] = Path("dumps/demo"),
    compare_torch_compile: Annotated[
        bool, typer.Option("--compare-torch-compile", help="Also run torch.compile on the padded model.")
    ] = False,
    synthetic: Annotated[
        bool, typer.Option("--synthetic", help="Made-up data, also when MovieLens can be had.")
    ] = False,
    max_steps: Annotated[
        int, typer.Option(help="Stop each run early; 0: never.", rich_help_panel=TRAINING)
    ] = 0,
    json_file: JsonOption = None,
) -> None:
    """Train HSTU on MovieLens-100K eager and optimised with one seed, and compare the two.

    Shows loss by epoch, HR@10 and NDCG@10, step time, tokens/s, MFU, memory, and what each pass did.
    Each run has a process of its own. The MovieLens data are fetched on first use; without network the demo
    makes data up, and says so. Takes under 4 minutes on 2 cores.
    """
    check_json_path(json_file)
    from gr_compile.inspection.dump import check_writable
    from gr_compile.training.models import ModelSettings
    from gr_compile.training.settings import TrainSettings

    check_writable(dump)
    start = time.perf_counter()
    output = Output()
    model = ModelSettings("hstu", dropout=0.0)
    settings = TrainSettings(
        epochs=epochs,
        batch_size=batch_size,
        max_seq_len=max_seq_len,
        learning_rate=2e-3,
        negatives=negatives,
        seed=seed,
        filter_history=True,
        max_steps=max_steps,
    )
    with output.progress() as progress:
        request, data, reason = choose_data(synthetic, seed, progress)
        results = run_variants(progress, request, model, settings, dump, compare_torch_compile)
    payload = {
        "data": describe_data(data, reason),
        "settings": {"model": asdict(model), "training": asdict(settings)},
        "runs": {kind: run_as_json(result.result) for kind, result in results.items()},
        "comparison": compare(results["eager"], results["optimized"]),
        "passes": [asdict(row) for row in results["optimized"].passes],
        "dumps": results["optimized"].dumps,
        "seconds": time.perf_counter() - start,
    }
    show(output, payload, results)
    write_json(json_file, "demo", payload)


def choose_data(
    synthetic: bool, seed: int, progress: ProgressLines
) -> tuple[DataRequest, InteractionData, str | None]:
    """MovieLens-100K, or synthetic data of its size and the reason for it."""
    from gr_compile.training.data.catalogue import DataRequest, load
    from gr_compile.training.data.errors import DataUnavailableError
    from gr_compile.training.data.synthetic import SyntheticSettings

    reason = "asked for by --synthetic"
    if not synthetic:
        request = DataRequest("ml-100k")
        try:
            progress.message("reading MovieLens-100K (fetched on first use) ...")
            return request, load(request), None
        except DataUnavailableError as error:
            reason = str(error)
    like_movielens = SyntheticSettings(943, 1682, 65.0, 1.0, min_length=20, max_length=737, seed=seed)
    progress.message(f"SYNTHETIC data, not MovieLens: {reason}")
    request = DataRequest("synthetic", synthetic=like_movielens)
    return request, load(request), reason


def run_variants(
    progress: ProgressLines,
    request: DataRequest,
    model: ModelSettings,
    settings: TrainSettings,
    dump: Path,
    compare_torch_compile: bool,
) -> dict[str, VariantResult]:
    """One run after the other; the second computes its recommendations from the first's weights, too."""
    from gr_compile.training.variants import Kind, VariantJob, run_variant

    results: dict[str, VariantResult] = {}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "eager.pt"
        kinds: list[Kind] = ["eager", "optimized"]
        if compare_torch_compile:
            kinds.append("torch-compile")
        for kind in kinds:
            job = VariantJob(
                kind=kind,
                data=request,
                model=model,
                settings=settings,
                dump=dump if kind == "optimized" else None,
                save_weights=weights if kind == "eager" else None,
                compare_weights=weights if kind == "optimized" else None,
            )
            results[kind] = run_variant(job, ConsoleReporter(progress, kind))
    return with_one_peak(results)


def with_one_peak(results: dict[str, VariantResult]) -> dict[str, VariantResult]:
    """MFU against the highest peak that a run measured: other work on the machine only lowers it."""
    peak = max(variant.result.speed.peak_flops for variant in results.values())
    return {
        kind: replace(variant, result=replace(variant.result, speed=variant.result.speed.against(peak)))
        for kind, variant in results.items()
    }


def compare(eager: VariantResult, optimized: VariantResult) -> dict[str, float]:
    """The `comparison` of the --json file."""
    before, after = eager.result, optimized.result
    losses = [
        abs(theirs.loss - ours.loss) / abs(theirs.loss) for theirs, ours in zip(before.epochs, after.epochs)
    ]
    same = [theirs == ours for theirs, ours in zip(eager.top_items, optimized.top_items)]
    return {
        "max_loss_difference": max(losses, default=0.0),
        "hit_rate_difference": abs(before.test.hit_rate - after.test.hit_rate),
        "ndcg_difference": abs(before.test.ndcg - after.test.ndcg),
        "same_top_items": sum(same) / len(same),
        "speedup": before.speed.step_seconds / after.speed.step_seconds,
        "memory_ratio": before.step_memory / max(after.step_memory, 1),
    }


def describe_data(data: InteractionData, reason: str | None) -> dict[str, Any]:
    """The `data` of the --json file."""
    return {
        "name": data.name,
        "users": data.num_users,
        "items": data.num_items,
        "interactions": data.num_interactions,
        "synthetic": reason is not None,
        "reason": reason,
    }


def show(output: Output, payload: dict[str, Any], results: dict[str, VariantResult]) -> None:
    """The same for people."""
    data, comparison = payload["data"], payload["comparison"]
    output.line()
    output.line(
        f"HSTU on {data['name']}: {data['users']:,} users, {data['items']:,} items, "
        f"{data['interactions']:,} interactions"
    )
    if data["synthetic"]:
        output.line(f"The data are SYNTHETIC: {data['reason']}")
    runs = {kind: result.result for kind, result in results.items()}
    show_losses(output, runs)
    show_runs(output, runs)
    show_passes(output, results["optimized"].passes)
    output.line(
        f"optimised against eager: {comparison['speedup']:.2f}x the speed, "
        f"1/{comparison['memory_ratio']:.2f} of the step's memory, losses within "
        f"{comparison['max_loss_difference']:.1e}, top-{runs['eager'].test.k} lists identical for "
        f"{comparison['same_top_items']:.2%} of users from the same weights"
    )
    for folder in payload["dumps"]:
        output.line(f"dump: {folder}")
    output.line(f"{payload['seconds']:.0f} s in all")
