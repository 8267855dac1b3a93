"""`optimize`: from a model, a class or a function to its optimised form; `explain` and `report` of what was done."""

from __future__ import annotations

import copy
import functools
import inspect
import sys
import types
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, overload

import torch
from torch import nn

from gr_compile.compiled import Compiled, make_session, signature_of
from gr_compile.config import ConfigError, PaddedOutputs, Padding, Verify, check_declared_arguments
from gr_compile.graph_pass import GraphReport, Pass
from gr_compile.inspection.explain import Explanation

if TYPE_CHECKING:
    from typing_extensions import Unpack

F = TypeVar("F", bound=Callable[..., Any])


class Options(TypedDict, total=False):
    """The keyword arguments of `optimize`."""

    passes: str | Pass | Sequence[str | Pass] | None
    target: str
    padding: Mapping[str, int | str | Padding] | Literal["auto", "none"]
    padded_outputs: PaddedOutputs | None
    dump: str | None
    verify: Verify
    dynamic: bool | None
    strict: bool
    expected_fill: float | None


@overload
def optimize(model: F, **options: Unpack[Options]) -> F: ...
@overload
def optimize(model: None = None, **options: Unpack[Options]) -> Callable[[F], F]: ...


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
    options = Options(
        passes=passes, target=target, padding=padding, padded_outputs=padded_outputs, dump=dump, verify=verify,
        dynamic=dynamic, strict=strict, expected_fill=expected_fill,
    )  # fmt: skip
    make_session(options, "model")
    if model is None:
        return functools.partial(_optimize, options=options)
    return _optimize(model, options)


def _optimize(model: Any, options: Options) -> Any:
    if is_optimized(model):
        raise ConfigError("this model is optimised already; optimize its .original to use other options")
    if inspect.isclass(model):
        if not issubclass(model, nn.Module):
            raise ConfigError(
                f"optimize takes modules, nn.Module classes and functions, not the class {model.__name__}"
            )
        return _optimize_class(model, options)
    if isinstance(model, nn.Module):
        return _optimize_module(model, options)
    if callable(model):
        return OptimizedFunction(model, options)
    raise ConfigError(f"optimize takes modules, nn.Module classes and functions, not {type(model).__name__}")


def is_optimized(model: Any) -> bool:
    """Whether `optimize` made this: then `model.original` is what it was made of."""
    if inspect.isclass(model):
        return issubclass(model, OptimizedModule) or _HANDLE_OF in vars(model)
    return isinstance(model, (OptimizedModule, OptimizedFunction)) or (
        hasattr(type(model), _HANDLE_OF) and not isinstance(model, _Twin)
    )


# ----------------------------------------------------------------------------------------------- functions
class OptimizedFunction:
    """An optimised function: called as the original is."""

    def __init__(self, function: Callable[..., Any], options: Options) -> None:
        functools.update_wrapper(self, function)
        self.original = function
        self._options = options
        self._compiled = Compiled(
            function, options, getattr(function, "__qualname__", "function").replace("<locals>.", "")
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling():
            return self.original(*args, **kwargs)
        return self._compiled(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> Any:
        """A decorated function pickles by its name, as plain functions do; any other with its original."""
        name = getattr(self, "__qualname__", "")
        found: Any = sys.modules.get(getattr(self, "__module__", None) or "")
        for part in name.split("."):
            found = getattr(found, part, None)
        return name if found is self else (_optimize, (self.original, self._options))


# ------------------------------------------------------------------------------------------------- modules
class OptimizedModule:
    """Marks an optimised nn.Module: mixed in, in front of the model's own class."""

    __slots__ = ()
    _gr_original: nn.Module
    _gr_compiled: Compiled
    _gr_options: Options

    def __init_subclass__(cls, **keywords: Any) -> None:
        """The model's own `__init_subclass__` (a registry, say) does not see our subclass."""

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

    def __copy__(self) -> Any:
        return _optimize(copy.copy(self._gr_original), self._gr_options)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _optimize(copy.deepcopy(self._gr_original, memo), self._gr_options)


def _optimize_module(model: nn.Module, options: Options) -> nn.Module:
    slots = ("_gr_original", "_gr_compiled", "_gr_options")
    fast: Any = _sharing(model, OptimizedModule, slots)
    object.__setattr__(fast, "_gr_original", model)
    object.__setattr__(fast, "_gr_options", options)
    object.__setattr__(fast, "_gr_compiled", Compiled(model, options, type(model).__name__))
    return fast  # type: ignore[no-any-return]


def _sharing(model: nn.Module, mixin: type, slots: tuple[str, ...] = ()) -> nn.Module:
    """Another object with the model's state, whose class is the model's own behind `mixin`."""
    base = type(model)
    body = {"__slots__": slots, "__module__": base.__module__, "__qualname__": base.__qualname__}
    twin: Any = object.__new__(type(base.__name__, (mixin, base), body))
    object.__setattr__(twin, "__dict__", model.__dict__)
    return twin  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------- classes
_HANDLE_OF = "_gr_handle_of"


class _Twin:
    """Marks the eager twin of an instance of a decorated class: the same state, run without compiling."""

    __slots__ = ()

    def __init_subclass__(cls, **keywords: Any) -> None:
        """The model's own `__init_subclass__` does not see the twin's class."""


def _optimize_class(model_class: type[nn.Module], options: Options) -> type[nn.Module]:
    """Instances run optimised, subclasses' too; `instance.original` is the same instance, run eagerly."""
    signature = signature_of(model_class.forward)
    if signature is not None and isinstance(padding := options.get("padding"), Mapping):
        without_self = signature.replace(parameters=[*signature.parameters.values()][1:])
        check_declared_arguments(padding, without_self, model_class.__name__)
    plain_call = model_class.__call__
    handles: weakref.WeakKeyDictionary[nn.Module, Compiled] = weakref.WeakKeyDictionary()

    def handle_of(self: nn.Module) -> Compiled:
        if self not in handles:
            handles[self] = Compiled(_sharing(self, _Twin), options, type(self).__name__)
        return handles[self]

    @functools.wraps(plain_call)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or isinstance(self, _Twin):
            return plain_call(self, *args, **kwargs)
        return handle_of(self)(*args, **kwargs)

    model_class.__call__ = call  # type: ignore[method-assign]
    model_class.original = property(lambda self: handle_of(self).function)  # type: ignore[attr-defined]
    setattr(model_class, _HANDLE_OF, handle_of)
    return model_class


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
    if isinstance(fast, types.MethodType) and isinstance(fast.__func__, OptimizedFunction):
        return fast.__func__._compiled
    if not inspect.isclass(fast) and hasattr(type(fast), _HANDLE_OF):
        return getattr(fast, _HANDLE_OF)()  # type: ignore[no-any-return]
    raise ConfigError(f"{type(fast).__name__} does not come from gr_compile.optimize")
