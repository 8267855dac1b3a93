"""`gr-compile estimate`: time, MFU and memory of a training step on a machine that is not here.

--json fields beside schema, command, versions: machine (all fields of the description), efficiency, settings (all
fields of Settings), definition (of the MFUs, as printed), models [{model, changed (something is not as published),
changes (what), max_seq_len, batch_size, tokens, parameters, step_ms, sample_ms, mfu, mfu_turbogr (null where their
formula or their peak is of something else), published (null where anything is changed, or {sample_ms, mfu,
mfu_recomputed, residual}), memory {what: bytes}, rows [{part, kind, label, kernels, flops, bytes, seconds, bound}]}].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gr_compile.cli.output import CommandError, JsonOption, Output, check_json_path, write_json

if TYPE_CHECKING:
    from gr_compile.lowering.ascendc.machine import Machine
    from gr_compile.model_zoo import FuXiConfig, HSTUConfig

ALL = "all"
STEP_TOKENS = 32_768  # a device and step: TurboGR's memory grows by so many float32 rows and gradients a negative
KUAIRAND_ITEMS = 32_038_725
GRAPH_ITEMS = 1_000  # of the table in the graph: lookups cost by the row, whatever the size of their table
PUBLISHED_MACHINE = "910b1"
OTHER_WORK = {"machine", "fill", "num-layers", "max-seq-len"}  # what TurboGR's formula and peak are not of
STATE_BYTES_ROW = 12  # an item's number: weight and two moments in float32
DEFINITION = """\
This is an estimate: nothing was measured, and no kernel of ours has run on such a machine.
MFU           = FLOPs / (step seconds * {peak:.1f} TFLOPS), FLOPs = 3 * (2 * multiply-adds of the forward's products,
                and of the pairs inside the attentions' key intervals); padding and recomputation count nothing
MFU, TurboGR's = FLOPs / (step seconds * {theirs:.2f} TFLOPS), FLOPs = 6 * samples * (N * weights of products
                + N * N * numbers of q, k and v that a pair meets): every place counts, and the whole square.
                Their formula is not published. This one is inferred: with {devices} devices it gives their MFU
                from their samples a second ("recomputed")."""


@dataclass(frozen=True)
class Settings:
    """A step on one device. batch_size None: so many sequences that they have `STEP_TOKENS` places. Every sequence has
    fill * N items. The item table is dealt out over the devices."""

    batch_size: int | None = None
    fill: float = 1.0
    negatives: int = 128
    items: int = KUAIRAND_ITEMS
    devices: int = 32


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("estimate")(estimate)


def estimate(
    machine: Annotated[str, typer.Option(help="A machine description.")] = "910b1",
    model: Annotated[str, typer.Option(help="hstu-large, hstu-long, fuxi-large, fuxi-long or all.")] = ALL,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Sequences of a device and step [32,768 places].")
    ] = None,
    fill: Annotated[float, typer.Option(help="Share of valid places, the same in every sequence.")] = 1.0,
    negatives: Annotated[int, typer.Option(min=1, help="Negatives of a target.")] = 128,
    items: Annotated[int, typer.Option(min=1, help="Items of the catalogue.")] = KUAIRAND_ITEMS,
    devices: Annotated[int, typer.Option(min=1, help="Devices that the item table is dealt out over.")] = 32,
    num_layers: Annotated[int | None, typer.Option(min=1, help="Layers [16].")] = None,
    max_seq_len: Annotated[int | None, typer.Option(min=1, help="N [the model's].")] = None,
    json_file: JsonOption = None,
) -> None:
    """Estimate time, MFU and memory of a training step of TurboGR's models, by operator, beside the published figures.

    The model is compiled by the default passes, without weights, and its forward and backward graphs go through a
    roofline over a machine description, with one set of efficiencies for all models. Nothing runs.
    """
    check_json_path(json_file)
    from gr_compile.lowering.ascendc.machine import machine as described
    from gr_compile.lowering.roofline.estimate import Efficiency
    from gr_compile.model_zoo.turbogr import DEVICES, PEAK_FLOPS, PUBLISHED, turbogr_config

    if not 0 < fill <= 1:
        raise CommandError(f"--fill {fill}: a share of the places within 0..1")
    if model != ALL and model not in PUBLISHED:
        raise CommandError(f"--model {model}: there are {', '.join(PUBLISHED)} and {ALL}")
    found, settings = described(machine), Settings(batch_size, fill, negatives, items, devices)
    names = list(PUBLISHED) if model == ALL else [model]
    output = Output()
    models = []
    with output.progress() as progress:
        for name in names:
            progress.message(f"compiling {name} ...")
            config = turbogr_config(name, GRAPH_ITEMS)
            own = replace(
                config, num_layers=num_layers or config.num_layers, max_seq_len=max_seq_len or config.max_seq_len
            )
            models.append(estimate_model(name, own, found, settings, changes(machine, settings, own, config)))
    definition = DEFINITION.format(peak=found.cube_flops / 1e12, theirs=PEAK_FLOPS / 1e12, devices=DEVICES)
    payload = {
        "machine": asdict(found), "efficiency": asdict(Efficiency()), "settings": asdict(settings),
        "definition": definition, "models": models,
    }  # fmt: skip
    show(output, payload)
    write_json(json_file, "estimate", payload)


def changes(
    machine: str, settings: Settings, own: HSTUConfig | FuXiConfig, theirs: HSTUConfig | FuXiConfig
) -> list[str]:
    """The options in which a step is not the one that figures were published of."""
    usual, places = Settings(), STEP_TOKENS // theirs.max_seq_len
    differs = {
        "machine": machine != PUBLISHED_MACHINE, "fill": settings.fill != usual.fill,
        "num-layers": own.num_layers != theirs.num_layers, "max-seq-len": own.max_seq_len != theirs.max_seq_len,
        "batch-size": settings.batch_size not in (None, places), "negatives": settings.negatives != usual.negatives,
        "items": settings.items != usual.items, "devices": settings.devices != usual.devices,
    }  # fmt: skip
    return [name for name, changed in differs.items() if changed]


def estimate_model(
    name: str, config: HSTUConfig | FuXiConfig, machine: Machine, settings: Settings, changed: Sequence[str]
) -> dict[str, Any]:
    """One entry of `models`. `changed`: why it is not the published step, as `changes` lists it."""
    import torch

    from gr_compile.benchmarking.flops import utilisation
    from gr_compile.lowering.roofline.estimate import estimate as roofline
    from gr_compile.lowering.roofline.trace import step_graphs
    from gr_compile.model_zoo.turbogr import PEAK_FLOPS, model_of

    n = config.max_seq_len
    batch_size = settings.batch_size or max(1, STEP_TOKENS // n)
    length = max(1, round(settings.fill * n))
    tokens = batch_size * length

    ids = (torch.arange(n) < length).long().expand(batch_size, n).contiguous()
    drawn = torch.ones(1, dtype=torch.int64).expand(batch_size, n, settings.negatives)
    arguments = {"item_ids": ids, "timestamps": ids, "targets": ids, "negatives": drawn}
    graphs = step_graphs(lambda: model_of(config), arguments)
    with torch.device("meta"):
        weights = sum(p.numel() for who, p in model_of(config).named_parameters() if "_embedding" not in who)
    shard = -(-settings.items // settings.devices)
    looked_up = min(shard, tokens * (2 + settings.negatives))
    found = roofline(graphs, [length] * batch_size, weights, looked_up, config.embedding_dim, machine)
    theirs = batch_size * turbogr_flops(config)
    table = f"item table, 1/{settings.devices} of it"
    return {
        "model": name, "changed": bool(changed), "changes": list(changed), "max_seq_len": n,
        "batch_size": batch_size, "tokens": tokens,
        "parameters": weights, "step_ms": 1e3 * found.seconds, "sample_ms": 1e3 * found.seconds / batch_size,
        "mfu": utilisation(found.useful_flops, found.seconds, machine.cube_flops),
        "mfu_turbogr": None if OTHER_WORK & set(changed) else utilisation(theirs, found.seconds, PEAK_FLOPS),
        "published": None if changed else published(name, config, found.seconds / batch_size),
        "memory": {**found.memory, table: STATE_BYTES_ROW * shard * config.embedding_dim},
        "rows": [asdict(row) for row in sorted(found.rows, key=lambda row: -row.seconds)],
    }  # fmt: skip


def turbogr_flops(config: HSTUConfig | FuXiConfig) -> float:
    """FLOPs of a sample by TurboGR's formula, as inferred: every place, and the whole square of pairs."""
    from gr_compile.benchmarking.model_cost import cost_of

    cost = cost_of(config)
    n = config.max_seq_len
    return 6.0 * (n * cost.token_weights + n * n * cost.pair_width)


