"""`gr-compile explain FILE:MODEL`: what the compiler does to a model, what it leaves alone, and why."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from gr_compile.cli.output import CommandError, JsonOption, Output, check_json_path, write_json

_MODULE = "gr_compile_explained"


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command()
    def explain(
        model: Annotated[
            str,
            typer.Argument(
                metavar="FILE:MODEL", help="A Python file, and a class, module or function in it."
            ),
        ],
        init: Annotated[
            str, typer.Option(help="Arguments of the class, such as 'items=100, width=64'.")
        ] = "",
        inputs: Annotated[
            str,
            typer.Option(
                help="An expression: a tuple of arguments or a dict of named ones [example_inputs()]."
            ),
        ] = "",
        passes: Annotated[str, typer.Option(help="A preset or pipeline text.")] = "default",
        target: Annotated[str, typer.Option(help="inductor, or eager (compiles faster).")] = "inductor",
        train: Annotated[bool, typer.Option("--train", help="In training mode, with gradients.")] = False,
        dump: Annotated[
            str | None, typer.Option(metavar="FOLDER", help="Also write a dump of every graph there.")
        ] = None,
        json_file: JsonOption = None,
    ) -> None:
        """Compile a model on example inputs and say, pass by pass, what was done and what was not, and why.

        Inputs come from --inputs, or from a function example_inputs() in the file. Both expressions see the
        file's names and torch. The JSON has graphs: one for each compiled graph, as in a dump's report.json.
        """
        check_json_path(json_file)
        with loaded(model) as (module, found):
            explanation = _explain(
                module, found, init, inputs, train, passes=passes, target=target, dump=dump
            )
        output = Output()
        if output.is_terminal:
            output.console.print(explanation.rich())
        else:
            output.line(str(explanation))
        write_json(json_file, "explain", explanation.to_json())


def _explain(module: ModuleType, found: Any, init: str, inputs: str, train: bool, **options: Any) -> Any:
    import torch

    import gr_compile

    subject = instance_of(module, found, init)
    if isinstance(subject, torch.nn.Module):
        subject.train(train)
    args, kwargs = inputs_of(module, inputs)
    with torch.set_grad_enabled(train):
        return gr_compile.explain(gr_compile.optimize(subject, **options), *args, **kwargs)


@contextlib.contextmanager
def loaded(text: str) -> Iterator[tuple[ModuleType, Any]]:
    """The module and the object that FILE:NAME names; afterwards `sys.modules` and `sys.path` are as before.

    Raises CommandError when the text, the file or the name is wrong, or the file fails to import.
    """
    path_text, colon, name = text.rpartition(":")
    path = Path(path_text)
    if not colon or not name.isidentifier():
        raise CommandError(f"{text!r}: expected FILE:MODEL, such as model.py:Model")
    if not path.is_file():
        raise CommandError(f"{path}: no such file")
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    if spec is None or spec.loader is None:
        raise CommandError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    paths, modules = list(sys.path), set(sys.modules)
    # Dataclasses look their module up by name; the file's folder is on the path, as for a script.
    sys.modules[_MODULE] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        _execute(spec.loader, module, path)
        if not hasattr(module, name):
            raise CommandError(f"{path} has no {name!r}; it has: {', '.join(_offers(module)) or 'no model'}")
        yield module, getattr(module, name)
    finally:
        sys.path[:] = paths
        for added in [
            key for key, value in sys.modules.items() if key not in modules and _beside(value, path)
        ]:
            del sys.modules[added]


def _execute(loader: Any, module: ModuleType, path: Path) -> None:
    try:
        loader.exec_module(module)
    except Exception as error:
        raise CommandError(f"{path} fails to import: {type(error).__name__}: {error}") from error


def _beside(module: ModuleType | None, path: Path) -> bool:
    file = getattr(module, "__file__", None)
    return bool(file) and Path(str(file)).resolve().is_relative_to(path.resolve().parent)


def _offers(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    ]


def _evaluate(module: ModuleType, expression: str, option: str) -> Any:
    import torch

    try:
        return eval(expression, {"torch": torch, **vars(module)})
    except Exception as error:
        raise CommandError(f"{option}: {expression!r} fails: {type(error).__name__}: {error}") from error


def instance_of(module: ModuleType, found: Any, init: str) -> Any:
    if not inspect.isclass(found):
        if init:
            raise CommandError("--init is for a class; this is an object or a function")
        return found
    arguments = _evaluate(module, f"dict({init})", "--init") if init else {}
    try:
        return found(**arguments)
    except TypeError as error:
        signature = f"{found.__name__}{inspect.signature(found)}"
        raise CommandError(f"{signature} cannot be made: {error}; say --init 'name=value, ...'") from error


def inputs_of(module: ModuleType, expression: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if expression:
        made = _evaluate(module, expression, "--inputs")
    elif callable(getattr(module, "example_inputs", None)):
        made = _evaluate(module, "example_inputs()", "the inputs")
    else:
        raise CommandError(
            "no inputs: say --inputs EXPRESSION, or write a function example_inputs() into the file"
        )
    if isinstance(made, dict):
        return (), made
    return (tuple(made) if isinstance(made, (tuple, list)) else (made,)), {}


def batches_of(module: ModuleType, inputs: str, batches: str) -> list[Any]:
    """Batches from an expression that gives several, or the one that `inputs` or the file gives."""
    if not batches:
        args, kwargs = inputs_of(module, inputs)
        return [kwargs or args]
    if inputs:
        raise CommandError("--inputs is one batch, --batches are several: say one of them")
    made = _evaluate(module, batches, "--batches")
    try:
        return [batch if isinstance(batch, (tuple, dict)) else (batch,) for batch in made]
    except TypeError:
        raise CommandError(f"--batches: expected batches, got {type(made).__name__}") from None
