"""Capture: a Dynamo graph -> a functional pre-dispatch ATen graph that the passes can trust.

What comes out has no mutation (but writes to the model's own buffers, the last thing that it does), no mode call
(autocast regions are explicit casts, no_grad regions are detaches) and no higher-order operator (checkpoint regions
are inlined, their nodes tagged for AOTAutograd's partitioner). A graph that cannot be brought to that form raises
`CannotCapture`, with the node that blocks.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.fx as fx
import torch.utils._pytree as pytree
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.utils import _disable_saved_tensors_hooks_during_tracing
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx, maybe_disable_thunkify, maybe_enable_thunkify
from torch.utils.checkpoint import CheckpointPolicy

from gr_compile.editor import GraphEditor, fake_mode_of
from gr_compile.modes import (
    AUTOCAST,
    NO_GRAD,
    CannotExpand,
    ambient_autocast,
    expand_modes,
    restored_autocast,
)
from gr_compile.repeats import STEP, find_repeat
from gr_compile.sizes import settle_flattened_sizes, size_expr
from gr_compile.transforms import write_out_vmaps
from gr_compile.writes import COPY, may_be_written, write

CHECKPOINT = torch.ops.higher_order.tag_activation_checkpoint
_MODE_CALLS: dict[Any, str] = {
    torch.amp.autocast_mode._enter_autocast: "_enter_autocast",
    torch.amp.autocast_mode._exit_autocast: "_exit_autocast",
    torch._C._set_grad_enabled: "_set_grad_enabled",
    torch.autograd.grad_mode._enter_inference_mode: "_enter_inference_mode",
    torch.autograd.grad_mode._exit_inference_mode: "_exit_inference_mode",
}
_TENSOR_TYPE: Any = type(torch.FloatTensor)
_LOGIC = (operator.and_, operator.or_, operator.not_, operator.is_)  # their names end as those of methods that write
_PLACES = (torch.nonzero, torch.where)
_DROPOUTS = (torch.nn.functional.dropout, torch.dropout)
_IN_PLACE = frozenset(name for name in vars(operator) if name.startswith("i") and name[1:] in vars(operator))


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
    if fake_mode.shape_env is not None:
        settle_flattened_sizes(fake_mode.shape_env)
    graph_module = _trace(write_out_vmaps(dynamo_graph, fake_mode), values, fake_mode)
    try:
        expand_modes(graph_module, fake_mode)
    except CannotExpand as error:
        raise CannotCapture(str(error), error.node) from error
    _drop_metadata_assertions(graph_module)
    _value_constants(graph_module, fake_mode)
    _spell_views_as_reshapes(graph_module)
    _spell_copies_out(GraphEditor(graph_module, fake_mode))
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
        self.marks, self.ids = marks, ids
        self.current: fx.Node | None = None
        self.watched: list[FunctionalTensor] = []
        self.mutation: tuple[int, fx.Node] | None = None
        self.writes = any(map(_may_write, module.graph.nodes))
        self.written: list[int] = []
        self.returned: dict[int, int] = {}
        self.steps: Mapping[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        self.current = n
        graph = get_proxy_mode().tracer.graph  # type: ignore[union-attr]
        before = next(reversed(graph.nodes), None)
        with _tracing_of_sizes(n):
            result = super().run_node(n)
        self._watch(n)
        node = next(reversed(graph.nodes), None)
        while node is not None and node is not before and node.op != "root":
            for key, value in self.marks.items():
                node.meta.setdefault(key, value)
            if n in self.steps:
                node.meta[STEP] = self.steps[n]
            if not node.meta.get("stack_trace") and n.meta.get("stack_trace"):
                node.meta["stack_trace"] = n.meta["stack_trace"]
            node = node.prev
        return result

    def _watch(self, n: fx.Node) -> None:
        """Note the first node that changes an input."""
        if self.mutation is None and _may_write(n):
            changed = (k for k, value in enumerate(self.watched) if _is_mutated(value))
            self.mutation = next(((position, n) for position in changed), None)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target in _MODE_CALLS:
            return getattr(self, _MODE_CALLS[target])(*args, **kwargs)
        if target is CHECKPOINT:
            return self._inline_checkpoint(*args, **kwargs)
        if isinstance(target, _TENSOR_TYPE) and len(args) == 1 and isinstance(args[0], (list, tuple)):
            return torch.tensor(args[0], dtype=target.dtype)  # torch.FloatTensor([0.5])
        if target in _PLACES and _wants_tuple(target, args, kwargs):
            return _places(*args, **kwargs)
        if target in _DROPOUTS:
            return self._dropout(super().call_function(target, args, kwargs), *args, **kwargs)
        if isinstance(target, torch._ops.HigherOrderOperator):
            raise CannotCapture(
                f"the higher-order operator {target} has no functional form here", self.current
            )
        name = getattr(target, "__name__", str(target))
        if name in ("_vmap_increment_nesting", "_grad_increment_nesting", "_jvp_increment_nesting"):
            raise CannotCapture(f"a functorch transform ({name}) is part of the graph", self.current)
        return super().call_function(target, args, kwargs)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target == "new_tensor" and not isinstance(args[1], torch.Tensor):
            like, data = args  # its literal would become a fake tensor; torch.tensor's keeps its content
            return torch.tensor(data, **{"dtype": like.dtype, "device": like.device, **kwargs})
        if target == "nonzero" and _wants_tuple(torch.nonzero, args, kwargs):
            return _places(*args, **kwargs)
        return super().call_method(target, args, kwargs)

    def _dropout(self, result: Any, x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        """What drops nothing gives its operand itself, which may then be written to.

        The tracer knows no more than that a dropout's result is its operand or is not, and forbids writing to it:
        where there are writes, one that drops is copied.
        """
        if inplace or not self.writes:
            return result
        return x if not training or p == 0 else result.clone()

    def _enter_autocast(
        self, device: str, dtype: torch.dtype | None, enabled: bool = True, cache: bool | None = None
    ) -> Any:
        dtype = dtype or torch.get_autocast_dtype(device)
        previous = (
            device,
            torch.is_autocast_enabled(device),
            torch.get_autocast_dtype(device),
            self.marks.get(AUTOCAST),
        )
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)
        self._mark(AUTOCAST, ambient_autocast())
        return previous

    def _exit_autocast(self, previous: Any) -> None:
        device, enabled, dtype, mark = previous
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)
        self._mark(AUTOCAST, mark)

    def _set_grad_enabled(self, enabled: bool) -> None:
        if enabled and not torch.is_grad_enabled():
            raise CannotCapture("a region turns gradients on inside no_grad", self.current)
        self._mark(NO_GRAD, None if enabled else True)

    def _enter_inference_mode(self, enabled: bool) -> Any:
        """Outside of the region its tensors are ordinary ones that have no history: what no_grad gives."""
        previous = self.marks.get(NO_GRAD)
        self._mark(NO_GRAD, True if enabled else previous)
        return previous

    def _exit_inference_mode(self, previous: Any) -> None:
        self._mark(NO_GRAD, previous)

    def _mark(self, key: str, value: Any) -> None:
        if value:
            self.marks[key] = value
        else:
            self.marks.pop(key, None)

    def _inline_checkpoint(self, body: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("context_fn") is not None or "_checkpoint_context_fn" in body.meta:
            raise CannotCapture("selective checkpointing (context_fn) stays with torch.compile", self.current)
        marks = {**self.marks, "recompute": CheckpointPolicy.PREFER_RECOMPUTE, "ac_graph_id": next(self.ids)}
        inside = _RegionInterpreter(body, marks, self.ids)
        inside.watched = self.watched
        result = inside.run(*args)
        self.mutation = self.mutation or inside.mutation
        return result


def _wants_tuple(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Is this `where` of one argument, or `nonzero` with `as_tuple`, of a tensor that is no scalar?"""
    tested = args[0] if args else next(iter(kwargs.values()))
    wanted = len(args) + len(kwargs) == 1 if target is torch.where else kwargs.get("as_tuple", False)
    return bool(wanted) and tested.dim() > 0


