"""`gr-compile bisect script.py [args]`: finds the one rewrite with which a script goes wrong."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gr_compile.cli.output import CommandError, JsonOption, Output, ProgressLines, check_json_path, write_json
from gr_compile.inspection.bisect import LIMIT, Attempt, BisectError, BisectResult, find_first_bad, run_script


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
    def bisect(
        context: typer.Context,
        script: Annotated[
            Path, typer.Argument(help="A Python script that exits non-zero when the answer is wrong.")
        ],
        timeout: Annotated[
            float | None, typer.Option(help="Seconds for one run; longer counts as wrong.", min=0.1)
        ] = None,
        json_file: JsonOption = None,
    ) -> None:
        """Find the first rewrite with which SCRIPT goes wrong, by binary search.

        Every run of the script may do only the first n rewrites (GR_COMPILE_LIMIT=n). The options of this
        command stand before SCRIPT; what follows it is handed to the script. The JSON has: rewrite {number,
        what, where}, total, and runs [{limit, good, exit_code, rewrites}].
        """
        check_json_path(json_file)
        if not script.is_file():
            raise CommandError(f"{script}: no such file")
        command = [sys.executable, str(script), *context.args]
        output = Output()
        with output.progress() as progress:
            try:
                result = find_first_bad(lambda limit: run_script(command, limit, timeout), _Teller(progress))
            except BisectError as error:
                raise CommandError(str(error)) from error
        _print(output, result, script)
        write_json(json_file, "bisect", _payload(result))


class _Teller:
    def __init__(self, progress: ProgressLines) -> None:
        self.progress = progress

    def __call__(self, attempt: Attempt) -> None:
        limit = "all rewrites" if attempt.limit is None else f"{attempt.limit} rewrites"
        verdict = "right" if attempt.good else f"wrong (exit code {attempt.exit_code})"
        self.progress.message(f"{limit}: {verdict}")


def _print(output: Output, result: BisectResult, script: Path) -> None:
    culprit = result.culprit
    output.line(f"the first bad rewrite is number {culprit.number} of {result.total}: {culprit.what}")
    if culprit.where is not None:
        output.line(f"    {culprit.where}")
    output.line(f"right: {LIMIT}={culprit.number - 1}    wrong: {LIMIT}={culprit.number}    {script}")


def _payload(result: BisectResult) -> dict[str, object]:
    where = asdict(result.culprit.where) if result.culprit.where else None
    return {
        "rewrite": {"number": result.culprit.number, "what": result.culprit.what, "where": where},
        "total": result.total,
        "runs": [
            {"limit": a.limit, "good": a.good, "exit_code": a.exit_code, "rewrites": a.count}
            for a in result.attempts
        ],
    }
