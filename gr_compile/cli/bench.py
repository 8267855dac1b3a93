"""`gr-compile bench`: padded eager, torch.compile, gr_compile and peers side by side, in one run.

--json fields beside schema, command, versions: what, settings (all fields of BenchSettings), definition (of MFU
and HFU, as printed), machine {processor, threads}, rows, runs, absent [{contender, mode, reason}], seconds.

rows of `speed`: {fill, mode, eager_ms, torch_compile_ms, gr_compile_ms, speedup_vs_torch_compile, mfu, hfu,
gemm_gflops, peak_mb, padded_peak_mb}; of `memory`: {fill, mode, max_seq_len, batch_size, num_layers, peak_mb,
padded_peak_mb, ratio, steady_peak_mb, padded_steady_peak_mb, steady_ratio}; of `embedding`: {fill, ids,
valid_ids, embedding_dim, items, <contender>_forward_ms, <contender>_backward_ms,
forward_speedup_vs_torch_compile, backward_speedup_vs_torch_compile} for eager, torch_compile, gr_compile; of
`loss`: {fill, model, tokens, items, negatives (null: all items), <contender>_ms, <contender>_mb (what a step adds to
the table, the states and their gradients), speedup_vs_torch_compile, memory_vs_eager, memory_vs_torch_compile}; of
`offload`: {fill, tokens, items, negatives, segments, table_mb, in_memory_ms, offloaded_ms, speed_vs_in_memory,
forward_ms, backward_ms, update_ms, waited_ms (of a step, for the file), buffers_mb, limit_mb (of a memory cgroup; 0:
none could be made), read_mb, written_mb, major_faults (of a step), direct (1: past the page cache)}; of
`turbogr`: {fill, mode, model, max_seq_len, num_layers, gr_compile_ms, compile_s, useful_gflop, mfu, gemm_gflops,
peak_mb, steady_peak_mb}.

runs: {contender, fill, mode, max_seq_len, tokens, real_fill, status (measured, out of memory, failed, wrong),
reason, step_ms, forward_ms, backward_ms, samples_ms, first_step_s, compile_s, cold, peak_mb, steady_peak_mb,
useful_gflop, mfu, deviation}. Times are medians; what could not be measured is null; a MB is 2^20 bytes.
"""

from __future__ import annotations

import platform
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gr_compile.cli.bench_tables import show, title_of
from gr_compile.cli.output import CommandError, JsonOption, Output, check_json_path, write_json

if TYPE_CHECKING:
    from gr_compile.benchmarking.benchmark import Case, Measured
    from gr_compile.benchmarking.settings import BenchSettings

WHAT = ("speed", "memory", "embedding", "loss", "offload", "turbogr")
PICTURES = (".png", ".svg", ".pdf")
SIZES = "Sizes (defaults: those of the benchmark)"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("bench")(bench)