def _places(tested: torch.Tensor, **_: Any) -> tuple[torch.Tensor, ...]:
    """One column a dimension, of one operator: what counts places knows `nonzero` alone."""
    return tested.nonzero().unbind(1)


def _tracing_of_sizes(n: fx.Node) -> AbstractContextManager[None]:
    """Arithmetic on sizes that torch does while it makes a tensor becomes nodes where these are used, which is hardly
    ever. What the model itself computes with sizes becomes nodes at once: a long sum is no deep recursion."""
    made = pytree.tree_leaves(n.meta.get("example_value"))
    makes_tensors = any(isinstance(value, torch.Tensor) for value in made)
    return maybe_enable_thunkify() if makes_tensors else maybe_disable_thunkify()


def _may_write(n: fx.Node) -> bool:
    """By its name: in-place methods end in one underscore, `x[...] = y` and `x += y` are functions of `operator`."""
    if not n.op.startswith("call_"):
        return False
    name = n.target if isinstance(n.target, str) else getattr(n.target, "__name__", "")
    in_place = name.split(".")[0].endswith("_") and not name.endswith("__")
    return (
        in_place or name == "setitem" or (n.op == "call_function" and name in _IN_PLACE) or "out" in n.kwargs
    )


def _is_mutated(value: FunctionalTensor) -> bool:
    torch._sync(value)  # type: ignore[attr-defined, no-untyped-call]
    data: bool = torch._functionalize_has_data_mutation(value.elem)  # type: ignore[attr-defined]
    return data or torch._functionalize_has_metadata_mutation(value.elem)


def _trace(dynamo_graph: fx.GraphModule, values: Sequence[Any], fake_mode: FakeTensorMode) -> fx.GraphModule:
    """Layers of one kind are traced once, where nothing is written."""
    writes = any(_may_write(node) and node.target not in _LOGIC for node in dynamo_graph.graph.nodes)
    repeat = None if writes else find_repeat(dynamo_graph)
    if repeat is not None:
        traced = repeat.written_out(_trace_all(repeat.shortened, values, fake_mode, repeat.steps))
        if traced is not None:
            return traced
    return _trace_all(dynamo_graph, values, fake_mode, {})


