"""`gr-compile`: dispatches to the commands, one file each; turns failures into one line and an exit code."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Annotated

import typer

from gr_compile.cli.output import CommandError

COMMANDS = ("demo", "train", "bench", "data", "explain", "calibrate", "bisect", "diff", "passes", "lower", "doctor",
            "estimate")  # fmt: skip
HELP = "A compiler for generative-recommendation models: padded PyTorch in, jagged fused operators out."


def make_app() -> typer.Typer:
    """The application with all commands; each module adds its own by `register(app)`."""
    app = typer.Typer(
        help=HELP,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def options(
        debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
    ) -> None:
        return

    for name in COMMANDS:
        importlib.import_module(f"gr_compile.cli.{name}").register(app)
    return app


def main() -> None:
    """Runs the command line. Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        make_app()(arguments, prog_name="gr-compile")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug:
            traceback.print_exc()
        else:
            print(f"error: {describe(error)}", file=sys.stderr)
        sys.exit(1)


def describe(error: Exception) -> str:
    """The failure in one line; what is not an error of the user's is named by its type."""
    text = " ".join(str(error).split())
    expected = isinstance(error, (CommandError, OSError, ValueError)) or type(error).__module__.startswith(
        "gr_compile."
    )
    if expected and text:
        return text
    return f"{type(error).__name__}: {text} (run with --debug for the traceback)"


if __name__ == "__main__":
    main()