def bench(
    what: Annotated[str, typer.Argument(help="speed, memory, embedding, loss, offload or turbogr.")] = "speed",
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: under 3 minutes on 2 cores.")] = False,
    model: Annotated[
        str | None,
        typer.Option(help="hstu (default), fuxi, stu, sasrec, or TurboGR's fuxi-long ...", rich_help_panel=SIZES),
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    threads: Annotated[int, typer.Option(help="Threads of every process.")] = 2,
    batch_size: Annotated[int | None, typer.Option(help="B.", rich_help_panel=SIZES)] = None,
    max_seq_len: Annotated[int | None, typer.Option(help="N, padded.", rich_help_panel=SIZES)] = None,
    embedding_dim: Annotated[int | None, typer.Option(help="D.", rich_help_panel=SIZES)] = None,
    num_heads: Annotated[int | None, typer.Option(help="H.", rich_help_panel=SIZES)] = None,
    head_dim: Annotated[int | None, typer.Option(help="dqk = dv.", rich_help_panel=SIZES)] = None,
    num_layers: Annotated[int | None, typer.Option(help="Layers.", rich_help_panel=SIZES)] = None,
    items: Annotated[int | None, typer.Option(help="V, the catalogue.", rich_help_panel=SIZES)] = None,
    negatives: Annotated[int | None, typer.Option(help="R, of a token: loss.", rich_help_panel=SIZES)] = None,
    segments: Annotated[
        int | None, typer.Option(help="Of the table in a file: offload.", rich_help_panel=SIZES)
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Where the table's file lies: offload (default: temporary files).")
    ] = None,
    fills: Annotated[str | None, typer.Option(help="Shares of valid places, such as 0.15,0.5,1.")] = None,
    modes: Annotated[str | None, typer.Option(help="inference, training, or both by a comma.")] = None,
    contenders: Annotated[
        str | None, typer.Option(help="Only these, such as torch_compile,gr_compile.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Rounds in which each contender has its turn.")
    ] = None,
    passes: Annotated[str, typer.Option(help="gr_compile's pipeline.")] = "default",
    memory_limit: Annotated[
        float | None, typer.Option(help="GiB that one process may allocate (default: what is available).")
    ] = None,
    fetch_rectools: Annotated[
        bool, typer.Option("--fetch-rectools", help="Fetch RecTools by pip, as a peer, into the cache.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw the result: .png, .svg or .pdf.")
    ] = None,
    json_file: JsonOption = None,
) -> None:
    """Measure padded eager, torch.compile on the padded model, gr_compile, and peers, side by side in one run.

    **speed**: HSTU, inference and training step at several fills: times, MFU, HFU, memory.
    **memory**: peak memory of one long layer against padded eager.
    **turbogr**: one training step of one full sequence for each of TurboGR's four models, by gr_compile alone.
    **embedding**: lookup of a million ids, half of them padding, forward and backward.
    **loss**: forward and backward of a sampled softmax, and of one over all items: times, memory.
    **offload**: training steps of a sampled softmax, its table in memory and in a file of four times the memory.

    Every contender has a process of its own; they take turns, and medians are shown. Compilation is not part
    of the times and is shown apart. FlexAttention and nested tensors take part where they can express the
    model (--model sasrec), RecTools' HSTU where it can be imported. Outputs and gradients are compared.
    """
    check_json_path(json_file)
    check_picture_path(picture)
    if what not in WHAT:
        raise CommandError(f"bench {what}: there are {', '.join(WHAT)}")
    settings = preset(what, quick)
    if what in ("embedding", "loss", "offload", "turbogr") and model is not None:
        raise CommandError(f"bench {what} has no --model")
    own = (max_seq_len, embedding_dim, num_heads, head_dim, num_layers, fills, modes)
    if what == "turbogr" and any(given is not None for given in own):
        raise CommandError("bench turbogr: models have their own sizes, and the sequence is full")
    if model is not None:
        settings = named(settings, model)
    given: dict[str, Any] = {
        "batch_size": batch_size,
        "max_seq_len": max_seq_len,
        "embedding_dim": embedding_dim,
        "num_heads": num_heads,
        "head_dim": head_dim,
        "num_layers": num_layers,
        "items": items,
        "negatives": negatives,
        "segments": segments,
        "folder": None if folder is None else str(checked_folder(folder)),
        "fills": None if fills is None else numbers("--fills", fills),
        "modes": None if modes is None else checked_modes(modes),
        "contenders": None if contenders is None else names(contenders),
        "repeats": repeats,
    }
    changes = {name: value for name, value in given.items() if value is not None}
    settings = replace(
        settings, **changes, dtype=dtype, threads=threads, passes=passes, memory_limit=memory_limit
    )
    output = Output()
    start = time.perf_counter()
    own_size = items is not None if what == "loss" else max_seq_len is not None
    measured = run(what, settings, quick, own_size, fetch_rectools, output)
    payload = make_payload(what, settings, measured, time.perf_counter() - start)
    show(output, payload)
    write_json(json_file, "bench", payload)
    draw(picture, payload)
    fail_if_broken(measured)


def preset(what: str, quick: bool) -> BenchSettings:
    """The sizes that a benchmark has unless told otherwise."""
    from gr_compile.benchmarking.settings import EMBEDDING, LOSS, MEMORY, OFFLOAD, SPEED, TURBOGR

    presets = {"speed": SPEED[quick], "memory": MEMORY, "embedding": EMBEDDING[quick], "loss": LOSS,
               "offload": OFFLOAD[quick], "turbogr": TURBOGR}  # fmt: skip
    return presets[what]


def named(settings: BenchSettings, model: str) -> BenchSettings:
    """The settings for a model's name, as `--model` has it."""
    from gr_compile.benchmarking.settings import named as with_model

    return with_model(settings, model)


def cases(what: str, settings: BenchSettings, quick: bool, own_size: bool) -> list[Case]:
    """Fills and modes; `memory` has a length of its own for each mode, and `loss` a catalogue for each loss, unless
    one was given (`own_size`)."""
    from gr_compile.benchmarking.benchmark import cases_of
    from gr_compile.benchmarking.settings import MEMORY_LENGTHS, loss_settings, turbogr_settings

    if what in ("loss", "turbogr"):
        several = turbogr_settings(settings, quick) if what == "turbogr" else loss_settings(settings, quick, own_size)
        return [case for one in several for case in cases_of(one)]
    found = cases_of(settings)
    if what != "memory" or own_size:
        return found
    lengths = MEMORY_LENGTHS[quick]
    return [
        replace(case, settings=replace(case.settings, max_seq_len=lengths[case.mode])) for case in found
    ]


def run(
    what: str, settings: BenchSettings, quick: bool, own_size: bool, fetch: bool, output: Output
) -> Measured:
    """Measures everything, with progress."""
    from gr_compile.benchmarking import rectools_hstu
    from gr_compile.benchmarking.benchmark import measure
    from gr_compile.training.data.cache import cache_dir

    peers = cache_dir() / "peers" / "rectools"
    with output.progress() as progress:
        if fetch:
            progress.message("fetching RecTools ...")
            try:
                rectools_hstu.fetch(peers)
            except rectools_hstu.PeerError as error:
                progress.message(str(error))
        todo = cases(what, settings, quick, own_size)
        return measure(todo, progress, peers, together=what != "memory", with_peak=what in ("speed", "turbogr"))


def make_payload(what: str, settings: BenchSettings, measured: Measured, seconds: float) -> dict[str, Any]:
    """The fields of the --json file."""
    from gr_compile.benchmarking import rows
    from gr_compile.benchmarking.flops import DEFINITION

    rows_of = {"speed": rows.speed_rows, "memory": rows.memory_rows, "embedding": rows.embedding_rows,
               "loss": rows.loss_rows, "offload": rows.offload_rows, "turbogr": rows.turbogr_rows}  # fmt: skip
    return {
        "what": what,
        "settings": asdict(settings),
        "definition": DEFINITION,
        "machine": {"processor": processor(), "threads": settings.threads},
        "rows": rows_of[what](measured),
        "runs": rows.runs_as_json(measured),
        "absent": [asdict(absence) for absence in measured.absent],
        "seconds": seconds,
    }


def draw(path: Path | None, payload: dict[str, Any]) -> None:
    """Writes the picture, where one is wanted."""
    if path is None:
        return
    from gr_compile.benchmarking import picture

    draws = {"speed": picture.draw_speed, "memory": picture.draw_memory, "embedding": picture.draw_embedding,
             "loss": picture.draw_loss, "offload": picture.draw_offload, "turbogr": picture.draw_turbogr}  # fmt: skip
    draws[payload["what"]](path, title_of(payload), payload["rows"], payload["runs"])


def fail_if_broken(measured: Measured) -> None:
    """Raises CommandError when one of the three had no answer, or a wrong one. That a padded contender runs
    out of memory is a finding; peers are reported and nothing more."""
    from gr_compile.benchmarking.settings import PRINCIPALS

    broken = [
        f"{run.contender}, {run.mode}, fill {run.fill:.0%}: {run.status}: {run.reason}"
        for runs in measured.runs
        for run in runs
        if run.contender in (*PRINCIPALS, "offloaded")
        and (
            run.status in ("failed", "wrong")
            or (run.status == "out of memory" and run.contender in ("gr_compile", "offloaded"))
        )
    ]
    if broken:
        raise CommandError("; ".join(broken))


def numbers(option: str, text: str) -> tuple[float, ...]:
    """`0.15,0.5` as numbers."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise CommandError(f"{option} {text}: numbers with commas between them are wanted") from None


def names(text: str) -> tuple[str, ...]:
    """`a,b` as names, each once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",")))


def checked_modes(text: str) -> tuple[str, ...]:
    """The modes, if there are such."""
    from gr_compile.benchmarking.settings import MODES

    for mode in names(text):
        if mode not in MODES:
            raise CommandError(f"--modes {mode}: there are {', '.join(MODES)}")
    return names(text)


def check_picture_path(path: Path | None) -> None:
    """Raises CommandError before any work when the picture could not be written."""
    if path is None:
        return
    if path.suffix not in PICTURES:
        raise CommandError(f"--picture {path}: the name ends with one of {', '.join(PICTURES)}")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise CommandError(f"--picture {path}: no file can be written there")


def checked_folder(folder: Path) -> Path:
    """The folder, if it is one."""
    if not folder.is_dir():
        raise CommandError(f"--folder {folder}: there is no such folder")
    return folder


def processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
