"""Autocast and grad mode as operators: regions of a traced graph become explicit casts and detaches.

While a graph is traced its nodes are marked with the modes that were active (`AUTOCAST`, `NO_GRAD`); afterwards
`expand_modes` spells the marks out, and the graph computes the same without any mode.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from gr_compile.editor import GraphEditor

AUTOCAST = "gr_autocast"  # node.meta: device type -> dtype, for the devices on which autocast is on
NO_GRAD = "gr_no_grad"
_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.clone.default)


class CannotExpand(Exception):
    """An operator under autocast that computes in several dtypes inside; no cast in front of it says the same."""

    def __init__(self, node: fx.Node) -> None:
        super().__init__(f"{node.target} under autocast computes in several dtypes inside")
        self.node = node


# ------------------------------------------------------------------------------------------ ambient autocast
def autocast_devices() -> tuple[str, ...]:
    """The device types on which autocast can be on."""
    accelerator = torch._C._get_privateuse1_backend_name()
    return ("cpu", "cuda") if accelerator == "privateuseone" else ("cpu", "cuda", accelerator)


def ambient_autocast() -> Mapping[str, torch.dtype]:
    """Device type -> dtype, for the devices on which autocast is on now."""
    return {d: torch.get_autocast_dtype(d) for d in autocast_devices() if torch.is_autocast_enabled(d)}


@contextlib.contextmanager
def restored_autocast() -> Iterator[None]:
    """Whatever is done to autocast inside is undone."""
    saved = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in autocast_devices()]
    try:
        yield
    finally:
        for device, enabled, dtype in saved:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)


@contextlib.contextmanager
def autocast_as(region: Mapping[str, torch.dtype]) -> Iterator[None]:
    """Autocast on for the devices of `region`, off for all others."""
    with restored_autocast():
        for device in autocast_devices():
            torch.set_autocast_enabled(device, device in region)
            if device in region:
                torch.set_autocast_dtype(device, region[device])
        yield


class WithoutAutocast:
    """A compiled graph whose casts are explicit, run under the user's autocast."""

    def __init__(self, compiled: Callable[..., Any]) -> None:
        self.compiled = compiled

    def __call__(self, *args: Any) -> Any:
        with autocast_as({}):
            return self.compiled(*args)


# ------------------------------------------------------------------------------------- marks become operators
def expand_modes(graph_module: fx.GraphModule, fake_mode: FakeTensorMode) -> None:
    """Autocast marks become casts in front of the operators that autocast knows; no_grad marks become detaches.

    Raises:
        CannotExpand: an operator that no cast in front of it can express.
    """
    editor = GraphEditor(graph_module, fake_mode)
    for node in list(graph_module.graph.nodes):
        if node.op != "call_function":
            continue
        region = node.meta.pop(AUTOCAST, None)
        if region:
            _insert_casts(editor, node, region)
        if node.meta.pop(NO_GRAD, False):
            _insert_detach(editor, node)


def _insert_casts(editor: GraphEditor, node: fx.Node, region: Mapping[str, torch.dtype]) -> None:
    value = next((v for v in pytree.tree_leaves(node.meta.get("val")) if _is_cast(v)), None)
    if not isinstance(node.target, torch._ops.OpOverload) or value is None or value.device.type not in region:
        return
    key = f"Autocast{torch._C._dispatch_key_for_device(value.device.type)}"
    if _has_kernel(node.target, key) or _casts_inside(editor, node, region, value.dtype, key):
        _cast_operands(editor, node, value.dtype)


def _is_cast(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype.is_floating_point and value.dtype != torch.float64


def _has_kernel(target: torch._ops.OpOverload, key: str) -> bool:
    found = getattr(torch._C.DispatchKey, key, None)
    return found is not None and torch._C._dispatch_has_kernel_for_dispatch_key(str(target._name), found)


def _casts_inside(
    editor: GraphEditor, node: fx.Node, region: Mapping[str, torch.dtype], dtype: torch.dtype, key: str
) -> bool:
    """Whether an operator made of others (einsum) needs its operands cast to mean what it means under autocast.

    Where autocast knows none of the others it does not: layer_norm takes a bfloat16 input beside float32 weights, and
    then keeps its statistics in float32.
    """
    if not _has_kernel(node.target, "CompositeImplicitAutograd"):  # type: ignore[arg-type]
        return False

    def steps(autocast: Mapping[str, torch.dtype], change: Callable[[Any], Any]) -> list[Any]:
        args, kwargs = pytree.tree_map_only(fx.Node, lambda n: n.meta["val"], (node.args, node.kwargs))
        log: list[Any] = []
        mode = editor.fake_mode or contextlib.nullcontext()
        with autocast_as(autocast), mode, enable_python_dispatcher(), torch.no_grad():
            args, kwargs = pytree.tree_map(change, (args, kwargs))
            with _Steps(log):
                node.target(*args, **kwargs)  # type: ignore[operator]
        return log

    wanted = steps(region, lambda v: v)
    if not any(_has_kernel(operator, key) for operator, _ in wanted):
        return False
    given: list[Any] = [n.meta.get("val") for n in node.all_input_nodes]
    several = len({v.dtype for v in given if _is_cast(v)}) > 1
    # Operands of several dtypes are cast first: as they are they may not go together, which torch logs as an error.
    as_given: tuple[bool, Callable[[Any], Any]] = (False, lambda v: v)
    as_cast: tuple[bool, Callable[[Any], Any]] = (True, lambda v: v.to(dtype) if _is_cast(v) else v)
    for casts, change in (as_cast, as_given) if several else (as_given, as_cast):
        try:
            if steps({}, change) == wanted:
                return casts
        except RuntimeError:
            continue
    raise CannotExpand(node)


class _Steps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes each operator that computes, with the dtypes of its results; views and copies do not count."""

    def __init__(self, log: list[Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log = log

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        dtypes = [value.dtype for value in pytree.tree_leaves(result) if isinstance(value, torch.Tensor)]
        if dtypes and func not in _COPIES and not func.is_view:
            self.log.append((func, dtypes))
        return result


def _cast_operands(editor: GraphEditor, node: fx.Node, dtype: torch.dtype) -> None:
    def cast(argument: fx.Node) -> fx.Node:
        held: Any = argument.meta.get("val")
        if not _is_cast(held) or held.dtype == dtype:
            return argument
        with editor.at(before=node, like=node):
            return editor.call(torch.ops.aten.to.dtype, argument, dtype)

    node.args = fx.map_arg(node.args, cast)
    node.kwargs = fx.map_arg(node.kwargs, cast)


def _insert_detach(editor: GraphEditor, node: fx.Node) -> None:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not value.dtype.is_floating_point:
        return
    if node.target is torch.ops.aten.detach.default:
        return
    with editor.at(after=node, like=node):
        detached = editor.call(torch.ops.aten.detach.default, node)
    node.replace_all_uses_with(detached, delete_user_cb=lambda user: user is not detached)
