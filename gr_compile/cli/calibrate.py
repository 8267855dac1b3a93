"""`gr-compile calibrate FILE:MODEL`: what storing values of a model in 16 bits would do, site by site.

--json fields beside schema, command, versions: batches, sites [{kind, name, where, values, not_finite, largest,
smallest, bytes_before, bytes_after, exponents {floor(log2 |x|): values}, stored {"float16/per-token": {error,
overflows, flushed}}}].
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gr_compile.cli.explain import batches_of, instance_of, loaded
from gr_compile.cli.output import CommandError, JsonOption, Output, check_json_path, write_json

if TYPE_CHECKING:
    from gr_compile.passes.insert_fp16 import Calibration


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def calibrate(
        model: Annotated[
            str, typer.Argument(metavar="FILE:MODEL", help="A Python file, and a class or module in it.")
        ],
        init: Annotated[str, typer.Option(help="Arguments of the class, such as 'items=100, width=64'.")] = "",
        inputs: Annotated[
            str, typer.Option(help="One batch: a tuple of arguments or a dict of named ones [example_inputs()].")
        ] = "",
        batches: Annotated[str, typer.Option(help="Several: an expression that gives batches, one a call.")] = "",
        sites: Annotated[
            str, typer.Option(help="negatives, embeddings, activations, communication, joined by +.")
        ] = "negatives",
        passes: Annotated[str, typer.Option(help="The pipeline that insert-fp16 will stand in.")] = "default",
        train: Annotated[bool, typer.Option("--train/--eval", help="The model's mode.")] = True,
        out: Annotated[
            Path, typer.Option(metavar="FILE", help="What insert-fp16{calibration=FILE} reads.")
        ] = Path("calibration.json"),
        picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw it (png, svg, pdf).")] = None,
        json_file: JsonOption = None,
    ) -> None:
        """Run a model on batches and report, for every site, its range, the error in 16 bits and the bytes saved.

        Inputs come from --inputs or --batches, or from a function example_inputs() in the file. Nothing is trained.
        """
        check_json_path(json_file)
        if not out.absolute().parent.is_dir():
            raise CommandError(f"--out {out}: there is no folder {out.absolute().parent}")
        with loaded(model) as (module, found):
            given = batches_of(module, inputs, batches)
            made = _calibrate(instance_of(module, found, init), given, sites, passes, train)
        made.save(out)
        if picture is not None:
            made.picture(picture)
        show(Output(), made)
        write_json(json_file, "calibrate", {"batches": made.batches, "sites": [asdict(site) for site in made.sites]})


def _calibrate(subject: Any, batches: Any, sites: str, passes: str, train: bool) -> Calibration:
    import torch

    from gr_compile.passes.insert_fp16 import calibrate

    if not isinstance(subject, torch.nn.Module):
        raise CommandError(f"calibrate takes a module, not {type(subject).__name__}")
    subject.train(train)
    with torch.set_grad_enabled(train):
        return calibrate(subject, batches, sites, passes)


def show(output: Output, made: Calibration) -> None:
    """The report for people."""
    rows = []
    for site in made.sites:
        best = site.best()
        error = f"{site.stored[best].error:.1e}" if best else "none fits"
        overflows = site.stored["float16/none"].overflows
        rows.append([
            f"{site.kind}: {site.name}", f"{site.smallest:.1e} .. {site.largest:.1e}", str(site.not_finite),
            str(overflows), best, error, f"{site.bytes_before / 2**20:.2f}", f"{site.bytes_after / 2**20:.2f}",
        ])  # fmt: skip
    if not rows:
        output.line("no site was reached; `gr-compile explain` with insert-fp16 in --passes says why")
        return
    columns = [
        "site", "magnitudes", "not finite", "beyond float16", "least error", "error", "MiB in 32 bits", "in 16",
    ]  # fmt: skip
    output.table(f"{len(made.sites)} sites, {made.batches} batches", columns, rows)
