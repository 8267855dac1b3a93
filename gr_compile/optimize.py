"""`optimize`: from a model, a class or a function to its optimised form; `explain` and `report` of what was done."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, overload

import torch
from torch import nn

from gr_compile.backend import Backend, Session, find_target
from gr_compile.config import Config, ConfigError, Padding, PaddedOutputs, Verify, check_declared_arguments
from gr_compile.declare import check_declared_lengths
from gr_compile.graph_pass import GraphReport, Pass
from gr_compile.inspection.bisect import RewriteLimit
from gr_compile.inspection.dump import Dumper, check_writable
from gr_compile.inspection.explain import Explanation
from gr_compile.inspection.logs import configure_logs, log_event
from gr_compile.numerics import NumericsError
from gr_compile.pipeline import Hook, PassError, Pipeline

F = TypeVar("F", bound=Callable[..., Any])
_RECOMPILE_LIMIT = 64  # train, eval, no_grad, autocast, B = 1, N = 1 each take a graph; torch's own limit is 8


@overload
def optimize(model: F, **options: Any) -> F: ...
@overload
def optimize(model: None = None, **options: Any) -> Callable[[F], F]: ...


def optimize(
    model: Any = None,
    *,
    passes: str | Pass | Sequence[str | Pass] | None = "default",
    target: str = "inductor",
    padding: Mapping[str, int | str | Padding] | Literal["auto", "none"] = "auto",
    padded_outputs: PaddedOutputs | None = None,
    dump: str | None = None,
    verify: Verify = "shapes",
    dynamic: bool | None = None,
    strict: bool = False,
    expected_fill: float | None = None,
) -> Any:
    """Compile a padded model: remove its padding, fuse its attention, lower it.

    Works as a call on a module or function, and as a decorator, bare or with arguments, on functions and on
    nn.Module classes. A module is wrapped: the original stays eager, parameters, buffers, `training` and every
    other attribute are shared, `state_dict()` has the original's keys, `isinstance(fast, type(model))` holds, and
    `fast.original` is the model.

    Args:
        passes: a preset ("none", "bitwise", "default", "all"), pipeline text, Pass objects, or a list of these.
        target: "inductor" or "eager" (for debugging), or another installed target.
        padding: "auto" detects padding in the graph; "none" leaves it alone; a mapping from argument name to a pad
            id (int), the name of a lengths or mask argument (str; "self": the argument is itself the mask), or a
            `Padding`.
        padded_outputs: what outputs hold at padded places: "exact" (what the model computes there) or "zero".
            Default: "zero" once padding is declared, "exact" otherwise.
        dump: folder for one dump per compiled graph (environment: GR_COMPILE_DUMP).
        verify: "off", "shapes" (after every pass, what it touched), "full", "numerics" (outputs and gradients
            of the real inputs compared after every pass).
        dynamic: as in torch.compile.
        strict: a pass that misses a candidate is an error.
        expected_fill: the share of valid places that the profit gate assumes; default 0.5.

    Raises:
        ConfigError, PipelineError: an argument that cannot be meant.
        DumpError: the dump folder is not writable.
    """
    options = dict(
        passes=passes, target=target, padding=padding, padded_outputs=padded_outputs, dump=dump, verify=verify,
        dynamic=dynamic, strict=strict, expected_fill=expected_fill,
    )  # fmt: skip
    make_session(options, "model")
    if model is None:
        return functools.partial(_optimize, options=options)
    return _optimize(model, options)


def _optimize(model: Any, options: dict[str, Any]) -> Any:
    if isinstance(model, (OptimizedModule, OptimizedFunction)):
        raise ConfigError("this model is optimised already; optimize its .original to use other options")
    if inspect.isclass(model):
        if not issubclass(model, nn.Module):
            raise ConfigError(f"optimize takes modules, nn.Module classes and functions, not the class {model.__name__}")
        return _optimize_class(model, options)
    if isinstance(model, nn.Module):
        return _optimize_module(model, options)
    if callable(model):
        return OptimizedFunction(model, options)
    raise ConfigError(f"optimize takes modules, nn.Module classes and functions, not {type(model).__name__}")


def make_session(options: Mapping[str, Any], name: str) -> Session:
    """Check all options; nothing is compiled yet."""
    config = Config(**options, model=name)
    folder = config.dump or Dumper.folder_from_environment()
    if folder is not None:
        check_writable(folder)
    dumper = Dumper(folder)
    hooks: list[Hook] = [dumper, log_event]
    find_target(config.target)
    configure_logs()
    limit = RewriteLimit.from_environment()
    return Session(config, Pipeline.parse(config.passes), hooks, dumper if folder is not None else None, limit.allow)


# ------------------------------------------------------------------------------------------------ running
class Compiled:
    """A callable together with its session: compiles on the first call, again when a content guard failed."""

    def __init__(self, function: Callable[..., Any], options: Mapping[str, Any], name: str) -> None:
        self.function = function
        self.session = make_session(options, name)
        self.signature = _signature(function)
        declared = self.session.config.declared
        if self.signature is not None:
            check_declared_arguments(declared, list(self.signature.parameters), name)
        self._run = self._compile()

    def _compile(self) -> Callable[..., Any]:
        self.session.stale = False
        compiled: Callable[..., Any] = torch.compile(
            self.function, backend=Backend(self.session), dynamic=self.session.config.dynamic
        )
        return compiled

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.session.stale:
            self._run = self._compile()
        if self.session.config.declared:
            check_declared_lengths(self.session.config, self.signature, args, kwargs)
        with torch._dynamo.config.patch(
            capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True, recompile_limit=_RECOMPILE_LIMIT
        ):
            try:
                return self._run(*args, **kwargs)
            except torch._dynamo.exc.BackendCompilerFailed as failed:
                if isinstance(failed.inner_exception, (PassError, NumericsError, ConfigError)):
                    raise failed.inner_exception from None
                raise


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    target = function.forward if isinstance(function, nn.Module) else function
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):
        return None


class OptimizedFunction:
    """An optimised function: called as the original is."""

    def __init__(self, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self.original = function
        self._options = options
        self._compiled = Compiled(function, options, getattr(function, "__qualname__", "function").replace("<locals>.", ""))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.original(*args, **kwargs)
        return self._compiled(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __reduce__(self) -> Any:
        return _optimize, (self.original, self._options)


class OptimizedModule:
    """Marks an optimised nn.Module: mixed in, in front of the model's own class."""

    __slots__ = ()
    _gr_original: nn.Module
    _gr_compiled: Compiled
    _gr_options: Mapping[str, Any]

    @property
    def original(self) -> nn.Module:
        """The model as it was given: eager, sharing everything with this one."""
        return self._gr_original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self._gr_original(*args, **kwargs)
        return self._gr_compiled(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _optimize, (self._gr_original, self._gr_options)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _optimize(copy.deepcopy(self._gr_original, memo), dict(self._gr_options))


def _optimize_module(model: nn.Module, options: dict[str, Any]) -> nn.Module:
    base = type(model)
    body = {"__slots__": ("_gr_original", "_gr_compiled", "_gr_options"), "__module__": base.__module__}
    optimized_class = type(base.__name__, (OptimizedModule, base), {**body, "__qualname__": base.__qualname__})
    fast: Any = object.__new__(optimized_class)
    object.__setattr__(fast, "__dict__", model.__dict__)
    object.__setattr__(fast, "_gr_original", model)
    object.__setattr__(fast, "_gr_options", options)
    object.__setattr__(fast, "_gr_compiled", Compiled(model, options, base.__name__))
    return fast  # type: ignore[no-any-return]


def _optimize_class(model_class: type[nn.Module], options: dict[str, Any]) -> type[nn.Module]:
    """Instances of the class run optimised; `instance.original` is the same instance, run eagerly."""
    eager_call = model_class.__call__

    def twin(self: nn.Module) -> nn.Module:
        eager: Any = object.__new__(eager_class)
        object.__setattr__(eager, "__dict__", self.__dict__)
        return eager  # type: ignore[no-any-return]

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return eager_call(self, *args, **kwargs)
        handle = _handles(self)
        if handle is None:
            handle = Compiled(twin(self), options, type(self).__name__)
            object.__setattr__(self, _HANDLE, handle)
        return handle(*args, **kwargs)

    eager_class = type(model_class.__name__, (model_class,), {"__call__": eager_call, "__module__": model_class.__module__})
    model_class.__call__ = call  # type: ignore[method-assign]
    model_class.original = property(twin)  # type: ignore[attr-defined]
    model_class.__getstate__ = _state_without_handle  # type: ignore[method-assign]
    return model_class


_HANDLE = "_gr_handle"


def _handles(module: nn.Module) -> Compiled | None:
    return module.__dict__.get(_HANDLE)


def _state_without_handle(self: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in self.__dict__.items() if key != _HANDLE}


# --------------------------------------------------------------------------------------------- what was done
def report(fast: Any) -> list[GraphReport]:
    """One report for each graph compiled so far; empty before the first call."""
    return _compiled(fast).session.reports


def explain(fast: Any, *args: Any, **kwargs: Any) -> Explanation:
    """Run `fast` on a batch (compiling where needed) and say, pass by pass, what was done and what was not, and why.

    Without arguments: of everything compiled so far.
    """
    if args or kwargs:
        fast(*args, **kwargs)
    return Explanation(tuple(report(fast)))


def _compiled(fast: Any) -> Compiled:
    if isinstance(fast, OptimizedModule):
        return fast._gr_compiled
    if isinstance(fast, OptimizedFunction):
        return fast._compiled
    if isinstance(fast, nn.Module) and isinstance(getattr(type(fast), "original", None), property):
        handle = _handles(fast)
        if handle is None:
            raise ConfigError(f"{type(fast).__name__} has not run yet; call it once, or pass a batch to explain")
        return handle
    raise ConfigError(f"{type(fast).__name__} does not come from gr_compile.optimize")
