"""`gr-compile lower FILE:MODEL`: what another host needs to run a model, and a report of what was checked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from gr_compile.cli.explain import inputs_of, instance_of, loaded
from gr_compile.cli.output import JsonOption, Output, check_json_path, write_json


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def lower(
        model: Annotated[
            str,
            typer.Argument(metavar="FILE:MODEL", help="A Python file, and a class, module or function in it."),
        ],
        out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the files go.")] = Path("build/ascend"),
        init: Annotated[str, typer.Option(help="Arguments of the class, such as 'items=100, width=64'.")] = "",
        inputs: Annotated[
            str,
            typer.Option(help="An expression: a tuple of arguments or a dict of named ones [example_inputs()]."),
        ] = "",
        passes: Annotated[str, typer.Option(help="A preset or pipeline text.")] = "default",
        target: Annotated[
            str, typer.Option(help="ascend, or with options: ascend{mode=npugraph_ex}, ascend{kernels=library}.")
        ] = "ascend",
        machine: Annotated[str, typer.Option(metavar="NAME", help="The processor that is lowered to.")] = "910b1",
        train: Annotated[bool, typer.Option("--train", help="In training mode, with the backward.")] = False,
        static: Annotated[bool, typer.Option("--static", help="For the sizes of these inputs alone.")] = False,
        json_file: JsonOption = None,
    ) -> None:
        """Lower a model on example inputs, as `gr_compile.lower` does: GE graphs for Ascend, with a report.

        Inputs come from --inputs, or from a function example_inputs() in the file. The JSON is the content of
        FOLDER/report.json.
        """
        import torch

        import gr_compile

        check_json_path(json_file)
        with loaded(model) as (module, found):
            subject: Any = instance_of(module, found, init)
            if isinstance(subject, torch.nn.Module):
                subject.train(train)
            args, kwargs = inputs_of(module, inputs)
            report = gr_compile.lower(
                subject, *args, kwargs=kwargs, target=target, out=out, machine=machine, training=train,
                dynamic=not static, passes=passes,
            )  # fmt: skip
        output = Output()
        for graph in report["graphs"]:
            for part in graph["parts"]:
                output.line(f"{out / part['file']}: {sum(part['operators'].values())} nodes")
        output.line(f"{out / 'report.md'}: what was checked, and what was not")
        for warning in report.get("warnings", ()):
            print(f"warning: {warning}", file=sys.stderr, flush=True)
        write_json(json_file, "lower", report)