def published(name: str, config: HSTUConfig | FuXiConfig, sample_seconds: float) -> dict[str, float]:
    """What TurboGR published of a model; `residual`: how much longer a sample takes by the estimate."""
    from gr_compile.model_zoo.turbogr import DEVICES, PEAK_FLOPS, PUBLISHED

    row = PUBLISHED[name]
    theirs = DEVICES / row.samples_per_second
    return {
        "sample_ms": 1e3 * theirs, "mfu": row.mfu / 100,
        "mfu_recomputed": turbogr_flops(config) / (theirs * PEAK_FLOPS),
        "residual": sample_seconds / theirs - 1,
    }  # fmt: skip


def show(output: Output, payload: dict[str, Any]) -> None:
    """The same for people."""
    for found in payload["models"]:
        sizes = f"B={found['batch_size']}, N={found['max_seq_len']}, {found['tokens']:,} tokens"
        total = sum(row["seconds"] for row in found["rows"])
        table = [
            (
                f"{row['part']}, {row['kind']}: {row['label']}", f"{row['kernels']}", f"{row['flops'] / 1e9:,.0f}",
                f"{row['bytes'] / 2**30:.2f}", f"{1e3 * row['seconds']:.2f}", f"{row['seconds'] / total:.1%}",
                row["bound"],
            )
            for row in found["rows"] if row["seconds"] > 1e-3 * total
        ]  # fmt: skip
        columns = ("operators, above 0.1 %", "kernels", "GFLOP", "GiB", "ms", "share", "bound by")
        output.table(f"{found['model']}, estimate: {sizes}", columns, table)
        memory = ", ".join(f"{what} {size / 2**30:.1f}" for what, size in found["memory"].items())
        output.line(f"memory, GiB: {memory}")
        output.line()
    output.table(payload["machine"]["name"], *_summaries(payload["models"]))
    for found in payload["models"]:
        if found["changed"]:
            options = ", ".join(f"--{name}" for name in found["changes"])
            output.line(f"{found['model']} is not beside what was published: other {options}")
    output.line(payload["definition"])
    chosen = ", ".join(f"{name} {value:g}" for name, value in payload["efficiency"].items())
    output.line(f"efficiencies, one set for all models, assumed: {chosen}")


def _summaries(models: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows. Columns that no row has a figure for are left out."""
    shown = [_summary(found) for found in models]
    columns = [name for name in shown[0] if any(row[name] is not None for row in shown)]
    titles = {"published MFU": "published"}
    return [titles.get(name, name) for name in columns], [[row[name] or "–" for name in columns] for row in shown]


def _summary(found: dict[str, Any]) -> dict[str, str | None]:
    theirs, mfu = found["published"], found["mfu_turbogr"]
    return {
        "estimate": found["model"], "params M": f"{found['parameters'] / 1e6:.2f}",
        "step ms": f"{found['step_ms']:.0f}", "sample ms": f"{found['sample_ms']:.2f}",
        "published": f"{theirs['sample_ms']:.2f}" if theirs else None,
        "residual": f"{theirs['residual']:+.0%}" if theirs else None,
        "MFU": f"{found['mfu']:.2%}", "MFU, TurboGR's": None if mfu is None else f"{mfu:.2%}",
        "published MFU": f"{theirs['mfu']:.2%}" if theirs else None,
        "recomputed": f"{theirs['mfu_recomputed']:.2%}" if theirs else None,
    }  # fmt: skip
