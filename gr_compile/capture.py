"""Capture: a Dynamo graph -> a functional pre-dispatch ATen graph that the passes can trust.

What comes out has no mutation, no mode call (autocast regions are explicit casts, no_grad regions are
detaches) and no higher-order operator (checkpoint regions are inlined, their nodes tagged for AOTAutograd's
partitioner). A graph that cannot be brought to that form raises `CannotCapture`, with the node that blocks.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.utils.checkpoint import CheckpointPolicy

from gr_compile.editor import fake_mode_of

CHECKPOINT = torch.ops.higher_order.tag_activation_checkpoint
_AUTOCAST_KEY = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA", "npu": "AutocastPrivateUse1"}


class CannotCapture(Exception):
    """The graph has something that functional ATen cannot express; it runs as torch.compile would run it."""

    def __init__(self, reason: str, node: fx.Node | None = None) -> None:
        super().__init__(reason)
        self.reason, self.node = reason, node


def capture(dynamo_graph: fx.GraphModule) -> fx.GraphModule:
    """The functional ATen graph of `dynamo_graph`: the same placeholders in the same order, the same outputs.

    Every node carries `meta["val"]` (fake tensors of the placeholders' own mode) and its stack trace.

    Raises:
        CannotCapture: input mutation, a higher-order operator other than checkpoint, a tensor subclass.
    """
    values = [_example_value(node) for node in dynamo_graph.graph.find_nodes(op="placeholder")]
    fake_mode = fake_mode_of(values)
    if fake_mode is None:
        raise CannotCapture("no input is a tensor")
    graph_module = _trace(dynamo_graph, values, fake_mode)
    _expand_modes(graph_module, fake_mode)
    _drop_metadata_assertions(graph_module)
    _rename_placeholders(dynamo_graph, graph_module)
    graph_module.graph.eliminate_dead_code()
    _check_functional(graph_module)
    graph_module.recompile()
    return graph_module


def _example_value(node: fx.Node) -> Any:
    value = node.meta.get("example_value", node.meta.get("val"))
    if isinstance(value, torch.Tensor) and not isinstance(value, FakeTensor):
        raise CannotCapture(f"input {node.name} is a tensor subclass ({type(value).__name__})", node)
    return value


# ------------------------------------------------------------------------------------------- tracing
class _RegionInterpreter(fx.Interpreter):
    """Runs a Dynamo graph under the tracer; marks the nodes it makes with the modes that were active."""

    def __init__(self, module: fx.GraphModule, marks: dict[str, Any], ids: Iterator[int]) -> None:
        super().__init__(module)
        self.marks, self.ids, self.current = marks, ids, None

    def run_node(self, n: fx.Node) -> Any:
        self.current = n
        graph = get_proxy_mode().tracer.graph  # type: ignore[union-attr]
        before = next(reversed(graph.nodes), None)
        result = super().run_node(n)
        node = next(reversed(graph.nodes), None)
        while node is not None and node is not before and node.op != "root":
            for key, value in self.marks.items():
                node.meta.setdefault(key, value)
            if not node.meta.get("stack_trace") and n.meta.get("stack_trace"):
                node.meta["stack_trace"] = n.meta["stack_trace"]
            node = node.prev
        return result

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is torch.amp.autocast_mode._enter_autocast:
            return self._enter_autocast(*args)
        if target is torch.amp.autocast_mode._exit_autocast:
            return self._leave(args[0])
        if target is torch._C._set_grad_enabled:
            self.marks.pop("gr_no_grad", None) if args[0] else self.marks.update(gr_no_grad=True)
            return None
        if target is CHECKPOINT:
            return self._inline_checkpoint(*args, **kwargs)
        if isinstance(target, torch._ops.HigherOrderOperator):
            raise CannotCapture(f"the higher-order operator {target.name()} has no functional form here", self.current)
        name = getattr(target, "__name__", str(target))
        if name in ("_vmap_increment_nesting", "_grad_increment_nesting", "_jvp_increment_nesting"):
            raise CannotCapture(f"a functorch transform ({name}) is part of the graph", self.current)
        return super().call_function(target, args, kwargs)

    def _enter_autocast(
        self, device: str, dtype: torch.dtype | None, enabled: bool = True, cache: bool | None = None
    ) -> Any:
        dtype = dtype or torch.get_autocast_dtype(device)
        previous = (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device), self.marks.copy())
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)
        self.marks.update(gr_autocast=(device, dtype, enabled))
        return previous

    def _leave(self, previous: Any) -> None:
        device, enabled, dtype, marks = previous
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)
        for key in ("gr_autocast",):
            self.marks.pop(key, None)
            if key in marks:
                self.marks[key] = marks[key]

    def _inline_checkpoint(self, body: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("context_fn") is not None or "_checkpoint_context_fn" in body.meta:
            raise CannotCapture("selective checkpointing (context_fn) stays with torch.compile", self.current)
        marks = {**self.marks, "recompute": CheckpointPolicy.PREFER_RECOMPUTE, "ac_graph_id": next(self.ids)}
        return _RegionInterpreter(body, marks, self.ids).run(*args)


def _trace(dynamo_graph: fx.GraphModule, values: Sequence[Any], fake_mode: FakeTensorMode) -> fx.GraphModule:
    ambient = _ambient_autocast()
    marks: dict[str, Any] = {"gr_autocast": ambient} if ambient else {}
    interpreter = _RegionInterpreter(dynamo_graph, marks, itertools.count())
    mode = FunctionalTensorMode(pre_dispatch=True, export=True)
    mutated: list[int] = []

    def functional(*args: Any) -> Any:
        with mode:
            wrapped = [FunctionalTensor.to_functional(a) if isinstance(a, torch.Tensor) else a for a in args]
            outputs = interpreter.run(*wrapped)
            for position, value in enumerate(wrapped):
                if isinstance(value, FunctionalTensor):
                    torch._sync(value)
                    if torch._functionalize_has_data_mutation(value.elem) or torch._functionalize_has_metadata_mutation(value.elem):
                        mutated.append(position)
            return pytree.tree_map_only(FunctionalTensor, _unwrap, outputs)

    try:
        with fake_mode, enable_python_dispatcher(), torch.fx.traceback.preserve_node_meta(), _restored_autocast():
            traced = make_fx(functional, pre_dispatch=True, tracing_mode="real", _allow_non_fake_inputs=True)(*values)
    except CannotCapture:
        raise
    except Exception as error:
        raise CannotCapture(f"tracing to functional ATen failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", interpreter.current) from error
    if mutated:
        placeholder = list(dynamo_graph.graph.find_nodes(op="placeholder"))[mutated[0]]
        raise CannotCapture(f"input {placeholder.name} is mutated in place", placeholder)
    return traced


def _unwrap(value: FunctionalTensor) -> torch.Tensor:
    torch._sync(value)
    return torch._from_functional_tensor(value.elem)


def _ambient_autocast() -> tuple[str, torch.dtype, bool] | None:
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            return device, torch.get_autocast_dtype(device), True
    return None


@contextlib.contextmanager
def _restored_autocast() -> Iterator[None]:
    saved = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")]
    try:
        yield
    finally:
        for device, enabled, dtype in saved:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)


# ------------------------------------------------------------------------------- modes become operators
def _expand_modes(graph_module: fx.GraphModule, fake_mode: FakeTensorMode) -> None:
    """Autocast marks become casts in front of the operators that autocast knows; no_grad marks become detaches."""
    from gr_compile.editor import GraphEditor

    editor = GraphEditor(graph_module, fake_mode)
    for node in list(graph_module.graph.nodes):
        if node.op != "call_function":
            continue
        region = node.meta.pop("gr_autocast", None)
        if region is not None and region[2]:
            _insert_casts(editor, node, region[0])
        if node.meta.pop("gr_no_grad", False):
            _insert_detach(editor, node)


def _insert_casts(editor: Any, node: fx.Node, device: str) -> None:
    value = node.meta.get("val")
    if not isinstance(node.target, torch._ops.OpOverload) or not isinstance(value, torch.Tensor):
        return
    key = getattr(torch._C.DispatchKey, _AUTOCAST_KEY[device])
    if not torch._C._dispatch_has_kernel_for_dispatch_key(node.target.name(), key):
        return
    if not value.dtype.is_floating_point or value.dtype == torch.float64:
        return

    def cast(argument: fx.Node) -> fx.Node:
        held = argument.meta.get("val")
        eligible = isinstance(held, torch.Tensor) and held.dtype.is_floating_point and held.dtype != torch.float64
        if not eligible or held.dtype == value.dtype:
            return argument
        with editor.at(before=node, like=node):
            converted: fx.Node = editor.call(torch.ops.aten.to.dtype, argument, value.dtype)
            return converted

    node.args = fx.map_arg(node.args, cast)
    node.kwargs = fx.map_arg(node.kwargs, cast)


def _insert_detach(editor: Any, node: fx.Node) -> None:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not value.dtype.is_floating_point:
        return
    if node.target is torch.ops.aten.detach.default:
        return
    with editor.at(after=node, like=node):
        detached = editor.call(torch.ops.aten.detach.default, node)
    node.replace_all_uses_with(detached, delete_user_cb=lambda user: user is not detached)


def _drop_metadata_assertions(graph_module: fx.GraphModule) -> None:
    """Casts leave assertions about their operand's dtype behind; rewriting it is what passes are for."""
    for node in list(graph_module.graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph_module.graph.erase_node(node)


def _rename_placeholders(dynamo_graph: fx.GraphModule, graph_module: fx.GraphModule) -> None:
    """The user's argument names come back, with Dynamo's source and the classification inputs need."""
    old = dynamo_graph.graph.find_nodes(op="placeholder")
    new = graph_module.graph.find_nodes(op="placeholder")
    if len(old) != len(new):
        raise CannotCapture("tracing changed the number of inputs")
    for source, node in zip(old, new):
        node.meta["gr_source"] = source_name(source)
        node.name = node.target = source.name


def source_name(placeholder: fx.Node) -> str:
    """Where Dynamo found an input: `L['ids']`, `L['self']._modules['emb']._parameters['weight']`, or ""."""
    grapharg = placeholder.meta.get("grapharg")
    source = getattr(grapharg, "source", None)
    name = getattr(source, "name", "")
    return str(name() if callable(name) else name)


# ---------------------------------------------------------------------------------------- postcondition
def _check_functional(graph_module: fx.GraphModule) -> None:
    for node in graph_module.graph.nodes:
        if node.op == "call_function":
            _check_node(node)
        elif node.op not in ("placeholder", "output", "get_attr"):
            raise CannotCapture(f"{node.op} {node.target} has no functional form", node)


def _check_node(node: fx.Node) -> None:
    target: Any = node.target
    if isinstance(target, torch._ops.HigherOrderOperator):
        raise CannotCapture(f"the higher-order operator {target.name()} has no functional form here", node)
    if isinstance(target, torch._ops.OpOverload):
        if target._schema.is_mutable:
            raise CannotCapture(f"{target} mutates its input", node)
        return
    if target in (torch._C._set_grad_enabled, torch.amp.autocast_mode._enter_autocast):
        raise CannotCapture("a grad-mode or autocast region is left in the graph", node)
    module = getattr(target, "__module__", "") or ""
    if target not in vars(operator).values() and not module.startswith(("torch.sym", "torch", "math", "_operator")):
        raise CannotCapture(f"unexpected call to {target}", node)