def _trace_all(
    dynamo_graph: fx.GraphModule, values: Sequence[Any], fake_mode: FakeTensorMode, steps: Mapping[fx.Node, int]
) -> fx.GraphModule:
    ambient = ambient_autocast()
    interpreter = _RegionInterpreter(dynamo_graph, {AUTOCAST: ambient} if ambient else {}, itertools.count())
    interpreter.steps = steps
    mode = FunctionalTensorMode(pre_dispatch=True, export=True)
    placeholders = dynamo_graph.graph.find_nodes(op="placeholder")

    def functional(*args: Any) -> Any:
        with mode:
            wrapped = [FunctionalTensor.to_functional(a) if isinstance(a, torch.Tensor) else a for a in args]
            interpreter.watched = [w for w in wrapped if isinstance(w, FunctionalTensor)]
            outputs = interpreter.run(*wrapped)
            for position, value in enumerate(wrapped):
                if isinstance(value, FunctionalTensor) and _is_mutated(value):
                    if not may_be_written(placeholders[position], source_name(placeholders[position])):
                        node = interpreter.mutation[1] if interpreter.mutation else None
                        raise CannotCapture("an input, parameter or buffer is changed in place", node)
                    interpreter.written.append(position)
            become = [wrapped[position] for position in interpreter.written]
            interpreter.returned = {
                place: number for place, x in enumerate(outputs) for number, buffer in enumerate(become) if x is buffer
            }
            return pytree.tree_map_only(FunctionalTensor, _unwrap, (outputs, become))

    with (
        fake_mode,
        enable_python_dispatcher(),
        torch.fx.traceback.preserve_node_meta(),
        restored_autocast(),
        _disable_saved_tensors_hooks_during_tracing(),
    ):
        try:
            traced = make_fx(functional, pre_dispatch=True, tracing_mode="real", _allow_non_fake_inputs=True)(*values)
        except CannotCapture:
            raise
        except Exception as error:
            reason = f"tracing to functional ATen failed: {type(error).__name__}: {_first_line(error)}"
            raise CannotCapture(reason, interpreter.current) from error
    write(traced, interpreter.written, interpreter.returned)
    return traced


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _unwrap(value: FunctionalTensor) -> torch.Tensor:
    torch._sync(value)  # type: ignore[attr-defined, no-untyped-call]
    return torch._from_functional_tensor(value.elem)


def _spell_views_as_reshapes(graph_module: fx.GraphModule) -> None:
    """A view is a promise about strides, and fake strides (of an attention operator's output, say) may differ from
    real ones; a reshape is the same wherever the view was right."""
    for node in graph_module.graph.nodes:
        if node.target in (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default):
            node.target = torch.ops.aten.reshape.default


def _spell_copies_out(editor: GraphEditor) -> None:
    """`x[:, 0] = y` copies y over a part of x. That functional copy has no derivative: it is a new tensor with the
    values of y, cast to x's dtype and repeated to the part's shape, whatever x held."""
    aten = torch.ops.aten
    for node in editor.graph.find_nodes(op="call_function", target=aten.copy.default):
        made, part, given = node.args[1], node.meta["val"], node.args[1].meta["val"]
        with editor.at(before=node, like=node):
            if (given.dtype, given.device) != (part.dtype, part.device):
                made = editor.call(aten._to_copy.default, made, dtype=part.dtype, device=part.device)
            if [size_expr(s) for s in given.shape] != [size_expr(s) for s in part.shape]:
                made = editor.call(aten.expand.default, made, list(part.shape))
            made = editor.call(aten.clone.default, made, memory_format=torch.contiguous_format)
        editor.replace(node, made)
        editor.erase(node)


def _value_constants(graph_module: fx.GraphModule, fake_mode: FakeTensorMode) -> None:
    """Tensor literals get fake values of the graph's own mode."""
    for node in graph_module.graph.find_nodes(op="get_attr"):
        constant = getattr(graph_module, str(node.target), None)
        if isinstance(constant, FakeTensor):
            raise CannotCapture("a tensor is made of numbers that tracing does not see", node)
        if isinstance(constant, torch.Tensor):
            node.meta["val"] = fake_mode.from_tensor(constant, static_shapes=True)


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
        value = source.meta.get("example_value", source.meta.get("val"))
        node.meta["gr_requires_grad"] = isinstance(value, torch.Tensor) and value.requires_grad
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
        raise CannotCapture(f"the higher-order operator {target} has no functional form here", node)
    if isinstance(target, torch._ops.OpOverload):
        if target._schema.is_mutable and target is not COPY:
            raise CannotCapture(f"{target} mutates its input", node)
        return
    if target in _MODE_CALLS:
        raise CannotCapture("a grad-mode or autocast region is left in the graph", node)
    module = getattr(target, "__module__", "") or ""
    if target not in vars(operator).values() and not module.startswith(
        ("torch.sym", "torch", "math", "_operator")
    ):
        raise CannotCapture(f"unexpected call to {target}", node)
